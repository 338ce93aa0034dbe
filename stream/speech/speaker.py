"""Chooses the network that computes speaker vectors: one vector per utterance, to tell people apart by their voices.

There are two: CAM++ (``campplus``) and, if that is not installed, the LSTM of ``ge2e``, which errs twice as often.
Vectors of different networks cannot be compared.
"""

from __future__ import annotations

from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.speech.campplus import CampplusEncoder
from emostream.stream.speech.ge2e import Ge2eEncoder
from emostream.stream.speech.speaker_vector import SpeakerEncoder


def load_speaker(config: Speech) -> SpeakerEncoder | None:
    """The best installed network; None if there is none or it is not wanted. Raises ModelError if a file is not the
    expected one."""
    if config.speakers == "off":
        return None
    if (path := models.find("campplus")) is not None:
        return CampplusEncoder(path)
    if (path := models.find("resemblyzer")) is not None:
        return Ge2eEncoder(path)
    return None
