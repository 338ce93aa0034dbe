"""What a hub keeps: the labels of all boxes, each once, in files by day."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY, write_atomically
from emostream.stream.boxes import Delivery
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.export import COLUMNS, need

Format = Literal["parquet", "jsonl"]
Mark = tuple[str, str, str, str]  # site, box, run, stream

_RUNS = 512  # of a box, whose numbers are known: more than a delivery can hold
_AGAIN_S = 10.0
_GROUP = 2000  # labels of a row group
_MARKS = "marks.json"
_decoder = msgspec.json.Decoder(tuple[str, str, int, msgspec.Raw])


class Kept(NamedTuple):
    """A label of a box. ``received_ns``: Unix time of the hub; ``json``: the message as it came."""

    site: str
    box: str
    received_ns: int
    json: bytes
    emotion: Emotion


class HubStore:
    """The folder of a hub. A label is written to a journal first; a journal that has ``most_labels``, or whose first is
    ``most_s`` old, becomes a file for each day (UTC, of publishing), ``day=2026-11-28/part-000017.parquet`` or
    ``.jsonl``, which is written whole or not at all and never changed again. No label is kept twice: of each box, run
    and stream the highest ``seq`` is known, also after a restart, and labels come in the order of it.

    Raises ConfigError if the folder cannot be used, another hub uses it, or the package for Parquet is missing."""

    def __init__(self, folder: Path, form: Format, most_labels: int, most_s: float) -> None:
        self._folder, self._form, self._most_labels, self._most_s = folder, form, most_labels, most_s
        if form == "parquet":
            need("pyarrow")
            need("pyarrow.parquet")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, OWNER_ONLY)
        except OSError as error:
            raise ConfigError(f"{folder}: labels cannot be kept there ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise ConfigError(f"{folder}: another stream-hub uses it") from error
        self._marks = _Marks(folder / _MARKS)
        self._number = self._marks.journals
        self._journal: int | None = None
        self._size = self._labels = 0  # of the journal: bytes that are whole lines, and those
        self._since_s = self._again_s = 0.0  # when the journal began, and when to try again to make files of it
        for path in sorted(folder.glob("journal-*.jsonl")):  # of a hub that was killed
            self._number = max(self._number, int(path.stem.partition("-")[2]))
            self._close_journal(path)

    def add(self, deliveries: Iterable[Delivery]) -> list[Kept]:
        """Keep the labels of some deliveries; when this returns they are on the disk. Returns those that are new.
        Raises OSError if they cannot be written; then none is kept."""
        now_ns = time.time_ns()
        kept: list[Kept] = []
        changes: dict[Mark, int] = {}
        for delivery in deliveries:
            for label, emotion in delivery.labels:
                mark = (delivery.site, delivery.box, emotion.run, emotion.stream)
                if emotion.seq > changes.get(mark, self._marks.get(mark)):
                    changes[mark] = emotion.seq
                    kept.append(Kept(delivery.site, delivery.box, now_ns, label, emotion))
        if kept:
            self._write(kept)
        self._marks.raise_to(changes)
        return kept

    def tick(self) -> None:
        """Make files of the journal where it is time. To be called often. Raises OSError if they cannot be written; the
        journal stays then, and it is tried again later."""
        now_s = time.monotonic()
        due = self._labels >= self._most_labels or (self._labels and now_s - self._since_s >= self._most_s)
        if due and now_s >= self._again_s:
            self._again_s = now_s + _AGAIN_S
            self._finish()
            self._again_s = 0.0

    def close(self) -> None:
        """Make files of what there is. Raises OSError as ``tick``."""
        try:
            if self._labels:
                self._finish()
        finally:
            if self._journal is not None:
                os.close(self._journal)
            os.close(self._lock)

    def _write(self, kept: list[Kept]) -> None:
        if self._journal is None:
            self._number += 1
            self._journal = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, OWNER_ONLY)
            self._size = self._labels = 0
            self._since_s = time.monotonic()
        lines = b"".join(_line(label) for label in kept)
        try:
            done = 0
            while done < len(lines):
                done += os.write(self._journal, memoryview(lines)[done:])
            os.fsync(self._journal)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._journal, self._size)
            raise
        self._size += len(lines)
        self._labels += len(kept)

    @property
    def _path(self) -> Path:
        return self._folder / f"journal-{self._number:06}.jsonl"

    def _finish(self) -> None:
        self._close_journal(self._path)
        if self._journal is not None:
            os.close(self._journal)
        self._journal, self._labels = None, 0

    def _close_journal(self, path: Path) -> None:
        """Make files of a journal. Where this was cut short, doing it again writes the same files."""
        number = int(path.stem.partition("-")[2])
        days: dict[str, _Part] = {}
        marks: dict[Mark, int] = {}
        for label in _read_journal(path):
            day = datetime.fromtimestamp(label.emotion.published_ns / 1e9, UTC).strftime("%Y-%m-%d")
            if day not in days:
                days[day] = _Jsonl() if self._form == "jsonl" else _Parquet()
            days[day].add(label)
            mark = (label.site, label.box, label.emotion.run, label.emotion.stream)
            marks[mark] = max(label.emotion.seq, marks.get(mark, -1))
        for day, part in days.items():
            folder = self._folder / f"day={day}"
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(folder / f"part-{number:06}.{self._form}", part.finish(), OWNER_ONLY)
            _sync(folder)
        self._marks.raise_to(marks)
        self._marks.save(number)
        path.unlink()


class _Marks:
    """The highest ``seq`` of each box, run and stream, of the newest runs of each box; and how many journals became
    files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[tuple[str, str], OrderedDict[tuple[str, str], int]] = {}
        self.journals = 0
        if path.exists():
            try:
                content = json.loads(path.read_bytes())
                self.journals = int(content["journals"])
                self.raise_to({(site, box, run, stream): seq for site, box, run, stream, seq in content["marks"]})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); without it labels could be kept twice") from error

    def get(self, mark: Mark) -> int:
        """-1: nothing is known."""
        return self._marks.get(mark[:2], OrderedDict()).get(mark[2:], -1)

    def raise_to(self, marks: dict[Mark, int]) -> None:
        for mark, seq in marks.items():
            of_box = self._marks.setdefault(mark[:2], OrderedDict())
            of_box[mark[2:]] = max(seq, of_box.get(mark[2:], -1))
            of_box.move_to_end(mark[2:])
            if len(of_box) > _RUNS:
                of_box.popitem(last=False)

    def save(self, journals: int) -> None:
        self.journals = max(self.journals, journals)
        rows = [(*box, *run, seq) for box, runs in self._marks.items() for run, seq in runs.items()]
        write_atomically(self._path, json.dumps({"journals": self.journals, "marks": rows}), OWNER_ONLY)
        _sync(self._path.parent)


def _line(label: Kept) -> bytes:
    return msgspec.json.encode((label.site, label.box, label.received_ns, msgspec.Raw(label.json))) + b"\n"


def _read_journal(path: Path) -> Iterator[Kept]:
    """Its labels. A last line that is not whole was never confirmed."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                site, box, received_ns, raw = _decoder.decode(line)
                yield Kept(site, box, received_ns, bytes(raw), decode_emotion(bytes(raw)))


class _Part(Protocol):
    """The content of a file: labels are added to it, and ``finish`` gives its bytes."""

    def add(self, label: Kept) -> None: ...

    def finish(self) -> bytes: ...


class _Jsonl:
    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, label: Kept) -> None:
        self._lines.append(_line(label))

    def finish(self) -> bytes:
        return b"".join(self._lines)


class _Parquet:
    """A table with the same columns whatever the bundles: ``site``, ``box``, times, those of ``stream-label --out``,
    ``probabilities`` as a map, and ``message``, the JSON as it came. Labels become columns in groups: as objects of
    Python, those of a whole file took 1 GB."""

    def __init__(self) -> None:
        arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        text, number, real = arrow.string(), arrow.int64(), arrow.float64()
        moment = arrow.timestamp("us", "UTC")  # of nanoseconds, Python makes no datetime
        kinds: dict[str, Any] = {"uncertain": arrow.bool_(), "utterance": number, "face": number}
        kinds |= dict.fromkeys(("start_s", "end_s", "confidence", "valence", "arousal"), real)
        fields = {"site": text, "box": text, "received": moment, "published": moment, "seq": number, "bundle": text}
        fields |= {column: kinds.get(column, text) for column in COLUMNS if column != "source"}
        fields |= {"probabilities": arrow.map_(text, real), "message": text}
        self._arrow, self._schema = arrow, arrow.schema(list(fields.items()))
        self._rows: list[dict[str, Any]] = []
        self._out = arrow.BufferOutputStream()
        self._writer = parquet.ParquetWriter(self._out, self._schema, compression="zstd")

    def add(self, label: Kept) -> None:
        row = {name: getattr(label.emotion, name, None) for name in self._schema.names}
        row |= {"site": label.site, "box": label.box, "received": label.received_ns // 1000}
        row |= {"published": label.emotion.published_ns // 1000, "message": label.json.decode(errors="replace")}
        self._rows.append(row | {"probabilities": list(label.emotion.probabilities.items())})
        if len(self._rows) >= _GROUP:
            self._write()

    def finish(self) -> bytes:
        self._write()
        self._writer.close()
        return bytes(self._out.getvalue().to_pybytes())

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
