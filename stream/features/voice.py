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
VECTOR_NS = STRIDE * logmel.HOP_NS
REACH = 18  # rows before a vector's first and after its last one that it depends on
MARGIN = -(-REACH // STRIDE)  # REACH in vectors
LEVEL = 10.0  # where the mean level is put: about the middle of what the network was first trained on
FLOOR = 5.0  # 50 dB below the mean level there is only the room, the microphone and rounding
LEVEL_STEP = 1.0  # 10 dB; the network is trained with levels that are off by up to 6 dB

SETTINGS = {"stride": STRIDE, "level": LEVEL, "floor": FLOOR, "level_step": LEVEL_STEP}


def level(rows: np.ndarray) -> float:
    """Mean level of an utterance: that of the mean power of its (n, 32) log-mel rows, rounded to 1 (10 dB)."""
    power = float(np.sum(10.0 ** (rows.astype(np.float64) - 2.0)))
    mean = np.log10(max(power / max(len(rows), 1) / logmel.N_MELS, logmel.SMALLEST)) + 2.0
    return float(np.round(mean / LEVEL_STEP) * LEVEL_STEP)


def normalise(rows: np.ndarray, mean_level: float) -> np.ndarray:
    """Log-mel rows at a mean level of 10, none more than 50 dB below it: (n, 32) → (n, 32) float32."""
    return np.maximum(rows - np.float32(mean_level), np.float32(-FLOOR)) + np.float32(LEVEL)


def whole(rows: np.ndarray) -> np.ndarray:
    """Rows up to a multiple of 8, the last one repeated: (n, 32) → (8 ceil(n / 8), 32)."""
    missing = -len(rows) % STRIDE
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


class VoiceEncoder:
    """Vectors of the utterance that is open. ``run``: ``voice.onnx``, (1, 8 m, 32) → (1, m, 168) float32.

    A vector depends on 18 rows before and after its own 8, so each call computes only the last ones, and all of them
    only where the level has changed by a step. ``reset`` begins another utterance.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self._run = run
        self.reset()

    def reset(self) -> None:
        self._final = np.zeros((0, DIM), np.float32)  # vectors that no later row changes, at the level below
        self._level = np.nan
        self._rows = self._first = 0  # of the last ``begin``: how many rows, and the first vector that is computed

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of the utterance so far, the same whatever the calls before.

        ``rows``: (n, 32) float32, its log-mel rows from its start on: those of the last call and more, or fewer.
        Returns (ceil(n / 8), 168) float32.
        """
        wanted = self.begin(rows)
        return self.finish(None if wanted is None else self._run(wanted))

    def begin(self, rows: np.ndarray) -> np.ndarray | None:
        """The first half of ``encode``: what the network has to run, (1, 8 m, 32); None for no rows."""
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
        """The second half: the vectors, from the network's, (1, m, 168)."""
        if computed is None:
            return self._final[:0]
        final = max(0, (self._rows - REACH) // STRIDE)
        known = self._final[:final]
        vectors = np.concatenate([known, computed[0][len(known) - self._first :]])
        self._final = vectors[:final]
        return vectors
