"""Cost: how much of the processor one stream takes while nobody speaks and while somebody does, process by process.

    python benchmarks/cost.py [--quick] [--seconds S]

Four runs in real time: a silent file (noise at -55 dB) and a scripted conversation, each without and with picture. From
two seconds after ``go`` until the end, the processor time of each process and of ZeroMQ's own threads in it is read
from the system. The nodes are those of ``stream-run``, started by ``timed_run.py``, which makes them count the time
that their own thread spends sending and receiving; together with ZeroMQ's threads, that is the cost of messages.

Faults, which make the exit code 1: a restarted node, lost messages, a label in the silence, no label in the
conversation.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks import common, latency
from benchmarks.labels import losses, restarted
from benchmarks.live_run import LiveRun, Watch, play
from benchmarks.script import RATE_HZ, Segment, demo_segments, make_script
from benchmarks.throughput import KINDS
from benchmarks.timed_run import COUNTER
from emostream.commands import exit_code
from emostream.stream.messages import Health

STREAM = "cost"
CASES = {  # name → whether someone speaks, medium of the script
    "rest, sound": (False, "audio"),
    "rest, sound and picture": (False, "source"),
    "speech, sound": (True, "audio"),
    "speech, sound and picture": (True, "source"),
}
AT_REST, AIM = "rest, sound", 0.03
_SETTLE_S = 2.0
_LAST_S = 1.0  # the second reading is this long before the end, while all processes still run


@dataclass(frozen=True)
class Look:
    """Processor time so far. ``processes``: names of a process's nodes → seconds of all its threads, and of ZeroMQ's
    among them."""

    passed_s: float  # since go
    processes: Mapping[str, tuple[float, float]]


def silence(seconds: float) -> list[Segment]:
    """No speech: a script of it contains only the noise of a room."""
    return [Segment("silence", np.zeros(round(seconds * RATE_HZ), np.float32), 0, 0)]


def threads(pid: int) -> tuple[float, float]:
    """Processor seconds of all threads of a process, and of ZeroMQ's threads among them."""
    total = zeromq = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            spent = int((thread / "schedstat").read_text().split()[0]) / 1e9
            total += spent
            zeromq += spent if (thread / "comm").read_text().startswith("ZMQbg") else 0.0
    return total, zeromq


def with_helpers(pid: int) -> tuple[float, float]:
    """``threads`` of a node, and of processes of its own: of a recogniser."""
    total, zeromq = threads(pid)
    return total + sum(threads(child.pid)[0] for child in psutil.Process(pid).children()), zeromq


def measure(path: Path, medium: str, length_s: float, progress: Callable[[float], None]) -> tuple[Watch, list[Look]]:
    """Play a file in real time and read its processes' times twice."""
    due_s = [_SETTLE_S, length_s - _LAST_S]
    looks: list[Look] = []

    def tick(live: LiveRun, passed_s: float) -> None:
        progress(min(1.0, max(0.0, passed_s / length_s)))
        if len(looks) < len(due_s) and passed_s >= due_s[len(looks)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                spent = {name: with_helpers(process.pid) for process, name in live.nodes().items()}
                looks.append(Look(passed_s, spent | {"supervisor": threads(live.process.pid)}))

    command = [sys.executable, str(Path(__file__).with_name("timed_run.py"))]
    return play({STREAM: {medium: path}}, latency.RECOGNIZER, length_s, tick, command=command), looks


def judge(watch: Watch, looks: Sequence[Look], speaks: bool) -> tuple[common.Figures, list[str]]:
    """Processor seconds per second by kind of process, and how much of the nodes' time goes into messages; and
    faults."""
    faults = [*watch.late, *watch.faults]
    faults += [f"{node} was started again" for node in restarted(watch.beats)]
    faults += [f"lost: {node} {count}" for node, count in losses(watch.last_beats).items()]
    if bool(watch.labels) != speaks:
        faults.append(f"{len(watch.labels)} labels " + ("in a conversation" if speaks else "in the silence"))
    if len(looks) < 2:
        return {}, [*faults, "the processes were not seen twice"]
    first, last = looks
    seconds = last.passed_s - first.passed_s
    cpu = dict.fromkeys(KINDS, 0.0)
    bus: dict[str, float] = {}
    for node in last.processes.keys() & first.processes.keys():
        kind = node.partition(".")[0]
        own, zeromq = (b - a for a, b in zip(first.processes[node], last.processes[node], strict=True))
        cpu[kind] += own / seconds
        counted = [_counted(watch.beats.get(name, [])) for name in node.split()]  # two nodes may share a process
        if any(counted):
            bus[kind] = bus.get(kind, 0.0) + sum(counted) + zeromq / seconds
    nodes = sum(value for kind, value in cpu.items() if kind != "supervisor")
    return {
        "seconds": round(seconds, 2),
        "cpu": {kind: round(value, 5) for kind, value in cpu.items() if value},
        "in all": round(sum(cpu.values()), 5),
        "messages": {kind: round(value, 5) for kind, value in bus.items()},
        "part of messages": round(sum(bus.values()) / nodes, 4) if nodes else 0.0,
    }, faults


def _counted(beats: Sequence[Health]) -> float:
    """Processor seconds per second that a node's own thread spent sending and receiving."""
    counting = [beat for beat in beats if beat.state == "running" and COUNTER in beat.counters]
    if len(counting) < 2:
        return 0.0
    first, last = counting[0], counting[-1]
    return (last.counters[COUNTER] - first.counters[COUNTER]) / 1e6 / ((last.sent_ns - first.sent_ns) / 1e9)


def tables(figures: Mapping[str, common.Figures]) -> str:
    """One row per case; in brackets, the part that goes into messages."""
    if not figures:
        return "Nothing was measured."
    rows = []
    for case, result in figures.items():
        cells = []
        for kind in KINDS:
            bus = f" ({result['messages'][kind]:.4f})" if kind in result["messages"] else ""
            cells.append(f"{result['cpu'][kind]:.4f}{bus}" if kind in result["cpu"] else "")
        rows.append([case, *cells, f"{result['in all']:.4f}", f"{result['part of messages']:.1%}"])
    text = "Processor seconds per second of one stream; in brackets, those spent sending and receiving:"
    aim = ""
    if AT_REST in figures:
        met = "met" if figures[AT_REST]["in all"] < AIM else "not met"
        aim = f"\n\nAim at rest without picture: below {AIM:g} in total: {met}."
    return f"{text}\n\n{common.table(['', *KINDS, 'total', 'messages'], rows)}{aim}"


def plot(path: Path, figures: Mapping[str, common.Figures]) -> None:
    """One bar per case, made up of its processes."""
    with common.drawing(path, (8.5, 3.2)) as (_, ((axes,),)):
        for i, result in enumerate(figures.values()):
            left = 0.0
            for kind, colour in KINDS.items():
                seconds = result["cpu"].get(kind, 0.0)
                axes.barh(i, seconds, 0.6, left=left, color=colour, label=None if i else kind)
                left += seconds
            axes.annotate(f"{left:.3f}", (left, i), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(figures)), list(figures))
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.axvline(AIM, color="0.4", linewidth=1, linestyle=":")
        axes.set_xlabel(f"processor seconds per second of one stream (dotted: aim at rest without picture, {AIM:g})")
        axes.grid(axis="x", color="0.92")
        axes.legend(loc="best")


BIAS = [
    "A file plays in real time: the driver and the callbacks of a microphone or camera are not included.",
    "A process that wakes up finds the caches cold. Beside other programs each step costs several times as much, and "
    "at rest most of the time is that: compare only figures from a machine that was otherwise idle.",
    "Messages: ZeroMQ's threads, and what a node's own thread spends in sending, receiving and waiting, waking up "
    "included: too much rather than too little. The supervisor's are not counted apart.",
    "Counting itself takes about a microsecond per call, in all figures.",
    "Pictures are 480 × 360; a camera's larger ones take longer to decode and search.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--seconds", type=float, metavar="S", help="of each run (default: 60; --quick: 8)")
    options = parser.parse_args(arguments)
    seconds = options.seconds or (8.0 if options.quick else 60.0)
    if seconds < 2 * _SETTLE_S:
        parser.error(f"--seconds: give at least {2 * _SETTLE_S:g}")

    figures: dict[str, common.Figures] = {}
    faults: list[str] = []
    demo = demo_segments()
    with tempfile.TemporaryDirectory() as folder, common.progress_bars() as progress:
        for case, (speaks, medium) in CASES.items():
            said, each_s = (demo, 4.0) if speaks else (silence(seconds), seconds)
            count = max(1, round(seconds / each_s))
            script = make_script(Path(folder) / "s.mkv", said, count, latency.PAUSE_S, medium == "source", "demo clip")
            task = progress.add_task(case, total=1.0)
            watch, looks = measure(
                script.path, medium, script.length_s,
                lambda share, task=task: progress.update(task, completed=share),  # type: ignore[misc]
            )  # fmt: skip
            progress.update(task, completed=1.0)
            result, wrong = judge(watch, looks, speaks)
            faults += [f"{case}: {fault}" for fault in wrong]
            if result:
                figures[case] = result
    settings = {
        "seconds of each run": f"{seconds:g}",
        "recogniser": latency.RECOGNIZER,
        "configuration": "defaults",
        "quick": options.quick,
    }
    final = common.Result("cost", settings, BIAS, figures, faults)
    return common.finish(options.out, final, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
