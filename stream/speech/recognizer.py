"""The protocol of speech recognisers, and the choice of the configured one."""

from __future__ import annotations

import importlib.util
import logging
from typing import Protocol

import numpy as np

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.emotion import Word

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

    def expect_end(self, silence_s: float) -> None:
        """Speech may have ended, ``silence_s`` before the last sample: a recogniser that takes long to finish begins
        with it. To tell so again changes nothing; to go on with ``push`` takes it back."""
        ...

    def ready(self) -> bool:
        """Whether ``finish`` would return at once, after ``expect_end``."""
        ...

    def finish(self) -> list[Word]:
        """End the segment; returns its final words."""
        ...

    def reset(self) -> None:
        """Forget all adaptation to the speaker and the channel."""
        ...


def make_recognizer(config: Speech, apart: str = "", patient: bool = True) -> Recognizer | None:
    """The configured recogniser. ``auto``: Vosk if there is a model for the language; for English else Moonshine, else
    PocketSphinx; else None (utterances then have no words). The log says which one and why. ``apart``: PocketSphinx has
    a process of its own, of this name; ``patient``: see ``MoonshineRecognizer``.

    Raises ModelError if a recogniser that was asked for by name is not available.
    """
    wanted = config.recognizer
    if wanted in ("none", "external"):  # external words arrive as messages
        return None
    if wanted in ("auto", "vosk"):
        recognizer = _vosk(config)
        if recognizer is not None:
            return recognizer
    elif config.language != "en":
        title = {"moonshine": "Moonshine", "pocketsphinx": "PocketSphinx"}[wanted]
        raise ModelError(f"{title} only recognises English here, but speech.language is {config.language!r}")
    if wanted in ("auto", "moonshine") and config.language == "en":
        path = (models.need if wanted == "moonshine" else models.find)(models.MOONSHINE)
        if path is not None:
            from emostream.stream.speech.moonshine import MoonshineRecognizer

            log.info("speech recognition: moonshine, %s", path)
            return MoonshineRecognizer(path, patient)
    if config.language == "en" and importlib.util.find_spec("pocketsphinx") is not None:
        from emostream.stream.speech.apart import Apart
        from emostream.stream.speech.pocketsphinx import PocketSphinxRecognizer

        if wanted == "auto":
            mend = models.how_to_get(models.MOONSHINE)
            log.info("speech recognition: pocketsphinx (in place of Moonshine, which errs far less: %s)", mend)
        return Apart("pocketsphinx", apart) if apart else PocketSphinxRecognizer()
    if wanted == "pocketsphinx":
        raise ModelError("PocketSphinx is not installed: pip install 'emostream[offline]'")
    log.warning(
        "speech recognition: none for language %r, so labels come without words; set speech.vosk_model, or run: %s",
        config.language,
        models.how_to_get(models.MOONSHINE) if config.language == "en" else "stream-models list",
    )
    return None


def _vosk(config: Speech) -> Recognizer | None:
    """Vosk, if there is a model for the language. Raises ModelError if it was asked for by name and there is none."""
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
    return None
