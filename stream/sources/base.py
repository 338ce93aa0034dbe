"""What sources give, and how a missing one is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class AudioChunk:
    """``samples``: (n, channels) float32 in [-1, 1]; ``media_ns``: time of the first sample.

    Times of a file count from its start; a live source gives Unix times (when a sample or frame was captured), which
    the node moves to the stream's timeline."""

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
class NoTrack:
    """The source is open, but has no track of this medium: ``audio`` or ``video``."""

    medium: str


class Source(Protocol):
    """Somewhere samples and frames come from."""

    name: str
    live: bool
    counters: Counter[str]  # what a heartbeat tells of it

    def open(self) -> None:
        """Open it. Raises SourceError."""
        ...

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack | None]:
        """What comes, in order; None when nothing came for a while (so that a waiting node can do other things).
        Ends at the end of a file; a live source never ends. Raises SourceError."""
        ...

    def close(self) -> None: ...
