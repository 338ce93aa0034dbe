"""stream-fusion: the networks of many boxes on a Ray cluster"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from emostream.stream.keys import Keys
from tests.processes import BIN, Pipeline, environment, free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def keys(tmp_path) -> Path:
    """Key folders ``server`` and ``box``; the box knows the server and is allowed."""
    server, box = Keys(str(tmp_path / "server")), Keys(str(tmp_path / "box"))
    server.allow(box.new_client(server.new_server().public).public, "box")
    return tmp_path


class Serving:
    """A ``stream-fusion`` on its own Ray."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        pytest.importorskip("ray")
        self.endpoint, self._log = f"tcp://127.0.0.1:{free_port()}", folder / "fusion.log"
        self.process = subprocess.Popen(
            [BIN / "stream-fusion", "--listen", self.endpoint, "--set", f"bus.keys={folder / 'server'}",
             *map(str, arguments)],
            stderr=self._log.open("w"), env=environment(),
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, pattern: str, count: int = 1, seconds: float = 60) -> None:
        end_s = time.monotonic() + seconds
        while len(re.findall(pattern, self.log)) < count:
            assert time.monotonic() < end_s and self.process.poll() is None, self.log
            time.sleep(0.05)

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["name", "ppid"]):
            if process.info["name"].startswith("ray::Replica"):
                raylet = psutil.Process(process.info["ppid"])
                if self.process.pid in (parent.pid for parent in raylet.parents()):
                    found.append(process)
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def arguments(keys: Path, serving: Serving, *more: str) -> list[str]:
    changes = [f"bus.keys={keys / 'box'}", f"fusion.remote={serving.endpoint}", "speech.recognizer=none", *more]
    return [each for change in changes for each in ("--set", change)]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_boxes_on_a_ray_cluster_whose_actor_is_killed(keys):
    """Three boxes, one of them without networks of its own; the actor is killed, and Ray starts it again."""
    serving = Serving(keys, "--cpus", 1)
    try:
        serving.until("replica 0: ready")
        plain = Pipeline("--stream", "demo", "--set", "speech.recognizer=none")
        local = [Pipeline("--stream", "demo", *arguments(keys, serving)) for _ in range(2)]
        late = Pipeline("--stream", "demo", *arguments(keys, serving, "fusion.without=late"))
        with plain, late, local[0], local[1]:
            late.subscriber.wait_for("utterance", 2, 90)
            (replica,) = serving.replicas()
            replica.kill()
            serving.until("replica 0: ready", 2)
            assert [run.finish(120) for run in (plain, late, *local)] == [0] * 4
            want = [(m["utterance"], m["label"]) for m in plain.subscriber.of("utterance")]
            for run in (*local, late):
                got = [(m["utterance"], m["label"]) for m in run.subscriber.of("utterance")]
                given_up = run.output.count("has no label: no answer") if run is late else 0
                assert len(got) + given_up == len(want) and [each for each in want if each in got] == got
                assert any(" at " in m["backend"] for m in run.subscriber.of("utterance")), run.output
                assert "cannot be used" in run.output and run.output.count("the networks run at") == 2, run.output
            assert "labels are late" in late.output and all("labels are made here" in run.output for run in local)
    finally:
        assert serving.end() == 0, serving.log
    assert "calls in" in serving.log
    assert not serving.replicas()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_replicas_that_a_killed_command_left_are_taken_over(keys):
    """The command is killed; boxes go on, since they call the replicas; the next call of the command finds them."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False},
    )
    try:
        port = ("--ray", cluster.address, "--replicas", 2, "--host", "127.0.0.1")
        serving = Serving(keys, *port)
        serving.until(r"replica \d: ready", 2)
        with Pipeline("--stream", "demo", *arguments(keys, serving, "fusion.without=late")) as run:
            run.subscriber.wait_for("utterance", 1, 60)
            serving.process.kill()
            run.finish(90)
            assert len(run.subscriber.of("utterance")) == 5 and "cannot be used" not in run.output, run.output
        addresses = set(re.findall(r"ready at (\S+)", serving.log))
        again = Serving(keys, *port)
        again.until(r"replica \d: ready", 2)
        assert set(re.findall(r"ready at (\S+)", again.log)) == addresses
        assert again.end() == 0
    finally:
        cluster.shutdown()


def test_the_command_says_what_is_wrong(tmp_path):
    for wrong in (["--listen", "nonsense"], ["--ports", "9"], ["--replicas", "0"], []):
        done = subprocess.run(
            [BIN / "stream-fusion", *wrong, "--set", f"bus.keys={tmp_path}"],
            capture_output=True, text=True, env=environment(), timeout=60,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "stream-keys new server" in done.stderr and not os.listdir(tmp_path)
