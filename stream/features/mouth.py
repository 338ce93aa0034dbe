"""Tells whether a mouth moves with the sound, from a few measures of the mouth's picture and the voice's loudness.

As a mouth opens, its picture gets darker inside and richer in contrast, and the voice gets louder around its second
formant (H. Yehia, P. Rubin, E. Vatikiotis-Bateson, "Quantitative association of vocal-tract and facial behavior",
1998). Changes slower than about once a second are removed from both before they are compared: slow changes in sound
only say that somebody speaks, and slow changes in the picture only say how the head is held.
"""

from __future__ import annotations

import numpy as np

from emostream.stream.features.face import CROP
from emostream.stream.features.logmel import FRAME_NS, HOP_NS, centres_hz

MEASURES = 3
LAGS_MS = np.arange(-300, 501, 20)  # how far the picture may lag behind the sound
GRID_MS = 100  # between two values that are compared; faces come at about this rate
LEAST_MS = 1200  # fewer than a dozen values agree by chance
_TOP, _BOTTOM, _LEFT, _RIGHT = (round(share * CROP) for share in (0.59, 0.98, 0.25, 0.75))  # mouth region of the crop
_DARKEST_SHARE = 0.052  # of the region's pixels
_LOW_HZ, _HIGH_HZ = 700.0, 2500.0  # around the second formant
_RANGE = 2.5  # 25 dB below the loudest; anything quieter is the room, not the voice
_SMOOTH_ROWS = 6  # 60 ms of sound
_SLOW_MS = 195.0  # standard deviation of the Gaussian average that is subtracted
USUAL_LAG_MS = 10  # in GRID's clips, and in any recording that takes picture and sound together
_SAME_MS = 10  # lags this close count as the same
_OTHER_LAG_PENALTY = 0.5  # share of another lag's better fit that counts against this one


def mouth(crop: np.ndarray) -> tuple[float, float, float]:
    """Three measures of the mouth in a (48, 48) uint8 crop, which grow as it opens: darkness of its darkest pixels,
    contrast, and contrast between rows; each relative to its mean brightness."""
    part = crop[_TOP:_BOTTOM, _LEFT:_RIGHT].astype(np.float32)
    part /= max(float(part.mean()), 1.0)
    count = round(_DARKEST_SHARE * part.size)
    darkest = np.partition(part, count, axis=None)[:count]
    return 1 - float(darkest.mean()), float(part.std()), float(part.mean(axis=1).std())


def loudness(rows: np.ndarray) -> np.ndarray:
    """Smoothed level of the voice in the bands that the mouth shapes: (n, 32) log-mel rows → (n,)."""
    centres = centres_hz()
    level = rows[:, (centres >= _LOW_HZ) & (centres <= _HIGH_HZ)].mean(axis=1)
    level = np.maximum(level, level.max(initial=-np.inf) - _RANGE)
    padded = np.pad(level, (_SMOOTH_ROWS // 2 - 1, _SMOOTH_ROWS // 2), mode="edge")
    smooth: np.ndarray = np.convolve(padded, np.full(_SMOOTH_ROWS, 1 / _SMOOTH_ROWS), "valid")
    return smooth


def _fast(values: np.ndarray) -> np.ndarray:
    """(..., n) values, one per ``GRID_MS``, without their slow changes."""
    at = np.arange(values.shape[-1]) * GRID_MS
    weights = np.exp(-(((at[:, None] - at[None]) / _SLOW_MS) ** 2) / 2)
    fast: np.ndarray = values - values @ (weights / weights.sum(axis=0))
    return fast


def agreement(times_ns: np.ndarray, mouths: np.ndarray, first_row_ns: int, rows: np.ndarray) -> np.ndarray:
    """How well a mouth moves with the sound if the picture lags by each of ``LAGS_MS``: (lags,), the mean correlation
    of the three measures with the loudness, at most 1; empty if there is too little of either.

    ``times_ns`` (n,) and ``mouths`` (n, 3): times and measures of the face; ``rows`` (m, 32): log-mel rows, the first
    of which begins at ``first_row_ns``.
    """
    nothing = np.zeros(0)
    if len(times_ns) < LEAST_MS // GRID_MS or len(rows) < LEAST_MS // 10:
        return nothing
    row_ns = first_row_ns + FRAME_NS // 2 + HOP_NS * np.arange(len(rows), dtype=np.int64)
    start_ns, end_ns = max(times_ns[0], row_ns[0]), min(times_ns[-1], row_ns[-1])
    if end_ns - start_ns < LEAST_MS * 1_000_000:
        return nothing
    grid = np.arange(start_ns, end_ns + 1, GRID_MS * 1_000_000)
    seen = _fast(np.stack([np.interp(grid, times_ns, measure) for measure in mouths.T]))  # (3, g)
    heard = _fast(np.interp(grid[None] - LAGS_MS[:, None] * 1_000_000, row_ns, loudness(rows)))  # (lags, g)
    seen /= np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-9)
    heard /= np.maximum(np.linalg.norm(heard, axis=1, keepdims=True), 1e-9)
    mean: np.ndarray = (heard @ seen.T).mean(axis=1)
    return mean


def match(curve: np.ndarray, lag_ms: float) -> float:
    """How surely the mouth is the speaker's, from its ``agreement``: the value at this camera's lag, minus half of the
    amount by which another lag is better. A stranger's mouth may match at any lag, the speaker's only at this one."""
    here = float(curve[np.abs(LAGS_MS - lag_ms) <= _SAME_MS].mean())
    return here - _OTHER_LAG_PENALTY * max(0.0, float(curve[np.abs(LAGS_MS - lag_ms) <= 300].max()) - here)
