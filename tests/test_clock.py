"""stream/clock.py"""

from __future__ import annotations

import time

import pytest

from emostream.stream.clock import SystemClock


def test_the_wall_clock_is_followed_when_it_is_set(monkeypatch):
    """A box without a clock of its own begins in 2020; the time comes later, and no interval changes."""
    clock = SystemClock()
    begun_ns = clock.now_ns()
    assert clock.wall_ns(begun_ns) == pytest.approx(begun_ns, abs=5e6)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 200_000_000_000_000_000)
    assert clock.wall_ns(begun_ns) - begun_ns == pytest.approx(200_000_000_000_000_000, abs=5e6)
    assert 0 <= clock.now_ns() - begun_ns < 5e9
