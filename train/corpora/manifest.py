"""Your own data: a CSV or Parquet file with a row for each utterance.

| column    |          | what                                                                                  |
|-----------|----------|---------------------------------------------------------------------------------------|
| path      | required | file with its sound, its picture or both, relative to the manifest; empty: only words |
| label     | required | any name                                                                              |
| speaker   | required | who speaks; no fold splits a speaker                                                  |
| start_s   |          | where the utterance starts in the file, seconds; empty: at its start                  |
| end_s     |          | where it ends; empty: at the file's end                                               |
| text      |          | what is said                                                                          |
| fold      |          | number of the fold that tests on it; for all rows or for none, the same for a speaker |
| valence   |          | how pleasant it is, from -1 to 1; only with arousal                                   |
| arousal   |          | how active it is, from -1 to 1; only with valence                                     |

There are no other columns. Row 1 in messages is the line after the header.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection
from pathlib import Path

from emostream.errors import CorpusError, Problems, SourceError
from emostream.stream.sources.base import NoTrack
from emostream.stream.sources.file import FileSource
from emostream.train.corpora import Clip

REQUIRED = ("path", "label", "speaker")
OPTIONAL = ("start_s", "end_s", "text", "fold", "valence", "arousal")
LATE_S = 0.1  # an end up to this long after the file's end is rounding: containers round their length
LEAST_FOLDS = 3  # one to train on, one to select by, one to test on

Row = dict[str, str]  # values by column, stripped; "" is no value
Problem = tuple[int, str]  # the row, or 0 for the whole table, and what is wrong


def load(path: Path, labels: Collection[str] | None = None, least: int = 1) -> list[Clip]:
    """The rows of a manifest; if ``labels`` are given, no others are allowed.

    ``least``: how many rows each label needs; above 1, there must be two labels too.

    Each file is opened to read its length from the header. Raises Problems with everything that is wrong, by row.
    """
    rows, problems = _read(path)
    lengths: dict[Path, float | str] = {}  # seconds, or why the file is unusable
    clips: dict[int, Clip] = {}
    for number, row in rows.items():
        clip, wrong = _clip(path.parent, number, row, labels, lengths)
        problems += [(number, text) for text in wrong]
        if clip is not None:
            clips[number] = clip
    problems += _twice(clips) + _folds(rows) + _few(rows, least)
    if problems:
        problems.sort(key=lambda problem: problem[0])
        raise Problems(str(path), [f"row {number}: {text}" if number else text for number, text in problems])
    return list(clips.values())


def _read(path: Path) -> tuple[dict[int, Row], list[Problem]]:
    """Rows by number, and what is wrong with them. Raises CorpusError if there is no table with these columns."""
    if not path.is_file():
        raise CorpusError(f"{path}: no such file; expected a .csv or .parquet file (see docs/corpora.md)")
    if path.suffix == ".parquet":
        columns, records = _read_parquet(path)
    elif path.suffix == ".csv":
        columns, records = _read_csv(path)
    else:
        raise CorpusError(f"{path}: a manifest is a .csv or .parquet file")
    wrong = [f"has no column {name}; it has {', '.join(columns)}" for name in REQUIRED if name not in columns]
    wrong += [f"has the column {name} twice" for name in (*REQUIRED, *OPTIONAL) if columns.count(name) > 1]
    if wrong:
        raise Problems(str(path), wrong)
    rows: dict[int, Row] = {}
    problems: list[Problem] = [] if any(records) else [(0, "has no rows")]
    known = ", ".join((*REQUIRED, *OPTIONAL))
    problems += [
        (0, f"has the unknown column {name!r}; known are {known}")
        for name in columns
        if name not in (*REQUIRED, *OPTIONAL)
    ]
    for number, record in enumerate(records, start=1):
        if not record:  # a blank line counts, so that the numbers match an editor's lines
            continue
        if len(record) != len(columns):
            problems.append((number, f"has {len(record)} values, the header has {len(columns)}"))
            continue
        rows[number] = {name: value.strip() for name, value in zip(columns, record, strict=True)}
    return rows, problems


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *records = list(csv.reader(file)) or [[]]
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: is no table of comma-separated values in UTF-8 ({error})") from error
    return [name.strip() for name in header], records


def _read_parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: is no Parquet file ({error})") from error
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return table.column_names, [list(record) for record in zip(*columns, strict=True)]


def _clip(
    folder: Path, number: int, row: Row, labels: Collection[str] | None, lengths: dict[Path, float | str]
) -> tuple[Clip | None, list[str]]:
    """One row as a clip, or None and what is wrong with it."""
    wrong = []
    for name in ("label", "speaker"):
        if not row[name]:
            wrong.append(f"has no {name}")
    if row["label"] and labels is not None and row["label"] not in labels:
        wrong.append(f"label {row['label']!r} is not one of: {', '.join(sorted(labels))}")
    numbers: dict[str, float | None] = {}
    for name in ("start_s", "end_s", "fold"):
        try:
            numbers[name] = _number(row.get(name, ""), whole=name == "fold")
        except ValueError as error:
            wrong.append(f"{name} {error}")
    dimensions = _dimensions(row, wrong)
    media = (folder / row["path"]).resolve() if row["path"] else None
    text = row.get("text") or None
    if media is None and text is None:
        wrong.append("has neither a path nor a text")
    if media is not None:
        if media not in lengths:
            lengths[media] = _length_s(media)
        length = lengths[media]
        if isinstance(length, str):
            wrong.append(length)
        elif "start_s" in numbers and "end_s" in numbers:
            wrong += _bounds(numbers["start_s"], numbers["end_s"], length)
    elif numbers.get("start_s") is not None or numbers.get("end_s") is not None:
        wrong.append("has a start_s or end_s but no path")
    if wrong:
        return None, wrong
    fold = numbers["fold"]
    return Clip(
        where=f"row {number}", label=row["label"], speaker=row["speaker"], group=row["speaker"], media=media,
        start_s=numbers["start_s"], end_s=numbers["end_s"], text=text, fold=None if fold is None else int(fold),
        dimensions=dimensions,
    ), []  # fmt: skip


def _number(text: str, whole: bool) -> float | None:
    """The number, None for no value. Raises ValueError that says what the value is instead of a number from 0 up."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or value < 0 or (whole and value != int(value)):
        raise ValueError(f"{text!r} is not a {'whole ' if whole else ''}number from 0 up")
    return value


def _dimensions(row: Row, wrong: list[str]) -> tuple[float, float] | None:
    """Valence and arousal of a row, None where it has neither; what is wrong with them goes to ``wrong``."""
    values: list[float] = []
    for name in ("valence", "arousal"):
        if not (text := row.get(name, "")):
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if -1 <= value <= 1:
            values.append(value)
        else:
            wrong.append(f"{name} {text!r} is not a number from -1 to 1")
    if bool(row.get("valence")) != bool(row.get("arousal")):
        wrong.append("has only one of valence and arousal")
    return (values[0], values[1]) if len(values) == 2 else None


def _few(rows: dict[int, Row], least: int) -> list[Problem]:
    """Labels with fewer rows than ``least``."""
    if least < 2:
        return []
    by_label: dict[str, list[int]] = {}
    for number, row in rows.items():
        if row["label"]:
            by_label.setdefault(row["label"], []).append(number)
    problems = [
        (0, f"there is one label, {label!r}: nothing to tell apart") for label in by_label if len(by_label) == 1
    ]
    for label, numbers in by_label.items():
        if len(numbers) < least:
            text = f"label {label!r} has {'one clip' if len(numbers) == 1 else f'{len(numbers)} clips'}"
            problems.append((numbers[0], f"{text}; {least} are needed at least"))
    return problems


def _bounds(start: float | None, end: float | None, length: float) -> list[str]:
    """What is wrong with a section of a file that is ``length`` seconds long, infinite if that is unknown."""
    if end is not None and (start or 0) >= end:
        return [f"is empty: start_s {start or 0:g} is not before end_s {end:g}"]
    if end is not None and end > length + LATE_S:
        return [f"end_s {end:g} is after the file's end ({length:.2f} s)"]
    if end is None and start is not None and start >= length:
        return [f"start_s {start:g} is after the file's end ({length:.2f} s)"]
    return []


def _length_s(media: Path) -> float | str:
    """Length in seconds by the file's header, infinite if it does not say; or why the file is unusable."""
    source = FileSource(media, frozenset({"audio", "video"}), 1)
    try:
        source.open()
        if not source.tracks():
            return f"{media}: has neither sound nor picture"
        if source.length_s > 0:
            return source.length_s
        if all(isinstance(item, NoTrack) for item in source.items()):
            return f"{media}: is empty, of zero length"
        return math.inf
    except SourceError as error:
        return str(error)
    finally:
        source.close()


def _twice(clips: dict[int, Clip]) -> list[Problem]:
    """Rows with the same section of the same file as an earlier row."""
    first: dict[tuple[Path, float, float | None], int] = {}
    problems = []
    for number, clip in clips.items():
        if clip.media is not None:
            earlier = first.setdefault((clip.media, clip.start_s or 0.0, clip.end_s), number)
            if earlier != number:
                problems.append((number, f"is the same clip as row {earlier}"))
    return problems


def _folds(rows: dict[int, Row]) -> list[Problem]:
    """What is wrong with the column ``fold``, in all rows in which it can be read."""
    folds: dict[int, float] = {}
    for number, row in rows.items():
        try:
            if (fold := _number(row.get("fold", ""), whole=True)) is not None:
                folds[number] = fold
        except ValueError:
            folds[number] = math.nan  # already reported
    if not folds:
        return []
    problems = [(number, "has no fold, other rows have one") for number in rows if number not in folds]
    fold_of: dict[str, tuple[float, int]] = {}  # each speaker's fold, and the first row that gives it
    for number, fold in folds.items():
        speaker = rows[number]["speaker"]
        if not speaker or math.isnan(fold):
            continue
        other, first = fold_of.setdefault(speaker, (fold, number))
        if other != fold:
            text = f"speaker {speaker!r} is in fold {fold:g} here and in fold {other:g} in row {first}"
            problems.append((number, text))
    distinct = {fold for fold in folds.values() if not math.isnan(fold)}
    if len(distinct) < LEAST_FOLDS:
        problems.append((0, f"column fold: {len(distinct)} different, at least {LEAST_FOLDS} are needed"))
    return problems
