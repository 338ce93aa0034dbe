"""A media file, of any format that FFmpeg reads. Media time 0 is the start of the file, for both media."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError

from emostream.errors import SourceError
from emostream.stream.sources.access import input_options
from emostream.stream.sources.base import GAP_NS, AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import OPEN_OPTIONS, decode, first_track
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)


class _Bytes:
    """A file as PyAV reads it. FFmpeg itself opens nothing, so that a file cannot lead it to others.

    PyAV raises later what a method here raises, even if FFmpeg could go on, so a place that cannot be sought is -1, as
    FFmpeg expects it, and a failure to read is raised once.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = path.open("rb")
        self._failed = False
        self.seekable, self.tell, self.close = self._file.seekable, self._file.tell, self._file.close

    def read(self, size: int) -> bytes:
        if self._failed:
            return b""
        try:
            return self._file.read(size)
        except OSError:
            self._failed = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


class FileSource:
    """Samples and frames of the ``media`` of a file, at most ``fps`` frames a second, as fast as they are decoded."""

    live = False

    def __init__(self, path: Path, media: frozenset[Medium], fps: float) -> None:
        self.name = str(path)
        self._path, self._media, self._fps = path, media, fps
        self.counters: Counter[str] = Counter()
        self._file: _Bytes | None = None
        self._container: av.container.InputContainer | None = None

    def open(self) -> None:
        if not os.path.exists(self._path):  # Path's own raises where a name is too long
            raise SourceError(f"{self._path}: no such file")
        if os.path.isdir(self._path):
            raise SourceError(f"{self._path}: is a folder, not a media file")
        try:
            self._file = _Bytes(self._path)
            self._container = av.open(self._file, options=input_options(), **OPEN_OPTIONS)
        except FFmpegError as error:
            self.close()
            raise SourceError(f"{self._path}: not a media file that FFmpeg can read ({error.strerror})") from error
        except OSError as error:
            self.close()
            raise SourceError(f"{self._path}: cannot be read ({error.strerror})") from error
        if self._container.format.name == "tty":  # FFmpeg plays text as a picture of a terminal
            self.close()
            raise SourceError(f"{self._path}: not a media file but text")

    def tracks(self) -> frozenset[Medium]:
        """The media of the opened file, whichever were asked for."""
        assert self._container is not None
        media: tuple[Medium, ...] = ("audio", "video")
        return frozenset(medium for medium in media if first_track(self._container, medium) is not None)

    @property
    def length_s(self) -> float:
        """Length according to the opened file's header; 0 if it has none."""
        return (self._container.duration or 0) / av.time_base if self._container is not None else 0.0

    def seek(self, media_ns: int) -> None:
        """Let ``items`` begin at a place from which this time can be decoded, if the file has such places; else it
        begins at its start. To be called before ``items``."""
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
        gaps: list[tuple[int, int]] = []  # in the sound: from when to when
        try:
            for item in decode(container, self._media, self._fps, lambda t: round((t - start_s) * 1e9), self.name):
                if isinstance(item, AudioChunk) and 0 < end_ns["audio"] < item.media_ns - GAP_NS:
                    gaps.append((end_ns["audio"], item.media_ns))
                if not isinstance(item, NoTrack):
                    end_ns["audio" if isinstance(item, AudioChunk) else "video"] = item.media_end_ns
                yield item
        except (FFmpegError, OSError) as error:
            raise SourceError(f"{self._path}: damaged, reading ended early ({error.strerror})") from error
        if gaps:
            missing_s = sum(end - start for start, end in gaps) / 1e9
            log.warning(
                "%s: %.2f s of its sound are missing, first at %.2f s; it was recorded with gaps or is damaged",
                self.name, missing_s, gaps[0][0] / 1e9,
            )  # fmt: skip
        if end_ns.get("audio") == 0:
            log.warning("%s: its audio track is empty", self.name)
        end_s = max(end_ns.values(), default=0) / 1e9
        if end_s < self.length_s - max(0.5, 0.1 * self.length_s):
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
