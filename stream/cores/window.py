"""Sliding windows on the media timeline: rows with times, cut by time, forgotten when no longer needed."""

from __future__ import annotations

import numpy as np


class SlidingWindow:
    """Rows of one modality, in order of their media times.

    ``row_shape`` and ``dtype`` are those of one row. Rows that would go back in time are refused with ValueError:
    each modality's times are strictly increasing.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: type | np.dtype) -> None:
        self._times = np.zeros(64, np.int64)
        self._rows = np.zeros((64, *row_shape), dtype)
        self._first, self._last = 0, 0  # valid rows are [first, last)
        self._newest_ns: int | None = None

    def __len__(self) -> int:
        return self._last - self._first

    def append(self, times_ns: np.ndarray, rows: np.ndarray) -> None:
        """Add (n,) int64 media times and (n, *row_shape) rows."""
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
        """Rows whose time t has start_ns <= t < end_ns: a (n, *row_shape) view, valid until the next append."""
        a, b = self._range(start_ns, end_ns)
        return self._rows[a:b]

    def times(self, start_ns: int, end_ns: int) -> np.ndarray:
        """Media times of the rows that ``cut`` gives."""
        a, b = self._range(start_ns, end_ns)
        return self._times[a:b]

    def forget_before(self, time_ns: int) -> None:
        """Drop all rows whose time is before ``time_ns``."""
        self._first += int(np.searchsorted(self._times[self._first : self._last], time_ns))

    def _range(self, start_ns: int, end_ns: int) -> tuple[int, int]:
        valid = self._times[self._first : self._last]
        a, b = np.searchsorted(valid, [start_ns, max(start_ns, end_ns)])
        return self._first + int(a), self._first + int(b)

    def _make_room(self, n: int) -> None:
        """Move the valid rows to the front of arrays that hold at least as much again."""
        held = len(self)
        size = max(len(self._times), 2 * (held + n))
        times = np.zeros(size, np.int64)
        rows = np.zeros((size, *self._rows.shape[1:]), self._rows.dtype)
        times[:held] = self._times[self._first : self._last]
        rows[:held] = self._rows[self._first : self._last]
        self._times, self._rows, self._first, self._last = times, rows, 0, held
