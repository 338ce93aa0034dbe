"""The protocol between boxes and replicas: a msgpack header of a fixed type, then the bytes of each array. The header
contains the arrays' sizes; this module knows their types. No pickle.

A box asks the directory ``Where``, joins a replica with each of its streams (``Join``), and then calls it (``Ask``).
Times are durations, each measured by one clock: clocks of different machines are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import zmq

from emostream.engines.bundle import MODALITIES
from emostream.stream.cores.classifier import Classify, Encode, Encoded, Features
from emostream.stream.cores.runs import Call
from emostream.stream.features.face import CROP
from emostream.stream.features.logmel import DIM as MELS
from emostream.stream.features.text import MAX_ROWS

MOST_BYTES = 8 << 20  # per message; ZeroMQ closes a connection that sends a larger one
MOST_CROPS = 64  # per call, for all faces together, since other calls wait while it runs
MOST_SOUND = 2000  # log-mel rows per call: 20 s
MOST_ITEMS = 32  # per call; each face in view is an item of its own
MOST_VECTORS = 4096  # rows of one modality of an item
_MOST_TEXT = 300  # letters of a reason or a name

Dims = tuple[int, int, int]
"""Sizes of the vectors of sound, faces and words."""


class Where(msgspec.Struct, tag=True):
    """Box to directory: which replicas are there?"""


class Place(msgspec.Struct):
    """A replica: its address and public key, how many streams it has, and how many it takes at most."""

    address: str
    public: str
    streams: int
    most: int


class Places(msgspec.Struct, tag=True):
    """Directory to box: the replicas."""

    places: list[Place]


class Join(msgspec.Struct, tag=True):
    """Box to replica: a stream asks to be admitted. ``stream``: its number on this connection; ``bundle``: the bundle
    that it expects."""

    stream: int
    bundle: str


class Joined(msgspec.Struct, tag=True):
    """Replica to box: the stream is admitted. ``backend``: which backend runs the networks, and where."""

    stream: int
    backend: str


class Refused(msgspec.Struct, tag=True):
    """Replica to box: the stream is refused. ``full``: there may be room later, or elsewhere."""

    stream: int
    why: str
    full: bool = False


class Leave(msgspec.Struct, tag=True):
    """Box to replica: a stream ends."""

    stream: int


class Ping(msgspec.Struct, tag=True):
    """Both ways: is anybody there? The answer is the same message."""

    number: int


class Ask(msgspec.Struct, tag=True):
    """Box to replica: a stream's call. Either ``crops`` (how many), ``rows`` and ``pieces`` (the length of each), or
    ``items`` (numbers of rows of sound, faces and words) and ``contributions``. ``budget_ms``: how long the box
    waits."""

    stream: int
    number: int
    budget_ms: float
    crops: int = 0
    rows: list[int] = []
    pieces: list[int] = []
    items: list[tuple[int, int, int]] = []
    contributions: list[bool] = []


class Answer(msgspec.Struct, tag=True):
    """Replica to box; the sizes of the arrays follow from the call. ``queue_ms`` and ``run_ms``: how long the call
    waited and its batch ran, by the replica's clock; ``batch``: number of calls in that batch."""

    number: int
    queue_ms: float
    run_ms: float
    batch: int


class Failed(msgspec.Struct, tag=True):
    """Replica to box: a call has no answer. ``rejoin``: the replica does not know the stream (any more)."""

    number: int
    why: str
    rejoin: bool = False


_T = TypeVar("_T")
ToReplica = Where | Join | Leave | Ping | Ask
ToBox = Places | Joined | Refused | Ping | Answer | Failed

_encoder = msgspec.msgpack.Encoder()
_to_replica: msgspec.msgpack.Decoder[ToReplica] = msgspec.msgpack.Decoder(ToReplica)
_to_box: msgspec.msgpack.Decoder[ToBox] = msgspec.msgpack.Decoder(ToBox)


def encode(header: ToReplica | ToBox, arrays: Sequence[np.ndarray] = ()) -> list[Any]:
    """The parts of a message."""
    return [_encoder.encode(header), *(np.ascontiguousarray(array).data if array.size else b"" for array in arrays)]


def decode_to_replica(part: bytes) -> ToReplica:
    """Raises msgspec.DecodeError if it is not a box's message."""
    return _decode(_to_replica, part)


def decode_to_box(part: bytes) -> ToBox:
    """Raises msgspec.DecodeError if it is not a message of a replica or a directory."""
    return _decode(_to_box, part)


def _decode(decoder: msgspec.msgpack.Decoder[_T], part: bytes) -> _T:
    try:
        return decoder.decode(part)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from error


def encode_call(call: Call, stream: int, number: int, budget_ms: float) -> list[Any]:
    """A call as a message. Raises ValueError if it is larger than a replica takes."""
    if isinstance(call, Encode):
        ask = Ask(
            stream, number, budget_ms,
            crops=len(call.crops), rows=[each.shape[1] for each in call.rows],
            pieces=[each.shape[1] for each in call.pieces],
        )  # fmt: skip
        arrays = [call.crops, *call.rows, *call.pieces]
    else:
        # the networks only read the newest rows, but how many depends on the bundle
        sizes = [(len(item.audio), len(item.video), len(item.text)) for item in call.items]
        ask = Ask(stream, number, budget_ms, items=sizes, contributions=list(call.contributions))
        arrays = [getattr(item, name) for item in call.items for name in MODALITIES]
    _check_call(ask)
    return encode(ask, arrays)


def decode_call(ask: Ask, parts: Sequence[bytes], dims: Dims) -> Call:
    """The call in a message. Raises ValueError if its arrays are not as announced, or too large."""
    _check_call(ask)
    if ask.items:
        shapes = [(n, dim) for item in ask.items for n, dim in zip(item, dims, strict=True)]
        arrays = _arrays(parts, shapes, ["<f4"] * len(shapes))
        items = [Features(*arrays[i : i + 3]) for i in range(0, len(arrays), 3)]
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("a vector is no number")
        if not all(item.present() for item in items):
            raise ValueError("an item is empty")
        return Classify(items, ask.contributions)
    shapes3 = [(ask.crops, CROP, CROP), *((1, n, MELS) for n in ask.rows), *((1, n) for n in ask.pieces)]
    kinds = ["|u1", *["<f4"] * len(ask.rows), *["<i8"] * len(ask.pieces)]
    crops, *rest = _arrays(parts, shapes3, kinds)
    return Encode(crops, rest[: len(ask.rows)], rest[len(ask.rows) :])


def _check_call(ask: Ask) -> None:
    if len(ask.items) > MOST_ITEMS or len(ask.items) != len(ask.contributions):
        raise ValueError(f"{len(ask.items)} items; a call has up to {MOST_ITEMS}")
    if ask.items and (ask.crops or ask.rows or ask.pieces):
        raise ValueError("either of the two kinds of calls")
    if any(not 0 <= n <= MOST_VECTORS for item in ask.items for n in item):
        raise ValueError(f"an item has up to {MOST_VECTORS} rows of a modality")
    if not 0 <= ask.crops <= MOST_CROPS:
        raise ValueError(f"{ask.crops} faces; a call has up to {MOST_CROPS}")
    if len(ask.rows) > 1 or any(not 0 < n <= MOST_SOUND or n % 8 for n in ask.rows):
        raise ValueError(f"a call has one stretch of sound, of up to {MOST_SOUND} rows")
    if len(ask.pieces) > 1 or any(not 0 < n <= MAX_ROWS for n in ask.pieces):
        raise ValueError(f"a call has one line of words, of up to {MAX_ROWS} pieces")
    if not (math.isfinite(ask.budget_ms) and 0 <= ask.budget_ms <= 60_000):
        raise ValueError("nobody waits that long")


def encode_answer(answer: Answer, result: Encoded | np.ndarray) -> list[Any]:
    """An answer as a message: vectors, or logits."""
    if isinstance(result, np.ndarray):
        return encode(answer, [result.astype("<f4")])
    return encode(answer, [result.faces, *result.voices, *result.texts])


def decode_answer(parts: Sequence[bytes], call: Call, dims: Dims, labels: int) -> Encoded | np.ndarray:
    """A replica's answer to a call. Raises ValueError if it is not valid."""
    if isinstance(call, Classify):
        return _arrays(parts, [(len(call.rows()), labels)], ["<f4"])[0]
    shapes = [
        (len(call.crops), dims[1]),
        *((1, each.shape[1] // 8, dims[0]) for each in call.rows),
        *((1, each.shape[1], dims[2]) for each in call.pieces),
    ]
    faces, *rest = _arrays(parts, shapes, ["<f4"] * len(shapes))
    return Encoded(faces, rest[: len(call.rows)], rest[len(call.rows) :])


def _arrays(parts: Sequence[bytes], shapes: Sequence[tuple[int, ...]], kinds: Sequence[str]) -> list[np.ndarray]:
    if len(parts) != len(shapes):
        raise ValueError(f"{len(parts)} arrays in place of {len(shapes)}")
    arrays = []
    for part, shape, kind in zip(parts, shapes, kinds, strict=True):
        dtype = np.dtype(kind)
        if len(part) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{len(part)} bytes in place of an array of {shape}")
        arrays.append(np.frombuffer(part, dtype).reshape(shape))
    return arrays


def shortened(text: str) -> str:
    """Sanitise a text from another machine for a log line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_TEXT])


CLIENT_OPTIONS = {
    zmq.LINGER: 0, zmq.SNDHWM: 64, zmq.RCVHWM: 256, zmq.RECONNECT_IVL: 100, zmq.RECONNECT_IVL_MAX: 2000,
    zmq.MAXMSGSIZE: MOST_BYTES, zmq.HEARTBEAT_IVL: 2000, zmq.HEARTBEAT_TIMEOUT: 4000,
}  # fmt: skip
SERVER_OPTIONS = {
    zmq.LINGER: 0, zmq.SNDHWM: 256, zmq.RCVHWM: 64, zmq.MAXMSGSIZE: MOST_BYTES, zmq.ROUTER_MANDATORY: 0,
    zmq.HEARTBEAT_IVL: 2000, zmq.HEARTBEAT_TIMEOUT: 6000,
}  # fmt: skip
