"""A recording of a run as a source: its sound and faces, at their original times."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emostream.errors import ModelError, SourceError
from emostream.files import printable
from emostream.stream.sources.base import AudioChunk, SeenFaces
from emostream.stream.topics import Medium

if TYPE_CHECKING:
    from emostream.stream.recorded import Recording

log = logging.getLogger(__name__)

_MEDIA: dict[str, Medium] = {"sound": "audio", "faces": "video"}


class ReplaySource:
    """Sound and faces of a recorded stream. ``location``: as in ``recorded.files_of``, with ``#NAME`` for a stream
    other than the first. Media time 0 is the stream's first item in these files. ``identity``: the key file, if they
    are encrypted."""

    live = False

    def __init__(self, location: str, media: frozenset[Medium], identity: str = "") -> None:
        path, mark, stream = location.rpartition("#")
        if not mark or os.path.exists(location):  # unlike Path.exists, False for a name that is too long
            path, stream = location, ""
        self.path, self.stream = Path(path).expanduser(), stream
        self.name = printable(self.path)
        self.paths: list[Path] = []
        self._media, self._identity = media, identity
        self._from_ns = 0
        self._recording: Recording | None = None
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        """Raises SourceError, ConfigError if the key is not valid, and ModelError if a package is missing."""
        try:
            from emostream.stream.recorded import Recording, files_of
        except ImportError as error:
            raise ModelError(f"recordings need packages ({error.name}): pip install 'emostream[record]'") from error
        self.paths = files_of(self.path)
        self._recording = recording = Recording.of(self.paths, self._identity)
        if not recording.streams:
            raise SourceError(f"{self.name}: holds neither sound nor faces")
        self.stream = self.stream or next(iter(recording.streams))
        if self.stream not in recording.streams:
            raise SourceError(f"{self.name}: has no stream {self.stream}; it has {', '.join(recording.streams)}")
        if recording.cut_short:
            log.warning("%s: a file has no end, as after a crash; what was written before is read", self.name)

    def tracks(self) -> frozenset[Medium]:
        """The media of the opened recording."""
        assert self._recording is not None
        return frozenset(_MEDIA[kind] for kind in self._recording.streams[self.stream] if kind in _MEDIA)

    @property
    def first_ns(self) -> int:
        """Media time of the first sound or face, in the recorded run."""
        assert self._recording is not None
        return self._recording.spans_ns[self.stream][0]

    @property
    def length_s(self) -> float:
        if self._recording is None:
            return 0.0
        first_ns, last_ns = self._recording.spans_ns[self.stream]
        return (last_ns - first_ns) / 1e9

    def seek(self, media_ns: int) -> None:
        """Let ``items`` begin at this time."""
        self._from_ns = media_ns

    def items(self) -> Iterator[AudioChunk | SeenFaces]:
        from emostream.stream.recorded import sound_and_faces
        from emostream.stream.recording import RATE_HZ

        for item in sound_and_faces(self.paths, self.stream, self._identity):
            if isinstance(item, tuple):
                at_ns = item[0] - self.first_ns
                if "audio" in self._media and at_ns >= self._from_ns:
                    yield AudioChunk((item[1].astype(np.float32) / 32768)[:, None], RATE_HZ, at_ns)
            else:
                at_ns = item.media_start_ns - self.first_ns
                if "video" in self._media and at_ns >= self._from_ns:
                    yield SeenFaces(item, at_ns)

    def close(self) -> None:
        pass
