"""What all benchmarks share: the machine's facts, percentiles, the files of a result, and watching a real run.

A benchmark is a command: ``parser`` makes its arguments, ``finish`` writes what it found and gives its exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import psutil
import zmq

from emostream.stream.bus import ipc
from emostream.stream.clock import SystemClock, take_offset_ns
from emostream.stream.messages import Codec, Control, Emotion, Health, decode_emotion

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
PACKAGES = (
    "emostream", "onnxruntime", "numpy", "av", "opencv-python-headless", "pyzmq", "msgspec", "silero-vad",
    "pocketsphinx", "vosk",
)  # fmt: skip
_LONGEST_US = 3_600_000_000
_DIGITS = 3  # significant ones, of the histogram
_MAX_STEP_NS = 100_000  # the system's clock may be set by less while a run goes on


@dataclass
class Result:
    """What a benchmark found. ``bias``: in which direction the figures are known to be off, and why. ``faults``: what
    went wrong, one line each; the figures of a run with faults are not to be quoted."""

    name: str
    settings: dict
    bias: list[str]
    figures: dict
    faults: list[str] = field(default_factory=list)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict = field(default_factory=lambda: machine())
    versions: dict = field(default_factory=lambda: versions())


def machine() -> dict[str, object]:
    """Processor, cores, memory, system, and how busy the machine was with other things."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{system}, {platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, of the packages at work, and the commit of the source."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    root = Path(__file__).parent.parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found["commit"] = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    return found


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """``n``, p50, p90, p99, p99.9 and max of values in milliseconds, by an HDR histogram (three significant digits):
    the least value that so large a part of them does not exceed.

    Some delays are negative (voice activity may end before the last sample): then the histogram counts from the
    least of them. Raises ValueError where there are no values.
    """
    from hdrh.histogram import HdrHistogram

    if not values_ms:
        raise ValueError("no values to take percentiles of")
    low_ms = min(0.0, *values_ms)
    histogram = HdrHistogram(1, _LONGEST_US, _DIGITS)
    for value in values_ms:
        if not histogram.record_value(round((value - low_ms) * 1000)):
            raise ValueError(f"{value} ms is longer than a histogram of an hour holds")
    found: dict[str, float] = {"n": len(values_ms)}
    for percentile in PERCENTILES:
        rank = math.ceil(round(percentile * len(values_ms) / 100, 6))  # the library would round it down as well as up
        value_ms = histogram.get_value_at_percentile(100 * rank / len(values_ms)) / 1000 + low_ms
        found[f"p{percentile:g}"] = round(
            min(value_ms, max(values_ms)), 3
        )  # a histogram's bucket ends above its values
    return found | {"max": round(max(values_ms), 3)}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; numbers with one decimal, and all but the first column to the right."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    padded = [
        [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]])


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes; the module's docstring says what it measures."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path("build/benchmarks"), metavar="DIR", help="default: %(default)s")
    made.add_argument("--quick", action="store_true", help="a look in under a minute; too few samples to quote")
    return made


def finish(out: Path, result: Result, tables: str, plot: Callable[[Path], None]) -> int:
    """Write NAME.json, NAME.md and NAME.png into ``out`` and print the table; the exit code: 1 where there were faults.

    ``plot`` is asked to draw into the path it is given, and not called where there are no figures.
    """
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{result.name}.json"
    path.write_text(json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # an older run's must not stand beside this run's figures
    if result.figures:
        plot(picture)
    text = _markdown(result, tables, picture.name if result.figures else None)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    console = Console()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {path}, .md, .png", markup=False, highlight=False)
    for fault in result.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if result.faults else 0


def _markdown(result: Result, tables: str, picture: str | None) -> str:
    facts = result.machine
    lines = [f"# {result.name}", ""]
    if result.faults:
        lines += ["**This run had faults; its figures are not to be quoted.**", ""]
        lines += [f"- {fault}" for fault in result.faults] + [""]
    lines += [tables, ""]
    if picture:
        lines += [f"![{result.name}]({picture})", ""]
    load = ", ".join(str(value) for value in facts["load_average"])
    lines += [
        f"- When: {result.when}",
        f"- Machine: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}; "
        f"load average when written {load}",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "- Settings: " + ", ".join(f"{name} = {value}" for name, value in result.settings.items()),
        "- Known bias:",
        *(f"  - {line}" for line in result.bias),
    ]
    return "\n".join(lines) + "\n"


# Watching a real run


@dataclass(frozen=True)
class Seen:
    """A message that the observer received, and when. ``what`` is None for the news that the supervisor has made its
    folder of sockets."""

    received_ns: int
    what: Emotion | Health | Control | None


class LiveRun:
    """A ``stream-run`` as its user starts it, and a subscriber in a process of its own that notes when labels,
    heartbeats and the word ``go`` come. Use in a ``with``: on leaving it, nothing is left of it.

    ``arguments``: of stream-run; ``nodes``: names of the nodes to hear heartbeats of, as ``speech.NAME``; ``command``:
    what to start instead of stream-run. All times are Unix time in nanoseconds on a clock that does not step, the same
    as the pipeline's.
    """

    def __init__(self, arguments: Sequence[str], nodes: Sequence[str], command: Sequence[str] = ()) -> None:
        self._folder = tempfile.mkdtemp(prefix="eb-")  # short: paths of sockets have a limit
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.clock = SystemClock(_careful_offset_ns())
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe(duplex=False)
        told = (theirs, endpoint, self._folder, tuple(nodes), self.clock.offset_ns)
        self._observer = context.Process(target=_observe, args=told, daemon=True)
        self._observer.start()
        theirs.close()
        self._connection.recv()  # it listens; what follows is the run's time alone
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

    def seen(self, wait_s: float = 0.2) -> Iterator[Seen | None]:
        """What the observer received, until the run has ended; None when nothing came for ``wait_s``."""
        while True:
            ended = self.process.poll() is not None  # asked first: what came before the end is taken after it
            if self._connection.poll(wait_s):
                yield Seen(*_decode(*self._connection.recv()))
            elif ended:
                return
            else:
                yield None

    def nodes(self) -> dict[psutil.Process, str]:
        """The processes of the nodes, and their names."""
        found: dict[psutil.Process, str] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self.process.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    # the tracker of Python's multiprocessing inherits the first node's environment
                    name = child.environ().get("EMOSTREAM_NODE")
                    if name and not any("resource_tracker" in part for part in child.cmdline()):
                        found[child] = name
        return found

    def interrupt(self) -> None:
        """Ctrl-C: the last labels go out, then it ends."""
        self.process.send_signal(signal.SIGINT)

    def faults(self, interrupted: bool = False) -> list[str]:
        """What is wrong with a run that has ended: its exit code, and a system clock that was set meanwhile."""
        found = []
        self._output.seek(0)
        if code := self.process.wait():
            found.append(f"stream-run ended with exit code {code}: {self._output.read()[-2000:]}")
        if abs(step_ns := _careful_offset_ns() - self.clock.offset_ns) > _MAX_STEP_NS:
            found.append(f"the system's clock was set by {step_ns / 1e6:.1f} ms while the run went on")
        return found


def environment() -> dict[str, str]:
    """One thread a numeric library and process, as the supervisor sets it for its nodes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}


def _careful_offset_ns() -> int:
    """The offset that the supervisor takes, at its best: a pause between its two readings makes it too small."""
    return max(take_offset_ns() for _ in range(100))


def _observe(out: Connection, endpoint: str, folder: str, nodes: Sequence[str], offset_ns: int) -> None:
    """The observer's process: notes the time of each message before anything is done with it."""
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
            if run_dir is None and (found := glob.glob(f"{folder}/emostream-*")):
                run_dir = Path(found[0])
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
