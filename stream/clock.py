"""The clock that everything reads: Unix time that does not step.

The system's monotonic clock plus an offset that the supervisor takes once and hands to its children, so that times
from different processes of one machine can be subtracted. Nothing else calls ``time``.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch; never goes back."""
        ...

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        """Wait for a moment, or for ``stop``; returns whether ``stop`` was set."""
        ...


def take_offset_ns() -> int:
    """Unix time minus monotonic time, now."""
    return time.time_ns() - time.monotonic_ns()


class SystemClock:
    def __init__(self, offset_ns: int | None = None) -> None:
        self.offset_ns = take_offset_ns() if offset_ns is None else offset_ns

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.offset_ns

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        return stop.wait(max(0.0, (when_ns - self.now_ns()) / 1e9))


class VirtualClock:
    """A clock that moves only when told to, for tests and replay; waiting moves it."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_ns(self, by_ns: int) -> None:
        self._now_ns += by_ns

    def wait_until_ns(self, when_ns: int, stop: threading.Event) -> bool:
        self._now_ns = max(self._now_ns, when_ns)
        return stop.is_set()
