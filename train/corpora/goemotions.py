"""GoEmotions: Reddit comments with the seven labels of its Ekman grouping.

Read from ``train.parquet`` and ``dev.parquet`` with the columns text and labels (list). Comments with more than one
label (9 %) are dropped: a model gives one label per utterance, and picking one of two would be a guess. The
placeholders ``[NAME]`` and ``[RELIGION]`` are removed, since no recogniser writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

from emostream.train.corpora import Item, check_label, read_columns

NAME = "GoEmotions"
LICENCE = "Apache-2.0"
CITATION = "Demszky et al., GoEmotions: A Dataset of Fine-Grained Emotions, ACL 2020"
_PLACEHOLDER = re.compile(r"\[(NAME|RELIGION)\]")


def load(folder: Path) -> list[Item]:
    items = []
    for file, split in (("train.parquet", "train"), ("dev.parquet", "val")):
        rows = read_columns(folder / file, ("text", "labels"))
        for text, labels in zip(rows["text"], rows["labels"], strict=True):
            if len(labels) == 1:
                items.append(Item(_PLACEHOLDER.sub(" ", text), check_label(labels[0], folder / file), split))
    return items
