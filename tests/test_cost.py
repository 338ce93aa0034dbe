"""benchmarks/cost.py: figures from made-up runs, and a short real one."""

from __future__ import annotations

import os

import pytest

from benchmarks import cost
from benchmarks.timed_run import COUNTER
from emostream.stream.messages import Health

_S = 1_000_000_000


def _beats(node: str, **fields) -> list[Health]:
    """Ten, one a second; a second of them costs 1 ms of messages."""
    return [
        Health(
            **(
                {"node": node, "state": "running", "sent_ns": t * _S, "cpu_s": t / 100, "counters": {COUNTER: 1000 * t}}
                | fields
            )
        )
        for t in range(1, 11)
    ]


@pytest.fixture
def watch() -> cost.Watch:
    """A silent run of ten seconds."""
    nodes = ("audio.cost", "speech.cost", "fusion")
    made = cost.Watch(t0_ns=0, beats={node: _beats(node) for node in nodes})
    made.looks = [
        (2.0, {node: (1.0, 0.5) for node in nodes} | {"supervisor": (3.0, 0.0)}),
        (12.0, {node: (1.2, 0.51) for node in nodes} | {"supervisor": (3.05, 0.0)}),
    ]
    return made


def test_processor_time_by_process_and_what_of_it_is_for_messages(watch):
    figures, faults = cost.judge(watch, speaks=False)
    assert faults == []
    assert figures["cpu"] == {"audio": 0.02, "speech": 0.02, "fusion": 0.02, "supervisor": 0.005}
    assert figures["in all"] == 0.065
    assert figures["messages"] == dict.fromkeys(("audio", "speech", "fusion"), 0.002)  # its own 1 ms and ZeroMQ's 1 ms
    assert figures["part of messages"] == 0.1
    text = cost.tables({"rest, sound": figures})
    assert "0.0200 (0.0020)" in text and "10.0%" in text and "not met" in text


def test_faults(watch):
    watch.labels = 1
    assert cost.judge(watch, speaks=False)[1] == ["1 labels in the silence"]
    watch.labels = 0
    assert cost.judge(watch, speaks=True)[1] == ["0 labels in a conversation"]
    watch.beats["fusion"] = _beats("fusion", dropped=3)
    watch.beats["speech.cost"][-1].cpu_s = 0.0
    assert len(cost.judge(watch, speaks=False)[1]) == 2
    watch.looks.pop()
    assert cost.judge(watch, speaks=False)[0] == {}


def test_the_plot_is_drawn(watch, tmp_path):
    cost.plot(tmp_path / "cost.png", {"rest, sound": cost.judge(watch, speaks=False)[0]})
    assert (tmp_path / "cost.png").stat().st_size > 1000


def test_threads_are_those_of_the_process():
    total, zeromq = cost.threads(os.getpid())
    assert total > 0
    assert 0 <= zeromq < total


def test_a_real_run(monkeypatch, tmp_path):
    """Each node counts its messages."""
    monkeypatch.setattr(cost, "CASES", {"rest, sound": (False, "audio")})
    assert cost.main(["--seconds", "6", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "cost.md").read_text()
    assert text.count(" (0.0") == 3
