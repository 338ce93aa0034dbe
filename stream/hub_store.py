"""What a hub keeps: the labels of all boxes, each once, in files by day."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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

_RUNS = 512  # runs per box whose last numbers are remembered; more than a delivery can contain
_AGAIN_S = 10.0
_SAVE_S = 5.0  # from a loss until it is written down that it was told
_GROUP = 2000  # labels per row group
_MARKS = "marks.json"
_decoder = msgspec.json.Decoder(tuple[str, str, int, msgspec.Raw])


class Kept(NamedTuple):
    """A box's label. ``received_ns``: the hub's Unix time; ``json``: the message as received."""

    site: str
    box: str
    received_ns: int
    json: bytes
    emotion: Emotion


class HubStore:
    """The folder of a hub. Labels are first written to a journal. When it holds ``most_labels``, or its first label is
    ``most_s`` old, it is converted to one file per day (UTC, by publishing time),
    ``day=2026-11-28/part-000017.parquet`` or ``.jsonl``. Files are written completely or not at all and never change
    afterwards. No label is kept twice: the highest ``seq`` of each box, run and stream is known, even after a restart,
    and labels come in the order of ``seq``. How many of each are kept is known too, so that missing ones can be told.

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
        self._size = self._labels = 0  # of the journal: bytes in complete lines, and number of lines
        self._in_journal: Counter[Mark] = Counter()
        self._save_s = float("inf")  # when to write the marks down
        self._since_s = self._again_s = 0.0  # when the journal began, and when to retry converting it
        for path in sorted(folder.glob("journal-*.jsonl")):  # left by a hub that was killed
            self._number = max(self._number, int(path.stem.partition("-")[2]))
            self._close_journal(path)

    def add(self, deliveries: Iterable[Delivery]) -> list[Kept]:
        """Store the labels of some deliveries; they are on the disk when this returns. Returns the new ones. Raises
        OSError if they cannot be written; then none is stored."""
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
        self._in_journal.update((each.site, each.box, each.emotion.run, each.emotion.stream) for each in kept)
        return kept

    def missing(self, site: str, box: str, published: Mapping[str, Mapping[str, int]]) -> list[tuple[str, int, int]]:
        """Compare what is kept with what a box's runs have published (by run and stream) and will not deliver any more.
        Returns the streams of which more is missing than was known: name, how many more, and how many in all."""
        news = []
        for run, streams in published.items():
            for stream, count in streams.items():
                mark = (site, box, run, stream)
                before, now = self._marks.miss(mark, count, self._in_journal[mark])
                if now > before:
                    news.append((stream, now - before, now))
                    self._save_s = min(self._save_s, time.monotonic() + _SAVE_S)
        return news

    def tick(self) -> None:
        """Convert the journal to files when it is time; call it often. Raises OSError if they cannot be written; the
        journal then stays, and a later call tries again."""
        now_s = time.monotonic()
        if now_s >= self._save_s:
            self._save_s = float("inf")
            self._marks.save()
        due = self._labels >= self._most_labels or (self._labels and now_s - self._since_s >= self._most_s)
        if due and now_s >= self._again_s:
            self._again_s = now_s + _AGAIN_S
            self._finish()
            self._again_s = 0.0

    def close(self) -> None:
        """Convert the rest of the journal to files. Raises OSError like ``tick``."""
        try:
            if self._labels:
                self._finish()
            self._marks.save()
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
        self._in_journal.clear()

    def _close_journal(self, path: Path) -> None:
        """Convert a journal to files. If this was interrupted, doing it again writes the same files."""
        number = int(path.stem.partition("-")[2])
        days: dict[str, _Part] = {}
        marks: dict[Mark, int] = {}
        counts: Counter[Mark] = Counter()
        for label in _read_journal(path):
            day = datetime.fromtimestamp(label.emotion.published_ns / 1e9, UTC).strftime("%Y-%m-%d")
            if day not in days:
                days[day] = _Jsonl() if self._form == "jsonl" else _Parquet()
            days[day].add(label)
            mark = (label.site, label.box, label.emotion.run, label.emotion.stream)
            marks[mark] = max(label.emotion.seq, marks.get(mark, -1))
            counts[mark] += 1
        for day, part in days.items():
            folder = self._folder / f"day={day}"
            folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(folder / f"part-{number:06}.{self._form}", part.finish(), OWNER_ONLY)
            _sync(folder)
        self._marks.raise_to(marks)
        self._marks.filed(number, counts)
        self._marks.save()
        path.unlink()


@dataclass
class _Known:
    """``filed``: how many labels are in files; None if an older version did not count them. ``published``: how many
    there were, by the newest news of them; ``missing``: how many of those will not come."""

    seq: int = -1
    filed: int | None = 0
    published: int = 0
    missing: int = 0


class _Marks:
    """What is known of each stream of each box's newest runs; and how many journals have become files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marks: dict[tuple[str, str], OrderedDict[tuple[str, str], _Known]] = {}
        self.journals = 0
        if path.exists():
            try:
                content = json.loads(path.read_bytes())
                self.journals = int(content["journals"])
                for site, box, run, stream, seq, *more in content["marks"]:
                    known = _Known(seq, *(more or [None]))
                    self._marks.setdefault((site, box), OrderedDict())[run, stream] = known
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}: cannot be read ({error}); without it labels could be kept twice") from error

    def get(self, mark: Mark) -> int:
        """The highest ``seq``; -1 if unknown."""
        return self._marks.get(mark[:2], OrderedDict()).get(mark[2:], _Known()).seq

    def raise_to(self, marks: dict[Mark, int]) -> None:
        for mark, seq in marks.items():
            known = self._known(mark)
            known.seq = max(seq, known.seq)

    def filed(self, journal: int, counts: Mapping[Mark, int]) -> None:
        """So many labels of this journal are in files now. Once a journal, though it may become files twice."""
        for mark, count in counts.items() if journal > self.journals else ():
            known = self._known(mark)
            known.filed = None if known.filed is None else known.filed + count
        self.journals = max(self.journals, journal)

    def miss(self, mark: Mark, published: int, in_journal: int) -> tuple[int, int]:
        """So many labels were published. Returns how many are missing, as known before and now."""
        known = self._known(mark)
        before, known.published = known.missing, max(known.published, published)
        if known.filed is not None:
            known.missing = max(0, known.published - known.filed - in_journal)
        return before, known.missing

    def _known(self, mark: Mark) -> _Known:
        of_box = self._marks.setdefault(mark[:2], OrderedDict())
        known = of_box.setdefault(mark[2:], _Known())
        of_box.move_to_end(mark[2:])
        if len(of_box) > _RUNS:
            of_box.popitem(last=False)
        return known

    def save(self) -> None:
        rows = [
            (*box, *run, known.seq, known.filed, known.published, known.missing)
            for box, runs in self._marks.items()
            for run, known in runs.items()
        ]
        write_atomically(self._path, json.dumps({"journals": self.journals, "marks": rows}), OWNER_ONLY)
        _sync(self._path.parent)


def _line(label: Kept) -> bytes:
    return msgspec.json.encode((label.site, label.box, label.received_ns, msgspec.Raw(label.json))) + b"\n"


def _read_journal(path: Path) -> Iterator[Kept]:
    """A journal's labels. An incomplete last line was never confirmed, so it is skipped."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                site, box, received_ns, raw = _decoder.decode(line)
                yield Kept(site, box, received_ns, bytes(raw), decode_emotion(bytes(raw)))


class _Part(Protocol):
    """The content of a file: add labels, then ``finish`` returns its bytes."""

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
    """A table whose columns do not depend on the bundles: ``site``, ``box``, times, the columns of ``stream-label
    --out``, ``probabilities`` as a map, and ``message``, the JSON as received. Labels are converted in groups, since a
    whole file of them took 1 GB as Python objects."""

    def __init__(self) -> None:
        arrow, parquet = need("pyarrow"), need("pyarrow.parquet")
        text, number, real = arrow.string(), arrow.int64(), arrow.float64()
        moment = arrow.timestamp("us", "UTC")  # Python's datetime has no nanoseconds
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
    """Write a folder's entries to the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
