"""RAVDESS: acted English speech, 24 actors, two sentences.

A name is ``MM-VV-EE-II-SS-RR-AA``: modality (03 sound alone), voice (01 speech), emotion, intensity, sentence,
repetition, actor. Actors 17 to 20 are held out and never trained on. Calm counts as neutral.
"""

from __future__ import annotations

import re
from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item, find_recordings

NAME = "RAVDESS"
LICENCE = "CC BY-NC-SA 4.0"
CITATION = (
    "Livingstone and Russo, The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS), "
    "PLoS ONE 13(5), 2018"
)
HELD_OUT = ("17", "18", "19", "20")
EMOTION = {
    "01": "neutral", "02": "neutral", "03": "joy", "04": "sadness", "05": "anger", "06": "fear", "07": "disgust",
    "08": "surprise",
}  # fmt: skip
_NAME = re.compile(r"03-01-(0[1-8])-\d\d-\d\d-\d\d-(\d\d)")


def sex(speaker: str) -> str:
    """ "male" or "female": actors of odd number are men."""
    return "male" if int(speaker[-2:]) % 2 else "female"


def load(folder: Path) -> list[Item]:
    """Speech clips (WAV or FLAC) anywhere below ``folder``; songs and videos are ignored."""
    items = []
    for path in find_recordings(folder, "RAVDESS clips named like 03-01-05-01-02-01-12.wav"):
        if match := _NAME.fullmatch(path.stem):
            emotion, actor = match.groups()
            items.append(Item(path, EMOTION[emotion], "val" if actor in HELD_OUT else "train", f"ravdess-{actor}"))
    if not items:
        raise CorpusError(f"{folder}: no file is named like a RAVDESS speech clip (03-01-05-01-02-01-12.wav)")
    return items
