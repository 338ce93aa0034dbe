"""Sound and pictures that a program holds in memory, as a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np

from emostream.errors import SourceError
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import Sampler

MAX_RATE_HZ = 768_000
MAX_CHANNELS = 64  # more mean that the axes of samples and channels are swapped
MAX_FLOAT = 8.0  # an overdriven recording may exceed 1; int16 values stored as floats exceed it by far
MAX_FPS = 1000
_CHUNK_S = 1.0


class ArraySource:
    """A recording in memory; both modalities begin at media time 0.

    ``samples``: (n,) or (n, channels), int16 or floating point in [-1, 1], at ``rate_hz``. ``frames``: (m, height,
    width) gray or (m, height, width, 3) RGB uint8, at ``fps``; at most ``max_fps`` a second are used.

    Raises SourceError if the arrays do not have this form.
    """

    live = False

    def __init__(
        self,
        samples: np.ndarray | None,
        rate_hz: int | None,
        frames: np.ndarray | None,
        fps: float | None,
        max_fps: float,
        name: str,
    ) -> None:
        self.name = name
        self.counters: Counter[str] = Counter()
        self._samples = None if samples is None else _checked_samples(samples, rate_hz)
        self._frames = None if frames is None else _checked_frames(frames, fps)
        self._rate_hz, self._fps, self._max_fps = rate_hz or 1, fps or 1.0, max_fps

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def tracks(self) -> frozenset[str]:
        """Which of ``audio`` and ``video`` it has."""
        present = {"audio": self._samples, "video": self._frames}
        return frozenset(medium for medium, array in present.items() if array is not None)

    @property
    def length_s(self) -> float:
        """The longer modality's length in seconds."""
        audio_s = 0.0 if self._samples is None else len(self._samples) / self._rate_hz
        video_s = 0.0 if self._frames is None else len(self._frames) / self._fps
        return max(audio_s, video_s)

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
        """Sound in chunks of a second, each followed by the frames of that second."""
        chunk = round(_CHUNK_S * self._rate_hz)
        sampler = Sampler(self._max_fps)
        next_frame = 0
        for second in range(int(np.ceil(self.length_s / _CHUNK_S))):
            if self._samples is not None:
                part = self._samples[second * chunk : (second + 1) * chunk]
                if len(part):
                    yield AudioChunk(part, self._rate_hz, second * chunk * 1_000_000_000 // self._rate_hz)
            while self._frames is not None and next_frame < len(self._frames):
                media_ns = round(next_frame / self._fps * 1e9)
                if media_ns >= (second + 1) * _CHUNK_S * 1e9:
                    break
                if sampler.wants(media_ns):
                    yield VideoFrame(_gray(self._frames[next_frame]), media_ns)
                next_frame += 1


def _checked_samples(samples: np.ndarray, rate_hz: int | None) -> np.ndarray:
    """(n, channels) float32 in [-1, 1]."""
    if not isinstance(rate_hz, int | np.integer) or not 1 <= rate_hz <= MAX_RATE_HZ:
        raise SourceError(f"samples need their sampling rate in Hz, 1 to {MAX_RATE_HZ}; rate_hz is {rate_hz}")
    if not isinstance(samples, np.ndarray):
        raise SourceError(f"samples must be a NumPy array, not a {type(samples).__name__}")
    if samples.ndim not in (1, 2) or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise SourceError(
            f"samples must be (n,) or (n, channels), int16 or floating point, not {samples.shape} {samples.dtype}"
        )
    if samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise SourceError(f"samples must be (n, channels) with 1 to {MAX_CHANNELS} channels, not {samples.shape}")
    values = samples.astype(np.float32)
    if not np.isfinite(values).all():
        raise SourceError("samples contain NaN or infinity")
    if samples.dtype == np.int16:
        values /= 32768.0
    elif len(values) and float(np.abs(values).max()) > MAX_FLOAT:
        raise SourceError("samples are floating point but not in [-1, 1]; convert them, or pass int16")
    return values[:, None] if values.ndim == 1 else values


def _checked_frames(frames: np.ndarray, fps: float | None) -> np.ndarray:
    if not isinstance(fps, int | float | np.number) or not 0 < fps <= MAX_FPS:
        raise SourceError(f"frames need their rate per second, at most {MAX_FPS}; fps is {fps}")
    if not isinstance(frames, np.ndarray) or 0 in frames.shape[1:]:
        raise SourceError(f"frames must be a NumPy array of pictures, not {getattr(frames, 'shape', type(frames))}")
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3):
        raise SourceError(
            f"frames must be (m, height, width) or (m, height, width, 3) uint8, not {frames.shape} {frames.dtype}"
        )
    return frames


def _gray(frame: np.ndarray) -> np.ndarray:
    """(height, width) uint8."""
    return np.ascontiguousarray(frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
