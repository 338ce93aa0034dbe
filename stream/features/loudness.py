"""The loudness of an utterance's features: a quiet one is raised to the least that the networks know from training."""

from __future__ import annotations

import math

import numpy as np

from emostream.stream.features.mfcc import N_MELS

LEAST_DB = 65.0
"""Mean log mel energy, in dB over that of int16 samples, of the loudest frame. In speech it is the peak in dBFS plus 93
(85 to 98 in RAVDESS), so this is a peak of about -28 dBFS; training has peaks of -30 to 0."""

_C0_PER_DB = math.sqrt(N_MELS) * math.log(10) / 10  # c0 of the orthonormal DCT, when all energies grow by one dB


def raise_quiet(rows: np.ndarray) -> np.ndarray:
    """Rows of one utterance as if it had been spoken louder, if its loudest frame is below ``LEAST_DB``.

    ``rows``: (n, 120) float32 MFCC + Δ + ΔΔ. Amplifying by g dB adds the same to c0 of all frames and changes nothing
    else. Returns ``rows`` itself if they are loud enough.
    """
    if not len(rows):
        return rows
    missing_db = LEAST_DB - float(rows[:, 0].max()) / _C0_PER_DB
    if missing_db <= 0:
        return rows
    raised = rows.copy()
    raised[:, 0] += missing_db * _C0_PER_DB
    return raised
