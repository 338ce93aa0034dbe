"""What a voice is like, whatever it says: one vector for each utterance, which tells people apart.

Two networks do that: CAM++ (``campplus``) and, where that is not installed, the LSTM of ``ge2e``, which errs twice as
often. Vectors of one cannot be compared with those of the other.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from emostream.stream import models
from emostream.stream.config import Speech

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


def load_speaker(config: Speech) -> SpeakerEncoder | None:
    """The best network that is installed, if it is wanted. Raises ModelError if a file is not the network."""
    from emostream.stream.speech.campplus import CampplusEncoder
    from emostream.stream.speech.ge2e import Ge2eEncoder

    if config.speakers == "off":
        return None
    if (path := models.find("campplus")) is not None:
        return CampplusEncoder(path)
    if (path := models.find("resemblyzer")) is not None:
        return Ge2eEncoder(path)
    return None


def telling(mean: np.ndarray, common: np.ndarray) -> np.ndarray:
    """A mean of vectors without what most voices have in common: (dim,) float32 of length 1."""
    vector = mean / max(float(np.linalg.norm(mean)), 1e-6) - common
    unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit.astype(np.float32)
