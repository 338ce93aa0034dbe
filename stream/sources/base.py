"""What every source delivers, and its protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from emostream.stream.emotion import Word
from emostream.stream.messages import Face
from emostream.stream.topics import Medium

GAP_NS = 60_000_000  # least gap between two chunks of sound; anything smaller is rounding or jitter of time stamps


@dataclass(frozen=True)
class AudioChunk:
    """``samples``: (n, channels) float32 in [-1, 1]; ``media_ns``: time of the first sample.

    A file's times count from its start. A live source's are Unix times of capture, which the node maps to the stream's
    timeline."""

    samples: np.ndarray
    rate_hz: int
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns + len(self.samples) * 1_000_000_000 // self.rate_hz


@dataclass(frozen=True)
class VideoFrame:
    """``image``: (height, width) gray uint8, black 0 and white 255; ``media_ns``: as in AudioChunk."""

    image: np.ndarray
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns


@dataclass(frozen=True)
class HeardWords:
    """Words from another program's recogniser, with Unix times in seconds. ``media_ns``: when they arrived, as Unix
    time in nanoseconds."""

    words: tuple[Word, ...]
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns


@dataclass(frozen=True)
class SeenFaces:
    """The faces of a recorded picture; the picture itself no longer exists."""

    face: Face
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns


@dataclass(frozen=True)
class NoTrack:
    """The source is open but has no track of this medium."""

    medium: Medium


class Source(Protocol):
    """Somewhere samples and frames come from."""

    name: str
    live: bool
    counters: Counter[str]  # for heartbeats

    def open(self) -> None:
        """Open the file, device or connection. Raises SourceError."""
        ...

    def items(self) -> Iterator[AudioChunk | VideoFrame | SeenFaces | HeardWords | NoTrack | None]:
        """Samples and frames in order of arrival; None if nothing came for a while, so that a waiting node can do other
        things. Ends at the end of a file; a live source never ends. Raises SourceError."""
        ...

    def close(self) -> None: ...
