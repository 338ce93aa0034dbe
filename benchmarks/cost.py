"""Cost: what one stream takes of the processor while nobody speaks and while somebody does, process by process.

    python benchmarks/cost.py [--quick] [--seconds S]

Four runs in real time: a silent file (noise at -55 dB) and a scripted conversation, each without and with picture. From
two seconds after ``go`` until the end, the processor time of each process and of ZeroMQ's own threads in it is read
from the system. Nodes are those of ``stream-run``, started by ``timed_run.py``, in which they also count the time that
their own thread spends in sending and receiving; its sum with ZeroMQ's threads is what messages cost.

A node that is started again, lost messages, a label in the silence or none in the conversation are faults: exit code 1.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks import common, latency
from benchmarks.script import RATE_HZ, Segment, demo_segments, make_script
from benchmarks.throughput import KINDS, restarted
from benchmarks.timed_run import COUNTER
from emostream.stream.messages import Control, Emotion, Health

STREAM = "cost"
CASES = {  # name → whether someone speaks, medium of the script
    "rest, sound": (False, "audio"),
    "rest, sound and picture": (False, "source"),
    "speech, sound": (True, "audio"),
    "speech, sound and picture": (True, "source"),
}
AT_REST, AIM = "rest, sound", 0.03
_SETTLE_S = 2.0
_START_S = 90.0
_LAST_S = 1.0  # before the end, so that all processes are still there


@dataclass
class Watch:
    """``looks``: seconds since go, and by process its processor time and that of ZeroMQ's threads in it, in seconds."""

    t0_ns: int | None = None
    looks: list[tuple[float, dict[str, tuple[float, float]]]] = field(default_factory=list)
    beats: dict[str, list[Health]] = field(default_factory=dict)
    labels: int = 0
    faults: list[str] = field(default_factory=list)


def silence(seconds: float) -> list[Segment]:
    """Nothing, so that a script of it is the noise of a room."""
    return [Segment("silence", np.zeros(round(seconds * RATE_HZ), np.float32), 0, 0)]


def threads(pid: int) -> tuple[float, float]:
    """Processor seconds of a process's threads, all of them and those of ZeroMQ."""
    total = zeromq = 0.0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            spent = int((thread / "schedstat").read_text().split()[0]) / 1e9
            total += spent
            zeromq += spent if (thread / "comm").read_text().startswith("ZMQbg") else 0.0
    return total, zeromq


def play(path: Path, medium: str, length_s: float, progress: Callable[[float], None]) -> Watch:
    """Play a file in real time and look at its processes twice."""
    captures = ("audio",) if medium == "audio" else ("audio", "video")
    nodes = [*(f"{kind}.{STREAM}" for kind in (*captures, "speech")), "fusion"]
    stream = f"[{{name = {json.dumps(STREAM)}, {medium} = {json.dumps(f'file:{path}')}}}]"
    recognizer = latency.SETTINGS["all"][1]
    arguments = ["--quiet", "--set", f"streams={stream}", "--set", f"speech.recognizer={recognizer}"]
    command = [sys.executable, str(Path(__file__).with_name("timed_run.py"))]
    watch = Watch()
    due_s = [_SETTLE_S, length_s - _LAST_S]
    with common.LiveRun(arguments, nodes, command) as live:
        give_up_ns = live.started_ns + int((length_s + 2 * _START_S) * 1e9)
        for seen in live.seen():
            now_ns = live.clock.now_ns()
            if now_ns > give_up_ns:
                watch.faults.append(f"the run had not ended {2 * _START_S:g} s after its file was over")
                break
            if watch.t0_ns is not None:
                at_s = (now_ns - watch.t0_ns) / 1e9
                progress(min(1.0, max(0.0, at_s / length_s)))
                if len(watch.looks) < len(due_s) and at_s >= due_s[len(watch.looks)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        pids = {name: process.pid for process, name in live.nodes().items()}
                        pids["supervisor"] = live.process.pid
                        watch.looks.append((at_s, {name: threads(pid) for name, pid in pids.items()}))
            match seen.what if seen is not None else None:
                case Emotion(kind="utterance"):
                    watch.labels += 1
                case Health() as health:
                    watch.beats.setdefault(health.node, []).append(health)
                case Control(command="go") as control if watch.t0_ns is None:
                    watch.t0_ns = control.at_ns
        else:
            watch.faults += live.faults()
    return watch


def judge(watch: Watch, speaks: bool) -> tuple[dict, list[str]]:
    """Processor seconds a second by kind of process, and the part of the nodes' that messages take; faults."""
    faults = list(watch.faults)
    faults += [f"{node} was started again" for node in restarted(watch.beats)]
    lost = latency.losses(beats[-1] for beats in watch.beats.values() if beats)
    faults += [f"lost: {node} {count}" for node, count in lost.items()]
    if bool(watch.labels) != speaks:
        faults.append(f"{watch.labels} labels " + ("in a conversation" if speaks else "in the silence"))
    if len(watch.looks) < 2:
        return {}, [*faults, "the processes were not seen twice"]
    (from_s, before), (to_s, after) = watch.looks
    cpu = dict.fromkeys(KINDS, 0.0)
    bus: dict[str, float] = {}
    for node in after.keys() & before.keys():
        kind = node.partition(".")[0]
        cpu[kind] += (after[node][0] - before[node][0]) / (to_s - from_s)
        beats = [beat for beat in watch.beats.get(node, []) if beat.state == "running" and COUNTER in beat.counters]
        if len(beats) > 1:
            passed_s = (beats[-1].sent_ns - beats[0].sent_ns) / 1e9
            own = (beats[-1].counters[COUNTER] - beats[0].counters[COUNTER]) / 1e6 / passed_s
            bus[kind] = bus.get(kind, 0.0) + own + (after[node][1] - before[node][1]) / (to_s - from_s)
    nodes = sum(value for kind, value in cpu.items() if kind != "supervisor")
    return {
        "seconds": round(to_s - from_s, 2),
        "cpu": {kind: round(value, 5) for kind, value in cpu.items() if value},
        "in all": round(sum(cpu.values()), 5),
        "messages": {kind: round(value, 5) for kind, value in bus.items()},
        "part of messages": round(sum(bus.values()) / nodes, 4) if nodes else 0.0,
    }, faults


def tables(figures: Mapping[str, dict]) -> str:
    """A row a case; in brackets what of it goes into messages."""
    if not figures:
        return "Nothing was measured."
    rows = []
    for case, of in figures.items():
        cells = []
        for kind in KINDS:
            bus = f" ({of['messages'][kind]:.4f})" if kind in of["messages"] else ""
            cells.append(f"{of['cpu'][kind]:.4f}{bus}" if kind in of["cpu"] else "")
        rows.append([case, *cells, f"{of['in all']:.4f}", f"{of['part of messages']:.1%}"])
    text = "Processor seconds per second of one stream; in brackets, those of sending and receiving:"
    told = ""
    if AT_REST in figures:
        met = "met" if figures[AT_REST]["in all"] < AIM else "not met"
        told = f"\n\nAim at rest without picture: below {AIM:g} in all: {met}."
    return f"{text}\n\n{common.table(['', *KINDS, 'in all', 'messages'], rows)}{told}"


def plot(path: Path, figures: Mapping[str, dict]) -> None:
    """A bar a case, of its processes."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files on any machine, with no display
    import matplotlib.pyplot as plt

    shades = dict(zip(KINDS, ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#9a9a9a"), strict=True))
    style: dict = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "savefig.facecolor": "white", "legend.frameon": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8.5, 3.2), layout="constrained")
        for i, of in enumerate(figures.values()):
            at = 0.0
            for kind in KINDS:
                axes.barh(i, of["cpu"].get(kind, 0.0), 0.6, left=at, color=shades[kind], label=None if i else kind)
                at += of["cpu"].get(kind, 0.0)
            axes.annotate(f"{at:.3f}", (at, i), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(figures)), list(figures))
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.axvline(AIM, color="0.4", linewidth=1, linestyle=":")
        axes.set_xlabel(f"processor seconds per second of one stream (dotted: aim at rest without picture, {AIM:g})")
        axes.grid(axis="x", color="0.92")
        axes.legend(loc="best")
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


BIAS = [
    "A file plays in real time: the driver and the callbacks of a microphone or camera are not in it.",
    "A process that wakes up finds the caches cold; beside other programs each step costs several times as much, and "
    "at rest most of the time is that: compare figures of a machine that was otherwise idle only.",
    "Messages: ZeroMQ's threads, and what a node's own thread spends in Publisher.send and in the receiving and "
    "waiting of Inbox, waking up included: rather too much. The supervisor's are not counted apart.",
    "Counting itself takes about a microsecond a call, in all figures.",
    "Pictures are 480 × 360; a camera's larger ones take longer to decode and search.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, metavar="S", help="of each run (default: 60; --quick: 8)")
    given = parser.parse_args(arguments)
    seconds = given.seconds or (8.0 if given.quick else 60.0)
    if seconds < 2 * _SETTLE_S:
        parser.error(f"--seconds: give at least {2 * _SETTLE_S:g}")

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    figures, faults = {}, []
    demo = demo_segments()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns) as progress:
        for case, (speaks, medium) in CASES.items():
            said, each_s = (demo, 4.0) if speaks else (silence(seconds), seconds)
            count = max(1, round(seconds / each_s))
            script = make_script(Path(folder) / "s.mkv", said, count, latency.PAUSE_S, medium == "source", "demo clip")
            task = progress.add_task(case, total=1.0)
            told = functools.partial(progress.update, task)
            watch = play(script.path, medium, script.length_s, lambda part, told=told: told(completed=part))  # type: ignore[misc]
            progress.update(task, completed=1.0)
            found, wrong = judge(watch, speaks)
            faults += [f"{case}: {fault}" for fault in wrong]
            if found:
                figures[case] = found
    settings = {
        "seconds of each run": f"{seconds:g}",
        "recogniser": latency.SETTINGS["all"][1],
        "configuration": "defaults",
        "quick": given.quick,
    }
    result = common.Result("cost", settings, BIAS, figures, faults)
    return common.finish(given.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(main())
