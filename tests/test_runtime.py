"""stream/nodes/runtime.py"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zmq

from emostream.errors import BusError
from emostream.stream import bus
from emostream.stream.bus import Inbox, Publisher
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Config
from emostream.stream.messages import Codec, Control, Health, Log, Pcm
from emostream.stream.nodes import process
from emostream.stream.nodes import runtime as module
from emostream.stream.nodes.runtime import LIGHTER, NodeRuntime
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.run_folder import ipc

_MS = 1_000_000


@pytest.fixture
def runtime(monkeypatch):
    """A node's runtime whose clock the test advances."""
    monkeypatch.setattr(module, "SystemClock", VirtualClock)
    monkeypatch.setattr(module.logging, "basicConfig", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        runtime = NodeRuntime(NodeSpec("capture", "audio.a", "a", Config(), folder, 0))
        yield runtime
        runtime.close()


@pytest.fixture
def supervisor(runtime):
    """A publisher of control messages, and an inbox for the node's heartbeats and log."""
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


def test_duties_are_done_every_50_ms_at_most(runtime, supervisor):
    control, inbox = supervisor
    runtime.clock.advance_ns(50 * _MS)
    runtime.tick()
    control.send(Control(command="stop"))
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


def test_a_heartbeat_every_second(runtime, supervisor):
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


def _next_heartbeat(runtime, inbox: Inbox) -> Health:
    """The next heartbeat, after reading those that were sent before."""
    while inbox.receive(200) is not None:
        pass
    runtime.clock.advance_ns(1000 * _MS)
    runtime.tick()
    message = inbox.receive(5000)
    assert isinstance(message, Health)
    return message


def test_a_heartbeat_counts_losses_of_an_empty_inbox(runtime, supervisor):
    """An inbox whose queue is empty is falsy, but its losses count all the same."""
    _, beats = supervisor
    producer = runtime.context.socket(zmq.PUB)
    producer.bind(ipc(Path(runtime.spec.run_dir), "audio.b"))
    inbox = runtime.open_inbox({"audio.b": ["pcm.b"]})
    sound = Pcm(stream="b", media_start_ns=0, media_end_ns=0, captured_ns=0, samples=np.zeros(4, np.int16))
    received = None
    while received is None:  # until the subscription has arrived
        producer.send_multipart([b"pcm.b", *Codec().encode(sound)])
        received = inbox.receive(10)
    sound.seq = received.seq + 6
    producer.send_multipart([b"pcm.b", *Codec().encode(sound)])
    while received.seq != sound.seq:
        received = inbox.receive(5000)
    while inbox.receive(0) is not None:
        pass
    inbox.dropped["pcm.b"] += 3
    assert len(inbox) == 0 and not inbox
    health = _next_heartbeat(runtime, beats)
    assert (health.queued, health.gaps, health.dropped) == (0, 5, 3)


def test_close_returns_although_a_socket_was_left_open(monkeypatch):
    """As when fusion fails between opening its public socket and ``go``: zmq_ctx_term would wait for ever."""
    monkeypatch.setattr(module.logging, "basicConfig", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="em-") as folder:
        runtime = NodeRuntime(NodeSpec("fusion", "fusion", "", Config(), folder, 0))
        left_open = runtime.context.socket(zmq.XPUB)
        left_open.bind("inproc://left-open")
        closing = threading.Thread(target=runtime.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()
        assert left_open.closed


def test_an_endpoint_that_cannot_be_bound_leaves_no_socket_open(monkeypatch):
    contexts = []

    def context() -> zmq.Context:
        contexts.append(zmq_context())
        return contexts[-1]

    zmq_context = zmq.Context
    monkeypatch.setattr(module.zmq, "Context", context)
    with pytest.raises(BusError, match="cannot be bound"):
        NodeRuntime(NodeSpec("fusion", "fusion", "", Config(), "/no/such/folder", 0))
    assert contexts[0].closed


class _Meter:
    """A bus observer that counts calls, and that they do not nest."""

    def __init__(self) -> None:
        self.calls, self.within = 0, False

    def begin(self) -> None:
        assert not self.within
        self.within = True

    def end(self) -> None:
        assert self.within
        self.within = False
        self.calls += 1

    def counters(self) -> dict[str, int]:
        return {"calls": self.calls}


def test_heartbeats_carry_what_a_bus_observer_counts(monkeypatch, request):
    meter = _Meter()
    monkeypatch.setattr(bus, "observer", meter)
    runtime = request.getfixturevalue("runtime")
    _, beats = request.getfixturevalue("supervisor")
    health = _next_heartbeat(runtime, beats)
    assert 0 < health.counters["calls"] < meter.calls
    assert not meter.within


@pytest.mark.slow
def test_running_behind_is_told_once_and_again_when_it_is_over(runtime, supervisor, monkeypatch):
    class Waiting:
        def __init__(self) -> None:
            self.behind_s = 0.0
            self.dropped: Counter[str] = Counter()
            self.missed: Counter[str] = Counter()

        def __len__(self) -> int:
            return 7

        def behind_ns(self, now_ns: int) -> int:
            return int(self.behind_s * 1e9)

        def take_dropped_spans(self) -> dict:
            return {}

        def close(self) -> None:
            pass

    lines: list[str] = []
    monkeypatch.setattr(module.logging, "warning", lambda text, *values: lines.append(text % values))
    _, inbox = supervisor
    runtime.inbox = Waiting()
    beats = []
    for behind_s in (1.9, 2.1, 8.0, 0.6, 0.4, 2.0):
        runtime.inbox.behind_s = behind_s
        runtime.clock.advance_ns(1000 * _MS)
        runtime.tick()
        while isinstance(message := inbox.receive(200), Health | Log):
            beats += [message.behind_s] if isinstance(message, Health) else []
    assert lines == [
        f"running 2.1 s behind: 7 messages wait; {LIGHTER}", "has caught up",
        f"running 2.0 s behind: 7 messages wait; {LIGHTER}",
    ]  # fmt: skip
    assert beats[-6:] == [1.9, 2.1, 8.0, 0.6, 0.4, 2.0]
    for behind_s, passed_ms in ((0.0, 1000), (17.0, 17_000)):
        runtime.inbox.behind_s = behind_s
        runtime.clock.advance_ns(passed_ms * _MS)
        runtime.tick()
    assert lines[-1].startswith("running 17.0 s behind: 7 messages wait; it was suspended, or had no processor, for 1")


def _tell_what_is_blocked() -> None:
    sys.exit(7 if signal.pthread_sigmask(signal.SIG_BLOCK, []) >= {signal.SIGINT, signal.SIGHUP} else 1)


@pytest.mark.process
def test_ctrl_c_does_not_reach_a_node_that_is_still_loading():
    """It would end with a traceback, across the display."""
    with process._blocked_signals():
        child = multiprocessing.get_context("spawn").Process(target=_tell_what_is_blocked)
        child.start()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    child.join(120)
    assert child.exitcode == 7
