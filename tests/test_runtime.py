"""stream/nodes/runtime.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from emostream.stream.bus import Inbox, Publisher, ipc
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Config
from emostream.stream.messages import Control, Health, Log
from emostream.stream.nodes import runtime as module
from emostream.stream.nodes.runtime import NodeRuntime, NodeSpec

_MS = 1_000_000


@pytest.fixture
def runtime(monkeypatch):
    """Of a node whose clock the test moves."""
    monkeypatch.setattr(module, "SystemClock", VirtualClock)
    monkeypatch.setattr(module.logging, "basicConfig", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        made = NodeRuntime(NodeSpec("capture", "audio.a", "a", Config(), folder, 0))
        yield made
        made.close()


@pytest.fixture
def supervisor(runtime):
    """Publisher of control, and an inbox for what the node says."""
    folder = Path(runtime.spec.run_dir)
    control = Publisher(runtime.context, ipc(folder, "control"), VirtualClock(), 100, lossless=False)
    inbox = Inbox(runtime.context, 100, lossless=False)
    inbox.connect(ipc(folder, "audio.a"), ["health.audio.a", "log.audio.a"])
    runtime.wait_for_subscribers([])
    while not control.has_subscribers(["control"]):
        runtime.stop_event.wait(0.01)
    yield control, inbox
    control.close()
    inbox.close()


def test_a_tick_does_its_duties_no_more_often_than_each_50_ms(runtime, supervisor):
    control, inbox = supervisor
    runtime.clock.advance_ns(50 * _MS)
    runtime.tick()
    control.send(Control(stream="", media_start_ns=0, media_end_ns=0, captured_ns=0, command="stop"))
    runtime._control.wait(5000)
    runtime._log.lines.put(("info", "a line"))
    runtime.clock.advance_ns(49 * _MS)
    runtime.tick()
    assert not runtime.stopping
    runtime.clock.advance_ns(1 * _MS)
    runtime.tick()
    assert runtime.stopping
    while not isinstance(message := inbox.receive(5000), Log):
        assert isinstance(message, Health)
    assert message.text == "a line"


def test_a_heartbeat_each_second(runtime, supervisor):
    _, inbox = supervisor
    while inbox.receive(200) is not None:
        pass
    for _ in range(100):
        runtime.clock.advance_ns(50 * _MS)
        runtime.tick()
    beats = 0
    while (message := inbox.receive(200)) is not None:
        assert isinstance(message, Health)
        beats += 1
    assert beats == 5
