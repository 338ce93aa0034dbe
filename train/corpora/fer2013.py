"""FER2013 with the labels of FER+: faces from web searches, 48×48 gray, each labelled by ten people.

Read from ``faces.parquet`` with the columns image (encoded bytes), label and split (train, val), and
``ferplus.parquet`` with ten people's votes for each of its rows. FER2013's own labels disagree with most of these
people in a third of the images, so they are not used. Left out are images that show no face or are not in FER+, and
those in which most people saw contempt or nothing that they could name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emostream.errors import CorpusError
from emostream.train.corpora import LABELS, Item, check_label, read_columns

NAME = "FER+"
LICENCE = "votes: MIT; images: Kaggle competition data, research use"
CITATION = (
    "Barsoum et al., Training deep networks for facial expression recognition with crowd-sourced label distribution, "
    "ICMI 2016; images: Goodfellow et al., Challenges in Representation Learning, ICONIP 2013"
)
VOTES = {
    "anger": "anger", "disgust": "disgust", "fear": "fear", "joy": "happiness", "neutral": "neutral",
    "sadness": "sadness", "surprise": "surprise",
}  # fmt: skip
OTHERS = ("contempt", "unknown", "not_a_face")


def load(folder: Path) -> list[Item]:
    """Images with the label that most people gave, and the votes for all labels. Raises CorpusError if a file is
    missing, lacks a column, or has another number of rows."""
    path = folder / "faces.parquet"
    rows = read_columns(path, ("image", "label", "split"))
    if unknown := set(rows["split"]) - {"train", "val"}:
        raise CorpusError(f"{path}: split is {sorted(unknown)}, expected train or val")
    for label in set(rows["label"]):
        check_label(label, path)
    votes_path = folder / "ferplus.parquet"
    columns = read_columns(votes_path, (*VOTES.values(), *OTHERS))
    votes = np.array([columns[name] for name in (*(VOTES[label] for label in LABELS), *OTHERS)], np.int64).T
    if len(votes) != len(rows["image"]):
        raise CorpusError(f"{votes_path}: has {len(votes)} rows, {path.name} has {len(rows['image'])}")
    items = []
    for image, split, counts in zip(rows["image"], rows["split"], votes, strict=True):
        most = int(counts.argmax())
        if counts.min() < 0 or most >= len(LABELS):
            continue
        items.append(Item(image, LABELS[most], split, votes=tuple(counts[: len(LABELS)].tolist())))
    return items
