"""MELD: lines of the television series Friends. Read from ``train.parquet`` and ``dev.parquet`` (split by dialogue)
with the columns Utterance, Speaker and Emotion.
"""

from __future__ import annotations

from pathlib import Path

from emostream.train.corpora import Item, check_label, read_columns

NAME = "MELD"
LICENCE = "GPL-3.0"
CITATION = "Poria et al., MELD: A Multimodal Multi-Party Dataset for Emotion Recognition in Conversations, ACL 2019"


def load(folder: Path) -> list[Item]:
    items = []
    for file, split in (("train.parquet", "train"), ("dev.parquet", "val")):
        rows = read_columns(folder / file, ("Utterance", "Speaker", "Emotion"))
        for text, speaker, emotion in zip(rows["Utterance"], rows["Speaker"], rows["Emotion"], strict=True):
            items.append(Item(text, check_label(emotion, folder / file), split, speaker))
    return items
