"""The messages between nodes: multipart messages of topic, msgpack header and the raw bytes of each array; no pickle.

The public messages are in ``emotion.py`` and ``status.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from emostream.stream import topics
from emostream.stream.emotion import Box, Word


class Message(msgspec.Struct, kw_only=True, tag=True):
    """The fields of all messages between nodes. ``stream`` is empty if the message is not about one stream. The
    publisher sets ``seq`` (per topic, without gaps) and ``sent_ns`` (Unix time)."""

    stream: str = ""
    seq: int = 0
    sent_ns: int = 0

    @property
    def topic(self) -> str:
        raise NotImplementedError


class Media(Message):
    """A message about a span of media. Media times are nanoseconds on the stream's own timeline; ``captured_ns`` (Unix
    time) is when the span's last sample was captured, 0 if nothing is captured live."""

    stream: str
    media_start_ns: int
    media_end_ns: int
    captured_ns: int


class Pcm(Media):
    """``samples``: (n,) int16, 16 kHz, mono."""

    samples: np.ndarray

    @property
    def topic(self) -> str:
        return topics.stream_topic("pcm", self.stream)


class AudioRows(Media):
    """Features of sound, one row every 10 ms. ``rows``: (frames, 32) float32 log-mel values in a live run; row i
    describes the 32 ms from ``media_start_ns`` + 10 ms · i."""

    rows: np.ndarray

    @property
    def topic(self) -> str:
        return topics.stream_topic("audio", self.stream)


Mouth = tuple[float, float, float]  # see features.mouth


class FaceInFrame(msgspec.Struct):
    """A face in a frame. ``person``: the follower's id of the person; ``crop``: (48, 48) uint8."""

    person: int
    crop: np.ndarray
    box: Box | None = None
    score: float = 0.0
    mouth: Mouth | None = None


class Face(Media):
    """One frame at ``media_start_ns`` and its main face. ``crop``: (48, 48) uint8, or (0, 0) if no face is seen;
    ``others``: the other faces that are followed; ``faces``: how many there are, followed or not."""

    crop: np.ndarray
    box: Box | None = None
    score: float = 0.0
    person: int = 0
    mouth: Mouth | None = None
    others: list[FaceInFrame] = []
    faces: int = 0

    @property
    def topic(self) -> str:
        return topics.stream_topic("face", self.stream)

    @property
    def found(self) -> bool:
        """Whether a face is seen."""
        return self.crop.size > 0

    @property
    def people(self) -> list[FaceInFrame]:
        """All faces that are followed, the main one first."""
        if not self.found:
            return []
        return [FaceInFrame(self.person, self.crop, self.box, self.score, self.mouth), *self.others]


class Picture(Media):
    """A picture to record or to show; only sent while somebody records or looks. ``jpeg``: (n,) uint8; ``width`` and
    ``height`` in pixels."""

    jpeg: np.ndarray
    width: int
    height: int

    @property
    def topic(self) -> str:
        return topics.stream_topic("picture", self.stream)


class Words(Message):
    """Words from another program's recogniser for the speech node, with times on the stream's timeline."""

    stream: str
    words: list[Word]

    @property
    def topic(self) -> str:
        return topics.stream_topic("words", self.stream)


class SpeechEvent(Media):
    """A step in the recognition of an utterance. ``event``: ``started``; ``words`` (all words so far, replacing earlier
    ones); ``paused`` (first silence; the words are final unless speech resumes); ``ended``; ``dropped`` (ended, but so
    much of it is missing that it gets no label); ``progress`` (nothing new, but everything before ``media_end_ns`` has
    been heard).

    ``start_ns`` and ``end_ns`` are the media times of the utterance's first and last speech; ``speech_captured_ns`` is
    when that last speech was captured, ``received_ns`` when the node received the frame that caused this event, and
    ``recognition_ns`` how long the recogniser then took. When an utterance pauses or ends, ``voice`` is its speaker
    vector, (dim,) float32 of length 1 (see ``speech.speaker``), computed from ``voice_s`` seconds; None if there is
    none. ``overlap``: the share of it in which two or more people speak at once (see ``speech.overlap``)."""

    event: Literal["started", "words", "paused", "ended", "dropped", "progress"]
    utterance: int = 0
    start_ns: int = 0
    end_ns: int = 0
    words: list[Word] = []
    speech_captured_ns: int = 0
    received_ns: int = 0
    recognition_ns: int = 0
    voice: np.ndarray | None = None
    voice_s: float = 0.0
    overlap: float | None = None

    @property
    def topic(self) -> str:
        return topics.stream_topic("speech", self.stream)


class End(Message):
    """The last message of a topic, and why no more will come."""

    stream: str
    content: topics.Content
    reason: str

    @property
    def topic(self) -> str:
        return topics.stream_topic(self.content, self.stream)


class Health(Message):
    """Heartbeat of a node. ``counters``: of its core, since the node started; ``queued``, ``dropped`` and ``gaps``:
    messages that wait in its inbox, that the inbox dropped, and that never arrived; ``behind_s``: how long ago the
    oldest waiting message was captured; ``silent_s``: how long its live source has delivered nothing; ``by_stream``:
    fusion's counters of each stream; ``cpu_s`` and ``rss_bytes``: CPU time and resident memory of the process;
    ``orders``: the serial number of the last ``Orders`` carried out; ``senses``: in the last second, the loudest sample
    (``level_dbfs``), the highest speech probability (``speech``) and the share of pictures with a face (``face``)."""

    node: str
    state: Literal["starting", "ready", "running", "done"]
    counters: dict[str, int] = {}
    queued: int = 0
    dropped: int = 0
    gaps: int = 0
    behind_s: float = 0.0
    silent_s: float = 0.0
    by_stream: dict[str, dict[str, int]] = {}
    cpu_s: float = 0.0
    rss_bytes: int = 0
    orders: int = 0
    senses: dict[str, float] = {}

    @property
    def topic(self) -> str:
        return topics.health_topic(self.node)


class Log(Message):
    """One log line for the user, from a node. The supervisor forwards all lines of the run, with their times
    (``at_ns``), to the recording node."""

    node: str
    level: str
    text: str
    at_ns: int = 0

    @property
    def topic(self) -> str:
        return topics.log_topic(self.node)


class Control(Message):
    """From the supervisor: ``go`` (media time 0 is the Unix time ``at_ns``, for ``stream`` or for all streams that
    wait) or ``stop``."""

    command: Literal["go", "stop"]
    at_ns: int = 0

    @property
    def topic(self) -> str:
        return topics.CONTROL


class Expected(msgspec.Struct):
    """A stream that was added to a run. ``inputs``: the nodes that fusion subscribes to; ``modalities``: what to expect
    of them; ``first``: of its numbers; ``serial``: of the orders that added it; ``sources``: its sources in words."""

    inputs: list[str]
    modalities: list[str]
    first: int
    serial: int
    sources: str = ""


Spans = dict[str, list[tuple[int, int]]]  # by stream: (start, end) in Unix time of the run's clock (ns)


def within(spans: Iterable[tuple[int, int]], at_ns: int) -> bool:
    """Whether a time lies in one of the spans."""
    return any(start_ns <= at_ns < end_ns for start_ns, end_ns in spans)


class Orders(Message):
    """From the supervisor: everything that was requested during the run so far. Nodes carry out what is new and confirm
    it in their heartbeats (``serial``).

    ``muted``: spans whose sound is ignored; ``paused``: spans whose pictures are ignored too. ``removed``: streams that
    end. ``settings``: changes of the configuration, each SECTION.KEY=VALUE. ``added``: streams that fusion has to add,
    by name. ``ended``: after a restart of fusion, the nodes whose End messages the previous process had received.
    """

    serial: int = 0
    muted: Spans = {}
    paused: Spans = {}
    removed: list[str] = []
    settings: list[str] = []
    added: dict[str, Expected] = {}
    ended: list[str] = []

    @property
    def topic(self) -> str:
        return topics.CONTROL


class Label(Message):
    """A public message as JSON (``payload``), from fusion to the supervisor. A program that takes the public endpoint
    while fusion is away cannot send this."""

    payload: str

    @property
    def topic(self) -> str:
        return topics.LABEL


class StatusReport(Message):
    """The public status message as JSON (``payload``), from the supervisor to fusion, which publishes it."""

    payload: str

    @property
    def topic(self) -> str:
        return topics.STATUS


_NUMBERS = re.compile(r"[<>|=]?[biufc][0-9]{1,2}")  # only number types; np.dtype would accept far more
_Seen = Face | Picture
_ANY = Pcm | AudioRows | _Seen | Words | SpeechEvent | End | Health | Log | Control | Orders | Label | StatusReport


class Codec:
    """Converts messages to parts and back. Not thread-safe: use one per socket."""

    def __init__(self) -> None:
        self._arrays: list[Any] = []
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._take_array_out)
        self._decoder: msgspec.msgpack.Decoder[_ANY] = msgspec.msgpack.Decoder(_ANY, dec_hook=self._put_array_back)

    def encode(self, message: Message) -> list[Any]:
        """The header, and the buffer of each array; arrays are not copied."""
        self._arrays = []
        return [self._encoder.encode(message), *self._arrays]

    def decode(self, parts: Sequence[Any]) -> Message:
        """The message in ``parts`` (header, buffers). Its arrays are read-only views of the buffers.

        Raises msgspec.DecodeError or msgspec.ValidationError if the parts are not a message.
        """
        self._arrays = list(parts[1:])
        try:
            return self._decoder.decode(parts[0])
        except (IndexError, UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(f"not a message ({error})") from error

    def _take_array_out(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise NotImplementedError(f"{type(value).__name__} cannot be sent on the bus")
        self._arrays.append(np.ascontiguousarray(value).data if value.size else b"")
        return [value.dtype.str, value.shape, len(self._arrays) - 1]

    def _put_array_back(self, kind: type, value: Any) -> Any:
        if kind is not np.ndarray:
            raise NotImplementedError(f"{kind} cannot be sent on the bus")
        try:
            dtype, shape, part = value
            if not _NUMBERS.fullmatch(dtype):
                raise ValueError(f"{dtype!r} is no type of an array on the bus")
            return np.frombuffer(self._arrays[part], np.dtype(dtype)).reshape(shape)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise msgspec.ValidationError(f"not an array of this message ({error})") from error
