"""Corpora as lists. Nothing is downloaded; docs/corpora.md shows the layouts.

Each module of a public corpus has ``NAME``, ``LICENCE``, ``CITATION`` and ``load(folder) -> list[Item]``: items of one
modality, all with the seven labels of Ekman's basic emotions and neutral. ``iemocap`` and ``manifest`` (your own data)
give ``list[Clip]``, with labels of their own; ``iemocap_folds`` gives folds of ready features. All raise CorpusError if
the data is not in the layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emostream.errors import CorpusError

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled recording, image or text. ``content``: the recording's path, the encoded image, or the text.
    ``split``: "train" or "val"; ``speaker`` is empty where the corpus does not name one; ``votes``: how many people
    gave each of LABELS, where the corpus has it; ``span_s``: the section of the recording, None for all of it."""

    content: Path | bytes | str
    label: str
    split: str
    speaker: str = ""
    votes: tuple[int, ...] = ()
    span_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """One labelled utterance with at least one of sound, picture and words.

    ``where``: its name in messages. ``group``: the session or speaker, which no fold splits.
    ``media``: a file with its sound, its picture, or both; ``start_s`` and ``end_s``: the section of that file, None
    for the file's start and end. ``audio``: a file with the sound of this clip alone, used instead of that in
    ``media``. ``crop``: the half of a split screen that shows the speaker.
    ``fold``: the number of the fold that tests on it, where the corpus assigns one. ``dimensions``: its valence and
    arousal, in [-1, 1], where someone rated them.
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
    dimensions: tuple[float, float] | None = None


def in_split(items: Iterable[Item], split: str) -> list[Item]:
    """The items of one split."""
    return [item for item in items if item.split == split]


def label_numbers(items: Iterable[Item]) -> np.ndarray:
    """Each item's label as its index in LABELS: (N,) int64."""
    return np.array([LABELS.index(item.label) for item in items], np.int64)


def limit_per_label(items: list[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items of each label, always the same ones, in the list's order; all of them for None."""
    if limit is None:
        return items
    rng, chosen = np.random.default_rng(0), []
    for label in LABELS:
        chosen += rng.permutation([i for i, item in enumerate(items) if item.label == label])[:limit].tolist()
    return [items[int(i)] for i in sorted(chosen)]


def check_label(label: str, where: Path) -> str:
    """Return ``label``. Raises CorpusError that names ``where`` it was read, if it is not one of LABELS."""
    if label not in LABELS:
        raise CorpusError(f"{where}: label {label!r} is not one of: {', '.join(LABELS)}")
    return label


def read_columns(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """Columns of a Parquet file as lists. Raises CorpusError if the file or a column is missing."""
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected a Parquet file with the columns {', '.join(columns)}")
    names = parquet.read_schema(path).names
    if missing := [name for name in columns if name not in names]:
        raise CorpusError(f"{path}: has no column {', '.join(missing)}; it has {', '.join(names)}")
    rows: dict[str, list[Any]] = parquet.read_table(path, columns=list(columns)).to_pydict()
    return rows


def find_recordings(folder: Path, expected: str) -> list[Path]:
    """WAV and FLAC files anywhere below ``folder``, sorted. Raises CorpusError if there are none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".wav", ".flac"))
    if not paths:
        raise CorpusError(f"{folder}: no .wav or .flac file in it; expected {expected}")
    return paths
