"""Speaker vectors: the protocol of all networks that tell voices apart."""

from __future__ import annotations

from typing import Protocol

import numpy as np

LEAST_S = 0.6  # of speech; less says little about the voice
RATE_HZ = 16_000


class SpeakerVector(Protocol):
    """Computes the vector of the open utterance."""

    def reset(self) -> None:
        """Begin another utterance."""

    @property
    def seconds(self) -> float:
        """How much has been heard."""

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz."""

    def value(self) -> np.ndarray | None:
        """The vector so far: (dim,) float32 of length 1; None after less than ``LEAST_S``."""


class SpeakerEncoder(Protocol):
    def new_vector(self) -> SpeakerVector:
        """A new vector for the utterances of one stream."""


def telling(mean: np.ndarray, common: np.ndarray) -> np.ndarray:
    """A mean of vectors, minus what most voices have in common: (dim,) float32 of length 1."""
    vector = mean / max(float(np.linalg.norm(mean)), 1e-6) - common
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit.astype(np.float32)
