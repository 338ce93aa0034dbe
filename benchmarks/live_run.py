"""Playing files through a real ``stream-run`` and observing it from outside, as a subscriber would."""

from __future__ import annotations

import contextlib
import glob
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil
import zmq

from benchmarks.labels import Label
from emostream.stream.clock import SystemClock, take_offset_ns
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.messages import Codec, Control, Health
from emostream.stream.run_folder import ipc

START_S = 90.0  # limit for the processes to start, and again for them to end
_MEDIA = {"audio": ("audio",), "video": ("video",), "source": ("audio", "video")}  # key of a stream → its capture nodes
_MAX_STEP_NS = 100_000  # largest tolerated step of the system's clock during a run


@dataclass(frozen=True)
class Observed:
    """A message and when the observer received it. ``message`` None means that the supervisor has made its folder of
    sockets."""

    received_ns: int
    message: Emotion | Health | Control | None


@dataclass
class Watch:
    """What was seen of one run. ``t0_ns``: the moment of ``go``; ``labels``: of all streams, as they came; ``beats``:
    heartbeats by node; ``late``: why the run was given up, if it was; ``faults``: what went wrong with the run
    itself."""

    t0_ns: int | None = None
    labels: list[Label] = field(default_factory=list)
    beats: dict[str, list[Health]] = field(default_factory=lambda: defaultdict(list))
    late: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def last_beats(self) -> list[Health]:
        """The last heartbeat of each node: its counters are those of the whole run."""
        return [beats[-1] for beats in self.beats.values() if beats]


class LiveRun:
    """A ``stream-run`` as its user starts it, and a subscriber in a process of its own that notes when labels,
    heartbeats and ``go`` come. Use it in a ``with``, which removes everything afterwards.

    ``arguments``: for stream-run; ``nodes``: names of the nodes whose heartbeats are wanted, such as ``speech.NAME``;
    ``command``: what to start instead of stream-run. All times are Unix time in nanoseconds on a clock that does not
    step, the same as the pipeline's.
    """

    def __init__(self, arguments: Sequence[str], nodes: Sequence[str], command: Sequence[str] = ()) -> None:
        self._folder = tempfile.mkdtemp(prefix="eb-")  # short: the paths of sockets are limited in length
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.clock = SystemClock(_careful_offset_ns())
        context = multiprocessing.get_context("spawn")
        self._connection, observers_end = context.Pipe(duplex=False)
        arguments_of_observer = (observers_end, endpoint, self._folder, tuple(nodes), self.clock.offset_ns)
        self._observer = context.Process(target=_observe, args=arguments_of_observer, daemon=True)
        self._observer.start()
        observers_end.close()
        self._connection.recv()  # the observer listens: from here on, time is the run's own
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        command = command or [str(Path(sys.executable).parent / "stream-run")]
        places = ["--set", f"bus.emotion={endpoint}", "--set", f"bus.run_dir={self._folder}"]
        self.started_ns = self.clock.now_ns()
        self.process = psutil.Popen(
            [*command, *places, *arguments], stdout=self._output, stderr=subprocess.STDOUT, env=environment()
        )

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.nodes(), self.process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._observer.kill()
        self._observer.join()
        self._connection.close()
        self._output.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def observed(self, wait_s: float = 0.2) -> Iterator[Observed | None]:
        """What the observer received, until the run has ended; None if nothing came for ``wait_s``."""
        while True:
            ended = self.process.poll() is not None  # checked first, so that earlier messages are still read
            if self._connection.poll(wait_s):
                yield Observed(*_decode(*self._connection.recv()))
            elif ended:
                return
            else:
                yield None

    def nodes(self) -> dict[psutil.Process, str]:
        """The processes of the nodes, with their names."""
        names: dict[psutil.Process, str] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.process.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    # the resource tracker of Python's multiprocessing inherits the first node's environment
                    name = child.environ().get("EMOSTREAM_NODE")
                    if name and not any("resource_tracker" in part for part in child.cmdline()):
                        names[child] = name
        return names

    def interrupt(self) -> None:
        """Ctrl-C: the last labels go out, then the run ends."""
        self.process.send_signal(signal.SIGINT)

    def faults(self) -> list[str]:
        """What is wrong with a finished run: its exit code, or a system clock that was set meanwhile."""
        faults = []
        self._output.seek(0)
        if code := self.process.wait():
            faults.append(f"stream-run ended with exit code {code}: {self._output.read()[-2000:]}")
        if abs(step_ns := _careful_offset_ns() - self.clock.offset_ns) > _MAX_STEP_NS:
            faults.append(f"the system's clock was set by {step_ns / 1e6:.1f} ms during the run")
        return faults


def play(
    streams: Mapping[str, Mapping[str, Path]],
    recognizer: str,
    length_s: float,
    tick: Callable[[LiveRun, float], None],
    spare_s: float = START_S,
    command: Sequence[str] = (),
    changes: Sequence[str] = (),
) -> Watch:
    """Play files in real time through a ``stream-run`` of their own.

    ``streams``: name → {``audio``, ``video`` or ``source``: file}; ``length_s``: of the longest; ``tick``: called
    several times a second with the run and the seconds since ``go``; ``spare_s``: for the processes to start, and
    again to end after the last word: a run that takes longer is given up; ``command``: as for LiveRun; ``changes``: of
    the configuration, SECTION.KEY=VALUE.
    """
    tables = [
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in {"name": name, **sources}.items()) + "}"
        for name, sources in (
            (name, {medium: f"file:{path}" for medium, path in files.items()}) for name, files in streams.items()
        )
    ]
    nodes = [
        f"{kind}.{name}"
        for name, files in streams.items()
        for kind in (*(node for medium in files for node in _MEDIA[medium]), "speech")
    ]
    arguments = ["--quiet", "--set", f"streams=[{', '.join(tables)}]", "--set", f"speech.recognizer={recognizer}"]
    arguments += [argument for change in changes for argument in ("--set", change)]
    watch = Watch()
    with LiveRun(arguments, [*nodes, "fusion"], command) as live:
        give_up_ns = live.started_ns + int(spare_s * 1e9)
        for seen in live.observed():
            now_ns = live.clock.now_ns()
            if watch.t0_ns is not None:
                tick(live, (now_ns - watch.t0_ns) / 1e9)
            if now_ns > give_up_ns:
                what = "started" if watch.t0_ns is None else "ended after its last word"
                watch.late.append(f"it had not {what} in {spare_s:g} s")
                break
            if seen is None:
                continue
            match seen.message:
                case Emotion(kind="utterance") as emotion:
                    watch.labels.append(Label(seen.received_ns, emotion))
                case Health() as health:
                    watch.beats[health.node].append(health)
                case Control(command="go") as control if watch.t0_ns is None:
                    watch.t0_ns = control.at_ns
                    give_up_ns = control.at_ns + int((length_s + spare_s) * 1e9)
        else:
            watch.faults += live.faults()
    if watch.t0_ns is None and not watch.late:
        watch.faults.append("the pipeline never began")
    return watch


def environment() -> dict[str, str]:
    """One thread for each numeric library and process, as the supervisor sets it for its nodes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}


def _careful_offset_ns() -> int:
    """The offset that the supervisor takes, at its best: a pause between its two readings makes it too small."""
    return max(take_offset_ns() for _ in range(100))


def _observe(out: Connection, endpoint: str, folder: str, nodes: Sequence[str], offset_ns: int) -> None:
    """The observer's process: notes the time of each message before anything else is done with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clock = SystemClock(offset_ns)
    poller = zmq.Poller()
    with zmq.Context() as context:

        def subscribe(address: str, topic: str) -> None:
            sub = context.socket(zmq.SUB)
            sub.setsockopt(zmq.LINGER, 0)
            sub.setsockopt(zmq.RECONNECT_IVL, 5)
            sub.subscribe(topic)
            sub.connect(address)
            poller.register(sub, zmq.POLLIN)

        subscribe(endpoint, "emotion.")
        out.send(None)
        run_dir = None
        while True:
            if run_dir is None and (folders := glob.glob(f"{folder}/emostream-*")):
                run_dir = Path(folders[0])
                out.send((clock.now_ns(), []))
                subscribe(ipc(run_dir, "control"), "control")
                for name in nodes:
                    subscribe(ipc(run_dir, name), f"health.{name}")
            for ready, _ in poller.poll(5 if run_dir is None else 1000):
                parts = ready.recv_multipart()
                out.send((clock.now_ns(), parts))


_codec = Codec()


def _decode(received_ns: int, parts: list[bytes]) -> tuple[int, Emotion | Health | Control | None]:
    if not parts:
        return received_ns, None
    if parts[0].startswith(b"emotion."):
        return received_ns, decode_emotion(parts[1])
    message = _codec.decode(parts[1:])
    if not isinstance(message, Health | Control):
        raise msgspec.ValidationError(f"{parts[0].decode()} carries a {type(message).__name__}")
    return received_ns, message
