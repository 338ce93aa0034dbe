"""Whether a mouth moves with the sound: a few measures of the mouth's picture beside the loudness of the voice.

As a mouth opens, its picture gets darker inside and richer in contrast, and the voice gets louder where its second
formant lies (H. Yehia, P. Rubin, E. Vatikiotis-Bateson, "Quantitative association of vocal-tract and facial behavior",
1998). Both are compared without what changes slower than about once a second: that somebody speaks at all is what two
people who speak in turn have in common, and how a face is held has nothing to do with the words.
"""

from __future__ import annotations

import numpy as np

from emostream.stream.features.face import CROP
from emostream.stream.features.logmel import FRAME_NS, HOP_NS, centres_hz

MEASURES = 3
LAGS_MS = np.arange(-300, 501, 20)  # of the picture behind the sound that are compared
GRID_MS = 100  # between two values that are compared: faces come at about this rate
LEAST_MS = 1200  # less than a dozen values agree by chance
_TOP, _BOTTOM, _LEFT, _RIGHT = (round(share * CROP) for share in (0.59, 0.98, 0.25, 0.75))  # of the crop
_DARKEST = 0.052  # of these pixels
_LOW_HZ, _HIGH_HZ = 700.0, 2500.0
_RANGE = 2.5  # below the loudest: 25 dB; further down there is no voice, whatever the room
_SMOOTH_ROWS = 6  # of sound: 60 ms
_SLOW_MS = 195.0  # the deviation of the Gaussian whose mean is taken away
USUAL_LAG_MS = 10  # of GRID's clips, and of any recording whose picture and sound were taken together
_SAME_MS = 10  # either side of a lag
_ELSEWHERE = 0.5  # of how much better another lag fits counts against this one


def mouth(crop: np.ndarray) -> tuple[float, float, float]:
    """Three measures of a (48, 48) uint8 crop's mouth that grow as it opens: how dark its darkest pixels are, its
    contrast, and that from row to row; each as a share of its mean brightness."""
    part = crop[_TOP:_BOTTOM, _LEFT:_RIGHT].astype(np.float32)
    part /= max(float(part.mean()), 1.0)
    count = round(_DARKEST * part.size)
    darkest = np.partition(part, count, axis=None)[:count]
    return 1 - float(darkest.mean()), float(part.std()), float(part.mean(axis=1).std())


def loudness(rows: np.ndarray) -> np.ndarray:
    """Level of the voice where mouths shape it, smoothed: (n, 32) log-mel rows → (n,)."""
    centres = centres_hz()
    level = rows[:, (centres >= _LOW_HZ) & (centres <= _HIGH_HZ)].mean(axis=1)
    level = np.maximum(level, level.max(initial=-np.inf) - _RANGE)
    padded = np.pad(level, (_SMOOTH_ROWS // 2 - 1, _SMOOTH_ROWS // 2), mode="edge")
    smooth: np.ndarray = np.convolve(padded, np.full(_SMOOTH_ROWS, 1 / _SMOOTH_ROWS), "valid")
    return smooth


def _fast(values: np.ndarray) -> np.ndarray:
    """(..., n) values, one each ``GRID_MS``, without their slow changes."""
    at = np.arange(values.shape[-1]) * GRID_MS
    weights = np.exp(-(((at[:, None] - at[None]) / _SLOW_MS) ** 2) / 2)
    fast: np.ndarray = values - values @ (weights / weights.sum(axis=0))
    return fast


def agreement(times_ns: np.ndarray, mouths: np.ndarray, first_row_ns: int, rows: np.ndarray) -> np.ndarray:
    """How well a mouth moves with the sound, by how far the picture is behind it: (lags,) for ``LAGS_MS``, mean
    correlation of the three measures, each up to 1; empty where there is too little of either.

    ``times_ns`` (n,) and ``mouths`` (n, 3): of the faces; ``rows`` (m, 32): log-mel rows, the first of which begins at
    ``first_row_ns``.
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
    """How surely the mouth is the speaker's, from its ``agreement``: that at the lag of this camera, less half of what
    another lag has more. Two people's words agree at any lag, one's own picture and sound at one."""
    here = float(curve[np.abs(LAGS_MS - lag_ms) <= _SAME_MS].mean())
    return here - _ELSEWHERE * max(0.0, float(curve[np.abs(LAGS_MS - lag_ms) <= 300].max()) - here)
