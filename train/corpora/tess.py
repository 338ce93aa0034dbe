"""TESS: acted English speech, two women, one carrier sentence. With two speakers it is only useful for training.

A name is ``SPEAKER_word_emotion``: ``OAF_back_angry``.
"""

from __future__ import annotations

import re
from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item

NAME = "TESS"
LICENCE = "CC BY-NC-ND 4.0"
CITATION = "Pichora-Fuller and Dupuis, Toronto emotional speech set (TESS), Borealis 2020"
EMOTION = {
    "angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "joy", "neutral": "neutral", "ps": "surprise",
    "sad": "sadness",
}  # fmt: skip
_NAME = re.compile(r"(OAF|OA|YAF)_[A-Za-z]+_([a-z]+)")


def load(folder: Path) -> list[Item]:
    """Clips (Opus, WAV or FLAC) anywhere below ``folder``. Raises CorpusError if there are none."""
    items = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".opus", ".wav", ".flac")):
        match = _NAME.fullmatch(path.stem)
        if match is None or match[2] not in EMOTION:
            raise CorpusError(f"{path}: not named like a TESS clip (OAF_back_angry.wav)")
        items.append(Item(path, EMOTION[match[2]], "train", f"tess-{match[1][0]}"))
    if not items:
        raise CorpusError(f"{folder}: no recording in it; expected TESS clips named like OAF_back_angry.wav")
    return items
