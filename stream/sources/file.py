"""A media file in any format that FFmpeg reads. Media time 0 is the start of the file, for both media."""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
from av.error import FFmpegError

from emostream.errors import SourceError
from emostream.files import printable
from emostream.stream.sources.access import input_options
from emostream.stream.sources.base import GAP_NS, AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import OPEN_OPTIONS, decode
from emostream.stream.sources.tracks import choose, timeline_of
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)


_WITHOUT_LENGTH = ("aac", "ac3", "eac3", "dts", "mpegvideo", "h264", "hevc", "loas", "amr", "gsm", "truehd")
_MP3_LENGTH = (b"Xing", b"Info", b"VBRI")  # headers that contain the number of frames
_FIFO_S = 30.0
_URL = re.compile(r"[a-z]+:/")  # a URL that became a path, which never has two slashes in a row
_HEAD_BYTES = 1 << 20  # so many, since a cover picture may precede the MP3 header


class _Bytes:
    """A file as PyAV reads it. FFmpeg itself opens nothing, so that a file cannot lead it to others.

    If a method here raises, PyAV raises it again later, even if FFmpeg could go on. So a failed seek returns -1, as
    FFmpeg expects, and a read error is raised only once.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.name = str(path)
        self._file = file
        self._failed = False
        self.head = b""  # the first bytes read
        self.seekable, self.tell, self.close = self._file.seekable, self._file.tell, self._file.close

    def read(self, size: int) -> bytes:
        if self._failed:
            return b""
        try:
            data = self._file.read(size)
            if len(self.head) < _HEAD_BYTES:
                self.head += data
            return data
        except OSError:
            self._failed = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def open_bytes(path: Path, wait_s: float) -> _Bytes:
    """A file for PyAV. If it is a FIFO, waits at most ``wait_s`` seconds for somebody to write into it.

    Raises OSError."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return _Bytes(path, path.open("rb"))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not any(event & select.POLLIN for _, event in _polled(poll, wait_s)):
        os.close(descriptor)
        raise OSError(None, f"nobody has written into it for {wait_s:g} s")
    os.set_blocking(descriptor, True)
    return _Bytes(path, os.fdopen(descriptor, "rb"))


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
        self._file: _Bytes | None = None
        self._container: av.container.InputContainer | None = None

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
            self._container = av.open(self._file, options=input_options(), **OPEN_OPTIONS)
        except FFmpegError as error:
            self.close()
            raise SourceError(f"{self.name}: not a media file that FFmpeg can read ({error.strerror})") from error
        except OSError as error:
            self.close()
            raise SourceError(f"{self.name}: cannot be read ({error.strerror})") from error
        if self._container.format.name == "tty":  # FFmpeg renders text files as a picture of a terminal
            self.close()
            raise SourceError(f"{self.name}: not a media file but text")

    def tracks(self) -> frozenset[Medium]:
        """All media of the opened file, whether asked for or not."""
        assert self._container is not None
        media: tuple[Medium, ...] = ("audio", "video")
        chosen = choose(self._container, media, self._wanted, self.name, tell=False)
        return frozenset(medium for medium, track in chosen.items() if track is not None)

    @property
    def length_s(self) -> float:
        """Length according to the opened file's header; 0 if it has none."""
        return (self._container.duration or 0) / av.time_base if self._container is not None else 0.0

    @property
    def _is_estimated(self) -> bool:
        """Whether FFmpeg only estimated the length from the file's size and the bit rate of its start."""
        assert self._container is not None and self._file is not None
        kind = self._container.format.name
        return kind in _WITHOUT_LENGTH or (kind == "mp3" and not any(mark in self._file.head for mark in _MP3_LENGTH))

    def seek(self, media_ns: int) -> None:
        """Let ``items`` begin at a point from which this time can be decoded; at the start if the file cannot seek.
        Call it before ``items``."""
        assert self._container is not None
        start = self._container.start_time or 0
        try:
            self._container.seek(start + max(0, media_ns) // 1000, backward=True)  # in microseconds
        except (FFmpegError, OSError) as error:
            log.debug("%s: cannot be read from %.1f s on (%s)", self.name, media_ns / 1e9, error.strerror)

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
        container = self._container
        assert container is not None
        start_s = (container.start_time or 0) / av.time_base
        end_ns = dict.fromkeys(self._media & self.tracks(), 0)

        def media_ns_of(seconds: float | None) -> int:
            return round(((seconds or 0.0) - start_s) * 1e9)

        gaps: list[tuple[int, int]] = []  # in the sound: (start, end)
        timeline = timeline_of(container, self.name)
        try:
            tracks = choose(container, self._media, self._wanted, self.name)
            for item in decode(container, tracks, self._fps, media_ns_of, self.name, timeline):
                if isinstance(item, AudioChunk) and 0 < end_ns["audio"] < item.media_ns - GAP_NS:
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
        if end_ns.get("audio") == 0:
            log.warning("%s: its audio track is empty", self.name)
        end_s = max(end_ns.values(), default=0) / 1e9
        self.counters["time_jumps"] = timeline.jumps
        has_length = not (timeline.jumps or timeline.outliers or self._is_estimated)
        if has_length and end_s < self.length_s - max(0.5, 0.1 * self.length_s):
            log.warning(
                "%s: ended after %.1f of its %.1f s; it is cut short or damaged", self.name, end_s, self.length_s
            )

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._file is not None:
            self._file.close()
            self._file = None
