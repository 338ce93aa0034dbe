"""The voice encoder, live: log-mel rows of an utterance → one vector per 80 ms, computed as the rows arrive.

Each utterance is normalised to one level, so that neither the microphone's gain nor the distance matters. Its measured
level is rounded, so that it seldom changes while someone speaks, and computed vectors stay valid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emostream.stream.features import logmel

DIM = 168
STRIDE = 8  # log-mel rows per vector: 80 ms
VECTOR_NS = STRIDE * logmel.HOP_NS
REACH = 18  # a vector also depends on this many rows before its first and after its last
MARGIN = -(-REACH // STRIDE)  # REACH in vectors
LEVEL = 10.0  # target mean level: about the middle of what the network was first trained on
FLOOR = 5.0  # 50 dB; below the mean level by more, there is only the room, the microphone and rounding
LEVEL_STEP = 1.0  # 10 dB; the network is trained with levels that are off by up to 6 dB

SETTINGS = {"stride": STRIDE, "level": LEVEL, "floor": FLOOR, "level_step": LEVEL_STEP}


def level(rows: np.ndarray) -> float:
    """Level of an utterance: the logarithm of the mean power of its (n, 32) log-mel rows, rounded to 1 (10 dB)."""
    power = float(np.sum(10.0 ** (rows.astype(np.float64) - 2.0)))
    mean = np.log10(max(power / max(len(rows), 1) / logmel.N_MELS, logmel.SMALLEST)) + 2.0
    return float(np.round(mean / LEVEL_STEP) * LEVEL_STEP)


def normalise(rows: np.ndarray, mean_level: float) -> np.ndarray:
    """Log-mel rows shifted to a mean level of 10, no value more than 50 dB below it: (n, 32) → (n, 32) float32."""
    return np.maximum(rows - np.float32(mean_level), np.float32(-FLOOR)) + np.float32(LEVEL)


def whole(rows: np.ndarray) -> np.ndarray:
    """Pad to a multiple of 8 rows by repeating the last one: (n, 32) → (8 ceil(n / 8), 32)."""
    missing = -len(rows) % STRIDE
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


class VoiceEncoder:
    """Encodes the open utterance. ``run``: ``voice.onnx``, (1, 8 m, 32) → (1, m, 168) float32.

    A vector depends on 18 rows before and after its own 8, so each call computes only the last vectors, and all of them
    only if the level has changed by a step. ``reset`` begins another utterance.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self._run = run
        self.reset()

    def reset(self) -> None:
        self._final = np.zeros((0, DIM), np.float32)  # vectors that no later row changes, at ``_level``
        self._level = np.nan
        self._rows = self._first = 0  # in the last ``begin``: number of rows, and the first vector to compute

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the utterance so far; earlier calls do not affect the result.

        ``rows``: (n, 32) float32, all log-mel rows since the utterance's start, more or fewer than in the last call.
        Returns (ceil(n / 8), 168) float32.
        """
        wanted = self.begin(rows)
        return self.finish(None if wanted is None else self._run(wanted))

    def begin(self, rows: np.ndarray) -> np.ndarray | None:
        """The first half of ``encode``: the network's input, (1, 8 m, 32); None for no rows."""
        self._rows = len(rows)
        if not len(rows):
            return None
        mean_level = level(rows)
        if mean_level != self._level:
            self._level, self._final = mean_level, self._final[:0]
        final = max(0, (len(rows) - REACH) // STRIDE)
        self._first = max(0, len(self._final[:final]) - MARGIN)
        return whole(normalise(rows[self._first * STRIDE :], mean_level))[None]

    def finish(self, computed: np.ndarray | None) -> np.ndarray:
        """The second half: the vectors, from the network's output, (1, m, 168)."""
        if computed is None:
            return self._final[:0]
        final = max(0, (self._rows - REACH) // STRIDE)
        known = self._final[:final]
        vectors = np.concatenate([known, computed[0][len(known) - self._first :]])
        self._final = vectors[:final]
        return vectors
