"""Automatic level: how much to amplify a quiet microphone for voice activity detection and the recogniser."""

from __future__ import annotations

import math

import numpy as np

from emostream.stream.speech.vad import FRAME_NS

QUIET_DBFS = -30.0  # a microphone whose recent peak is lower is quiet; others are left alone
TARGET_DBFS = -6.0  # a quiet microphone's recent peak is raised to this
MAX_GAIN_DB = 40.0
FALL_DB_S = 2.0  # how fast the recent peak falls; so slowly that pauses within speech hardly change the gain
_FALL_DB = FALL_DB_S * FRAME_NS / 1e9
_LEAST_DBFS = 20 * math.log10(1 / 32768)  # the smallest int16 sample that is not 0


class Level:
    """Follows the peak of 32 ms blocks: up at once, down by 2 dB a second.

    No block is amplified above ``TARGET_DBFS``, since its own peak counts too: nothing clips, however suddenly somebody
    speaks up. ``peak_dbfs`` is the recent peak; ``gain_db`` is 0 for a normal microphone and at most ``MAX_GAIN_DB``.
    """

    def __init__(self) -> None:
        self.peak_dbfs = _LEAST_DBFS  # a microphone that has not been heard yet counts as quiet

    @property
    def quiet(self) -> bool:
        """Whether the microphone is quiet, so that its blocks are amplified."""
        return self.peak_dbfs < QUIET_DBFS

    @property
    def gain_db(self) -> float:
        return min(TARGET_DBFS - self.peak_dbfs, MAX_GAIN_DB) if self.quiet else 0.0

    def push(self, samples: np.ndarray) -> None:
        """Take the next block: (n,) int16, n > 0."""
        peak = max(int(samples.max()), -int(samples.min()), 1)
        self.peak_dbfs = max(20 * math.log10(peak / 32768), self.peak_dbfs - _FALL_DB, _LEAST_DBFS)

    def raised(self, samples: np.ndarray) -> np.ndarray:
        """Amplify the (n,) int16 samples of the block that was pushed last."""
        factor = np.float32(10 ** (self.gain_db / 20))
        amplified: np.ndarray = np.rint(samples * factor).astype(np.int16)
        return amplified
