"""stream/nodes/shell.py"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from stream.bus import Inbox, Publisher, ipc
from stream.clock import VirtualClock
from stream.config import Config
from stream.messages import Control, Health, Log
from stream.nodes import shell as module
from stream.nodes.shell import NodeSpec, Shell

_MS = 1_000_000


@pytest.fixture
def shell(monkeypatch):
    """Of a node whose clock the test moves."""
    monkeypatch.setattr(module, "SystemClock", VirtualClock)
    monkeypatch.setattr(module.logging, "basicConfig", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        made = Shell(NodeSpec("capture", "audio.a", "a", Config(), folder, 0))
        yield made
        made.close()


@pytest.fixture
def supervisor(shell):
    """Publisher of control, and an inbox for what the node says."""
    folder = Path(shell.spec.run_dir)
    control = Publisher(shell.context, ipc(folder, "control"), VirtualClock(), 100, lossless=False)
    inbox = Inbox(shell.context, 100, lossless=False)
    inbox.connect(ipc(folder, "audio.a"), ["health.audio.a", "log.audio.a"])
    shell.wait_for_subscribers([])
    while not control.has_subscribers(["control"]):
        shell.stop_event.wait(0.01)
    yield control, inbox
    control.close()
    inbox.close()


def test_a_tick_does_its_duties_no_more_often_than_each_50_ms(shell, supervisor):
    control, inbox = supervisor
    shell.clock.advance_ns(50 * _MS)
    shell.tick()
    control.send(Control(stream="", media_start_ns=0, media_end_ns=0, captured_ns=0, command="stop"))
    shell._control.wait(5000)
    shell._log.lines.put(("info", "a line"))
    shell.clock.advance_ns(49 * _MS)
    shell.tick()
    assert not shell.stopping
    shell.clock.advance_ns(1 * _MS)
    shell.tick()
    assert shell.stopping
    while not isinstance(message := inbox.receive(5000), Log):
        assert isinstance(message, Health)
    assert message.text == "a line"


def test_a_heartbeat_each_second(shell, supervisor):
    _, inbox = supervisor
    while inbox.receive(200) is not None:
        pass
    for _ in range(100):
        shell.clock.advance_ns(50 * _MS)
        shell.tick()
    beats = 0
    while (message := inbox.receive(200)) is not None:
        assert isinstance(message, Health)
        beats += 1
    assert beats == 5
