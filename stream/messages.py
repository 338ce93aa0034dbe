"""Every message on the bus.

Between nodes: multipart of topic, msgpack header and the raw bytes of each array; never pickle. To the world: the
``emotion.*`` topics, two parts, topic and UTF-8 JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np


class Message(msgspec.Struct, kw_only=True, tag=True):
    """What all messages between nodes carry. Media times are nanoseconds on the stream's own timeline;
    ``captured_ns`` (Unix epoch) is when the last sample in the message was captured. The publisher sets ``seq``
    (per topic, no gaps) and ``sent_ns``."""

    stream: str
    media_start_ns: int
    media_end_ns: int
    captured_ns: int
    seq: int = 0
    sent_ns: int = 0

    @property
    def topic(self) -> str:
        return f"{type(self).__name__.lower()}.{self.stream}"


class Pcm(Message):
    """``samples``: (n,) int16, 16 kHz, mono."""

    samples: np.ndarray


class MfccRows(Message):
    """``rows``: (frames, 120) float32; row i describes the 25 ms from ``media_start_ns`` + 10 ms · i."""

    rows: np.ndarray

    @property
    def topic(self) -> str:
        return f"mfcc.{self.stream}"


class Face(Message):
    """One frame at ``media_start_ns``. ``crop``: (48, 48) uint8, or (0, 0) where no face is seen; ``box``: x, y,
    width, height as parts of the frame's width and height."""

    crop: np.ndarray
    box: tuple[float, float, float, float] | None = None
    score: float = 0.0

    @property
    def found(self) -> bool:
        return self.crop.size > 0


class Word(msgspec.Struct):
    """A recognised word; times in seconds on the stream's timeline, confidence in [0, 1]."""

    word: str
    start_s: float
    end_s: float
    confidence: float


class SpeechEvent(Message):
    """What is said. ``event``: ``started``; ``words`` (so far, replaces the last); ``paused`` (first silence, words
    final unless speech goes on); ``ended``; ``progress`` (nothing new, but everything before ``media_end_ns`` is
    known). ``start_ns`` and ``end_ns`` bound the utterance's speech; ``speech_captured_ns`` is when its last sample
    was captured; ``received_ns`` when the node began with the frame that caused this event, and ``recognition_ns``
    what the recogniser then took."""

    event: Literal["started", "words", "paused", "ended", "progress"]
    utterance: int = 0
    start_ns: int = 0
    end_ns: int = 0
    words: list[Word] = []
    speech_captured_ns: int = 0
    received_ns: int = 0
    recognition_ns: int = 0

    @property
    def topic(self) -> str:
        return f"speech.{self.stream}"


class End(Message):
    """No more messages on ``of`` (``pcm``, ``mfcc``, ``face`` or ``speech``) of this stream, and why."""

    of: Literal["pcm", "mfcc", "face", "speech"]
    reason: str

    @property
    def topic(self) -> str:
        return f"{self.of}.{self.stream}"


class Health(Message):
    """Heartbeat of a node: ``counters`` since its start, messages waiting, dropped and missed, processor and memory."""

    node: str
    state: Literal["starting", "ready", "running", "done"]
    counters: dict[str, int] = {}
    queued: int = 0
    dropped: int = 0
    gaps: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0

    @property
    def topic(self) -> str:
        return f"health.{self.node}"


class Log(Message):
    """One line for the user, from a node."""

    node: str
    level: str
    text: str

    @property
    def topic(self) -> str:
        return f"log.{self.node}"


class Control(Message):
    """From the supervisor: ``go`` (media time 0 is ``at_ns``) or ``stop``."""

    command: Literal["go", "stop"]
    at_ns: int = 0

    @property
    def topic(self) -> str:
        return "control"


_ANY = Pcm | MfccRows | Face | SpeechEvent | End | Health | Log | Control


class Codec:
    """Messages to parts and back. One per socket: it is not for several threads."""

    def __init__(self) -> None:
        self._arrays: list[Any] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._lift)
        self._decoder = msgspec.msgpack.Decoder(_ANY, dec_hook=self._lower)

    def encode(self, message: Message) -> list[Any]:
        """Header and the buffer of each array, without copying the arrays."""
        self._arrays = []
        return [self._encoder.encode(message), *self._arrays]

    def decode(self, parts: Sequence[Any]) -> Message:
        """The message in ``parts`` (header, buffers); arrays are read-only views of the buffers.

        Raises msgspec.DecodeError or msgspec.ValidationError if the parts are not a message.
        """
        self._arrays = list(parts[1:])
        try:
            return self._decoder.decode(parts[0])
        except (IndexError, UnicodeDecodeError) as error:
            raise msgspec.DecodeError(f"not a message ({error})") from error

    def _lift(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f"{type(value).__name__} is not for the bus")
        self._arrays.append(np.ascontiguousarray(value).data if value.size else b"")
        return [value.dtype.str, value.shape, len(self._arrays) - 1]

    def _lower(self, kind: type, value: Any) -> Any:
        if kind is not np.ndarray:
            raise NotImplementedError(f"{kind} is not for the bus")
        try:
            dtype, shape, part = value
            return np.frombuffer(self._arrays[part], np.dtype(dtype)).reshape(shape)
        except (TypeError, ValueError, IndexError, SyntaxError) as error:  # numpy parses a dtype's text
            raise msgspec.ValidationError(f"not an array of this message ({error})") from error


class Evidence(msgspec.Struct):
    """What one modality gave: ``frames`` (MFCC frames, faces, words) that went into the network; ``coverage``, the
    part of the time that they cover, in [0, 1]; ``contribution``, by how much the label's probability drops when the
    modality is left out (with nothing else there: its excess over chance)."""

    frames: int
    coverage: float
    contribution: float


class Latency(msgspec.Struct):
    """Milliseconds. ``total`` runs from the capture of the last speech sample to the publishing of the label; the
    others are its parts and sum to it: waiting for the silence that ends an utterance; finishing recognition;
    waiting in queues and for late modalities; encoding faces and words; the fusion network; all else."""

    total: float
    endpoint_wait: float
    recognition: float
    queue: float
    encode: float
    fusion: float
    other: float


class Emotion(msgspec.Struct, kw_only=True):
    """The public message of ``emotion.utterance.<stream>`` (the label, once per utterance) and
    ``emotion.window.<stream>`` (a running estimate while someone speaks). Times in seconds on the stream's timeline;
    ``captured_ns`` and ``published_ns`` are Unix time. ``latency_ms`` is null where there is no live capture to
    measure from: running estimates, and files read as fast as possible."""

    schema: Literal["emostream/1"] = "emostream/1"
    kind: Literal["utterance", "window"]
    stream: str
    seq: int
    utterance: int
    start_s: float
    end_s: float
    label: str
    confidence: float
    uncertain: bool
    probabilities: dict[str, float]
    text: str
    words: list[Word]
    modalities: dict[str, Evidence]
    latency_ms: Latency | None
    captured_ns: int
    published_ns: int
    bundle: str
    backend: str

    @property
    def topic(self) -> str:
        return f"emotion.{self.kind}.{self.stream}"


_emotion_encoder = msgspec.json.Encoder()
_emotion_decoder = msgspec.json.Decoder(Emotion)


def encode_emotion(message: Emotion) -> bytes:
    """UTF-8 JSON of a public message."""
    return _emotion_encoder.encode(message)


def decode_emotion(data: bytes) -> Emotion:
    """A public message from its JSON. Raises msgspec.DecodeError if it is not one."""
    try:
        return _emotion_decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8 ({error})") from error


def emotion_json_schema() -> dict[str, Any]:
    """JSON Schema of the public message."""
    return msgspec.json.schema(Emotion)


if __name__ == "__main__":  # python -m emostream.stream.messages > docs/emotion.schema.json
    print(msgspec.json.format(msgspec.json.encode(emotion_json_schema()), indent=2).decode())
