"""Starts the commands as users do, and listens to what they publish."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import zmq

from emostream.stream.keys import read_client

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def patience(seconds: float) -> float:
    """Time limit for what takes up to ``seconds`` on an idle machine: twice that while other tests run in parallel."""
    return seconds * (2 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1 else 1)


def command(name: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [BIN / name, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=environment()
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


class Subscriber:
    """A subscriber to the public topic. It connects before the pipeline binds and collects messages in a thread.
    ``key``: a client's key file."""

    def __init__(self, endpoint: str, key: Path | None = None) -> None:
        self.messages: list[tuple[str, dict]] = []
        self.nonsense = 0  # number of a stranger's messages
        self._endpoint, self._key, self._stop = endpoint, key, threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as sub:
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RECONNECT_IVL, 20)
            sub.subscribe(b"emotion.")
            if self._key is not None:
                pair = read_client(self._key)
                sub.curve_publickey, sub.curve_secretkey = pair.public.encode(), pair.secret.encode()
                sub.curve_serverkey = pair.server.encode()
            sub.connect(self._endpoint)
            while not self._stop.is_set():
                if sub.poll(50):
                    topic, *parts = sub.recv_multipart()
                    try:
                        self.messages.append((topic.decode(), json.loads(b"".join(parts))))
                    except ValueError:
                        self.nonsense += 1

    def of(self, kind: str) -> list[dict]:
        return [message for _, message in self.messages if message["kind"] == kind]

    def wait_for(self, kind: str, count: int, seconds: float) -> list[dict]:
        """Wait for ``count`` messages of a kind, ``seconds`` at most."""
        until = time.monotonic() + seconds
        while len(found := self.of(kind)) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} {kind} messages after {seconds} s"
            time.sleep(0.02)
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Pipeline:
    """A running ``stream-run`` on a free port, with a subscriber, whose key file is ``key``. A context manager."""

    def __init__(
        self, *arguments: object, env: dict[str, str] | None = None, endpoint: str = "", key: Path | None = None
    ) -> None:
        self.endpoint = endpoint = endpoint or f"tcp://127.0.0.1:{free_port()}"
        self.subscriber = Subscriber(endpoint, key)
        self._output = ""
        self._printed = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            [BIN / "stream-run", "--set", f"bus.emotion={endpoint}", *map(str, arguments)],
            stdout=self._printed, stderr=subprocess.STDOUT, env=env or environment(),
        )  # fmt: skip

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.subscriber.close()
        self._output = self.output
        self._printed.close()

    @property
    def output(self) -> str:
        """What the run has printed so far."""
        if not self._printed.closed:
            size = os.fstat(self._printed.fileno()).st_size
            self._output = os.pread(self._printed.fileno(), size, 0).decode(errors="replace")
        return self._output

    def finish(self, timeout: float) -> int:
        """Wait for the run to end; returns the exit code."""
        return self.process.wait(timeout)

    def interrupt(self) -> float:
        """Press Ctrl-C; returns the seconds until the run ended."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.finish(10)
        return time.monotonic() - begun

    def node(self, name: str) -> int:
        """Process id of a node."""
        import psutil

        for child in psutil.Process(self.process.pid).children():
            if child.status() != psutil.STATUS_ZOMBIE and name in child.environ().get("EMOSTREAM_NODE", ""):
                return child.pid
        raise AssertionError(f"no process of node {name}")
