"""stream/clock.py"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emostream.stream.clock import SystemClock
from tests.processes import Pipeline, environment

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)  # Debian's package faketime
CACHE_S = 1  # how long a process uses the value that it has read


def test_the_wall_clock_is_followed_when_it_is_set(monkeypatch):
    """A box without a hardware clock begins in 2020 and gets the time later; no interval changes."""
    clock = SystemClock()
    begun_ns = clock.now_ns()
    assert clock.wall_ns(begun_ns) == pytest.approx(begun_ns, abs=5e6)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 200_000_000_000_000_000)
    assert clock.wall_ns(begun_ns) - begun_ns == pytest.approx(200_000_000_000_000_000, abs=5e6)
    assert 0 <= clock.now_ns() - begun_ns < 5e9


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime (Debian's package faketime)")
def test_the_clock_is_set_in_mid_run(tmp_path):
    """The clock begins in 2020, is set after the first label, then goes an hour forward and two back."""
    offset = tmp_path / "offset"
    env = environment() | {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_CACHE_DURATION": str(CACHE_S),
    }  # fmt: skip

    def set_clock(by_s: float) -> None:
        part = tmp_path / "part"
        part.write_text(f"{by_s:+.0f}\n")
        os.replace(part, offset)

    in_2020_s = datetime(2020, 1, 1, tzinfo=UTC).timestamp() - time.time()
    steps_s = [in_2020_s, 0, 3600, -3600, -3600]
    set_clock(steps_s[0])
    with Pipeline("--stream", "demo", env=env) as run:
        for n, by_s in enumerate(steps_s):
            set_clock(by_s)
            label = run.subscriber.wait_for("utterance", n + 1, 60)[n]
            assert label["published_ns"] / 1e9 == pytest.approx(time.time() + by_s, abs=CACHE_S + 1), f"label {n + 1}"
            latency = label["latency_ms"]
            took_ms = (label["published_ns"] - label["captured_ns"]) / 1e6
            assert took_ms == pytest.approx(latency["total"], abs=0.01)
            assert 192 <= latency["total"] < 60_000 and all(part > -1 for part in latency.values())
        assert run.finish(30) == 0, run.output
    assert "utterances: 5 labelled of 5 heard" in run.output
    assert not any(word in run.output for word in ("crashed", "heartbeat", "killed")), run.output
