"""Sounds that people make without words: laughing, crying, screaming, coughing and so on.

The recordings' names are ``<class>_<speaker>_….opus``. Laughing is labelled joy, crying sadness, screaming fear, and
sounds without emotion neutral; moans, sighs, and what voice activity detection never takes for speech are left out.
Every fourth speaker is held out.
"""

from __future__ import annotations

from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item

NAME = "Deeply"
LICENCE = "CC BY-NC-ND 4.0"
CITATION = "Deeply Nonverbal Vocalization Dataset, OpenSLR 99"
EMOTION = {
    "laughing": "joy", "crying": "sadness", "screaming": "fear",
    "coughing": "neutral", "yawning": "neutral", "sneezing": "neutral", "throat-clearing": "neutral",
    "nose-blowing": "neutral",
}  # fmt: skip
HELD_OUT = 4  # one speaker in this many is held out


def load(folder: Path) -> list[Item]:
    """The recordings in ``folder``. Raises CorpusError if there are none of a class that is used."""
    recordings = []
    for path in sorted(folder.glob("*.opus")):
        kind, _, rest = path.stem.partition("_")
        if kind in EMOTION and rest:
            recordings.append((path, kind, rest.partition("_")[0]))
    if not recordings:
        raise CorpusError(f"{folder}: no recording such as laughing_<speaker>_….opus in it")
    speakers = sorted({speaker for _, _, speaker in recordings})
    return [
        Item(path, EMOTION[kind], "val" if speakers.index(speaker) % HELD_OUT == 0 else "train", f"deeply-{speaker}")
        for path, kind, speaker in recordings
    ]
