"""The store of labels that wait for the hub."""

from __future__ import annotations

import sqlite3
import stat
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.errors import ConfigError
from emostream.stream.backlog import FILE, Backlog


def labels(backlog: Backlog) -> list[bytes]:
    batch = backlog.first(1_000_000, 1 << 40)
    return [] if batch is None else batch.labels


@given(
    sizes=st.lists(st.integers(1, 40), max_size=30),
    most_labels=st.integers(1, 10),
    most_bytes=st.integers(1, 100),
    taken=st.lists(st.integers(1, 5), max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_the_newest_that_fit_are_kept_in_order_and_all_are_accounted_for(sizes, most_labels, most_bytes, taken):
    backlog = Backlog(None, most_labels, most_bytes)
    model: list[bytes] = []
    removed = 0
    takes = iter(taken)
    for number, size in enumerate(sizes):
        label = bytes([65 + number]) * size
        backlog.add(label, number)
        if size <= most_bytes:
            model.append(label)
            while len(model) > most_labels or sum(map(len, model)) > most_bytes:
                model.pop(0)
        if number % 4 == 3 and (batch := backlog.first(next(takes, 1), 1 << 40)) is not None:
            backlog.remove(batch)
            removed += len(batch.labels)
            del model[: len(batch.labels)]
        assert labels(backlog) == model
        assert (backlog.waiting, backlog.waiting_bytes) == (len(model), sum(map(len, model)))
        assert backlog.lost + removed + backlog.waiting == number + 1
    backlog.close()


def test_batches_are_bounded_and_the_first_label_counts_whatever_its_size():
    backlog = Backlog(None, 1000, 1 << 20)
    for number in range(200):
        backlog.add(b"%03d" % number, number)
    first = backlog.first(70, 1 << 20)
    assert first is not None and first.labels == [b"%03d" % number for number in range(70)]
    assert len(backlog.first(1000, 100).labels) == 33  # type: ignore[union-attr]
    assert backlog.first(1000, 1).labels == [b"000"]  # type: ignore[union-attr]
    backlog.remove(first)
    assert labels(backlog)[0] == b"070" and backlog.oldest_ns() == 70


def test_what_fell_out_on_its_way_is_not_lost_if_the_hub_has_it():
    backlog = Backlog(None, 3, 1 << 20)
    for letter in (b"a", b"b", b"c"):
        backlog.add(letter, 0)
    batch = backlog.first(2, 1 << 20)
    backlog.add(b"d", 0)  # a falls out
    assert backlog.lost == 1 and batch is not None
    backlog.remove(batch)
    assert backlog.lost == 0 and labels(backlog) == [b"c", b"d"] and backlog.waiting == 2


def test_on_the_disk_it_survives_and_nobody_else_can_read_it(tmp_path):
    folder = tmp_path / "store"
    backlog = Backlog(folder, 2, 1 << 20)
    for letter in (b"first-of-all", b"b", b"c"):
        backlog.add(letter, 5)
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.iterdir()] == [0] * len(list(folder.iterdir()))
    with pytest.raises(ConfigError, match="another stream-uplink uses it"):
        Backlog(folder, 2, 1 << 20)
    backlog.close()
    again = Backlog(folder, 2, 1 << 20)
    assert (labels(again), again.lost, again.waiting, again.waiting_bytes) == ([b"b", b"c"], 1, 2, 2)
    again.remove(again.first(2, 10))  # type: ignore[arg-type]
    again.close()
    assert b"first-of-all" not in (folder / FILE).read_bytes()  # removed labels are not on the disk either


def test_labels_can_be_changed_where_they_wait(tmp_path):
    backlog = Backlog(tmp_path, 10, 1 << 20)
    backlog.add(b"so happy", 1)
    backlog.rewrite(lambda label: label.replace(b"so happy", b""))
    assert labels(backlog) == [b""] and backlog.waiting_bytes == 0
    backlog.close()
    assert b"so happy" not in (tmp_path / FILE).read_bytes()


def test_a_full_disk_costs_the_label_and_is_counted(tmp_path):
    backlog = Backlog(tmp_path, 1000, 1 << 20)
    backlog.add(b"a" * 2000, 1)
    pages = backlog._db.execute("PRAGMA page_count").fetchone()[0]
    backlog._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite then fails as on a full disk
    with pytest.raises(sqlite3.OperationalError, match="full"):
        backlog.add(b"b" * 9000, 2)
    assert (backlog.waiting, backlog.waiting_bytes, backlog.lost) == (1, 2000, 1)
    backlog._db.execute("PRAGMA max_page_count=1000000")
    backlog.add(b"c", 3)
    assert labels(backlog) == [b"a" * 2000, b"c"] and backlog.lost == 1
    backlog.close()
    assert Backlog(tmp_path, 1000, 1 << 20).lost == 1


def test_a_damaged_file_and_a_folder_that_cannot_be_are_said(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="move it away"):
        Backlog(tmp_path, 2, 100)
    with pytest.raises(ConfigError, match="cannot be kept there"):
        Backlog(tmp_path / FILE / "below", 2, 100)


def test_two_threads():
    backlog = Backlog(None, 10_000, 1 << 20)
    taken: list[bytes] = []

    def take() -> None:
        while len(taken) < 300:
            if (batch := backlog.first(7, 1 << 20)) is not None:
                backlog.remove(batch)
                taken.extend(batch.labels)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    for number in range(300):
        backlog.add(b"%d" % number, number)
    thread.join(20)
    assert taken == [b"%d" % number for number in range(300)] and backlog.lost == 0
