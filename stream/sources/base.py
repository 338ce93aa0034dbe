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

GAP_NS = 60_000_000  # between two chunks of sound; a smaller error of a time stamp is rounding or jitter, not a gap


@dataclass(frozen=True)
class AudioChunk:
    """``samples``: (n, channels) float32 in [-1, 1]; ``media_ns``: time of the first sample.

    Times of a file count from its start. Those of a live source are Unix times of capture, which the node moves to the
    stream's timeline."""

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
    """Words of a program's own recogniser; their times are seconds, as ``media_ns`` is nanoseconds, of Unix time.
    ``media_ns``: when they came."""

    words: tuple[Word, ...]
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns


@dataclass(frozen=True)
class SeenFaces:
    """What was seen in a picture that is not there any more, as a recording has it."""

    face: Face
    media_ns: int

    @property
    def media_end_ns(self) -> int:
        return self.media_ns


@dataclass(frozen=True)
class NoTrack:
    """The source is open, but has no track of this medium."""

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
        """Samples and frames in the order of their arrival; None when none came for a while, so that a waiting node
        can do other things. Ends at the end of a file; a live source never ends. Raises SourceError."""
        ...

    def close(self) -> None: ...
