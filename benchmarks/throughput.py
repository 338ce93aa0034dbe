"""Throughput: how many streams one machine carries in real time.

    python benchmarks/throughput.py [--quick] [--max N] [--bound-ms MS] [--settings NAME …]

A step is a ``stream-run`` of N streams, each a scripted conversation of its own (another order of sentences, another
offset, other pauses), seen by a subscriber in a process of its own. It holds if the 99th percentile of the time from
the confirmed end of an utterance to its label at the subscriber is within the bound, each utterance has one label,
nothing was dropped and no label lacks the picture that was there. The largest N that holds is found by doubling N
until a step does not hold, or ``--max`` does, and then halving the interval.

A step that does not hold is a finding and no fault. A node or run that crashes is a fault: exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks import common, latency
from benchmarks.script import RATE_HZ, Script, Segment, demo_segments, make_script
from emostream.stream.messages import Control, Emotion, Health

CONFIRMED = "confirmed end → label"
KINDS = ("audio", "video", "speech", "fusion", "supervisor")
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are spread evenly, however many there are
_CYCLE_S = 4.0  # about a sentence and its pause: offsets fall anywhere in it
_START_S = 90.0  # for the processes to start and to end, and for each stream more:
_START_STREAM_S = 3.0
_COVERED = 0.5  # of a label's time, at least, the picture has to cover; alone a stream has nearly all of it


@dataclass
class Watch:
    """What the observer saw of a step. ``supervisor``: when, and the processor time that it had used by then;
    ``busy``: the part of the machine's time that anything at all used while the run went on."""

    t0_ns: int | None = None
    labels: dict[str, list[latency.Label]] = field(default_factory=lambda: defaultdict(list))
    beats: dict[str, list[Health]] = field(default_factory=lambda: defaultdict(list))
    supervisor: list[tuple[int, float]] = field(default_factory=list)
    busy: float = 0.0
    late: str = ""
    faults: list[str] = field(default_factory=list)


@dataclass
class Step:
    """One N. ``reasons``: why it does not hold. ``cpu``: by kind of process, processor seconds that one stream takes in
    a second. Times in milliseconds; None where there was no label."""

    streams: int
    utterances: int
    labels: int
    p50: float | None
    p99: float | None
    cpu: dict[str, float]
    busy: float
    lost: dict[str, int]
    reasons: list[str]

    @property
    def holds(self) -> bool:
        return not self.reasons


def conversation(index: int, segments: Sequence[Segment], seconds: float) -> tuple[list[Segment], float]:
    """What stream ``index`` says in about ``seconds``, and its pause: it begins with another sentence and at another
    moment than its neighbours, and its pauses are its own, so that streams do not speak in step."""
    offset_s = index * _GOLDEN % 1 * _CYCLE_S
    pause_s = latency.PAUSE_S + index * _GOLDEN**2 % 1 * 0.5
    said: list[Segment] = []
    length_s = offset_s
    while length_s < seconds or not said:
        segment = segments[(index + len(said)) % len(segments)]
        said.append(segment)
        length_s += len(segment.samples) / RATE_HZ + pause_s
    silence = round(offset_s * RATE_HZ)
    first = said[0]
    samples = np.concatenate([np.zeros(silence, np.float32), first.samples])
    said[0] = replace(first, samples=samples, start=first.start + silence, end=first.end + silence)
    return said, pause_s


def search(holds: Callable[[int], bool], most: int) -> int:
    """The largest N up to ``most`` that holds, 0 if not even 1 does; taking it that what holds for N does for fewer."""
    good, bad, n = 0, most + 1, 1
    while n < bad:
        if holds(n):
            good, n = n, min(2 * n, most) if n < most else bad
        else:
            bad = n
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good


def play(scripts: Mapping[str, Script], setting: str, progress: Callable[[float], None]) -> Watch:
    """Play all scripts at once, each as a stream of its own; ``progress`` is told the part that has been played."""
    medium, recognizer = latency.SETTINGS[setting]
    streams = ", ".join(
        f"{{name = {json.dumps(name)}, {medium} = {json.dumps(f'file:{script.path}')}}}"
        for name, script in scripts.items()
    )
    captures = ("audio",) if medium == "audio" else ("audio", "video")
    nodes = [f"{kind}.{name}" for name in scripts for kind in (*captures, "speech")] + ["fusion"]
    arguments = ["--quiet", "--set", f"streams=[{streams}]", "--set", f"speech.recognizer={recognizer}"]
    length_s = max(script.length_s for script in scripts.values())
    spare_s = _START_S + _START_STREAM_S * len(scripts)
    watch = Watch()
    times = psutil.cpu_times()
    with common.LiveRun(arguments, nodes) as live:
        give_up_ns = live.started_ns + int(spare_s * 1e9)
        for seen in live.seen():
            now_ns = live.clock.now_ns()
            if watch.t0_ns is not None:
                progress(min(1.0, (now_ns - watch.t0_ns) / 1e9 / length_s))
            if now_ns > give_up_ns:
                what = "started" if watch.t0_ns is None else "ended after its last word"
                watch.late = f"it had not {what} in {spare_s:g} s"
                break
            if seen is None:
                continue
            match seen.what:
                case Emotion(kind="utterance") as emotion:
                    watch.labels[emotion.stream].append(latency.Label(seen.received_ns, emotion))
                case Health() as health:
                    watch.beats[health.node].append(health)
                    if health.node == "fusion" and health.state == "running":
                        spent = live.process.cpu_times()
                        watch.supervisor.append((now_ns, spent.user + spent.system))
                case Control(command="go") as control if watch.t0_ns is None:
                    watch.t0_ns = control.at_ns
                    give_up_ns = control.at_ns + int((length_s + spare_s) * 1e9)
                    times = psutil.cpu_times()
        else:
            watch.faults += live.faults()
        watch.busy = _busy(times, psutil.cpu_times())
    return watch


def _busy(before, after) -> float:
    spent = {name: getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system", "idle")}
    spent["idle"] += getattr(after, "iowait", 0.0) - getattr(before, "iowait", 0.0)
    return round(1 - spent["idle"] / max(sum(spent.values()), 1e-9), 3)


def cpu_by_kind(watch: Watch, streams: int) -> dict[str, float]:
    """Processor seconds by kind of process in a second of one stream, over the time that the run went on; what the
    processes need to start is not in it."""
    spent = dict.fromkeys(KINDS, 0.0)
    samples = {
        node: [(beat.sent_ns, beat.cpu_s) for beat in beats if beat.state == "running"]
        for node, beats in watch.beats.items()
    }
    samples["supervisor"] = watch.supervisor
    for node, of in samples.items():
        if len(of) > 1 and (passed_ns := of[-1][0] - of[0][0]) > 0:
            spent[node.partition(".")[0]] += (of[-1][1] - of[0][1]) / (passed_ns / 1e9)
    return {kind: round(value / streams, 4) for kind, value in spent.items() if value}


def judge(scripts: Mapping[str, Script], watch: Watch, setting: str, bound_ms: float) -> tuple[Step, list[str]]:
    """A step and its verdict; and what went wrong with the run itself."""
    faults = list(watch.faults)
    faults += [f"{node} was started again, since it crashed or gave no sign of life" for node in restarted(watch.beats)]
    counts = dict.fromkeys(("missed", "doubled", "unexpected", "lost on the way", "without half its picture"), 0)
    waits: list[float] = []
    for name, script in scripts.items():
        labels = watch.labels.get(name, [])
        found = latency.match(script.utterances, labels)
        counts["missed"] += len(found.missed)
        counts["doubled"] += len(found.doubled)
        counts["unexpected"] += len(found.unexpected)
        numbers = {label.emotion.seq for label in labels}
        counts["lost on the way"] += max(numbers, default=-1) + 1 - len(numbers)
        if "video" in latency.MODALITIES[setting]:
            covered = [label.emotion.modalities["video"].coverage for label in labels]
            counts["without half its picture"] += sum(part < _COVERED for part in covered)
        for utterance, label in found.pairs if watch.t0_ns is not None else []:
            try:
                parts = latency.parts(utterance, label, watch.t0_ns or 0)
            except ValueError as error:
                faults.append(f"{name}, {utterance.start_ns / 1e9:.2f} s: {error}")
            else:
                waits.append(parts["total"] - sum(parts[part] for part in latency.SPANS[CONFIRMED]))
    lost = latency.losses(beats[-1] for beats in watch.beats.values() if beats)
    told = common.percentiles(waits) if waits else {"p50": None, "p99": None}
    reasons = [f"{count} {what}" for what, count in counts.items() if count]
    reasons += [f"dropped: {node} {count}" for node, count in lost.items()]
    reasons += [watch.late] if watch.late else []
    reasons += ["crashed"] if faults else []
    if told["p99"] is None:
        reasons.append("no label")
    elif told["p99"] > bound_ms:
        reasons.append(f"p99 {told['p99']:.0f} ms")
    step = Step(
        streams=len(scripts),
        utterances=sum(len(script.utterances) for script in scripts.values()),
        labels=sum(map(len, watch.labels.values())),
        p50=told["p50"],
        p99=told["p99"],
        cpu=cpu_by_kind(watch, len(scripts)),
        busy=watch.busy,
        lost=lost,
        reasons=reasons,
    )
    return step, faults


def restarted(beats: Mapping[str, Sequence[Health]]) -> list[str]:
    """Nodes whose processor time fell from one heartbeat to the next: another process goes on under the name. One that
    was too slow to start, and killed for it, is not told."""
    return [
        node
        for node, of in beats.items()
        if any(a.state == "running" and b.cpu_s < a.cpu_s for a, b in itertools.pairwise(of))
    ]


def tables(figures: Mapping[str, dict], bound_ms: float, most: int) -> str:
    """The largest N of each setting, and all steps."""
    if not figures:
        return "Nothing was measured."
    head = ["", "streams", "p50 ms", "p99 ms", "processor seconds per second of stream", "limit"]
    rows, steps = [], []
    for setting, of in figures.items():
        best = next((step for step in of["steps"] if step["streams"] == of["largest"]), None)
        failed = [step for step in of["steps"] if step["reasons"]]
        first = min(failed, key=lambda step: step["streams"], default=None)
        limit = f"{first['streams']}: {'; '.join(first['reasons'])}" if first else f"--max {most}: held"
        spent = f"{sum(best['cpu'].values()):.3f}" if best else ""
        rows.append([setting, of["largest"], *(best[p] if best else "" for p in ("p50", "p99")), spent, limit])
        for step in sorted(of["steps"], key=lambda step: step["streams"]):
            steps.append(
                [setting, step["streams"], f"{step['labels']} of {step['utterances']}",
                 *("" if step[p] is None else step[p] for p in ("p50", "p99")),
                 *(f"{step['cpu'][kind]:.3f}" if kind in step["cpu"] else "" for kind in KINDS),
                 f"{step['busy'] * 100:.0f} %", "; ".join(step["reasons"]) or "holds"]
            )  # fmt: skip
    return "\n".join([
        f"Streams that one machine carries in real time: p99 of {CONFIRMED} within {bound_ms:g} ms, no utterance "
        "missed or doubled, nothing dropped.",
        "",
        common.table(head, rows),
        "",
        "Each step; by kind of process, the processor seconds that one stream takes in a second:",
        "",
        common.table(["", "streams", "labels", "p50 ms", "p99 ms", *KINDS, "machine busy", "verdict"], steps),
    ])  # fmt: skip


def plot(path: Path, figures: Mapping[str, dict], bound_ms: float) -> None:
    """p99 against N; and what one stream costs, by kind of process, at the largest N that held."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files on any machine, with no display
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator

    colours = dict(zip(latency.SETTINGS, ("#0072B2", "#E69F00", "#009E73"), strict=True))
    shades = dict(zip(KINDS, ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "#9a9a9a"), strict=True))
    style: dict = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "savefig.facecolor": "white", "legend.frameon": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 4.2), layout="constrained", gridspec_kw={"width_ratios": [1.6, 1]}
        )
        largest = 1
        for setting, of in figures.items():
            steps = sorted((s for s in of["steps"] if s["p99"] is not None), key=lambda step: step["streams"])
            x, y = [step["streams"] for step in steps], [step["p99"] for step in steps]
            largest = max(largest, *x)
            left.plot(x, y, "-", color=colours[setting], linewidth=1.5, label=f"{setting}: {of['largest']} held")
            for step in steps:
                face = "white" if step["reasons"] else colours[setting]
                left.plot(step["streams"], step["p99"], "o", color=colours[setting], mfc=face)
        left.axhline(bound_ms, color="0.4", linewidth=1, linestyle=":")
        left.annotate(
            f"bound {bound_ms:g} ms", (0, bound_ms), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", color="0.3",
        )  # fmt: skip
        left.set_xscale("log", base=2)
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.minorticks_off()
        for axis in (left.xaxis, left.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        left.set_xlim(0.9, largest * 1.15)
        left.set_xlabel("streams (filled: held; hollow: not)")
        left.set_ylabel(f"p99 of {CONFIRMED}, ms")
        left.grid(axis="y", color="0.92")
        left.legend(loc="best")
        for i, of in enumerate(figures.values()):
            spent = next(step["cpu"] for step in of["steps"] if step["streams"] == max(of["largest"], 1))
            at = 0.0
            for kind in KINDS:
                right.bar(i, spent.get(kind, 0.0), 0.6, bottom=at, color=shades[kind], label=None if i else kind)
                at += spent.get(kind, 0.0)
            right.annotate(f"{at:.2f}", (i, at), xytext=(0, 3), textcoords="offset points", ha="center")
        names = [f"{setting}\nat {max(of['largest'], 1)}" for setting, of in figures.items()]
        right.set_xticks(range(len(figures)), names)
        right.set_xlim(-0.7, len(figures) - 0.3)
        right.set_ylabel("processor seconds per second of stream")
        right.margins(y=0.12)
        right.grid(axis="y", color="0.92")
        handles, labels = right.get_legend_handles_labels()
        right.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle("How many streams one machine carries in real time", x=0.01, ha="left", fontsize=12)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


BIAS = [
    "The subscriber, the processes that play the files, and all else that runs on the machine share its cores with the "
    "pipeline ('machine busy' counts all of it), so a machine of its own carries more streams.",
    "Input is files in real time; a camera's or a network's decoding and drivers cost more or less than these files' "
    "(480 × 360 at 25 frames per second), and their jitter is not in it.",
    "The demo clip's voice is synthetic and says the same sentences over and over, its face is always there and large; "
    "there is speech three quarters of the time, more than in most rooms.",
    "Each step is one run: one pause of the machine may fail it, and a larger number is not tried then. Below 100 "
    "labels a step's p99 is its slowest.",
    "Video that falls more than two seconds behind is not waited for and would make labels faster: a label whose "
    f"picture covers less than {_COVERED * 100:.0f} % of its time fails the step.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--max", type=int, metavar="N", help="streams at most (default: 32; --quick: 2)")
    parser.add_argument("--bound-ms", type=float, default=150.0, metavar="MS", help="of the p99 (default: %(default)g)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of conversation in a step (default: 40; --quick: 8)"
    )
    parser.add_argument(
        "--settings", nargs="+", choices=latency.SETTINGS, help="default: all three; --quick: audio+video"
    )
    given = parser.parse_args(arguments)
    if given.max is not None and given.max < 1:
        parser.error("--max: give 1 or more streams")
    return _measure(given)


def _measure(given: argparse.Namespace) -> int:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    most = given.max or (2 if given.quick else 32)
    seconds = given.seconds or (8.0 if given.quick else 40.0)
    settings = given.settings or (["audio+video"] if given.quick else list(latency.SETTINGS))
    segments = demo_segments()
    figures: dict[str, dict] = {}
    faults: list[str] = []
    columns = (TextColumn("{task.description:30}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns) as progress:
        scripts: dict[str, Script] = {}

        def script(index: int) -> Script:
            name = f"s{index + 1}"
            if name not in scripts:
                said, pause_s = conversation(index, segments, seconds)
                path = Path(folder) / f"{name}.mkv"
                scripts[name] = make_script(path, said, len(said), pause_s, True, "demo clip")
            return scripts[name]

        for setting in settings:
            steps: list[Step] = []

            def holds(n: int, setting: str = setting, steps: list[Step] = steps) -> bool:
                chosen = {f"s{i + 1}": script(i) for i in range(n)}
                task = progress.add_task(f"{setting}: {n} streams", total=1.0)
                watch = play(chosen, setting, lambda part: progress.update(task, completed=part))
                step, found = judge(chosen, watch, setting, given.bound_ms)
                verdict = "; ".join(step.reasons) or f"holds, p99 {step.p99:.0f} ms"
                progress.update(task, completed=1.0, description=f"{setting}: {n} streams: {verdict}")
                faults.extend(f"{setting}, {n} streams: {fault}" for fault in found)
                steps.append(step)
                return step.holds

            largest = search(holds, most)
            figures[setting] = {"largest": largest, "steps": [asdict(step) for step in steps]}
    told = {
        "bound": f"p99 of {CONFIRMED} within {given.bound_ms:g} ms",
        "streams": f"up to {most}, each {seconds:g} s of conversation of its own",
        "settings": ", ".join(settings),
        "recogniser of all": latency.SETTINGS["all"][1],
        "quick": given.quick,
    }
    bias = [*BIAS]
    if given.quick:
        bias.insert(0, "A quick look: a few labels and few streams, too few to quote; the limit was not looked for.")
    measured = figures if any(step["labels"] for of in figures.values() for step in of["steps"]) else {}
    result = common.Result("throughput", told, bias, measured, faults)
    text = tables(figures, given.bound_ms, most)
    return common.finish(given.out, result, text, lambda path: plot(path, figures, given.bound_ms))


if __name__ == "__main__":
    sys.exit(main())
