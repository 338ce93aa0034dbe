"""What a hub stores: each label once, wherever it is interrupted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from emostream.errors import ConfigError
from emostream.stream import hub_store
from emostream.stream.boxes import Boxes, Delivery, UplinkState
from emostream.stream.emotion import encode_emotion
from emostream.stream.hub_store import HubStore
from tests.emotions import emotion_message

parquet = pytest.importorskip("pyarrow.parquet")

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2  # 2024-10-04


def delivery(*seqs: int, box: str = "b", run: str = "r", published_ns: int = NOON_NS) -> Delivery:
    labels = [
        emotion_message(stream="desk", run=run, seq=seq, utterance=seq, published_ns=published_ns) for seq in seqs
    ]
    return Delivery("lab", box, UplinkState(), [(encode_emotion(label), label) for label in labels])


def in_files(folder: Path) -> list[tuple[str, str, int]]:
    """Day, box and seq of every label in the files."""
    rows = []
    for path in sorted(folder.glob("day=*/*.parquet"), key=lambda path: (path.name, str(path))):
        table = parquet.read_table(path, partitioning=None).to_pylist()
        rows += [(path.parent.name[4:], row["box"], row["seq"]) for row in table]
    for path in sorted(folder.glob("day=*/*.jsonl")):
        lines = map(json.loads, path.read_text().splitlines())
        rows += [(path.parent.name[4:], box, message["seq"]) for _, box, _, message in lines]
    return rows


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_labels_are_kept_once_by_day(tmp_path, form):
    store = HubStore(tmp_path, form, 100, 100)
    kept = store.add([delivery(0, 1), delivery(1, 2), delivery(0, box="c"), delivery(5, published_ns=NOON_NS + DAY_NS)])
    assert [(label.box, label.emotion.seq) for label in kept] == [("b", 0), ("b", 1), ("b", 2), ("c", 0), ("b", 5)]
    assert store.add([delivery(2, 5)]) == []
    store.add([delivery(0, run="another")])
    store.close()
    rows = [(box, seq) for day, box, seq in in_files(tmp_path) if day == "2024-10-04"]
    assert rows == [("b", 0), ("b", 1), ("b", 2), ("c", 0), ("b", 0)]
    assert [row for row in in_files(tmp_path) if row[0] == "2024-10-05"] == [("2024-10-05", "b", 5)]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o600}
    again = HubStore(tmp_path, form, 100, 100)
    assert again.add([delivery(2, 5, 6)])[0].emotion.seq == 6
    again.close()
    assert len(in_files(tmp_path)) == 7 and not list(tmp_path.glob("journal-*"))


@pytest.mark.parametrize("step", ["write_atomically", "_sync", "save", "unlink"])
@pytest.mark.parametrize("count", [0, 1])
def test_wherever_the_making_of_files_is_cut_short_nothing_is_lost_or_doubled(tmp_path, monkeypatch, step, count):
    store = HubStore(tmp_path, "parquet", 3, 100)
    store.add([delivery(0, 1), delivery(2, published_ns=NOON_NS + DAY_NS)])
    calls = 0

    def cut(function):
        def wrapped(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls > count:
                raise KeyboardInterrupt
            return function(*arguments, **named)

        return wrapped

    with monkeypatch.context() as patch:
        where = {"save": hub_store._Marks, "unlink": Path}.get(step, hub_store)
        patch.setattr(where, step, cut(getattr(where, step)))
        try:
            store.tick()
        except KeyboardInterrupt:
            assert list(tmp_path.glob("journal-*"))
    os.close(store._lock)  # the process is dead
    again = HubStore(tmp_path, "parquet", 3, 100)
    assert again.add([delivery(0, 1, 2)]) == []
    again.close()
    assert sorted(in_files(tmp_path)) == [("2024-10-04", "b", 0), ("2024-10-04", "b", 1), ("2024-10-05", "b", 2)]


@pytest.mark.parametrize("most", [3, 100])  # labels are in files, or in the journal
def test_what_is_missing_is_known_once_and_after_the_hub_was_killed(tmp_path, most):
    store = HubStore(tmp_path, "jsonl", most, 100)
    store.add([delivery(0, 1, 2)])
    store.tick()
    assert store.missing("lab", "b", {"r": {"desk": 3}}) == []
    store.add([delivery(5, 6)])
    assert store.missing("lab", "b", {"r": {"desk": 7}}) == [("desk", 2, 2)]
    assert store.missing("lab", "b", {"r": {"desk": 7}}) == []
    assert store.missing("lab", "b", {"r": {"desk": 8}, "run2": {"hall": 1}}) == [("desk", 1, 3), ("hall", 1, 1)]
    store._save_s = 0
    store.tick()
    os.close(store._lock)  # the process is dead
    again = HubStore(tmp_path, "jsonl", most, 100)
    assert again.missing("lab", "b", {"r": {"desk": 8}, "run2": {"hall": 1}}) == []
    again.add([delivery(7)])  # was late
    assert again.missing("lab", "b", {"r": {"desk": 8}}) == []
    assert again.missing("lab", "b", {"r": {"desk": 9}}) == [("desk", 1, 3)]
    again.close()


def test_what_an_older_hub_has_kept_is_not_counted_as_missing(tmp_path):
    (tmp_path / "marks.json").write_text('{"journals": 2, "marks": [["lab", "b", "r", "desk", 9]]}')
    store = HubStore(tmp_path, "jsonl", 100, 100)
    assert store.add([delivery(9)]) == [] and len(store.add([delivery(10)])) == 1
    assert store.missing("lab", "b", {"r": {"desk": 11}}) == []
    store.close()


def test_half_a_line_of_a_hub_that_died_was_not_confirmed(tmp_path):
    store = HubStore(tmp_path, "parquet", 100, 100)
    store.add([delivery(0, 1)])
    os.close(store._lock)
    (journal,) = tmp_path.glob("journal-*")
    journal.write_bytes(journal.read_bytes()[:-5])
    again = HubStore(tmp_path, "parquet", 100, 100)
    assert [label.emotion.seq for label in again.add([delivery(0, 1)])] == [1]
    again.close()
    assert [seq for _, _, seq in in_files(tmp_path)] == [0, 1]


def test_a_full_disk_keeps_nothing_of_a_delivery_and_the_next_is_whole(tmp_path, monkeypatch):
    store = HubStore(tmp_path, "jsonl", 100, 100)
    store.add([delivery(0)])
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if write(descriptor, data[: len(data) // 2]) and len(data) > 10:
            raise OSError(28, "No space left on device")
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space"):
            store.add([delivery(1, 2)])
    assert [label.emotion.seq for label in store.add([delivery(1, 2)])] == [1, 2]
    store.close()
    assert [seq for _, _, seq in in_files(tmp_path)] == [0, 1, 2]


def test_files_that_cannot_be_written_are_tried_again_later(tmp_path, monkeypatch):
    store = HubStore(tmp_path, "jsonl", 1, 100)
    store.add([delivery(0)])
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise OSError(28, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(hub_store, "write_atomically", fail)
        with pytest.raises(OSError):
            store.tick()
        store.tick()  # not at once
        assert len(calls) == 1
    store.add([delivery(1)])
    store.close()
    assert [seq for _, _, seq in in_files(tmp_path)] == [0, 1]


def test_marks_that_are_damaged_are_said_and_old_runs_are_forgotten(tmp_path):
    store = HubStore(tmp_path, "jsonl", 10_000, 100)
    for run in range(hub_store._RUNS + 3):
        store.add([delivery(7, run=f"run{run}")])
    assert store.add([delivery(7, run="run3")]) == [] and len(store.add([delivery(7, run="run1")])) == 1
    store.close()
    (tmp_path / "marks.json").write_text("{")
    with pytest.raises(ConfigError, match="labels could be kept twice"):
        HubStore(tmp_path, "jsonl", 10, 100)


def test_what_is_told_of_boxes(monkeypatch):
    boxes = Boxes()
    assert boxes.presence("a", "x", True) == ["a/x: appeared; 1 there"]
    assert boxes.presence("a", "x", True) == []
    state = UplinkState(waiting=300, behind_s=60.0, run_there=True)
    assert boxes.update("a", "x", state, 200) == ["a/x: behind, 100 labels wait, the oldest for 60 s"]
    assert boxes.update("a", "x", state, 200) == []
    assert boxes.update("a", "x", UplinkState(waiting=100, behind_s=3.0, lost=4, run_there=True), 100) == [
        "a/x: has caught up", "a/x: 4 labels fell out of its store and are lost",
    ]  # fmt: skip
    assert boxes.update("a", "x", UplinkState(lost=4)) == ["a/x: no run is there"]
    assert boxes.update("a", "x", UplinkState(lost=4, run_there=True)) == ["a/x: a run is there"]
    assert boxes.presence("a", "x", False) == ["a/x: vanished; 0 there"]
    monkeypatch.setattr("emostream.stream.boxes.MOST_BOXES", 1)
    assert boxes.has_room_for("a", "x") and not boxes.has_room_for("a", "y")
    assert boxes.presence("a", "y", True) == [] and boxes.update("a", "y", state) == []
