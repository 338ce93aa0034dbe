"""A media file: anything that FFmpeg reads. Media time 0 is the start of the file, for sound and picture alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
from av.error import FFmpegError

from stream.sources.decode import decode
from stream.sources.items import AudioChunk, NoTrack, SourceError, VideoFrame


class FileSource:
    live = False

    def __init__(self, path: Path, media: frozenset[str], fps: float) -> None:
        self.name = str(path)
        self._path, self._media, self._fps = path, media, fps
        self._container: av.container.InputContainer | None = None

    def open(self) -> None:
        if not self._path.exists():
            raise SourceError(f"{self._path}: no such file")
        if self._path.is_dir():
            raise SourceError(f"{self._path}: is a folder, not a media file")
        try:
            self._container = av.open(str(self._path), metadata_errors="replace")
        except FFmpegError as error:
            raise SourceError(f"{self._path}: not a media file that FFmpeg can read ({error.strerror})") from error
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be read ({error.strerror})") from error

    def tracks(self) -> frozenset[str]:
        """Which media the opened file has."""
        assert self._container is not None
        return frozenset(medium for medium in ("audio", "video") if getattr(self._container.streams, medium))

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
        container = self._container
        assert container is not None
        start_s = (container.start_time or 0) / av.time_base
        try:
            yield from decode(container, self._media, self._fps, lambda t: round((t - start_s) * 1e9), self.name)
        except FFmpegError as error:
            raise SourceError(f"{self._path}: damaged, reading ended early ({error.strerror})") from error

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
