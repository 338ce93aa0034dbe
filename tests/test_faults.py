"""Faults injected into the real processes of a run: signals, strangers at its sockets, outputs that block or fail."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import zmq

from emostream.stream.keys import Keys
from tests.media import silent_audio
from tests.processes import BIN, ROOT, Pipeline, Subscriber, command, environment, free_port, patience

pytestmark = pytest.mark.process

SETTLED_S = 0.3  # until a label that one subscriber has received has reached all others
F_SETPIPE_SZ = 1031  # linux/fcntl.h


def numbers(messages: list[dict]) -> list[tuple[str, str, int]]:
    """The keys that must be unique within a run: (stream, kind, seq)."""
    return [(message["stream"], message["kind"], message["seq"]) for message in messages]


LONG = pytest.mark.long
RUN = ("--config", "config.toml", "--set", "speech.recognizer=none")  # words cost most and matter least here


@pytest.mark.long
@pytest.mark.parametrize("node", ["audio.demo", "video.demo", "speech.demo", "fusion"])
def test_a_strangers_sigterm_to_a_node_is_a_failure_and_not_its_end(node):
    with Pipeline("--config", "config.toml") as run:
        run.subscriber.wait_for("utterance", 1, 30)
        os.kill(run.node(node), signal.SIGTERM)
        labels = run.subscriber.wait_for("utterance", 3, 40)
        run.interrupt()
    assert f"{node}: was ended by somebody's SIGTERM; starting it again" in run.output
    assert labels[-1]["modalities"]["audio"]["coverage"] > 0.8
    assert labels[-1]["modalities"]["video"]["coverage"] > 0.5
    assert len(set(numbers(run.subscriber.of("utterance")))) == len(run.subscriber.of("utterance"))


@pytest.mark.long
def test_numbers_never_come_twice_though_fusion_is_killed(tmp_path):
    with Pipeline(*RUN, "--jsonl", tmp_path / "labels.jsonl") as run:
        for count in (1, 2):
            run.subscriber.wait_for("utterance", count, 40)
            time.sleep(SETTLED_S)
            os.kill(run.node("fusion"), signal.SIGKILL)
        run.subscriber.wait_for("utterance", 3, 40)
        run.interrupt()
    kept = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    for messages in (kept, run.subscriber.of("utterance"), run.subscriber.of("window")):
        assert len(set(numbers(messages))) == len(messages)
        assert len({message["run"] for message in messages}) == 1 and messages[0]["run"]
    assert kept == run.subscriber.of("utterance")
    assert [label["utterance"] for label in kept] == sorted({label["utterance"] for label in kept})


@pytest.mark.long
def test_a_run_ends_though_fusion_is_killed_after_the_ends_of_streams(tmp_path):
    """A restarted fusion never gets the end of the short stream, nor of one whose node ends meanwhile."""
    streams = {"short": silent_audio(tmp_path / "short.wav", 3), "long": silent_audio(tmp_path / "long.wav", 9)}
    config = tmp_path / "config.toml"
    config.write_text("\n".join(f'[[streams]]\nname = "{name}"\nsource = "{path}"' for name, path in streams.items()))
    with Pipeline("--config", config, "--set", "speech.recognizer=none") as run:
        until = time.monotonic() + patience(30)
        while not (there := nodes(run)) >= {"fusion", "speech.long"} or "speech.short" in there:
            assert time.monotonic() < until and run.process.poll() is None, run.output
            time.sleep(0.1)
        os.kill(run.node("fusion"), signal.SIGKILL)
        assert run.finish(patience(30)) == 0, run.output
    assert "fusion: crashed" in run.output


@pytest.mark.long
def test_a_run_whose_sockets_are_removed_goes_on_until_a_node_ends(short_path):
    with Pipeline(*RUN, "--set", f"bus.run_dir={short_path}") as run:
        run.subscriber.wait_for("utterance", 1, 30)
        shutil.rmtree(next(short_path.glob("emostream-*")))
        run.subscriber.wait_for("utterance", 2, 30)
        assert "sockets in it were removed; no node can be started again" in run.output
        os.kill(run.node("video.demo"), signal.SIGKILL)
        assert run.finish(patience(5)) == 1
    assert run.output.splitlines()[-1].startswith("error: video.demo ended and cannot be started again, since")


@pytest.mark.long
def test_a_node_that_stands_still_at_the_end_is_told_and_what_waited_for_it_is_lost():
    with Pipeline(*RUN) as run:
        run.subscriber.wait_for("utterance", 1, 30)
        os.kill(run.node("speech.demo"), signal.SIGSTOP)
        time.sleep(1)
        run.process.send_signal(signal.SIGTERM)
        assert run.finish(patience(10)) == 0
    late = re.search(r"killed because they did not stop in time: (.*)", run.output)
    assert late is not None and "speech.demo" in late[1], run.output
    lost = re.search(r"lost: demo: .* ([\d.]+) s of sound lost", run.output)
    assert lost is not None and float(lost[1]) >= 1, run.output


def nodes(run: Pipeline) -> set[str]:
    """The nodes that have a process now."""
    return {
        name
        for child in psutil.Process(run.process.pid).children()
        if child.status() != psutil.STATUS_ZOMBIE
        for name in child.environ().get("EMOSTREAM_NODE", "").split()
    }


def lies(run: Pipeline) -> list[dict]:
    return [label for label in run.subscriber.of("utterance") if label["label"] == "lie"]


@pytest.mark.long
def test_who_takes_the_port_while_fusion_is_away_is_not_believed(tmp_path):
    port, out = free_port(), tmp_path / "labels.jsonl"
    endpoint = f"tcp://127.0.0.1:{port}"
    with Pipeline(*RUN, "--jsonl", out, endpoint=endpoint) as run, zmq.Context() as context:
        run.subscriber.wait_for("utterance", 1, 30)
        true = run.subscriber.of("utterance")[0]
        time.sleep(SETTLED_S)
        with context.socket(zmq.PUB) as liar:
            liar.setsockopt(zmq.LINGER, 0)
            os.kill(run.node("fusion"), signal.SIGKILL)
            until = time.monotonic() + 5
            while True:
                try:
                    liar.bind(endpoint)
                    break
                except zmq.ZMQError:
                    assert time.monotonic() < until
            until = time.monotonic() + 20
            while "trying again until it is free" not in run.output:  # fusion is back, without a port
                assert time.monotonic() < until
                liar.send_multipart([b"emotion.utterance.demo", json.dumps(true | {"label": "lie"}).encode()])
                liar.send_multipart([b"emotion.utterance.demo", b"no label"])
                liar.send(b"emotion.utterance.demo")
                time.sleep(0.1)
        run.subscriber.wait_for("utterance", 3 + len(lies(run)), 40)
        time.sleep(0.3)
        run.interrupt()
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(kept) >= 3 and "lie" not in {label["label"] for label in kept}
    assert re.search(r"\blie\b", run.output) is None
    late = [label for label in run.subscriber.of("utterance") if label["label"] != "lie"]
    assert late[-1] == kept[-1]  # it got the port back


@LONG
def test_a_node_that_stands_still_after_it_was_started_again_loses_nothing():
    """Only what came while it was away is lost: sound of 3 s in which it stood still later is heard."""
    with Pipeline(*RUN) as run:
        run.subscriber.wait_for("window", 1, 30)
        os.kill(run.node("audio.demo"), signal.SIGKILL)
        run.subscriber.wait_for("utterance", 1, 30)
        audio = run.node("audio.demo")
        os.kill(audio, signal.SIGSTOP)
        time.sleep(3)
        os.kill(audio, signal.SIGCONT)
        label = run.subscriber.wait_for("utterance", 3, 40)[-1]
        run.interrupt()
    assert all(label["modalities"][which]["coverage"] > 0.8 for which in ("audio", "video"))
    assert run.output.count("runs again; it was away") == 2  # audio and speech, which share a process
    assert "sound is missing" not in run.output, run.output


# The supervisor


def gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that are still there after this many seconds."""
    until = time.monotonic() + seconds
    while left := [process for process in processes if process.is_running() and process.status() != "zombie"]:
        if time.monotonic() > until:
            return left
        time.sleep(0.02)
    return []


@pytest.mark.parametrize("after_s", [2.0, *(pytest.param(s, marks=LONG) for s in (0.3, 0.6, 0.9, 1.3, 4.0))])
def test_nothing_is_left_of_a_run_whose_supervisor_was_killed(short_path, after_s):
    endpoint, runs = f"tcp://127.0.0.1:{free_port()}", short_path / "runs"
    arguments = (*RUN, "--set", f"bus.run_dir={runs}")
    with Pipeline(*arguments, endpoint=endpoint) as run:
        time.sleep(after_s)
        children = psutil.Process(run.process.pid).children(recursive=True)
        run.process.kill()
        run.process.wait()
        assert gone(children, patience(2.0)) == []
    with Pipeline(*arguments, endpoint=endpoint) as again:  # the port is free
        again.subscriber.wait_for("window", 1, 30)
        assert len(list(runs.iterdir())) == 1  # and the left-over folder is removed
        again.interrupt()
    assert list(runs.iterdir()) == []


SLOW = """
import os, pathlib, time
if os.environ["PARENT"] != str(os.getpid()):
    pathlib.Path("child").write_text(str(os.getpid()))
    time.sleep(60)
def work():
    pass
"""
PARENT = """
import os, pathlib, signal, time
from emostream.stream.nodes.tether import TetheredProcess
if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())
    import slow
    TetheredProcess(target=slow.work).start()
    while not pathlib.Path("child").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_node_whose_imports_take_long_ends_with_its_supervisor(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "parent.py").write_text(PARENT)
    assert subprocess.run([sys.executable, "parent.py"], cwd=tmp_path, timeout=60).returncode == -signal.SIGKILL
    until = time.monotonic() + patience(2.0)
    while psutil.pid_exists(int((tmp_path / "child").read_text())):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("after_s", [0.4, *(pytest.param(s, marks=LONG) for s in (0.7, 1.0, 1.5))])
def test_sigterm_while_a_run_is_being_loaded_is_its_end(after_s):
    with Pipeline(*RUN) as run:
        time.sleep(after_s)
        run.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert run.finish(patience(10)) == 0, run.output
    assert time.monotonic() - begun < patience(3) and "Traceback" not in run.output


@LONG
@pytest.mark.alone
def test_sigterm_on_a_busy_machine_ends_a_run_in_time_and_the_open_utterance_is_labelled():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with Pipeline("--config", "config.toml") as run:
            window = run.subscriber.wait_for("window", 1, 60)[-1]
            run.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert run.finish(10) == 0, run.output
            assert time.monotonic() - begun < 3, run.output
        assert [label["utterance"] for label in run.subscriber.of("utterance")] == [window["utterance"]]
    finally:
        for process in busy:
            process.kill()
            process.wait()


@LONG
def test_another_runs_folder_is_not_swept(short_path):
    with Pipeline("--config", "config.toml", "--set", f"bus.run_dir={short_path}") as first:
        first.subscriber.wait_for("window", 1, 30)
        with Pipeline("--config", "config.toml", "--set", f"bus.run_dir={short_path}") as second:
            second.subscriber.wait_for("window", 1, 30)
            assert len(list(short_path.iterdir())) == 2
            second.interrupt()
        first.subscriber.wait_for("utterance", 1, 30)
        first.interrupt()


def test_a_blocked_node_ends_with_its_supervisor(tmp_path):
    """A FIFO without a writer blocks the capture node in a read."""
    fifo = tmp_path / "sound.wav"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        with Pipeline("--stream", f"file:{fifo}") as run:
            time.sleep(2.5)
            children = psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            run.process.wait()
            assert gone(children, 2.5) == []
    finally:
        os.close(writer)


@LONG
def test_a_suspended_run_goes_on():
    """Everything stops for longer than a node may be silent; nothing is killed."""
    with Pipeline("--config", "config.toml") as run:
        run.subscriber.wait_for("utterance", 1, 30)
        nodes = psutil.Process(run.process.pid).children()
        for process in (psutil.Process(run.process.pid), *nodes):
            process.suspend()
        time.sleep(17)
        for process in (psutil.Process(run.process.pid), *nodes):
            process.resume()
        run.subscriber.wait_for("utterance", 2, 30)
        assert run.finish(40) == 0, run.output
    assert "was suspended, or had no processor, for 1" in run.output
    assert "killed" not in run.output and "starting it again" not in run.output


@LONG
def test_sighup_ends_a_run_like_sigterm():
    with Pipeline(*RUN) as run:
        run.subscriber.wait_for("window", 1, 30)
        run.process.send_signal(signal.SIGHUP)
        begun = time.monotonic()
        assert run.finish(10) == 0, run.output
    assert time.monotonic() - begun < 3 and len(run.subscriber.of("utterance")) == 1  # the open one was labelled


# Nodes that cannot run


def test_a_model_that_cannot_be_read_ends_the_run_at_once_in_one_line(tmp_path):
    from emostream.stream import models

    truncated = tmp_path / "silero_vad.onnx"
    truncated.write_bytes(models.need("silero-vad").read_bytes()[:5000])
    begun = time.monotonic()
    with Pipeline("--config", "config.toml", "--set", f"speech.vad_model={truncated}") as run:
        assert run.finish(30) == 1
    assert time.monotonic() - begun < 15
    assert "speech.demo cannot run" in run.output and "Traceback" not in run.output, run.output


@LONG
def test_a_node_that_fails_again_and_again_ends_the_run_with_its_own_code():
    with Pipeline("--config", "config.toml", "--set", "supervisor.failures=2") as run:
        for _ in range(3):
            run.subscriber.wait_for("window", 1, 30)
            until = time.monotonic() + 20
            while run.process.poll() is None:
                try:
                    os.kill(run.node("video.demo"), signal.SIGKILL)
                    break
                except AssertionError:  # it is being started again
                    assert time.monotonic() < until
                    time.sleep(0.05)
            time.sleep(0.3)
        assert run.finish(20) == 4, run.output
    assert "video.demo crashed (exit code -9), 3 times in 120 s: giving up" in run.output


# Outputs


@LONG
def test_labels_are_appended_to_a_file_that_only_its_owner_reads(tmp_path):
    out = tmp_path / "labels.jsonl"
    out.write_text('{"yesterday": 1}\n')
    done = command("stream-run", "--stream", "demo", "--pace", "fast", "--quiet", "--jsonl", out, "--set",
                   f"bus.emotion=ipc://{tmp_path}/bus")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert json.loads(lines[0]) == {"yesterday": 1} and len(lines) == 6
    fresh = tmp_path / "fresh.jsonl"
    command("stream-run", "--stream", "demo", "--pace", "fast", "--quiet", "--jsonl", fresh, "--set",
            f"bus.emotion=ipc://{tmp_path}/bus")  # fmt: skip
    assert fresh.stat().st_mode & 0o777 == 0o600


@LONG
def test_a_full_disk_costs_the_file_and_not_the_labels(tmp_path):
    with Pipeline("--stream", "demo", "--pace", "fast", "--jsonl", "/dev/full") as run:
        assert run.finish(60) == 0, run.output
        assert len(run.subscriber.of("utterance")) == 5
    assert run.output.count("labels cannot be written (No space left on device)") == 1
    assert "labels not written to /dev/full: 5" in run.output


@pytest.mark.long
def test_a_reader_that_stalls_costs_its_output_and_not_the_labels(tmp_path):
    """Standard output is a full pipe that nobody reads; labels go to the file and to subscribers; SIGTERM ends it."""
    out, endpoint = tmp_path / "labels.jsonl", f"ipc://{tmp_path}/bus"
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * 4096)
    subscriber = Subscriber(endpoint)
    process = subprocess.Popen(
        [BIN / "stream-run", *RUN, "--jsonl", out, "--set", f"bus.emotion={endpoint}"],
        stdout=writing, stderr=writing, env=environment(), cwd=ROOT,
    )  # fmt: skip
    try:
        os.close(writing)
        subscriber.wait_for("utterance", 2, 40)
        until = time.monotonic() + 3
        while len(out.read_text().splitlines()) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        process.wait(10)
        assert time.monotonic() - begun < 4.5
    finally:
        process.kill()
        process.wait()
        subscriber.close()
        os.close(reading)


# Strangers at the public socket

FLOOD = """
import socket, sys, time, zmq
endpoint, kind, seconds, *key = sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:]
context = zmq.Context()
until, n = time.monotonic() + seconds, 0
def connect(type_=zmq.XSUB):
    socket = context.socket(type_)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDTIMEO, 100)
    if key:
        socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = (part.encode() for part in key)
    socket.connect(endpoint)
    return socket
flooder, silent = connect(), []
while time.monotonic() < until:
    n += 1
    try:
        if kind == "topics":
            flooder.send(b"\\1" + b"emotion.%d" % n)
        elif kind == "long":
            flooder.send(b"\\1" + b"x%d" % n * 50_000)
            time.sleep(0.005)
        elif kind == "silent":
            silent.append(socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), 1))
            silent = silent[-900:]
            time.sleep(0.001)
        else:
            connect(zmq.SUB).close()
            time.sleep(0.002)
    except (zmq.Again, OSError):
        pass
print(n)
"""


@LONG
@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("topics", ""), ("long", ""), ("connections", ""), ("silent", ""),
        ("topics", "allowed"), ("long", "allowed"), ("connections", "allowed"), ("connections", "refused"),
        ("connections", "without a key"), ("silent", "without a key"),
    ],
)  # fmt: skip
def test_a_flood_of_subscriptions_takes_neither_memory_nor_time(kind, by, tmp_path):
    """``by``: who floods, if the pipeline has keys."""
    arguments: tuple[object, ...] = RUN
    key, flooders, endpoint = None, (), ""
    if by:
        keys, endpoint = Keys(str(tmp_path)), f"tcp://0.0.0.0:{free_port()}"
        pair = keys.new_client(keys.new_server().public)
        keys.allow(pair.public)
        arguments, key = (*arguments, "--set", f"bus.keys={tmp_path}"), keys.client_file
        if by == "refused":
            pair = Keys(str(tmp_path / "stranger")).new_client(pair.server)
        flooders = () if by == "without a key" else (pair.public, pair.secret, pair.server)
    with Pipeline(*arguments, endpoint=endpoint, key=key) as run:
        run.subscriber.wait_for("window", 1, 30)
        fusion = psutil.Process(run.node("fusion"))
        before = fusion.memory_info().rss
        endpoint = run.subscriber._endpoint
        flood = subprocess.run(
            [sys.executable, "-c", FLOOD, endpoint, kind, "8", *flooders], capture_output=True, text=True, timeout=60
        )
        assert int(flood.stdout) > 100, flood.stderr
        assert fusion.memory_info().rss - before < 150e6
        labels = run.subscriber.wait_for("utterance", 4, 40)
        assert run.finish(30) == 0, run.output
    assert "starting it again" not in run.output
    assert np.median([label["latency_ms"]["total"] for label in labels]) < 700
