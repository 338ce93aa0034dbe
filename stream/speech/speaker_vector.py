"""The vector of a voice: what each network that tells voices apart gives."""

from __future__ import annotations

from typing import Protocol

import numpy as np

LEAST_S = 0.6  # of a voice: less tells little
RATE_HZ = 16_000


class SpeakerVector(Protocol):
    """The vector of the utterance that is open."""

    def reset(self) -> None:
        """Begin another utterance."""

    @property
    def seconds(self) -> float:
        """How much was heard."""

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz."""

    def value(self) -> np.ndarray | None:
        """The vector so far: (dim,) float32 of length 1; None after less than ``LEAST_S``."""


class SpeakerEncoder(Protocol):
    def new_vector(self) -> SpeakerVector:
        """For the utterances of one stream."""


def telling(mean: np.ndarray, common: np.ndarray) -> np.ndarray:
    """A mean of vectors without what most voices have in common: (dim,) float32 of length 1."""
    vector = mean / max(float(np.linalg.norm(mean)), 1e-6) - common
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit.astype(np.float32)
