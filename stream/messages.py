"""The messages between nodes: multipart of topic, msgpack header and the raw bytes of each array; never pickle.

What goes out to the world is in ``emotion.py`` and ``status.py``.
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
    """What all messages between nodes carry. ``stream`` is empty if the message is not about one stream. The publisher
    sets ``seq`` (per topic, without gaps) and ``sent_ns`` (Unix time)."""

    stream: str = ""
    seq: int = 0
    sent_ns: int = 0

    @property
    def topic(self) -> str:
        raise NotImplementedError


class Media(Message):
    """A message about a span of media. Media times are nanoseconds on the stream's own timeline; ``captured_ns`` (Unix
    time) is when the last sample of the span was captured, 0 where nothing is captured live."""

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
    """A face of a frame: ``person``, whose it is, by a number of the follower; ``crop`` (48, 48) uint8."""

    person: int
    crop: np.ndarray
    box: Box | None = None
    score: float = 0.0
    mouth: Mouth | None = None


class Face(Media):
    """One frame at ``media_start_ns``, and its main face. ``crop``: (48, 48) uint8, or (0, 0) if no face is seen;
    ``others``: the further faces that are followed; ``faces``: how many there are, followed or not."""

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
    """A picture as it is recorded or shown, and only while somebody records or looks. ``jpeg``: (n,) uint8; ``width``
    and ``height`` in pixels."""

    jpeg: np.ndarray
    width: int
    height: int

    @property
    def topic(self) -> str:
        return topics.stream_topic("picture", self.stream)


class Words(Message):
    """Words of a program's own recogniser, on their way to the speech node; times are those of the stream's media."""

    stream: str
    words: list[Word]

    @property
    def topic(self) -> str:
        return topics.stream_topic("words", self.stream)


class SpeechEvent(Media):
    """A step in the recognition of an utterance. ``event``: ``started``; ``words`` (those so far, in place of the last
    ones); ``paused`` (first silence; the words are final unless speech resumes); ``ended``; ``dropped`` (ended, and so
    much of it is missing that it gets no label); ``progress`` (nothing new, but everything before ``media_end_ns`` has
    been heard).

    ``start_ns`` and ``end_ns`` are the media times of the utterance's first and last speech; ``speech_captured_ns`` is
    when that last speech was captured, ``received_ns`` when the node received the frame that caused this event, and
    ``recognition_ns`` how long the recogniser then took. ``voice``: of an utterance that paused or ended, what its
    voice is like, (dim,) float32 of length 1 (see ``speech.speaker``), and ``voice_s``, from how many seconds; None
    where that is not told. ``overlap``: in which share of it two or more people spoke at once (see
    ``speech.overlap``)."""

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
    oldest of those that wait was captured; ``silent_s``: how long its live source has given nothing; ``by_stream``:
    fusion's counters of each stream; ``cpu_s`` and ``rss_bytes``: processor time and resident memory of the process;
    ``orders``: the serial number of the last ``Orders`` that it follows; ``senses``: of the last second, the loudest
    sample (``level_dbfs``), the highest speech probability (``speech``), the share of pictures with a face
    (``face``)."""

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
    """One line for the user, from a node; and from the supervisor, to whoever records, all lines of the run, with the
    time of each (``at_ns``)."""

    node: str
    level: str
    text: str
    at_ns: int = 0

    @property
    def topic(self) -> str:
        return topics.log_topic(self.node)


class Control(Message):
    """From the supervisor: ``go`` (media time 0 is the Unix time ``at_ns``; of ``stream``, or of all that wait for it)
    or ``stop``."""

    command: Literal["go", "stop"]
    at_ns: int = 0

    @property
    def topic(self) -> str:
        return topics.CONTROL


class Expected(msgspec.Struct):
    """A stream that was added to a run. ``inputs``: the nodes that fusion subscribes to; ``modalities``: what to expect
    of them; ``first``: of its numbers; ``serial``: of the orders that added it."""

    inputs: list[str]
    modalities: list[str]
    first: int
    serial: int


Spans = dict[str, list[tuple[int, int]]]  # by stream, from and to which Unix time of the run's clock (ns)


def within(spans: Iterable[tuple[int, int]], at_ns: int) -> bool:
    """Whether a time lies in one of the spans."""
    return any(start_ns <= at_ns < end_ns for start_ns, end_ns in spans)


class Orders(Message):
    """From the supervisor: all that was asked for while the run goes on. Nodes do what is new in it, and say in their
    heartbeats how far they are (``serial``).

    ``muted``: of the sound captured then, nothing is heard; ``paused``: nor is anything seen. ``removed``: streams that
    end. ``settings``: changes of the configuration, each SECTION.KEY=VALUE. ``added``: for fusion, by name. ``ended``:
    for a fusion that was started again, the nodes whose ends its predecessor took along.
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
    """A public message, ``payload``, as JSON, from fusion to the supervisor. Whoever holds the public endpoint while
    fusion is away cannot send this."""

    payload: str

    @property
    def topic(self) -> str:
        return topics.LABEL


class StatusReport(Message):
    """The public status message, ``payload``, as JSON, from the supervisor to fusion, which publishes it."""

    payload: str

    @property
    def topic(self) -> str:
        return topics.STATUS


_NUMBERS = re.compile(r"[<>|=]?[biufc][0-9]{1,2}")  # numpy would parse, and make, far more than types of numbers
_Seen = Face | Picture
_ANY = Pcm | AudioRows | _Seen | Words | SpeechEvent | End | Health | Log | Control | Orders | Label | StatusReport


class Codec:
    """Messages to parts and back. Not thread-safe: one for each socket."""

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
