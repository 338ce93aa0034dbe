"""The protocol of speech recognisers, and the choice of the configured one."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.emotion import Word
from emostream.stream.speech.apart import Apart

log = logging.getLogger(__name__)


class Recognizer(Protocol):
    """Recognises one segment of speech after another. Times of words count from the segment's first sample."""

    name: str

    def begin(self) -> None:
        """Begin a segment and forget the last one."""
        ...

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz."""
        ...

    def partial(self) -> list[Word]:
        """Words so far; they may still change."""
        ...

    def finish(self) -> list[Word]:
        """End the segment; returns its final words."""
        ...

    def reset(self) -> None:
        """Forget all adaptation to the speaker and the channel."""
        ...


def make_recognizer(config: Speech, apart: str = "") -> Recognizer | None:
    """The configured recogniser. ``auto``: Vosk if there is a model for the language, else PocketSphinx for English,
    else None (utterances then have no words); the log says which one and why. ``apart``: PocketSphinx has a
    process of its own, of this name.

    Raises ModelError if a recogniser that was asked for by name is not available.
    """
    if config.recognizer in ("none", "external"):  # external words arrive as messages
        return None
    if config.recognizer in ("auto", "vosk"):
        name = f"vosk-{config.language}"
        path = models.find(name, config.vosk_model) if name in models.MODELS or config.vosk_model else None
        if path is not None:
            from emostream.stream.speech.vosk import VoskRecognizer

            log.info("speech recognition: vosk, %s", path)
            return VoskRecognizer(path)
        if config.recognizer == "vosk":
            raise ModelError(
                f"no Vosk model for language {config.language!r}: set speech.vosk_model to a model's folder"
                + (f", or run: {models.how_to_get(name)}" if name in models.MODELS else "")
            )
    if config.language == "en":
        try:
            from emostream.stream.speech.pocketsphinx import PocketSphinxRecognizer
        except ImportError as error:
            if config.recognizer == "pocketsphinx":
                raise ModelError("PocketSphinx is not installed: pip install 'emostream[offline]'") from error
        else:
            if config.recognizer == "auto":
                log.info(
                    "speech recognition: pocketsphinx (in place of Vosk; to get Vosk: %s)", models.how_to_get("vosk-en")
                )
            return Apart("pocketsphinx", apart) if apart else PocketSphinxRecognizer()
    elif config.recognizer == "pocketsphinx":
        raise ModelError(f"PocketSphinx only recognises English here, but speech.language is {config.language!r}")
    log.warning(
        "speech recognition: none for language %r, so labels come without words; set speech.vosk_model, or run: %s",
        config.language,
        "pip install 'emostream[offline]'" if config.language == "en" else "stream-models list",
    )
    return None
