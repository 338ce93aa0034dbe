"""A media file in any format that FFmpeg reads. Media time 0 is the start of the file, for both media."""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import av
from av.error import FFmpegError

from emostream.errors import SourceError
from emostream.files import printable
from emostream.stream.sources.access import input_options
from emostream.stream.sources.base import GAP_NS, AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import OPEN_OPTIONS, decode
from emostream.stream.sources.joined import Part, Splitter, parts_of, wav_goes_on
from emostream.stream.sources.tracks import choose, timeline_of
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)


_WITHOUT_LENGTH = ("aac", "ac3", "eac3", "dts", "mpegvideo", "h264", "hevc", "loas", "amr", "gsm", "truehd")
_MP3_LENGTH = (b"Xing", b"Info", b"VBRI")  # headers that contain the number of frames
_FIFO_S = 30.0
_URL = re.compile(r"[a-z]+:/")  # a URL that became a path, which never has two slashes in a row
_HEAD_BYTES = 1 << 20  # so many, since a cover picture may precede the MP3 header


class Bytes:
    """A file as PyAV reads it. FFmpeg itself opens nothing, so that a file cannot lead it to others.

    PyAV raises later what a method here raises, even if FFmpeg could go on, so a place that cannot be sought is -1, as
    FFmpeg expects it, and a failure to read is raised once. ``part``: of a file, what is read as if it were all.
    """

    def __init__(self, path: Path, file: BinaryIO, part: Part | None = None) -> None:
        self.name = str(path)
        self._file = file
        self._begin = 0 if part is None else part[0]
        self._end = None if part is None else part[1]
        self._failed = False
        self.head = b""  # the first bytes read
        self.seekable, self.close = self._file.seekable, self._file.close
        if part is not None:
            self._file.seek(self._begin)

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def read(self, size: int) -> bytes:
        return self._take(self._file.read, size)

    def read1(self, size: int) -> bytes:
        """What is there, ``size`` bytes at most; of a pipe, at least one."""
        return self._take(getattr(self._file, "read1", self._file.read), size)

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        if self._failed:
            return b""
        try:
            data = read(size if self._end is None else max(0, min(size, self._end - self._file.tell())))
            if len(self.head) < _HEAD_BYTES:
                self.head += data
            return data
        except OSError:
            self._failed = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            if whence == os.SEEK_SET:
                offset += self._begin
            elif whence == os.SEEK_END and self._end is not None:
                offset, whence = offset + self._end, os.SEEK_SET
            return self._file.seek(offset, whence) - self._begin
        except (OSError, ValueError, OverflowError):
            return -1


def open_bytes(path: Path, wait_s: float) -> Bytes:
    """A file for PyAV. If it is a FIFO, waits at most ``wait_s`` seconds for somebody to write into it.

    Raises OSError."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return Bytes(path, path.open("rb"))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not any(event & select.POLLIN for _, event in _polled(poll, wait_s)):
        os.close(descriptor)
        raise OSError(None, f"nobody has written into it for {wait_s:g} s")
    os.set_blocking(descriptor, True)
    return Bytes(path, os.fdopen(descriptor, "rb"))


def _polled(poll: select.poll, wait_s: float) -> list[tuple[int, int]]:
    """Poll until there is data; empty if there is none in time."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        events = poll.poll(100)
        if any(event & select.POLLIN for _, event in events):
            return events
        time.sleep(0.02)  # while nobody has opened the other end, POLLHUP comes at once
    return []


class FileSource:
    """Samples and frames of a file's ``media``, at most ``fps`` frames a second, as fast as they are decoded.
    ``tracks``: which tracks to use, as in ``tracks.choose``."""

    live = False

    def __init__(self, path: Path, media: frozenset[Medium], fps: float, tracks: str = "") -> None:
        self.name = printable(path)
        self._path, self._media, self._fps, self._wanted = path, media, fps, tracks
        self.counters: Counter[str] = Counter()
        self._file: Bytes | None = None
        self._container: av.container.InputContainer | None = None
        self._later: list[Part] = []  # recordings that follow the opened one in the same file
        self._splitter: Splitter | None = None  # of a pipe
        self._base_ns = 0  # media time at which the opened one begins
        self._is_sought = False  # the opened one is not read from its start

    def open(self) -> None:
        try:
            is_folder = stat.S_ISDIR(os.stat(self._path).st_mode)
        except (OSError, ValueError) as error:  # ValueError: a NUL
            why = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
            if _URL.match(str(self._path)):
                why = "no file; what is at a URL can be labelled with: stream-run --stream URL"
            raise SourceError(f"{printable(self._path)}: {why}") from error
        if is_folder:
            raise SourceError(f"{printable(self._path)}: is a folder, not a media file")
        try:
            self._file = open_bytes(self._path, _FIFO_S)
            if not self._path.is_file():
                self._splitter = Splitter(self._file, self.name)
            self._container = av.open(self._splitter or self._file, options=input_options(), **OPEN_OPTIONS)
            if self._splitter is None and self._container.format.name == "wav" and wav_goes_on(self._path):
                log.warning("%s: more sound follows than its header tells of; all of it is read", self.name)
                self._container.close()
                self._file.seek(0)
                options = input_options() | {"ignore_length": "1"}
                self._container = av.open(self._file, options=options, **OPEN_OPTIONS)
            elif self._splitter is None and (parts := parts_of(self._path, self._container.format.name)):
                log.info("%s: holds %d recordings, one after another; all are read", self.name, len(parts))
                self._open_part(parts[0])
                self._later = parts[1:]
        except FFmpegError as error:
            self.close()
            raise SourceError(f"{self.name}: not a media file that FFmpeg can read ({error.strerror})") from error
        except OSError as error:
            self.close()
            raise SourceError(f"{self.name}: cannot be read ({error.strerror})") from error
        if self._container.format.name == "tty":  # FFmpeg renders text files as a picture of a terminal
            self.close()
            raise SourceError(f"{self.name}: not a media file but text")

    def _open_part(self, part: Part) -> None:
        self.close()
        self._is_sought = False
        self._file = Bytes(self._path, self._path.open("rb"), part)
        self._container = av.open(self._file, options=input_options(), **OPEN_OPTIONS)

    def tracks(self) -> frozenset[Medium]:
        """All media of the opened file, whether asked for or not."""
        assert self._container is not None
        media: tuple[Medium, ...] = ("audio", "video")
        chosen = choose(self._container, media, self._wanted, self.name, tell=False)
        return frozenset(medium for medium, track in chosen.items() if track is not None)

    @property
    def length_s(self) -> float:
        """Length according to the opened file's header; 0 if it has none, or several recordings are in it."""
        return 0.0 if self._later or self._base_ns else self._part_s

    @property
    def _part_s(self) -> float:
        return (self._container.duration or 0) / av.time_base if self._container is not None else 0.0

    @property
    def _is_estimated(self) -> bool:
        """Whether FFmpeg only estimated the length from the file's size and the bit rate of its start."""
        assert self._container is not None and self._file is not None
        kind = self._container.format.name
        return kind in _WITHOUT_LENGTH or (kind == "mp3" and not self._has_mp3_length())

    def _has_mp3_length(self) -> bool:
        """Whether a header tells the length, and FFmpeg believes it: not where several files were glued together."""
        assert self._container is not None and self._file is not None
        head = self._file.head
        mark = next((mark for mark in _MP3_LENGTH if mark in head), None)
        if mark is None or mark == b"VBRI":
            return mark is not None
        at = head.index(mark)
        flags, frames = (int.from_bytes(head[at + i : at + i + 4], "big") for i in (4, 8))
        rate_hz = self._container.streams.audio[0].rate if self._container.streams.audio else 0
        if not (flags & 1 and rate_hz):
            return False
        return abs(frames * (1152 if rate_hz >= 32_000 else 576) / rate_hz - self._part_s) < 1.0

    def seek(self, media_ns: int) -> None:
        """Let ``items`` begin at a point from which this time can be decoded; at the start if the file cannot seek.
        Call it before ``items``."""
        assert self._container is not None
        try:
            while self._later and media_ns >= self._base_ns + self._part_s * 1e9:
                self._base_ns += round(self._part_s * 1e9)
                self._open_part(self._later.pop(0))
            start = self._container.start_time or 0
            self._container.seek(start + max(0, media_ns - self._base_ns) // 1000, backward=True)  # in microseconds
            self._is_sought = True
        except (FFmpegError, OSError) as error:
            log.debug("%s: cannot be read from %.1f s on (%s)", self.name, media_ns / 1e9, error.strerror)

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
        yield from self._items()
        while self._open_next():
            yield from (item for item in self._items() if not isinstance(item, NoTrack))

    def _open_next(self) -> bool:
        """Open the next recording of the file that can be read. False if there is none."""
        while self._later or (self._splitter is not None and self._splitter.next()):
            try:
                if self._splitter is None:
                    self._open_part(self._later.pop(0))
                else:
                    assert self._container is not None
                    self._container.close()
                    self._container = av.open(self._splitter, options=input_options(), **OPEN_OPTIONS)
                return True
            except (FFmpegError, OSError) as error:
                where = f"what follows at {self._base_ns / 1e9:.2f} s"
                log.warning("%s: %s cannot be read (%s)", self.name, where, error.strerror)
        return False

    def _items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
        """Those of the opened recording."""
        container, base_ns = self._container, self._base_ns
        assert container is not None
        start_s = (container.start_time or 0) / av.time_base
        end_ns = dict.fromkeys(self._media & self.tracks(), base_ns)

        def media_ns_of(seconds: float | None) -> int:
            return base_ns + round(((seconds or 0.0) - start_s) * 1e9)

        gaps: list[tuple[int, int]] = []  # in the sound: (start, end)
        timeline = timeline_of(container, self.name, from_start=not self._is_sought)
        try:
            tracks = choose(container, self._media, self._wanted, self.name)
            for item in decode(container, tracks, self._fps, media_ns_of, self.name, timeline):
                if isinstance(item, AudioChunk) and base_ns < end_ns["audio"] < item.media_ns - GAP_NS:
                    gaps.append((end_ns["audio"], item.media_ns))
                if not isinstance(item, NoTrack):
                    end_ns["audio" if isinstance(item, AudioChunk) else "video"] = item.media_end_ns
                yield item
        except (FFmpegError, OSError) as error:
            raise SourceError(f"{self.name}: damaged, reading ended early ({error.strerror})") from error
        if gaps:
            missing_s = sum(end - start for start, end in gaps) / 1e9
            log.warning(
                "%s: %.2f s of its sound are missing, first at %.2f s; it was recorded with gaps or is damaged",
                self.name, missing_s, gaps[0][0] / 1e9,
            )  # fmt: skip
        if end_ns.get("audio") == base_ns:
            log.warning("%s: its audio track is empty", self.name)
        length_ns = round(self._part_s * 1e9)
        end_s = (max(end_ns.values(), default=base_ns) - base_ns) / 1e9
        # that which all processes read there, each its own track; what follows would drift apart otherwise
        is_known = length_ns and (not end_ns or abs(self._part_s - end_s) < 1.0)
        self._base_ns = base_ns + (length_ns if is_known else round(end_s * 1e9))
        self.counters["time_jumps"] += timeline.jumps
        has_length = not (timeline.jumps or timeline.outliers or self._is_estimated)
        if has_length and end_ns and end_s < self._part_s - max(0.5, 0.1 * self._part_s):
            log.warning(
                "%s: ended after %.1f of its %.1f s; it is cut short or damaged", self.name, end_s, self._part_s
            )

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file is not None:
            self._file.close()
            self._file = None
