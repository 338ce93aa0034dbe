"""FER2013: faces from web searches, 48×48 gray, labelled by hand.

Read from ``faces.parquet`` with the columns image (encoded bytes), label and split (train, val).
"""

from __future__ import annotations

from pathlib import Path

from emostream.errors import CorpusError
from emostream.train.corpora import Item, check_label, read_columns

NAME = "FER2013"
LICENCE = "Kaggle competition data, research use"
CITATION = "Goodfellow et al., Challenges in Representation Learning, ICONIP 2013"


def load(folder: Path) -> list[Item]:
    path = folder / "faces.parquet"
    rows = read_columns(path, ("image", "label", "split"))
    if unknown := set(rows["split"]) - {"train", "val"}:
        raise CorpusError(f"{path}: split is {sorted(unknown)}, expected train or val")
    return [
        Item(image, check_label(label, path), split)
        for image, label, split in zip(rows["image"], rows["label"], rows["split"], strict=True)
    ]
