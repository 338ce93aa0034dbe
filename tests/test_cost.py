"""benchmarks/cost.py: figures of invented runs, and a short real one."""

from __future__ import annotations

import os

import pytest

from benchmarks import cost
from benchmarks.live_run import Watch
from benchmarks.timed_run import COUNTER
from emostream.stream.messages import Health
from tests.benchmark_runs import T0_NS, beat, label


def beats(node: str, **fields) -> list[Health]:
    """Ten heartbeats, one per second; messages cost 1 ms in each second."""
    return [beat(node, t, **{"cpu_s": t / 100, "counters": {COUNTER: 1000 * t}} | fields) for t in range(1, 11)]


NODES = ("audio.cost", "speech.cost", "fusion")


@pytest.fixture
def watch() -> Watch:
    """A silent run of ten seconds."""
    return Watch(t0_ns=T0_NS, beats={node: beats(node) for node in NODES})


LOOKS = [
    cost.Look(2.0, {node: (1.0, 0.5) for node in NODES} | {"supervisor": (3.0, 0.0)}),
    cost.Look(12.0, {node: (1.2, 0.51) for node in NODES} | {"supervisor": (3.05, 0.0)}),
]


def test_processor_time_by_process_and_how_much_of_it_messages_take(watch):
    figures, faults = cost.judge(watch, LOOKS, speaks=False)
    assert faults == []
    assert figures["cpu"] == {"audio": 0.02, "speech": 0.02, "fusion": 0.02, "supervisor": 0.005}
    assert figures["in all"] == 0.065
    assert figures["messages"] == dict.fromkeys(("audio", "speech", "fusion"), 0.002)  # 1 ms each of its own, ZeroMQ's
    assert figures["part of messages"] == 0.1
    text = cost.tables({"rest, sound": figures})
    assert "0.0200 (0.0020)" in text and "10.0%" in text and "not met" in text


def test_faults(watch):
    assert cost.judge(watch, LOOKS, speaks=True)[1] == ["0 labels in a conversation"]
    watch.labels.append(label("cost", 0, 1.0, 2.0))
    assert cost.judge(watch, LOOKS, speaks=False)[1] == ["1 labels in the silence"]
    watch.labels.clear()
    watch.beats["fusion"] = beats("fusion", dropped=3)
    watch.beats["speech.cost"][-1].cpu_s = 0.0
    assert len(cost.judge(watch, LOOKS, speaks=False)[1]) == 2
    assert cost.judge(watch, LOOKS[:1], speaks=False)[0] == {}


def test_the_plot_is_drawn(watch, tmp_path):
    cost.plot(tmp_path / "cost.png", {"rest, sound": cost.judge(watch, LOOKS, speaks=False)[0]})
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_processor_time_of_the_threads_of_a_process():
    total, zeromq = cost.threads(os.getpid())
    assert total > 0
    assert 0 <= zeromq < total


@pytest.mark.long
@pytest.mark.process
@pytest.mark.alone
def test_a_real_run(monkeypatch, tmp_path):
    """Each node counts its messages."""
    monkeypatch.setattr(cost, "CASES", {"rest, sound": (False, "audio")})
    assert cost.main(["--seconds", "6", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "cost.md").read_text()
    assert text.count(" (0.0") == 2  # sound and speech share a process
