"""The voice encoder, live: log-mel rows of an utterance → one vector per 80 ms, computed as the rows arrive.

Each utterance is brought to one level, so that neither the microphone's gain nor the distance matters. Its level is
rounded: while someone speaks on it seldom changes, and vectors that were computed stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emostream.stream.features import logmel

DIM = 168
STRIDE = 8  # log-mel rows per vector: 80 ms
REACH = 18  # rows before a vector's first and after its last one that it depends on
MARGIN = -(-REACH // STRIDE)  # REACH in vectors
LEVEL = 10.0  # where the mean level is put: about the middle of what the network was first trained on
FLOOR = 5.0  # 50 dB below the mean level there is only the room, the microphone and rounding
LEVEL_STEP = 1.0  # 10 dB; the network is trained with levels that are off by up to 6 dB

SETTINGS = {"stride": STRIDE, "level": LEVEL, "floor": FLOOR, "level_step": LEVEL_STEP}


def _power(rows: np.ndarray) -> float:
    return float(np.sum(10.0 ** (rows.astype(np.float64) - 2.0)))


def _rounded(power: float, rows: int) -> float:
    """Mean level of ``rows`` rows whose bands have ``power`` in all, in the rows' unit (decibels / 10)."""
    mean = np.log10(max(power / max(rows, 1) / logmel.N_MELS, logmel.SMALLEST)) + 2.0
    return float(np.round(mean / LEVEL_STEP) * LEVEL_STEP)


def level(rows: np.ndarray) -> float:
    """Mean level of an utterance: that of the mean power of its (n, 32) log-mel rows, rounded to 1 (10 dB)."""
    return _rounded(_power(rows), len(rows))


def normalise(rows: np.ndarray, mean_level: float) -> np.ndarray:
    """Log-mel rows at a mean level of 10, none more than 50 dB below it: (n, 32) → (n, 32) float32."""
    return np.maximum(rows - np.float32(mean_level), np.float32(-FLOOR)) + np.float32(LEVEL)


def whole(rows: np.ndarray) -> np.ndarray:
    """Rows up to a multiple of 8, the last one repeated: (n, 32) → (8 ceil(n / 8), 32)."""
    missing = -len(rows) % STRIDE
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


class VoiceEncoder:
    """Vectors of the utterance that is open.

    ``push`` takes its (n, 32) log-mel rows as they come; ``vectors`` returns the (ceil(n / 8), 168) float32 vectors of
    all rows so far, the same whatever the number of calls before. A vector depends on 18 rows before and after its own
    8, so only the last ones are computed, and all only where the level has changed by a step. ``reset`` begins another
    utterance. ``run``: ``voice.onnx``, (1, 8 m, 32) → (1, m, 168) float32.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self._run = run
        self.reset()

    def reset(self) -> None:
        self._rows = np.zeros((0, logmel.DIM), np.float32)
        self._power = 0.0
        self._final = np.zeros((0, DIM), np.float32)  # vectors that no later row changes, at the level below
        self._level = np.nan

    def push(self, rows: np.ndarray) -> None:
        self._rows = np.concatenate([self._rows, rows])
        self._power += _power(rows)

    def vectors(self) -> np.ndarray:
        if not len(self._rows):
            return self._final
        mean_level = _rounded(self._power, len(self._rows))
        if mean_level != self._level:
            self._level, self._final = mean_level, self._final[:0]
        first = max(0, len(self._final) - MARGIN)
        rows = whole(normalise(self._rows[first * STRIDE :], mean_level))
        computed = self._run(rows[None])[0][len(self._final) - first :]
        vectors = np.concatenate([self._final, computed])
        self._final = vectors[: max(0, (len(self._rows) - REACH) // STRIDE)]
        return vectors
