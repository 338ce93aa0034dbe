"""End-to-end latency: from the true end of speech to the label in a subscriber's hands, and its parts.

    python benchmarks/latency.py [--quick] [--data RAVDESS]

A scripted conversation, whose ends of speech are known, plays in real time through the real pipeline: stream-run with
its processes, sockets, decoder, voice activity, recogniser (PocketSphinx), face detector and networks. A subscriber in
a process of its own notes when each label comes. Input comes on its own schedule whether or not the pipeline keeps up,
and latency counts from when a sample was due. Three settings: sound alone; sound and picture; and words as well.

Parts of the total, which they sum to:

    vad            true end of speech → end as voice activity saw it (negative: it saw it early)
    endpoint_wait  waiting for the silence that confirms the end (speech.hangover_ms, or min_hangover_ms)
    recognition    finishing the words
    queue          capture blocks, sockets, waiting for a late camera
    encode         faces and words to vectors
    fusion         the fusion network
    other          what lies between
    transport      label published → received by the subscriber

A run in which an utterance has no label or two, a label belongs to no utterance, anything was dropped, or the parts do
not sum to the total, has faults: they are listed and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import common
from benchmarks.script import Script, ScriptError, Utterance, demo_segments, make_script, ravdess_segments
from emostream.stream.config import Config
from emostream.stream.messages import Control, Emotion, Health

STREAM = "bench"
SETTINGS = {  # name → media of the script, recogniser
    "audio": ("audio", "none"),
    "audio+video": ("source", "none"),
    "all": ("source", "pocketsphinx"),
}
MODALITIES = {"audio": ("audio",), "audio+video": ("audio", "video"), "all": ("audio", "video", "text")}
PARTS = ("vad", "endpoint_wait", "recognition", "queue", "encode", "fusion", "other", "transport")
SPANS = {  # what percentiles are given of, and the parts that it leaves out
    "total": (),
    "without endpoint wait": ("endpoint_wait",),
    "confirmed end → label": ("vad", "endpoint_wait"),
}
PAUSE_S = 0.9  # at least, between utterances; the endpoint wait fits in twice
_PIPELINE_PARTS = PARTS[1:-1]
_ROUNDING_MS = 0.01  # parts are published with three decimals
_START_S = 90.0  # for the processes to start and to end
_COUNTERS = ("capture_gaps", "late_chunks", "late_frames", "source_dropped", "overflows", "rows_out_of_order")


@dataclass(frozen=True)
class Label:
    received_ns: int
    emotion: Emotion


@dataclass
class Matching:
    """Which label is of which utterance, by the longest overlap in time."""

    pairs: list[tuple[Utterance, Label]] = field(default_factory=list)
    missed: list[Utterance] = field(default_factory=list)
    doubled: list[Utterance] = field(default_factory=list)
    unexpected: list[Label] = field(default_factory=list)


@dataclass
class Run:
    """What the observer saw of one run."""

    t0_ns: int | None = None
    labels: list[Label] = field(default_factory=list)
    health: dict[str, Health] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def match(utterances: Sequence[Utterance], labels: Sequence[Label]) -> Matching:
    """Give each label to the utterance with which it shares most time."""
    of: dict[int, list[Label]] = {i: [] for i in range(len(utterances))}
    found = Matching()
    for label in labels:
        start_ns, end_ns = label.emotion.start_s * 1e9, label.emotion.end_s * 1e9
        shared = [min(u.end_ns, end_ns) - max(u.start_ns, start_ns) for u in utterances]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or shared[best] <= 0:
            found.unexpected.append(label)
        else:
            of[best].append(label)
    for i, utterance in enumerate(utterances):
        found.missed += [utterance] * (not of[i])
        found.doubled += [utterance] * (len(of[i]) > 1)
        found.pairs += [(utterance, of[i][0])] if len(of[i]) == 1 else []
    return found


def parts(utterance: Utterance, label: Label, t0_ns: int) -> dict[str, float]:
    """``total`` and its parts in milliseconds. Raises ValueError where they do not sum to it."""
    told = label.emotion.latency_ms
    if told is None:
        raise ValueError("the label tells no latency")
    seen_end_ns = label.emotion.captured_ns - t0_ns  # where voice activity saw the end, in media time
    total = (label.received_ns - t0_ns - utterance.end_ns) / 1e6
    found = {"total": total, "vad": (seen_end_ns - utterance.end_ns) / 1e6}
    found |= {name: getattr(told, name) for name in _PIPELINE_PARTS}
    found["transport"] = (label.received_ns - label.emotion.published_ns) / 1e6
    off = total - sum(found[name] for name in PARTS)
    if abs(off) > _ROUNDING_MS:
        raise ValueError(f"parts are {off:.3f} ms less than the total of {total:.3f} ms")
    if abs(seen_end_ns / 1e9 - label.emotion.end_s) > 0.0011:  # published with three decimals
        raise ValueError(f"its end is {label.emotion.end_s} s, and {seen_end_ns / 1e9:.3f} s by its time of capture")
    if (least := min(found[name] for name in (*_PIPELINE_PARTS, "transport"))) < -_ROUNDING_MS:
        raise ValueError(f"a part is negative ({least:.3f} ms), so times were counted twice")
    return {name: round(value, 3) for name, value in found.items()}


def play(script: Script, setting: str, progress: Callable[[float], None]) -> Run:
    """Play the script through a pipeline of its own; ``progress`` is told the part that has been played."""
    medium, recognizer = SETTINGS[setting]
    stream = f"[{{name = {json.dumps(STREAM)}, {medium} = {json.dumps(f'file:{script.path}')}}}]"
    changes = {"streams": stream, "speech.recognizer": recognizer}
    arguments = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    captures = ["audio"] if medium == "audio" else ["audio", "video"]
    nodes = [f"{kind}.{STREAM}" for kind in (*captures, "speech")] + ["fusion"]
    run = Run()
    with common.LiveRun(["--quiet", *arguments], nodes) as live:
        give_up_ns = live.clock.now_ns() + int((script.length_s + _START_S) * 1e9)
        for seen in live.seen():
            now_ns = live.clock.now_ns()
            if run.t0_ns is not None:
                progress(min(1.0, (now_ns - run.t0_ns) / 1e9 / script.length_s))
            if now_ns > give_up_ns:
                run.faults.append(f"the run had not ended {_START_S:g} s after its script was over")
                break
            if seen is None:
                continue
            match seen.what:
                case Emotion(kind="utterance") as emotion:
                    run.labels.append(Label(seen.received_ns, emotion))
                case Health() as health:
                    run.health[health.node] = health
                case Control(command="go") as control:
                    run.t0_ns = control.at_ns
        else:
            run.faults += live.faults()
    if run.t0_ns is None:
        run.faults.append("the pipeline never began")
    return run


def judge(script: Script, run: Run, setting: str) -> tuple[dict, list[str]]:
    """Figures of a run, and its faults."""
    faults = list(run.faults)
    found = match(script.utterances, run.labels)
    for what, utterances in (("missed", found.missed), ("doubled", found.doubled)):
        faults += [f"{what}: {u.name}, {u.start_ns / 1e9:.2f} to {u.end_ns / 1e9:.2f} s" for u in utterances]
    faults += [
        f"unexpected label: {label.emotion.start_s:.2f} to {label.emotion.end_s:.2f} s" for label in found.unexpected
    ]
    if (order := [label.emotion.seq for label in run.labels]) != list(range(len(order))):
        faults.append(f"labels lost on their way to the subscriber: their numbers are {order}")
    without: dict[str, int] = {
        name: sum(not label.emotion.modalities[name].frames for label in run.labels) for name in MODALITIES[setting]
    }
    faults += [f"no label had {name} in it" for name, count in without.items() if count == len(run.labels) > 0]
    dropped = losses(run.health.values())
    faults += [f"lost: {name} {count}" for name, count in dropped.items()]
    rows: list[dict[str, float]] = []
    names: list[str] = []
    for utterance, label in found.pairs if run.t0_ns is not None else []:
        try:
            rows.append(parts(utterance, label, run.t0_ns or 0))
            names.append(utterance.name)
        except ValueError as error:
            faults.append(f"{utterance.name}, {utterance.start_ns / 1e9:.2f} s: {error}")
    figures: dict = {
        "utterances": len(script.utterances),
        "labels": len(run.labels),
        "missed": len(found.missed),
        "doubled": len(found.doubled),
        "unexpected": len(found.unexpected),
        "lost": dropped,
        "backend": ", ".join(sorted({label.emotion.backend for label in run.labels})),
        "bundle": ", ".join(sorted({label.emotion.bundle for label in run.labels})),
        "labels_without": without,
        "labels_ready_at_end": sum(h.counters.get("labels_ready_at_end", 0) for h in run.health.values()),
    }
    if rows:
        for span, left_out in SPANS.items():
            figures[span] = common.percentiles([row["total"] - sum(row[name] for name in left_out) for row in rows])
        figures["parts"] = {}
        for name in PARTS:
            values = [row[name] for row in rows]
            mean = {"mean": round(sum(values) / len(values), 3)}
            figures["parts"][name] = mean | common.percentiles(values)
        figures["each"] = [{"utterance": name, **row} for name, row in zip(names, rows, strict=True)]
    return figures, faults


def losses(health) -> dict[str, int]:
    """What nodes dropped or missed, by node; none where nothing was."""
    lost: Counter[str] = Counter()
    for last in health:
        lost[last.node] += last.dropped + last.gaps + sum(last.counters.get(name, 0) for name in _COUNTERS)
    return dict(+lost)


def tables(figures: Mapping[str, dict]) -> str:
    """Percentiles of the spans, and the parts of each setting; in milliseconds."""
    measured = {name: of for name, of in figures.items() if "total" in of}
    if not measured:
        return "Nothing was measured."
    columns = list(next(iter(measured.values()))["total"])
    spans = [
        [f"{setting}: {span}", *(of[span][column] for column in columns)]
        for setting, of in measured.items()
        for span in SPANS
    ]
    names = [f"{setting} {kind}" for setting in measured for kind in ("mean", "p50", "max")]
    rows = [[p, *(of["parts"][p][k] for of in measured.values() for k in ("mean", "p50", "max"))] for p in PARTS]
    counts = [
        [name, *(of[key] for key in ("utterances", "labels", "missed", "doubled", "unexpected", "labels_ready_at_end"))]
        for name, of in figures.items()
    ]
    head = ["", "utterances", "labels", "missed", "doubled", "unexpected", "computed at the pause"]
    text = [
        "Milliseconds from the true end of speech to the label at the subscriber.",
        "",
        common.table(["", *columns], spans),
    ]
    text += ["", "Its parts (means sum to the mean total):", "", common.table(["part", *names], rows)]
    return "\n".join([*text, "", common.table(head, counts)])


def plot(path: Path, figures: Mapping[str, dict], hangover: str) -> None:
    """A waterfall of the mean parts of each setting: whole, and after the confirmed end."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files on any machine, with no display
    import matplotlib.pyplot as plt

    grey, early, blue, orange = "#9a9a9a", "#56B4E9", "#0072B2", "#E69F00"
    colours = dict.fromkeys(PARTS, blue) | {"vad": early, "endpoint_wait": grey, "transport": orange}
    titles = {"audio": "sound", "audio+video": "sound and picture", "all": "sound, picture and words"}
    measured = {name: of for name, of in figures.items() if "parts" in of}
    style: dict = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.axisbelow": True, "savefig.facecolor": "white",
    }  # fmt: skip
    with plt.rc_context(style):
        figure, grid = plt.subplots(
            len(measured), 2, figsize=(11.5, 0.9 + 2.65 * len(measured)), squeeze=False, sharex="col",
            layout="constrained", gridspec_kw={"width_ratios": [1.25, 1]},
        )  # fmt: skip
        for (left, right), (setting, of) in zip(grid, measured.items(), strict=True):
            means = {name: of["parts"][name]["mean"] for name in PARTS}
            for axes, shown in ((left, PARTS), (right, PARTS[2:])):
                _waterfall(axes, {name: means[name] for name in shown}, colours)
            total, after = of["total"], of["confirmed end → label"]
            left.set_title(
                f"{titles[setting]}: p50 {total['p50']:.0f} ms, p99 {total['p99']:.0f} ms, n = {total['n']}",
                loc="left", fontsize=10.5, fontweight="bold",
            )  # fmt: skip
            right.set_title(
                f"after the confirmed end: p50 {after['p50']:.1f} ms, p99 {after['p99']:.1f} ms",
                loc="left",
                fontsize=10.5,
            )
        for axes in grid[-1]:
            axes.set_xlabel("milliseconds, mean")
        figure.suptitle(
            f"From the true end of speech to the label in a subscriber's hands (hangover {hangover})",
            x=0.01, ha="left", fontsize=12,
        )  # fmt: skip
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def _waterfall(axes, values: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Each part begins where the one above it ends; the last bar is their sum."""
    at, furthest = 0.0, 0.0
    for i, (name, value) in enumerate(values.items()):
        axes.barh(i, value, 0.66, left=at, color=colours[name])
        axes.plot([at + value] * 2, [i - 0.33, i + 1.33], color="0.6", linewidth=0.7)
        furthest = max(furthest, at, at + value)
        text = f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"
        axes.annotate(text, (max(at, at + value), i), xytext=(4, 0), textcoords="offset points", va="center")
        at += value
    axes.barh(len(values), at, 0.66, color="0.25")
    axes.annotate(
        f"{at:.1f}", (at, len(values)), xytext=(4, 0), textcoords="offset points", va="center", fontweight="bold"
    )
    axes.set_yticks(range(len(values) + 1), [*(name.replace("_", " ") for name in values), "sum"])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(right=max(axes.get_xlim()[1], furthest * 1.12))
    axes.grid(axis="x", color="0.92")


BIAS = [
    f"Input is a file of 16 kHz that plays in real time in packets of {Config().audio.block_ms} ms, as a microphone's "
    "blocks; the delay of a sound card, of a change from its rate to 16 kHz, of a camera and of their drivers is not "
    "in it, so a live total is longer.",
    "The subscriber is on the same machine.",
    "The pauses between utterances are clean (noise at -55 dB); in real noise voice activity ends later or not at all.",
    "The demo clip's voice is synthetic. Its quiet last sounds count as speech down to 2 % of its peak. Of RAVDESS, "
    "only clips without a pause over 0.25 s are played.",
    "The picture is the demo clip's, over and over; it does not follow the words. 480 × 360 at 25 frames per second: "
    "a camera's larger pictures take longer to decode and search.",
    "Below 1000 utterances p99.9 is the slowest one, below 100 so is p99; percentiles are from an HDR histogram with "
    "three significant digits.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="DIR",
        help="play RAVDESS speech clips from DIR (default: EMOSTREAM_DATA, else the demo clip's sentences)",
    )  # fmt: skip
    parser.add_argument("--utterances", type=int, metavar="N", help="in each setting (default: 100; --quick: 2)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all three")
    given = parser.parse_args(arguments)
    count = given.utterances or (2 if given.quick else 100)
    try:
        return _measure(given, count)
    except ScriptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure(given: argparse.Namespace, count: int) -> int:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    segments = ravdess_segments(given.data, count) if given.data else demo_segments()
    if given.quick:
        segments = sorted(segments, key=lambda segment: len(segment.samples))
    source = f"RAVDESS, {len(segments)} clips" if given.data else "demo clip"
    speech = Config().speech
    hangover = f"{speech.hangover_ms} ms, {speech.min_hangover_ms} where silence is sure"
    figures: dict[str, dict] = {}
    faults: list[str] = []
    columns = (
        TextColumn("{task.description:30}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with tempfile.TemporaryDirectory() as folder, Progress(*columns) as progress:
        script = make_script(Path(folder) / "script.mkv", segments, count, PAUSE_S, True, source)
        for setting in given.settings:
            task = progress.add_task(f"{setting}: {count} utterances", total=1.0)
            run = play(script, setting, lambda part, task=task: progress.update(task, completed=part))  # type: ignore[misc]
            figures[setting], found = judge(script, run, setting)
            progress.update(task, completed=1.0)
            faults += [f"{setting}: {fault}" for fault in found]
    settings = {
        "script": f"{count} utterances of the {source} in {script.length_s:.0f} s, pauses from {PAUSE_S} s",
        "settings": ", ".join(given.settings),
        "recogniser of all": SETTINGS["all"][1],
        "configuration": f"defaults (hangover {hangover}; pause_ms {speech.pause_ms}, "
        f"video.fps {Config().video.fps:g}, face detector {Config().video.detector})",
        "quick": given.quick,
    }
    measured = figures if any("total" in of for of in figures.values()) else {}
    result = common.Result("latency", settings, BIAS, measured, faults)
    return common.finish(given.out, result, tables(figures), lambda path: plot(path, figures, hangover))


if __name__ == "__main__":
    sys.exit(main())
