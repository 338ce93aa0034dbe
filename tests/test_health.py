"""stream-health and the status message, of a real run."""

from __future__ import annotations

import os
import signal
import time

import pytest

from emostream.stream.listen import listen_status
from emostream.stream.status import Status
from tests.processes import Pipeline, command, free_port

pytestmark = pytest.mark.process


def _wait_for(endpoint: str, what, seconds: float = 20) -> Status:
    until = time.monotonic() + seconds
    for _, status in listen_status(endpoint, timeout_s=seconds):
        if what(status):
            return status
        assert time.monotonic() < until, status
    raise AssertionError("no status came")


def test_health_says_whether_labels_can_come():
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    done = command("stream-health", endpoint, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{endpoint}: no status came in 0.2 s\n"
    with Pipeline("--stream", "demo=demo", "--set", "speech.recognizer=none", endpoint=endpoint) as run:
        _wait_for(endpoint, lambda status: status.state == "running" and status.uptime_s > 0.7)
        done = command("stream-health", endpoint, "--all")
        assert done.returncode == 0, done.stderr
        assert "demo: running, " in done.stdout
        assert command("stream-health", endpoint, "--timeout", "nan").returncode == 2
        os.kill(run.node("speech.demo"), signal.SIGKILL)
        away = _wait_for(endpoint, lambda status: status.nodes["speech.demo"].state == "away")
        assert (away.state, away.streams["demo"].state) == ("degraded", "away")
        back = _wait_for(endpoint, lambda status: status.nodes["speech.demo"].state == "running")
        assert back.nodes["speech.demo"].starts == 2
        assert back.nodes["speech.demo"].away_s == pytest.approx(back.streams["demo"].sound_lost_s, abs=0.5)
        label = run.subscriber.wait_for("utterance", 1, 20)[0]
        assert back.run == label["run"]
        run.interrupt()
    assert "started again: 2 (audio.demo 1, speech.demo 1)" in run.output  # they share a process
