"""EmoDB: acted German speech, 10 speakers, 10 sentences.

A name is speaker (two digits), sentence (a letter and two digits), emotion (a letter), version: ``03a01Fa``. Boredom
has no counterpart among the labels and is dropped. Speakers 12 (man) and 14 (woman) are held out.
"""

from __future__ import annotations

import re
from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item, find_recordings

NAME = "EmoDB"
LICENCE = "free for research"
CITATION = "Burkhardt et al., A Database of German Emotional Speech, Interspeech 2005"
HELD_OUT = ("12", "14")
EMOTION = {"W": "anger", "E": "disgust", "A": "fear", "F": "joy", "T": "sadness", "N": "neutral", "L": None}
_NAME = re.compile(r"(\d\d)[ab]\d\d([WEAFTNL])[a-z]?")


def load(folder: Path) -> list[Item]:
    """Clips (WAV or FLAC) anywhere below ``folder``, without boredom."""
    items = []
    for path in find_recordings(folder, "EmoDB clips named like 03a01Fa.wav"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise CorpusError(f"{path}: not named like an EmoDB clip (03a01Fa.wav)")
        speaker, letter = match.groups()
        if (label := EMOTION[letter]) is not None:
            items.append(Item(path, label, "val" if speaker in HELD_OUT else "train", f"emodb-{speaker}"))
    return items
