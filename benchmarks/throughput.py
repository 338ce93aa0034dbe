"""Throughput: how many streams one machine carries in real time.

    python benchmarks/throughput.py [--quick] [--max N] [--bound-ms MS] [--settings NAME …]

A step is a ``stream-run`` of N streams, each a scripted conversation of its own (with its own order of sentences,
offset and pauses), observed by a subscriber in a process of its own. A step holds if the 99th percentile of the time
from the confirmed end of an utterance to its label at the subscriber is within the bound, each utterance has one label,
nothing was dropped and no label lacks the picture that was there. The search for the largest N that holds doubles N
until a step does not hold, or ``--max`` does, and then halves the interval.

A step that does not hold is a finding, not a fault. A node or run that crashes is a fault: exit code 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import common, latency
from benchmarks.labels import CONFIRMED, Label, all_parts, losses, match, restarted, span_ms
from benchmarks.live_run import START_S, LiveRun, Watch, play
from benchmarks.script import RATE_HZ, Script, Segment, demo_segments, make_script
from emostream.commands import exit_code

KINDS = {  # kind of process → its colour in pictures
    "audio": common.LIGHT_BLUE, "video": common.ORANGE, "speech": common.BLUE, "fusion": common.GREEN,
    "supervisor": common.GREY,
}  # fmt: skip
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are spread evenly, however many there are
_CYCLE_S = 4.0  # about a sentence and its pause: offsets fall anywhere in it
_START_STREAM_S = 3.0  # additional time to start and to end, for each stream
_COVERED = 0.5  # the least share of a label's time that the picture has to cover; a stream alone has nearly all of it
_LOOK_S = 1.0


@dataclass
class Load:
    """``supervisor``: its processor time at several moments, as (nanoseconds, seconds); ``busy``: the share of the
    machine's time that was used, by anything at all, during the run."""

    supervisor: list[tuple[int, float]] = field(default_factory=list)
    busy: float = 0.0


@dataclass
class Step:
    """One N. ``reasons``: why it does not hold. ``cpu``: by kind of process, the processor seconds that one stream
    takes per second. Times in milliseconds; None if there was no label."""

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
    """What stream ``index`` says in about ``seconds``, and its pause. Its first sentence, offset and pauses differ
    from its neighbours', so that streams do not speak in step."""
    offset_s = index * _GOLDEN % 1 * _CYCLE_S
    pause_s = latency.PAUSE_S + index * _GOLDEN**2 % 1 * 0.5
    said: list[Segment] = []
    length_s = offset_s
    while length_s < seconds or not said:
        segment = segments[(index + len(said)) % len(segments)]
        said.append(segment)
        length_s += len(segment.samples) / RATE_HZ + pause_s
    said[0] = said[0].after_silence(round(offset_s * RATE_HZ))
    return said, pause_s


def search(holds: Callable[[int], bool], most: int) -> int:
    """The largest N up to ``most`` that holds, 0 if not even 1 does. Assumes that if N holds, so does any smaller N."""
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


def measure(
    scripts: Mapping[str, Script], setting: str, recognizer: str, progress: Callable[[float], None]
) -> tuple[Watch, Load]:
    """Play all scripts at once, each as its own stream; ``progress`` is called with the share that has been played."""
    medium = latency.SETTINGS[setting][0]
    streams = {name: {medium: script.path} for name, script in scripts.items()}
    length_s = max(script.length_s for script in scripts.values())
    load, next_s, times = Load(), 0.0, psutil.cpu_times()

    def tick(live: LiveRun, passed_s: float) -> None:
        nonlocal next_s, times
        progress(min(1.0, passed_s / length_s))
        if passed_s < next_s or live.process.poll() is not None:
            return
        if not load.supervisor:
            times = psutil.cpu_times()
        next_s = passed_s + _LOOK_S
        spent = live.process.cpu_times()
        load.supervisor.append((live.clock.now_ns(), spent.user + spent.system))
        load.busy = _busy(times, psutil.cpu_times())

    return play(streams, recognizer, length_s, tick, START_S + _START_STREAM_S * len(scripts)), load


def _busy(before: Any, after: Any) -> float:
    """The share of the time between two ``psutil.cpu_times()`` that was not idle."""
    names = ("user", "nice", "system", "idle", "iowait")
    spent: dict[str, float] = {name: getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in names}
    return round(1 - (spent["idle"] + spent["iowait"]) / max(sum(spent.values()), 1e-9), 3)


def cpu_by_kind(watch: Watch, load: Load, streams: int) -> dict[str, float]:
    """Processor seconds that one stream takes per second, by kind of process. Starting the processes is not
    included."""
    samples = {
        node: [(beat.sent_ns, beat.cpu_s) for beat in beats if beat.state == "running"]
        for node, beats in watch.beats.items()
    }
    samples["supervisor"] = load.supervisor
    spent = dict.fromkeys(KINDS, 0.0)
    for node, readings in samples.items():
        if len(readings) > 1 and (passed_ns := readings[-1][0] - readings[0][0]) > 0:
            spent[node.partition(".")[0]] += (readings[-1][1] - readings[0][1]) / (passed_ns / 1e9)
    return {kind: round(value / streams, 4) for kind, value in spent.items() if value}


def judge(
    scripts: Mapping[str, Script], watch: Watch, load: Load, setting: str, bound_ms: float
) -> tuple[Step, list[str]]:
    """A step and its verdict; and what went wrong with the run itself."""
    faults = list(watch.faults)
    faults += [f"{node} was started again, since it crashed or gave no sign of life" for node in restarted(watch.beats)]
    labels: dict[str, list[Label]] = defaultdict(list)
    for label in watch.labels:
        labels[label.emotion.stream].append(label)
    counts = dict.fromkeys(("missed", "doubled", "unexpected", "lost on the way", "without half its picture"), 0)
    waits_ms: list[float] = []
    for name, script in scripts.items():
        matching = match(script.utterances, labels[name])
        for what, count in matching.counts().items():
            counts[what] += count
        numbers = {label.emotion.seq for label in labels[name]}
        counts["lost on the way"] += max(numbers, default=-1) + 1 - len(numbers)
        if "video" in latency.MODALITIES[setting]:
            covered = [label.emotion.modalities["video"].coverage for label in labels[name]]
            counts["without half its picture"] += sum(share < _COVERED for share in covered)
        rows, odd = all_parts(matching.pairs, watch.t0_ns)
        faults += [f"{name}, {fault}" for fault in odd]
        waits_ms += [span_ms(row, CONFIRMED) for _, row in rows]
    lost = losses(watch.last_beats)
    summary = common.percentiles(waits_ms) if waits_ms else {}
    reasons = [f"{count} {what}" for what, count in counts.items() if count]
    reasons += [f"dropped: {node} {count}" for node, count in lost.items()]
    reasons += [*watch.late, *(["crashed"] if faults else [])]
    if not summary:
        reasons.append("no label")
    elif summary["p99"] > bound_ms:
        reasons.append(f"p99 {summary['p99']:.0f} ms")
    step = Step(
        streams=len(scripts),
        utterances=sum(len(script.utterances) for script in scripts.values()),
        labels=len(watch.labels),
        p50=summary.get("p50"),
        p99=summary.get("p99"),
        cpu=cpu_by_kind(watch, load, len(scripts)),
        busy=load.busy,
        lost=lost,
        reasons=reasons,
    )
    return step, faults


def tables(figures: Mapping[str, common.Figures], bound_ms: float, most: int) -> str:
    """The largest N of each setting, and all steps."""
    if not figures:
        return "Nothing was measured."
    head = ["", "streams", "p50 ms", "p99 ms", "processor seconds per second of stream", "limit"]
    rows, step_rows = [], []
    for setting, result in figures.items():
        steps = sorted(result["steps"], key=lambda step: int(step["streams"]))
        best = next((step for step in steps if step["streams"] == result["largest"]), None)
        failed = next((step for step in steps if step["reasons"]), None)
        limit = f"{failed['streams']}: {'; '.join(failed['reasons'])}" if failed else f"--max {most}: held"
        spent = f"{sum(best['cpu'].values()):.3f}" if best else ""
        rows.append([setting, result["largest"], *(best[p] if best else "" for p in ("p50", "p99")), spent, limit])
        for step in steps:
            step_rows.append(
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
        "Each step; by kind of process, the processor seconds that one stream takes per second:",
        "",
        common.table(["", "streams", "labels", "p50 ms", "p99 ms", *KINDS, "machine busy", "verdict"], step_rows),
    ])  # fmt: skip


def plot(path: Path, figures: Mapping[str, common.Figures], bound_ms: float) -> None:
    """p99 against N; and what one stream costs, by kind of process, at the largest N that held."""
    widths = {"gridspec_kw": {"width_ratios": [1.6, 1]}}
    with common.drawing(path, (11.5, 4.2), 1, 2, **widths) as (figure, ((left, right),)):
        _plot_p99(left, figures, bound_ms)
        _plot_cost(right, figures)
        figure.suptitle("How many streams one machine carries in real time", x=0.01, ha="left", fontsize=12)


def _plot_p99(axes: Any, figures: Mapping[str, common.Figures], bound_ms: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    colours = dict(zip(latency.SETTINGS, (common.BLUE, common.ORANGE, common.GREEN), strict=True))
    largest = 1
    for setting, result in figures.items():
        steps = sorted((s for s in result["steps"] if s["p99"] is not None), key=lambda step: int(step["streams"]))
        x, y = [step["streams"] for step in steps], [step["p99"] for step in steps]
        largest = max(largest, *x)
        axes.plot(x, y, "-", color=colours[setting], linewidth=1.5, label=f"{setting}: {result['largest']} held")
        for step in steps:
            face = "white" if step["reasons"] else colours[setting]
            axes.plot(step["streams"], step["p99"], "o", color=colours[setting], mfc=face)
    axes.axhline(bound_ms, color="0.4", linewidth=1, linestyle=":")
    axes.annotate(
        f"bound {bound_ms:g} ms", (0, bound_ms), xycoords=("axes fraction", "data"), xytext=(4, 3),
        textcoords="offset points", color="0.3",
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(0.9, largest * 1.15)
    axes.set_xlabel("streams (filled: held; hollow: not)")
    axes.set_ylabel(f"p99 of {CONFIRMED}, ms")
    axes.grid(axis="y", color="0.92")
    axes.legend(loc="best")


def _plot_cost(axes: Any, figures: Mapping[str, common.Figures]) -> None:
    for i, result in enumerate(figures.values()):
        spent = next(step["cpu"] for step in result["steps"] if step["streams"] == max(result["largest"], 1))
        bottom = 0.0
        for kind, colour in KINDS.items():
            axes.bar(i, spent.get(kind, 0.0), 0.6, bottom=bottom, color=colour, label=None if i else kind)
            bottom += spent.get(kind, 0.0)
        axes.annotate(f"{bottom:.2f}", (i, bottom), xytext=(0, 3), textcoords="offset points", ha="center")
    names = [f"{setting}\nat {max(result['largest'], 1)}" for setting, result in figures.items()]
    axes.set_xticks(range(len(figures)), names)
    axes.set_xlim(-0.7, len(figures) - 0.3)
    axes.set_ylabel("processor seconds per second of stream")
    axes.margins(y=0.12)
    axes.grid(axis="y", color="0.92")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))


BIAS = [
    "The subscriber, the processes that play the files, and everything else that runs on the machine share its cores "
    "with the pipeline ('machine busy' counts all of it), so a machine with nothing else to do carries more streams.",
    "The input is files in real time. Decoding and drivers of a camera or a network cost more or less than these files "
    "(480 × 360 at 25 frames per second), and their jitter is not included.",
    "The demo clip's voice is synthetic and says the same sentences over and over; its face is always there and large; "
    "there is speech three quarters of the time, more than in most rooms.",
    "Each step is one run: one pause of the machine may fail it, and a larger number is then not tried. Below 100 "
    "labels a step's p99 is its slowest.",
    "Video that falls more than two seconds behind is not waited for and would make labels faster: a label whose "
    f"picture covers less than {_COVERED * 100:.0f} % of its time fails the step.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--max", type=int, metavar="N", help="most streams to try (default: 32; --quick: 2)")
    parser.add_argument("--bound-ms", type=float, default=150.0, metavar="MS", help="of the p99 (default: %(default)g)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of conversation in a step (default: 40; --quick: 8)"
    )
    parser.add_argument(
        "--settings", nargs="+", choices=latency.SETTINGS, help="default: all three; --quick: audio+video"
    )
    latency.add_recognizer(parser)
    options = parser.parse_args(arguments)
    if options.max is not None and options.max < 1:
        parser.error("--max: give 1 or more streams")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    most = options.max or (2 if options.quick else 32)
    seconds = options.seconds or (8.0 if options.quick else 40.0)
    names = options.settings or (["audio+video"] if options.quick else list(latency.SETTINGS))
    segments = demo_segments()
    figures: dict[str, common.Figures] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder, common.progress_bars() as progress:
        scripts: dict[str, Script] = {}

        def script(index: int) -> Script:
            name = f"s{index + 1}"
            if name not in scripts:
                said, pause_s = conversation(index, segments, seconds)
                path = Path(folder) / f"{name}.mkv"
                scripts[name] = make_script(path, said, len(said), pause_s, True, "demo clip")
            return scripts[name]

        for setting in names:
            steps: list[Step] = []

            def holds(n: int, setting: str = setting, steps: list[Step] = steps) -> bool:
                chosen = {f"s{i + 1}": script(i) for i in range(n)}
                task = progress.add_task(f"{setting}: {n} streams", total=1.0)
                recognizer = latency.recognizer_of(setting, options)
                run = measure(chosen, setting, recognizer, lambda share: progress.update(task, completed=share))
                step, wrong = judge(chosen, *run, setting, options.bound_ms)
                verdict = "; ".join(step.reasons) or f"holds, p99 {step.p99:.0f} ms"
                progress.update(task, completed=1.0, description=f"{setting}: {n} streams: {verdict}")
                faults.extend(f"{setting}, {n} streams: {fault}" for fault in wrong)
                steps.append(step)
                return step.holds

            largest = search(holds, most)
            figures[setting] = {"largest": largest, "steps": [asdict(step) for step in steps]}
    settings = {
        "bound": f"p99 of {CONFIRMED} within {options.bound_ms:g} ms",
        "streams": f"up to {most}, each with {seconds:g} s of conversation of its own",
        "settings": ", ".join(names),
        "recogniser of all": options.recognizer,
        "quick": options.quick,
    }
    bias = [common.QUICK_BIAS + " The limit was not looked for."] if options.quick else []
    measured = figures if any(step["labels"] for result in figures.values() for step in result["steps"]) else {}
    result = common.Result("throughput", settings, bias + BIAS, measured, faults)
    text = tables(figures, options.bound_ms, most)
    return common.finish(options.out, result, text, lambda path: plot(path, figures, options.bound_ms))


if __name__ == "__main__":
    sys.exit(exit_code(main))
