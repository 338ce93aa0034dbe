"""Public corpora as lists of items, all with the seven labels of Ekman's basic emotions and neutral.

Each module has ``NAME``, ``LICENCE``, ``CITATION`` and ``load(folder) -> list[Item]``, which raises CorpusError if the
folder does not have the corpus's layout. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")


class CorpusError(RuntimeError):
    """A corpus is missing or its folder has another layout; the message says what is expected."""


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled thing. ``content``: path of a recording, bytes of an encoded image, or a text.
    ``split``: "train" or "val"; ``speaker`` is empty where a corpus does not tell."""

    content: Path | bytes | str
    label: str
    split: str
    speaker: str = ""


def of(items: list[Item], split: str) -> list[Item]:
    """The items of one split."""
    return [item for item in items if item.split == split]


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
