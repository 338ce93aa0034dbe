"""nEMO: acted Polish speech, nine speakers, 90 sentences; no disgust.

``labels.tsv`` names file, emotion and speaker. KD0 (woman) and SM0 (man) are held out.
"""

from __future__ import annotations

import csv
from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item

NAME = "nEMO"
LICENCE = "CC BY-NC-SA 4.0"
CITATION = "Christop, nEMO: Dataset of Emotional Speech in Polish, LREC-COLING 2024"
HELD_OUT = ("KD0", "SM0")
EMOTION = {
    "anger": "anger", "fear": "fear", "happiness": "joy", "neutral": "neutral", "sadness": "sadness",
    "surprised": "surprise",
}  # fmt: skip


def load(folder: Path) -> list[Item]:
    """The recordings that ``labels.tsv`` in ``folder`` names. Raises CorpusError if the file is not there, lacks a
    column, or names an unknown emotion or a missing recording."""
    table = folder / "labels.tsv"
    if not table.is_file():
        raise CorpusError(f"{table}: no such file; expected nEMO's list of recordings (file, emotion, speaker)")
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    paths = {path.name: path for path in folder.rglob("*") if path.suffix in (".opus", ".wav", ".flac")}
    items = []
    for number, row in enumerate(rows, 2):
        if not {"file", "emotion", "speaker"} <= row.keys():
            raise CorpusError(f"{table}: needs the columns file, emotion, speaker")
        if row["emotion"] not in EMOTION:
            raise CorpusError(f"{table}: line {number}: unknown emotion {row['emotion']!r}")
        if row["file"] not in paths:
            raise CorpusError(f"{table}: line {number}: {row['file']} is not in {folder}")
        split = "val" if row["speaker"] in HELD_OUT else "train"
        items.append(Item(paths[row["file"]], EMOTION[row["emotion"]], split, f"nemo-{row['speaker']}"))
    return items
