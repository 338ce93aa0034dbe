"""The labels that a box keeps until the hub has them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY

FILE = "uplink.sqlite3"
_TABLES = """
    CREATE TABLE IF NOT EXISTS labels (n INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, json BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS lost (count INTEGER NOT NULL);
    INSERT INTO lost SELECT 0 WHERE NOT EXISTS (SELECT * FROM lost);
"""
_FETCHED = 50  # rows read at a time, since a batch may be full before its last row


class Batch(NamedTuple):
    """The oldest labels: their JSON, and the number of the last one."""

    labels: list[bytes]
    last: int


class Backlog:
    """Labels in order of arrival, at most ``most_labels`` and ``most_bytes`` (of JSON). If another does not fit, the
    oldest are dropped and counted in ``lost``. Kept in memory, or in a file in ``folder`` that only its owner can read;
    removed labels are overwritten there. Thread-safe.

    Raises ConfigError if the folder cannot be used, or another process uses it."""

    def __init__(self, folder: Path | None, most_labels: int, most_bytes: int) -> None:
        self._most_labels, self._most_bytes = most_labels, most_bytes
        self._lock = threading.Lock()
        path = None if folder is None else folder / FILE
        try:
            if folder is not None and path is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, OWNER_ONLY))
            self._db = sqlite3.connect(path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False)
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=TRUNCATE", "auto_vacuum=FULL", "secure_delete=ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(f"BEGIN EXCLUSIVE; {_TABLES} COMMIT;")
            self.waiting = self.waiting_bytes = self.lost = 0
            self._recount()
        except OSError as error:
            raise ConfigError(f"{folder}: labels cannot be kept there ({error.strerror})") from error
        except sqlite3.Error as error:
            locked = "locked" in str(error)
            why = "another stream-uplink uses it" if locked else f"{error}; move it away to begin anew"
            raise ConfigError(f"{path}: cannot be used ({why})") from error

    def add(self, label: bytes, at_ns: int) -> None:
        """Keep a label, published at ``at_ns`` (Unix time). One that cannot be written counts as lost, and
        sqlite3.Error is raised."""
        with self._lock:
            if len(label) > self._most_bytes:
                self._lose(1)
                return
            try:
                self._db.execute("BEGIN")
                self._make_room(len(label))
                self._db.execute("INSERT INTO labels (at_ns, json) VALUES (?, ?)", (at_ns, label))
                self._db.execute("COMMIT")
            except sqlite3.Error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                self._recount()
                self._lose(1)
                raise
            self.waiting += 1
            self.waiting_bytes += len(label)

    def first(self, most_labels: int, most_bytes: int) -> Batch | None:
        """The oldest labels, at most so many and of so many bytes, but at least one; they stay in the store. None if it
        is empty."""
        labels: list[bytes] = []
        size = last = 0
        with self._lock:
            rows = self._db.execute("SELECT n, json FROM labels ORDER BY n LIMIT ?", (most_labels,))
            while block := rows.fetchmany(_FETCHED):
                for n, label in block:
                    size += len(label)
                    if labels and size > most_bytes:
                        rows.close()
                        return Batch(labels, last)
                    labels.append(label)
                    last = n
        return Batch(labels, last) if labels else None

    def oldest_ns(self) -> int | None:
        """When the oldest waiting label was published (Unix time); None if none waits."""
        with self._lock:
            row = self._db.execute("SELECT at_ns FROM labels ORDER BY n LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def remove(self, batch: Batch) -> None:
        """The hub has these labels. Any that were dropped while on their way are not lost after all."""
        with self._lock:
            row = "SELECT count(*), coalesce(sum(length(json)), 0) FROM labels WHERE n <= ?"
            count, size = self._db.execute(row, (batch.last,)).fetchone()
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM labels WHERE n <= ?", (batch.last,))
            self._db.execute("UPDATE lost SET count = ?", (self.lost - len(batch.labels) + count,))
            self._db.execute("COMMIT")
            self.lost -= len(batch.labels) - count
            self.waiting -= count
            self.waiting_bytes -= size

    def rewrite(self, change: Callable[[bytes], bytes]) -> None:
        """Change every waiting label."""
        with self._lock:
            self._db.create_function("change", 1, change)
            self._db.execute("UPDATE labels SET json = change(json)")
            self._recount()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _make_room(self, size: int) -> None:
        """Drop the oldest labels; called inside a transaction."""
        while self.waiting and (self.waiting >= self._most_labels or self.waiting_bytes + size > self._most_bytes):
            n, old = self._db.execute("SELECT n, length(json) FROM labels ORDER BY n LIMIT 1").fetchone()
            self._db.execute("DELETE FROM labels WHERE n = ?", (n,))
            self.waiting -= 1
            self.waiting_bytes -= old
            self._lose(1)

    def _lose(self, count: int) -> None:
        self.lost += count
        with contextlib.suppress(sqlite3.Error):  # a full disk: the count goes on in memory
            self._db.execute("UPDATE lost SET count = ?", (self.lost,))

    def _recount(self) -> None:
        """Read the counts from the file, but keep a higher count of lost labels that could not be written there."""
        row = self._db.execute("SELECT count(*), coalesce(sum(length(json)), 0) FROM labels").fetchone()
        self.waiting, self.waiting_bytes = row
        self.lost = max(self.lost, self._db.execute("SELECT count FROM lost").fetchone()[0])
