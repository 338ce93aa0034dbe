"""The clock that all nodes read: Unix time that never steps.

It is the system's monotonic clock plus an offset that the supervisor determines once and passes to its nodes, so that
times from different processes of one machine can be subtracted. Published messages are stamped with the wall clock as
it is by then: a box without a battery-backed clock begins in 1970 and learns the time later. Every published time comes
from this module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch; never goes backwards."""
        ...

    def wall_ns(self, when_ns: int) -> int:
        """Convert a time of this clock to the system's wall clock, which may have been set since."""
        ...

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        """Wait until ``when_ns`` or until ``stop`` is set; returns whether it is set."""
        ...


def take_offset_ns(monotonic_ns: Callable[[], int] = time.monotonic_ns) -> int:
    """Unix time minus monotonic time, now. ``monotonic_ns``: an alternative clock that does not step."""
    best_ns, offset_ns = 1 << 62, 0
    for _ in range(3):  # the process may be interrupted between two readings
        before_ns, wall_ns, after_ns = monotonic_ns(), time.time_ns(), monotonic_ns()
        if after_ns - before_ns < best_ns:
            best_ns, offset_ns = after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2
    return offset_ns


class SystemClock:
    """The system's monotonic clock plus ``offset_ns``, by default the present offset."""

    def __init__(self, offset_ns: int | None = None) -> None:
        self.offset_ns = take_offset_ns() if offset_ns is None else offset_ns

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.offset_ns

    def wall_ns(self, when_ns: int) -> int:
        return when_ns + take_offset_ns() - self.offset_ns

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        return stop.wait(max(0.0, (when_ns - self.now_ns()) / 1e9))


class VirtualClock:
    """A clock for tests and replay that moves only by ``advance_ns`` and by waiting."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def wall_ns(self, when_ns: int) -> int:
        return when_ns

    def advance_ns(self, by_ns: int) -> None:
        self._now_ns += by_ns

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        self._now_ns = max(self._now_ns, when_ns)
        return stop.is_set()
