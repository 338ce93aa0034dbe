"""Vosk (Kaldi) as a recogniser."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import vosk

from emostream.stream.emotion import Word
from emostream.stream.speech.searching import Searching

RATE_HZ = 16_000


class _VoskWord(msgspec.Struct):
    word: str
    start: float
    end: float
    conf: float = 1.0


class _Result(msgspec.Struct):
    result: list[_VoskWord] = []


class _Partial(msgspec.Struct):
    partial_result: list[_VoskWord] = []


class VoskRecognizer(Searching):
    """See ``recognizer.Recognizer``. ``model``: a Vosk model's folder."""

    name = "vosk"

    def __init__(self, model: Path) -> None:
        vosk.SetLogLevel(-1)
        self._model = vosk.Model(str(model))
        self.begin()

    def begin(self) -> None:
        # a new recogniser for each segment, since one that runs for hours keeps all its lattices in memory
        self._kaldi = vosk.KaldiRecognizer(self._model, RATE_HZ)
        self._kaldi.SetWords(True)
        self._kaldi.SetPartialWords(True)
        self._words: list[Word] = []

    def push(self, samples: np.ndarray) -> None:
        if self._kaldi.AcceptWaveform(samples.tobytes()):  # it found an end of its own: keep the words
            self._words += _words(msgspec.json.decode(self._kaldi.Result(), type=_Result).result)

    def partial(self) -> list[Word]:
        heard = msgspec.json.decode(self._kaldi.PartialResult(), type=_Partial).partial_result
        return self._words + _words(heard)

    def finish(self) -> list[Word]:
        heard = msgspec.json.decode(self._kaldi.FinalResult(), type=_Result).result
        return self._words + _words(heard)

    def reset(self) -> None:
        self.begin()


def _words(heard: list[_VoskWord]) -> list[Word]:
    """Drops noises and unknown words, which models write as [noise] or <unk>."""
    return [
        Word(word.word, word.start, word.end, min(1.0, word.conf))
        for word in heard
        if not word.word.startswith(("<", "["))
    ]
