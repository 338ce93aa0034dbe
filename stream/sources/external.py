"""Sound, pictures and words from another program, such as a robot's microphone array, camera or recogniser.

The source binds a PULL socket; the program connects a PUSH socket and sends messages of one or two frames: a JSON
``Header``, and the samples or pixels. docs/producers.md describes them for authors of such programs.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import av
import msgspec
import numpy as np
import zmq

from emostream.errors import BusError, SourceError
from emostream.stream.bus import bind
from emostream.stream.clock import Clock
from emostream.stream.emotion import Word
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources.base import GAP_NS, AudioChunk, HeardWords, NoTrack, VideoFrame
from emostream.stream.sources.decode import Sampler
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)

_ENDPOINT = re.compile(r"(?:ipc://(?P<path>.+)|tcp://(?P<host>[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5})")
_IDLE_MS = 100
_QUEUE = 64  # messages in the socket's queue; if it is full, the program's send blocks
_LARGEST = 64 << 20  # bytes per message; a colour picture of 4096 x 4096 has 48 MB
_OLD_NS, _AHEAD_NS = 10_000_000_000, 500_000_000  # how far a message's time may be before or after its arrival
_EARLY_NS, _LATE_NS = 500_000_000, 300_000_000  # accepted jitter of sound without times
_OTHERS_NS = 2_000_000_000  # all media must begin within this time after the first message
_WARN_NS = 60_000_000_000
_MOST_MISSED = 1_000_000  # messages that a gap in the numbers counts for, at most
_LONGEST_S, _MOST_SIDE, _MOST_CHANNELS, _MOST_WORDS = 2.0, 8192, 32, 200
_DTYPES = {"s16le": "<i2", "f32le": "<f4"}
_CHANNELS = {"gray8": 1, "rgb24": 3, "bgr24": 3}


class ToldWord(msgspec.Struct):
    """A word from the program's own recogniser; ``start`` and ``end``: Unix times in seconds."""

    word: str
    start: float
    end: float
    confidence: float = 1.0


class Header(msgspec.Struct):
    """``time``: Unix time in seconds of the first sample, or of the picture; without it, the time of arrival counts.
    ``seq``: a number that grows by one with each message of a type, if the program counts them."""

    type: Literal["audio", "video", "words", "end"]
    time: float | None = None
    seq: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] | None = None
    rate: int = 16_000
    channels: int = 1
    format: Literal["s16le", "f32le", "gray8", "rgb24", "bgr24", "jpeg"] = "s16le"
    width: int = 0
    height: int = 0
    words: list[ToldWord] = []


class Refused(Exception):
    """A message was not accepted; says why."""


class ExternalSource:
    """Its items have Unix times by the run's clock. Invalid messages are refused, with at most one warning a minute,
    and counted (``refused``). ``source_gaps`` counts numbers that never came, ``source_dropped`` sound that came faster
    than real time. The program may end and start again at any time."""

    live = True

    def __init__(self, spec: SourceSpec, media: frozenset[Medium], fps: float, clock: Clock) -> None:
        self.name, self._endpoint = str(spec), spec.location
        self._media, self._clock, self._sampler = media, clock, Sampler(fps)
        self._context: zmq.Context[Any] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._decoder = msgspec.json.Decoder(Header)
        self._warned_ns: int | None = None
        self._first_ns: int | None = None
        self._seen: set[str] = set()
        self._missing: set[str] = set()
        self._next_ns: int | None = None  # expected start of the next sound
        self._next_seq: dict[str, int] = {}
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        check_endpoint(self._endpoint, self.name)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.linger, self._socket.rcvhwm, self._socket.maxmsgsize = 0, _QUEUE, _LARGEST
        try:
            bind(self._socket, self._endpoint, setting="")
        except BusError as error:
            self.close()
            raise SourceError(f"{self.name} cannot be opened: {error}") from error

    def items(self) -> Iterator[AudioChunk | VideoFrame | HeardWords | NoTrack | None]:
        assert self._socket is not None
        while True:
            yield from self._absent()
            if not self._socket.poll(_IDLE_MS):
                yield None
                continue
            frames = self._socket.recv_multipart()
            arrived_ns = self._clock.now_ns()
            try:
                item = self._read(frames, arrived_ns)
            except Refused as why:
                self._refuse(str(why), arrived_ns)
                continue
            if item is None:
                return
            if not isinstance(item, VideoFrame) or self._sampler.wants(item.media_ns):
                yield item

    def close(self) -> None:
        if self._context is not None:
            self._context.destroy(0)
            self._context = None

    def _absent(self) -> Iterator[NoTrack]:
        """The media that have sent nothing, some time after others began."""
        if self._first_ns is None or self._clock.now_ns() - self._first_ns < _OTHERS_NS:
            return
        for medium in sorted(self._media - self._seen - self._missing):
            self._missing.add(medium)
            yield NoTrack(medium)

    def _read(self, frames: list[bytes], arrived_ns: int) -> AudioChunk | VideoFrame | HeardWords | None:
        """The item in a message; None for the end. Raises Refused."""
        try:
            header = self._decoder.decode(frames[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Refused(f"no header: {error}") from error
        if header.type == "end":
            return None
        wanted = 1 if header.type == "words" else 2
        if len(frames) != wanted:
            raise Refused(f"{header.type} of {len(frames)} frames in place of {wanted}")
        if header.type in self._missing:
            raise Refused(f"{header.type} that begins later than {_OTHERS_NS / 1e9:g} s after the rest; begin it again")
        if header.type != "words" and header.type not in self._media:
            raise Refused(f"{header.type}, which this stream does not take from it")
        time_ns = self._time(header.time, arrived_ns)
        if header.type == "audio":
            item: AudioChunk | VideoFrame | HeardWords = self._sound(header, frames[1], time_ns, arrived_ns)
        elif header.type == "video":
            item = VideoFrame(_picture(header, frames[1]), time_ns if time_ns is not None else arrived_ns)
        else:
            item = self._words(header.words, arrived_ns)
        self._count(header)
        self._first_ns = self._first_ns or arrived_ns
        self._seen.add(header.type)
        return item

    def _time(self, seconds: float | None, arrived_ns: int) -> int | None:
        """Map a Unix time to the run's clock, which does not jump when the wall clock is set. Raises Refused."""
        if seconds is None:
            return None
        if not abs(seconds) < 1e11:
            raise Refused(f"time {seconds} is no Unix time in seconds")
        age_ns = time.time_ns() - int(seconds * 1e9)
        if not -_AHEAD_NS <= age_ns <= _OLD_NS:
            raise Refused(
                f"time {seconds:.3f} is {age_ns / 1e9:.1f} s before it came; it must be a Unix time of this clock"
            )
        return arrived_ns - age_ns

    def _sound(self, header: Header, data: bytes, time_ns: int | None, arrived_ns: int) -> AudioChunk:
        dtype = _DTYPES.get(header.format)
        if dtype is None:
            raise Refused(f"sound in the format {header.format}; send s16le or f32le")
        if not 8000 <= header.rate <= 192_000 or not 1 <= header.channels <= _MOST_CHANNELS:
            raise Refused(f"sound of {header.channels} channels at {header.rate} Hz; 8000 to 192,000 Hz are possible")
        frame = np.dtype(dtype).itemsize * header.channels
        if not data or len(data) % frame or len(data) > _LONGEST_S * header.rate * frame:
            raise Refused(f"{len(data)} bytes of sound; send whole frames of {frame} bytes, {_LONGEST_S:g} s at most")
        samples = np.frombuffer(data, dtype).reshape(-1, header.channels).astype(np.float32)
        if dtype == "<i2":
            samples /= 32768
        elif not np.isfinite(samples).all():
            raise Refused("sound with samples that are no numbers")
        length_ns = len(samples) * 1_000_000_000 // header.rate
        start_ns = time_ns if time_ns is not None else arrived_ns - length_ns
        early_ns, late_ns = (GAP_NS, GAP_NS) if time_ns is not None else (_EARLY_NS, _LATE_NS)
        if self._next_ns is not None and -early_ns <= start_ns - self._next_ns <= late_ns:
            start_ns = self._next_ns  # arrivals and time stamps jitter a little
        elif self._next_ns is not None and start_ns < self._next_ns:
            self.counters["source_dropped"] += 1
            raise Refused("sound that comes faster than it can have been said, or twice")
        chunk = AudioChunk(np.clip(samples, -1, 1), header.rate, start_ns)
        self._next_ns = chunk.media_end_ns
        return chunk

    def _words(self, words: list[ToldWord], arrived_ns: int) -> HeardWords:
        if len(words) > _MOST_WORDS or any(len(word.word) > 100 or not word.word.strip() for word in words):
            raise Refused(f"{len(words)} words; {_MOST_WORDS} of 100 letters at most are possible")
        told = []
        for word in words:
            start_ns, end_ns = self._time(word.start, arrived_ns), self._time(word.end, arrived_ns)
            assert start_ns is not None and end_ns is not None
            if end_ns < start_ns or not 0 <= word.confidence <= 1:
                raise Refused(f"a word from {word.start} to {word.end} of confidence {word.confidence}")
            told.append(Word(word.word.strip(), start_ns / 1e9, end_ns / 1e9, word.confidence))
        return HeardWords(tuple(told), arrived_ns)

    def _count(self, header: Header) -> None:
        if header.seq is None:
            return
        expected = self._next_seq.get(header.type, header.seq)
        missed = min(max(0, header.seq - expected), _MOST_MISSED)  # a restarted program counts from 0
        self.counters["source_gaps"] += missed
        self._next_seq[header.type] = header.seq + 1

    def _refuse(self, why: str, now_ns: int) -> None:
        self.counters["refused"] += 1
        if self._warned_ns is None or now_ns - self._warned_ns >= _WARN_NS:
            self._warned_ns = now_ns
            log.warning("%s: a message was refused: %s", self.name, why)


def check_endpoint(endpoint: str, name: str) -> None:
    """Raises SourceError unless only this machine can reach the endpoint."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise SourceError(f"{name}: write it as zmq:tcp://127.0.0.1:PORT or zmq:ipc://PATH")
    if match["path"] or match["host"] == "localhost":
        return
    try:
        local = ipaddress.ip_address(match["host"].strip("[]")).is_loopback
    except ValueError:
        local = False
    if not local:
        raise SourceError(
            f"{name}: other machines could send to it; use 127.0.0.1 or ipc, and a tunnel (ssh -L) from elsewhere"
        )


def _picture(header: Header, data: bytes) -> np.ndarray:
    """(height, width) gray uint8. Raises Refused."""
    if header.format == "jpeg":
        return _jpeg(data)
    channels = _CHANNELS.get(header.format)
    if channels is None:
        raise Refused(f"pictures in the format {header.format}; send gray8, rgb24, bgr24 or jpeg")
    if not (0 < header.width <= _MOST_SIDE and 0 < header.height <= _MOST_SIDE):
        raise Refused(f"a picture of {header.width}x{header.height}")
    if len(data) != header.width * header.height * channels:
        raise Refused(f"{len(data)} bytes for {header.width}x{header.height} {header.format}")
    pixels = np.frombuffer(data, np.uint8).reshape(header.height, header.width, channels)
    if channels == 1:
        return pixels[:, :, 0]
    return av.VideoFrame.from_ndarray(pixels, format=header.format).to_ndarray(format="gray")


def _jpeg(data: bytes) -> np.ndarray:
    decoder = av.CodecContext.create("mjpeg", "r")
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except (av.error.FFmpegError, ValueError) as error:
        raise Refused(f"a JPEG that cannot be read ({error})") from error
    if not frames or max(frames[0].width, frames[0].height) > _MOST_SIDE:
        raise Refused("a JPEG that cannot be read, or is too large")
    return frames[0].to_ndarray(format="gray")
