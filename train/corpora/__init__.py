"""Corpora as lists. Nothing is downloaded; docs/corpora.md shows the layouts.

Each module of a public corpus has ``NAME``, ``LICENCE``, ``CITATION`` and ``load(folder) -> list[Item]``: items of one
modality, all with the seven labels of Ekman's basic emotions and neutral. ``iemocap`` and ``manifest`` (anyone's own
data) give ``list[Clip]``, with labels of their own; ``iemocap_folds`` gives folds of ready features. All raise
CorpusError if the data does not have the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from emostream.errors import CorpusError

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled thing. ``content``: path of a recording, bytes of an encoded image, or a text.
    ``split``: "train" or "val"; ``speaker`` is empty where a corpus does not tell."""

    content: Path | bytes | str
    label: str
    split: str
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled utterance that has sound, picture, words, or some of them.

    ``where``: what messages call it. ``group``: what folds never split, a session or a speaker.
    ``media``: a file with its sound, its picture, or both; ``start_s`` and ``end_s``: the stretch of that file, None
    for the file's start and end. ``audio``: a file that holds just this clip's sound, used instead of that of
    ``media``. ``crop``: the half of a split screen in which the speaker is seen.
    ``fold``: the number of the fold that tests on it, where the corpus says so.
    """

    where: str
    label: str
    speaker: str
    group: str
    media: Path | None = None
    audio: Path | None = None
    start_s: float | None = None
    end_s: float | None = None
    text: str | None = None
    fold: int | None = None
    crop: Literal["left", "right"] | None = None


def of(items: list[Item], split: str) -> list[Item]:
    """The items of one split."""
    return [item for item in items if item.split == split]


def numbers(items: list[Item]) -> np.ndarray:
    """Their labels as numbers of LABELS: (N,) int64."""
    return np.array([LABELS.index(item.label) for item in items], np.int64)


def some(items: list[Item], most: int | None) -> list[Item]:
    """At most ``most`` items of each label, always the same, in the list's order."""
    if most is None:
        return items
    rng, chosen = np.random.default_rng(0), []
    for label in LABELS:
        chosen += rng.permutation([i for i, item in enumerate(items) if item.label == label])[:most].tolist()
    return [items[int(i)] for i in sorted(chosen)]


def table(path: Path, columns: tuple[str, ...]) -> dict[str, list]:
    """Columns of a Parquet file as lists. Raises CorpusError if the file or one of them is not there."""
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected a Parquet file with the columns {', '.join(columns)}")
    found = parquet.read_schema(path).names
    if missing := [name for name in columns if name not in found]:
        raise CorpusError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(found)}")
    return parquet.read_table(path, columns=list(columns)).to_pydict()


def known(label: str, where: Path) -> str:
    """``label`` if it is one of LABELS. Raises CorpusError otherwise."""
    if label not in LABELS:
        raise CorpusError(f"{where}: label {label!r} is not one of: {', '.join(LABELS)}")
    return label


def recordings(folder: Path, expected: str) -> list[Path]:
    """WAV and FLAC files anywhere below ``folder``, sorted. Raises CorpusError if there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    if not found:
        raise CorpusError(f"{folder}: no .wav or .flac file in it; expected {expected}")
    return found
