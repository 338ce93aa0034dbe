"""What a voice is like, whatever it says: which network says it, in one vector for each utterance.

There are two: CAM++ (``campplus``) and, where that is not installed, the LSTM of ``ge2e``, which errs twice as often.
Vectors of one cannot be compared with those of the other.
"""

from __future__ import annotations

from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.speech.campplus import CampplusEncoder
from emostream.stream.speech.ge2e import Ge2eEncoder
from emostream.stream.speech.speaker_vector import SpeakerEncoder


def load_speaker(config: Speech) -> SpeakerEncoder | None:
    """The best network that is installed, if it is wanted. Raises ModelError if a file is not the network."""
    if config.speakers == "off":
        return None
    if (path := models.find("campplus")) is not None:
        return CampplusEncoder(path)
    if (path := models.find("resemblyzer")) is not None:
        return Ge2eEncoder(path)
    return None
