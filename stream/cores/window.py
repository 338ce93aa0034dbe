"""Sliding windows on the media timeline: rows with time stamps, cut and dropped by time."""

from __future__ import annotations

from typing import Any

import numpy as np


class SlidingWindow:
    """Rows of one modality, in the order of their media times, which strictly increase.

    ``row_shape`` and ``dtype`` are those of one row.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: type | np.dtype[Any]) -> None:
        self._times = np.zeros(64, np.int64)
        self._rows = np.zeros((64, *row_shape), dtype)
        self._first, self._last = 0, 0  # valid rows are [first, last)
        self._newest_ns: int | None = None

    def __len__(self) -> int:
        return self._last - self._first

    def append(self, times_ns: np.ndarray, rows: np.ndarray) -> None:
        """Add (n,) int64 media times and (n, *row_shape) rows: all, or none and ValueError if times do not increase."""
        n = len(times_ns)
        if n == 0:
            return
        if (np.diff(times_ns) <= 0).any() or (self._newest_ns is not None and times_ns[0] <= self._newest_ns):
            raise ValueError("rows must come in order of time")
        self._newest_ns = int(times_ns[-1])
        if self._last + n > len(self._times):
            self._make_room(n)
        self._times[self._last : self._last + n] = times_ns
        self._rows[self._last : self._last + n] = rows
        self._last += n

    def cut(self, start_ns: int, end_ns: int) -> np.ndarray:
        """Rows with times in [start_ns, end_ns): an (n, *row_shape) view, valid until the next append."""
        first, last = self._range(start_ns, end_ns)
        return self._rows[first:last]

    def times(self, start_ns: int, end_ns: int) -> np.ndarray:
        """Media times of the rows that ``cut`` returns: an (n,) int64 view."""
        first, last = self._range(start_ns, end_ns)
        return self._times[first:last]

    def forget_before(self, time_ns: int) -> None:
        """Drop all rows whose time is before ``time_ns``."""
        self._first += int(np.searchsorted(self._times[self._first : self._last], time_ns))

    def _range(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        valid = self._times[self._first : self._last]
        first, last = np.searchsorted(valid, [start_ns, max(start_ns, end_ns)])
        return self._first + int(first), self._first + int(last)

    def _make_room(self, n: int) -> None:
        """Move the valid rows to the front of arrays with room for at least as many again plus ``n``."""
        held = len(self)
        size = max(len(self._times), 2 * (held + n))
        times = np.zeros(size, np.int64)
        rows = np.zeros((size, *self._rows.shape[1:]), self._rows.dtype)
        times[:held] = self._times[self._first : self._last]
        rows[:held] = self._rows[self._first : self._last]
        self._times, self._rows, self._first, self._last = times, rows, 0, held
