"""Steering a run: the private socket, and a run that follows its orders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time

import msgspec
import numpy as np
import pytest
import zmq

from emostream.errors import BusError, ConfigError, ControlError
from emostream.stream.control import Control, ControlServer, Reply, Request, Waiting, control_path, sent_at
from emostream.stream.messages import Expected, Orders
from emostream.stream.nodes.capture import silenced
from emostream.stream.sources.base import AudioChunk
from emostream.stream.status import Status, StreamStatus, encode_status
from tests.processes import BIN, Pipeline, environment, free_port, patience

S = 1_000_000_000


class Run:
    """The run's end of a control socket, in this process; ``answers``: the orders that its nodes now follow."""

    def __init__(self, path) -> None:
        self.context = zmq.Context()
        self.server = ControlServer(self.context, path)
        self.asked: list[Request] = []
        self.late: list[str] = []
        status = encode_status(Status(run="r", streams={"desk": StreamStatus(muted=True)})).decode()
        self.waiting = Waiting(self.server, self._begin, lambda serial: self.late, lambda: status, patience_ns=S)

    def _begin(self, request: Request) -> tuple[str, int]:
        if request.value == "bad":
            raise ConfigError("bad: cannot be")
        self.asked.append(request)
        return f"{request.command} done", len(self.asked)

    def serve(self, seconds: float = 0.3) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.server.socket.poll(10)
            self.waiting.tick(time.monotonic_ns())

    def close(self) -> None:
        self.waiting.close()
        self.server.close()
        self.context.destroy(0)


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "own" / "control")
    yield run
    run.close()


def raw(run: Run, *frames: bytes) -> Reply | None:
    """Send raw frames; returns the reply, if one comes."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{run.server.path}")
        socket.send_multipart(frames)
        until = time.monotonic() + 0.5
        while not socket.poll(0) and time.monotonic() < until:
            run.serve(0.01)
        return msgspec.json.decode(socket.recv(), type=Reply) if socket.poll(0) else None


def request(**fields) -> bytes:
    return msgspec.json.encode(Request(**fields))


def test_a_request_is_answered(run):
    reply = raw(run, request(command="mute", streams=["desk"], for_s=2.0))
    assert reply == Reply(ok=True, text="mute done", status=reply.status)
    assert json.loads(reply.status)["streams"]["desk"]["muted"] is True
    assert [(each.command, each.streams, each.for_s) for each in run.asked] == [("mute", ["desk"], 2.0)]


def test_what_cannot_be_done_is_said(run):
    reply = raw(run, request(command="set", value="bad"))
    assert (reply.ok, reply.text) == (False, "bad: cannot be")


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"{"], [b"nonsense"], [b"\xff\xfe"], [b"[" * 60_000], [b'{"command":"explode"}'], [b'{"streams":[]}'],
        [b'{"command":"mute","streams":"desk"}'], [b'{"command":"mute","for_s":"two"}'], [b"{}", b"{}"],
        [b'{"command":"mute","more":1}'], [b'{"command":"status"}'] * 20,
    ],
    ids=lambda frames: frames[0][:40].decode(errors="replace") or "empty",
)  # fmt: skip
def test_what_is_no_request_gets_one_line(run, frames):
    reply = raw(run, *frames)
    assert not reply.ok and reply.text.startswith("no request: ") and len(reply.text.splitlines()) == 1
    assert not run.asked
    assert raw(run, request(command="status")).ok


def test_a_request_that_is_too_large_is_not_read(run):
    assert raw(run, b" " * 100_000 + request(command="status")) is None
    assert raw(run, request(command="status")).ok


@pytest.mark.slow
def test_the_answer_comes_when_all_nodes_follow(run):
    run.late = ["audio.desk"]
    with zmq.Context() as context, context.socket(zmq.DEALER) as one, context.socket(zmq.DEALER) as other:
        for socket in (one, other):
            socket.linger = 0
            socket.connect(f"ipc://{run.server.path}")
        one.send(request(command="mute"))
        run.serve(0.2)
        other.send(request(command="resume"))
        run.serve(0.2)
        assert [each.command for each in run.asked] == ["mute"] and not one.poll(0)
        run.late = []
        run.serve(0.2)
        assert [each.command for each in run.asked] == ["mute", "resume"]
        assert one.poll(0) and other.poll(0)
        run.late = ["audio.desk"]
        one.recv()
        one.send(request(command="mute"))
        run.serve(1.5)
        reply = msgspec.json.decode(one.recv(), type=Reply)
        assert (reply.ok, reply.text) == (False, "mute done, but audio.desk has not answered yet")


def test_clients_that_flood_and_do_not_read_hold_nobody_up(run):
    with zmq.Context() as context, context.socket(zmq.DEALER) as flood:
        flood.linger, flood.sndhwm, flood.rcvhwm = 0, 0, 1
        flood.connect(f"ipc://{run.server.path}")
        for _ in range(2000):
            flood.send(request(command="status"))
        begun = time.monotonic()
        assert raw(run, request(command="mute", streams=["x"])).ok
        assert time.monotonic() - begun < 5


def test_who_waits_when_the_run_ends_is_told(run):
    run.late = ["audio.desk"]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{run.server.path}")
        socket.send(request(command="mute"))
        run.serve(0.2)
        run.waiting.close()
        assert msgspec.json.decode(socket.recv(), type=Reply).text == "the run has ended"


def test_the_socket_is_the_users_own(run):
    assert stat.S_IMODE(run.server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(run.server.path.parent.stat().st_mode) == 0o700
    run.server.close()
    assert not run.server.path.exists()


def test_sockets_that_killed_runs_left_are_removed_and_nobodys_else(tmp_path):
    folder = tmp_path / "emostream"
    with zmq.Context() as context:
        first = ControlServer(context, folder / "control-1")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(folder / "control-2"))
        with pytest.raises(BusError, match="another program"):
            ControlServer(context, folder / "control-1")
        assert [path.name for path in folder.iterdir()] == ["control-1"]
        with (
            Control(path=folder / "control-1", timeout_s=0.1) as control,
            pytest.raises(ControlError, match="no answer"),
        ):
            control.status()
        first.close()
    assert not folder.exists()


def test_a_run_that_was_killed_does_not_answer(tmp_path):
    (folder := tmp_path / "own").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "control"))
    with Control(path=folder / "control") as control, pytest.raises(ControlError, match="no run listens there"):
        control.status()


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    (folder := tmp_path / "shared").mkdir()
    folder.chmod(0o777)
    with zmq.Context() as context, pytest.raises(BusError, match="you alone can write to"):
        ControlServer(context, folder / "control")
    (tmp_path / "link").symlink_to(folder)
    with zmq.Context() as context, pytest.raises(BusError, match="you alone can write to"):
        ControlServer(context, tmp_path / "link" / "control")


def test_where_the_socket_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    here, there = (control_path("auto", f"tcp://127.0.0.1:{port}") for port in (5556, 5557))
    assert here != there and here.parent == there.parent == tmp_path / "emostream"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert str(os.getuid()) in str(control_path("auto", "x"))
    assert control_path("off", "x") is None and str(control_path("/run/me/control", "x")) == "/run/me/control"
    with pytest.raises(BusError, match="too long"):
        control_path("/" + "a" * 200, "x")


def test_a_request_is_never_of_the_future_nor_long_ago():
    now = time.monotonic_ns()
    assert abs(sent_at(Request(command="mute", sent_ns=now - S), 100 * S) - 99 * S) < S // 10
    assert sent_at(Request(command="mute", sent_ns=now + 10 * S), 100 * S) == 100 * S
    assert sent_at(Request(command="mute", sent_ns=0), 100 * S) == 100 * S


def test_without_a_run():
    with (
        Control("tcp://127.0.0.1:1") as control,
        pytest.raises(ControlError, match="is stream-run running, as this user"),
    ):
        control.status()


@pytest.mark.parametrize(
    ("spans", "silent"),
    [
        ([], range(0)), ([(0, 99 * S)], range(1600)), ([(10_020_000_000, 10_040_000_000)], range(320, 640)),
        ([(0, 10 * S), (10_100_000_000, 1 << 62)], range(0)), ([(10_090_000_000, 1 << 62)], range(1440, 1600)),
        ([(0, 10_010_000_000), (10_090_000_000, 1 << 62)], [*range(160), *range(1440, 1600)]),
    ],
)  # fmt: skip
def test_sound_of_muted_times_is_silent_to_the_sample(spans, silent):
    chunk = AudioChunk(np.ones((1600, 2), np.float32), 16_000, 2 * S)
    samples = silenced(chunk, 8 * S, spans).samples
    assert np.flatnonzero(samples[:, 0] == 0).tolist() == list(silent)
    assert chunk.samples.all() and samples.shape == chunk.samples.shape


def test_orders_travel():
    from emostream.stream.messages import Codec

    orders = Orders(
        serial=3, muted={"a": [(1, 2)]}, added={"b": Expected(["audio.b"], ["audio"], 0, 2)}, settings=["x=1"]
    )
    assert Codec().decode([bytes(part) for part in Codec().encode(orders)]) == orders


def ctl(endpoint: str, *arguments: str, user: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(user or []), BIN / "stream-ctl", "--endpoint", endpoint, *arguments],
        capture_output=True, text=True, timeout=30, env=environment(), check=False,
    )  # fmt: skip


def label_times(run: Pipeline, stream: str) -> list[tuple[float, float]]:
    return [(label["start_s"], label["end_s"]) for label in run.subscriber.of("utterance") if label["stream"] == stream]


@pytest.mark.process
def test_a_run_is_steered(tmp_path):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with Pipeline("--config", "config.toml", endpoint=endpoint) as run, Control(endpoint) as control:
        run.subscriber.wait_for("window", 1, 30)
        assert control.add("hall=demo") == "added: hall"
        run.subscriber.wait_for("utterance", 1, 30)  # of demo
        begun_s = control.status().uptime_s
        control.mute("demo")
        if os.getuid() == 0 and shutil.which("setpriv"):
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            for where in ([], ["--control", str(control_path("auto", endpoint))]):
                other = ctl(endpoint, *where, "unmute", user=nobody)
                assert other.returncode == 1 and "as this user" in other.stderr, other.stderr
        os.kill(run.node("audio.demo"), signal.SIGKILL)  # it stays muted
        time.sleep(4)
        status = control.status()
        assert (status.streams["demo"].muted, status.streams["hall"].muted) == (True, False)
        unmuted_s = control.status().uptime_s
        assert ctl(endpoint, "unmute", "demo").stdout == "heard again: demo\n"
        assert control.set("speech.hangover_ms=900") == "set: speech.hangover_ms=900"
        for change, why in (("bus.emotion=ipc://x", "cannot be changed"), ("speech.threshold=2", "less than 1")):
            refused = ctl(endpoint, "set", change)
            assert (refused.returncode, refused.stderr.count("\n")) == (1, 1) and why in refused.stderr
        with pytest.raises(ControlError, match="no such file"):
            control.add("x=file:/nonexistent.wav")
        run.subscriber.wait_for("utterance", 6, 40)
        assert control.remove("hall") == "removed: hall"
        assert run.finish(patience(40)) == 0, run.output
    for start_s, end_s in label_times(run, "demo"):
        assert end_s < begun_s + 0.5 or start_s > unmuted_s - 0.5
    assert len(label_times(run, "hall")) >= 2 and label_times(run, "demo")[-1][0] > 20
    numbers = [(label["stream"], label["utterance"]) for label in run.subscriber.of("utterance")]
    assert len(set(numbers)) == len(numbers)
    assert "Traceback" not in run.output and "removed: hall" in run.output
