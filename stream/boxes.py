"""What a box and a hub have in common: keys, the state of a box, a delivery, and how a zenoh session is opened.

Keys are ``emostream/SITE/BOX/…``: ``STREAM/utterance`` and ``STREAM/window`` (the messages as published), ``status``,
``uplink`` (an ``UplinkState``), ``alive`` (a liveliness token) and ``deliver`` (a query: labels that the hub shall
keep; its answer says that it has them). ``Uplink`` says why labels are both published and delivered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from emostream.errors import BusError, ConfigError
from emostream.stream.emotion import Emotion, decode_emotion, decode_public

PREFIX = "emostream"
NAME = r"[A-Za-z0-9_.-]{1,64}"  # of a site and of a box
BATCH_LABELS, BATCH_BYTES = 200, 64 << 10  # of a delivery; the first label counts whatever its size
MOST_DELIVERY_BYTES = 4 << 20  # a hub takes no larger one
MOST_BOXES = 20_000  # of a hub
STORED = b"stored"
_ENDPOINT = re.compile(r"(tcp|tls|quic|ws|wss)/(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_CONNECT_MS = 3000


class UplinkState(msgspec.Struct, kw_only=True):
    """How far a box's uplink is. ``waiting`` and ``waiting_bytes``: labels that the hub has not confirmed;
    ``behind_s``: the age of the oldest of them; ``lost``: labels that fell out of the full store, since it was made;
    ``run_there``: whether a run publishes there."""

    schema: str = "emostream-uplink/1"
    waiting: int = 0
    waiting_bytes: int = 0
    behind_s: float = 0.0
    lost: int = 0
    run_there: bool = False


class Delivery(NamedTuple):
    """What a box delivers: labels, each as the JSON that came and what it says."""

    site: str
    box: str
    state: UplinkState
    labels: list[tuple[bytes, Emotion]]


_encoder = msgspec.json.Encoder()
_state_decoder = msgspec.json.Decoder(UplinkState)


def key(site: str, box: str, *parts: str) -> str:
    """A key of a box; ``*`` for any."""
    return "/".join((PREFIX, site, box, *parts))


def site_and_box(of: object) -> tuple[str, str]:
    """The site and the box that a key of zenoh names. Raises ValueError if they are none: a key may hold wildcards."""
    match = re.match(rf"{PREFIX}/({NAME})/({NAME})/", str(of))
    if not match:
        raise ValueError(f"{of}: no key of a box")
    return match[1], match[2]


def check_name(option: str, name: str) -> None:
    """Raises ConfigError if a site or a box cannot be named so."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{option} {name!r}: up to 64 letters, digits, dots, - and _")


def encode_state(state: UplinkState) -> bytes:
    """UTF-8 JSON of a state."""
    return _encoder.encode(state)


def decode_state(data: bytes) -> UplinkState:
    """A state from its JSON. Raises msgspec.DecodeError if that is not one."""
    return decode_public(_state_decoder, data)


def encode_delivery(state: UplinkState, labels: Sequence[bytes]) -> bytes:
    """A delivery: a line with the state, then a line for each label, JSON as published."""
    return b"\n".join((encode_state(state), *labels))


def decode_delivery(site: str, box: str, data: bytes) -> Delivery:
    """What a box delivers. Raises msgspec.DecodeError if that is no delivery, and ValueError if it holds an estimate or
    a number of more than 64 bits."""
    if len(data) > MOST_DELIVERY_BYTES:
        raise msgspec.DecodeError(f"more than {MOST_DELIVERY_BYTES} bytes")
    first, *labels = data.split(b"\n")
    emotions = [(label, decode_emotion(label)) for label in labels]
    for _, emotion in emotions:
        numbers = (emotion.seq, emotion.utterance, emotion.captured_ns, emotion.published_ns, emotion.face or 0)
        if emotion.kind != "utterance" or not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
            raise ValueError("no label, or a number that is too large")
    return Delivery(site, box, decode_state(first), emotions)


def load_zenoh() -> Any:
    """The module zenoh. Raises ConfigError if it is missing."""
    try:
        import zenoh
    except ImportError as error:
        raise ConfigError("this needs a package: pip install 'emostream[zenoh]'") from error
    return zenoh


def make_session_config(path: Path | None, connect: Sequence[str], listen: Sequence[str] = ()) -> Any:
    """A zenoh configuration that connects to ``connect`` and listens at ``listen``, and nowhere else: as a client, or
    as a router where it listens. ``path``: a file of zenoh's own (JSON5), for certificates and access control; scouting
    is off unless it turns it on. The environment's ``ZENOH_CONFIG`` does not count.

    Raises ConfigError if an endpoint or the file cannot be used, or the package is missing."""
    zenoh = load_zenoh()
    for endpoint in (*connect, *listen):
        match = _ENDPOINT.fullmatch(endpoint)
        if not match or not 0 < int(match[3]) < 65536:
            raise ConfigError(f"{endpoint}: write it as tls/HOST:PORT or tcp/HOST:PORT")
    try:
        config = zenoh.Config() if path is None else zenoh.Config.from_file(path)
    except zenoh.ZError as error:
        raise ConfigError(f"{path}: not a configuration of zenoh ({_short(error)})") from error
    settings = {
        "mode": "router" if listen else "client",
        "connect/endpoints": list(connect),
        "connect/timeout_ms": -1 if listen else _CONNECT_MS,
        "connect/exit_on_failure": not listen,
        "listen/endpoints": list(listen),
        "listen/exit_on_failure": True,
        "transport/link/rx/max_message_size": 2 * MOST_DELIVERY_BYTES,  # else a box could send 1 GB
        "transport/shared_memory/enabled": False,  # else 16 MB for each box of the same machine, in /dev/shm
        "transport/unicast/max_sessions": MOST_BOXES,  # else 1000
    }
    for scouting in ("scouting/multicast/enabled", "scouting/gossip/enabled"):
        if config.get_json(scouting) == "null":
            settings[scouting] = False
    for name, value in settings.items():
        config.insert_json5(name, json.dumps(value))
    return config


def open_session(config: Any) -> Any:
    """A session. Raises BusError if it cannot be opened: whom it shall connect to cannot be reached or refuses, or an
    address to listen at is taken."""
    zenoh = load_zenoh()
    try:
        return zenoh.open(config)
    except zenoh.ZError as error:
        raise BusError(_short(error)) from error


def _short(error: Exception) -> str:
    """What zenoh says, without the places in its source."""
    return re.sub(r"\s+at /\S+\.rs:\d+\.?", "", str(error)).strip().rstrip(".")
