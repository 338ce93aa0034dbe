"""End-to-end latency: from the true end of speech to the arrival of the label at a subscriber, and its parts.

    python benchmarks/latency.py [--quick] [--data RAVDESS]

A scripted conversation, whose ends of speech are known, plays in real time through the real pipeline: stream-run with
its processes, sockets, decoder, voice activity, recogniser, face detector and networks. A subscriber in
a process of its own notes when each label comes. Input comes on its own schedule whether or not the pipeline keeps up,
and latency counts from when a sample was due. There are three settings: sound; sound and picture; sound, picture and
words.

The total is the sum of these parts:

    vad            true end of speech → end as voice activity saw it (negative if it saw it early)
    endpoint_wait  waiting for the silence that confirms the end (speech.hangover_ms, or min_hangover_ms)
    recognition    finishing the words
    queue          capture blocks, sockets, waiting for a late camera
    encode         faces and words to vectors
    fusion         the fusion network
    other          the rest
    transport      label published → received by the subscriber

Faults, which are listed and make the exit code 1: an utterance without a label or with two, a label without an
utterance, anything dropped, parts that do not sum to the total.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.labels import CONFIRMED, PARTS, SPANS, all_parts, losses, match, span_ms
from benchmarks.live_run import Watch, play
from benchmarks.script import Script, demo_segments, make_script, ravdess_segments
from emostream.commands import exit_code
from emostream.stream.config import Config

STREAM = "bench"
SETTINGS = {  # name → medium of the script, whether words are recognised
    "audio": ("audio", False),
    "audio+video": ("source", False),
    "all": ("source", True),
}
RECOGNIZER = "moonshine"
MODALITIES = {"audio": ("audio",), "audio+video": ("audio", "video"), "all": ("audio", "video", "text")}
PAUSE_S = 0.9  # shortest pause between utterances: twice the longest wait for the endpoint


def add_recognizer(parser: argparse.ArgumentParser) -> None:
    """The option that chooses the recogniser of the setting ``all``."""
    parser.add_argument("--recognizer", default=RECOGNIZER, metavar="NAME", help="as speech.recognizer (%(default)s)")


def recognizer_of(setting: str, options: argparse.Namespace) -> str:
    """What ``speech.recognizer`` is in a setting."""
    return options.recognizer if SETTINGS[setting][1] else "none"


def measure(
    script: Script, setting: str, recognizer: str, changes: Sequence[str], progress: Callable[[float], None]
) -> Watch:
    """Play the script through a pipeline of its own; ``progress`` is called with the share that has been played."""
    return play(
        {STREAM: {SETTINGS[setting][0]: script.path}}, recognizer, script.length_s,
        lambda _, passed_s: progress(min(1.0, passed_s / script.length_s)), changes=changes,
    )  # fmt: skip


def judge(script: Script, watch: Watch, setting: str) -> tuple[common.Figures, list[str]]:
    """The figures of a run, and its faults."""
    matching = match(script.utterances, watch.labels)
    faults = [*watch.late, *watch.faults, *matching.faults()]
    emotions = [label.emotion for label in watch.labels]
    if (numbers := [emotion.seq for emotion in emotions]) != list(range(len(numbers))):
        faults.append(f"labels lost on their way to the subscriber: their numbers are {numbers}")
    without: dict[str, int] = {
        name: sum(not emotion.modalities[name].frames for emotion in emotions) for name in MODALITIES[setting]
    }
    faults += [f"no label had {name} in it" for name, count in without.items() if count == len(emotions) > 0]
    lost = losses(watch.last_beats)
    faults += [f"lost: {name} {count}" for name, count in lost.items()]
    rows, odd = all_parts(matching.pairs, watch.t0_ns)
    faults += odd
    figures: common.Figures = {
        "utterances": len(script.utterances),
        "labels": len(emotions),
        **matching.counts(),
        "lost": lost,
        "backend": ", ".join(sorted({emotion.backend for emotion in emotions})),
        "bundle": ", ".join(sorted({emotion.bundle for emotion in emotions})),
        "labels_without": without,
        "labels_ready_at_end": sum(beat.counters.get("labels_ready_at_end", 0) for beat in watch.last_beats),
    }
    if rows:
        figures |= {span: common.percentiles([span_ms(row, span) for _, row in rows]) for span in SPANS}
        figures["parts"] = {}
        for name in PARTS:
            values = [row[name] for _, row in rows]
            mean = {"mean": round(sum(values) / len(values), 3)}
            figures["parts"][name] = mean | common.percentiles(values)
        figures["each"] = [{"utterance": utterance.name, **row} for utterance, row in rows]
    return figures, faults


def tables(figures: Mapping[str, common.Figures]) -> str:
    """Percentiles of the spans, and the parts of each setting, in milliseconds."""
    measured = {setting: result for setting, result in figures.items() if "total" in result}
    if not measured:
        return "Nothing was measured."
    columns = list(next(iter(measured.values()))["total"])
    spans = [
        [f"{setting}: {span}", *(result[span][column] for column in columns)]
        for setting, result in measured.items()
        for span in SPANS
    ]
    kinds = ("mean", "p50", "max")
    names = [f"{setting} {kind}" for setting in measured for kind in kinds]
    parts = [[part, *(result["parts"][part][kind] for result in measured.values() for kind in kinds)] for part in PARTS]
    counted = ("utterances", "labels", "missed", "doubled", "unexpected", "labels_ready_at_end")
    counts = [[setting, *(result[key] for key in counted)] for setting, result in figures.items()]
    return "\n".join([
        "Milliseconds from the true end of speech to the label at the subscriber.",
        "",
        common.table(["", *columns], spans),
        "",
        "Its parts (means sum to the mean total):",
        "",
        common.table(["part", *names], parts),
        "",
        common.table(["", *counted[:-1], "computed at the pause"], counts),
    ])  # fmt: skip


def plot(path: Path, figures: Mapping[str, common.Figures], hangover: str) -> None:
    """A waterfall of the mean parts of each setting: all of them, and those after the confirmed end."""
    colours = dict.fromkeys(PARTS, common.BLUE)
    colours |= {"vad": common.LIGHT_BLUE, "endpoint_wait": common.GREY, "transport": common.ORANGE}
    titles = {"audio": "sound", "audio+video": "sound and picture", "all": "sound, picture and words"}
    measured = {setting: result for setting, result in figures.items() if "parts" in result}
    size = (11.5, 0.9 + 2.65 * len(measured))
    layout = {"sharex": "col", "gridspec_kw": {"width_ratios": [1.25, 1]}}
    with common.drawing(path, size, len(measured), 2, **layout) as (figure, grid):
        for (left, right), (setting, result) in zip(grid, measured.items(), strict=True):
            means = {part: result["parts"][part]["mean"] for part in PARTS}
            _waterfall(left, means, colours)
            _waterfall(right, {part: means[part] for part in PARTS[2:]}, colours)
            total, after = result["total"], result[CONFIRMED]
            left.set_title(
                f"{titles[setting]}: p50 {total['p50']:.0f} ms, p99 {total['p99']:.0f} ms, n = {total['n']}",
                loc="left", fontsize=10.5, fontweight="bold",
            )  # fmt: skip
            right.set_title(
                f"after the confirmed end: p50 {after['p50']:.1f} ms, p99 {after['p99']:.1f} ms",
                loc="left", fontsize=10.5,
            )  # fmt: skip
        for axes in grid[-1]:
            axes.set_xlabel("milliseconds, mean")
        figure.suptitle(
            f"From the true end of speech to the label in a subscriber's hands (hangover {hangover})",
            x=0.01, ha="left", fontsize=12,
        )  # fmt: skip


def _waterfall(axes: Any, values: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Each part begins where the one above it ends; the last bar is their sum."""
    beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    left, furthest = 0.0, 0.0
    for i, (name, value) in enumerate(values.items()):
        right = left + value
        axes.barh(i, value, 0.66, left=left, color=colours[name])
        axes.plot([right] * 2, [i - 0.33, i + 1.33], color="0.6", linewidth=0.7)
        axes.annotate(f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}", (max(left, right), i), **beside)
        furthest = max(furthest, left, right)
        left = right
    axes.barh(len(values), left, 0.66, color="0.25")
    axes.annotate(f"{left:.1f}", (left, len(values)), fontweight="bold", **beside)
    axes.set_yticks(range(len(values) + 1), [*(name.replace("_", " ") for name in values), "sum"])
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(right=max(axes.get_xlim()[1], furthest * 1.12))
    axes.grid(axis="x", color="0.92")


BIAS = [
    f"The input is a 16 kHz file that plays in real time in packets of {Config().audio.block_ms} ms, like a "
    "microphone's blocks. The delays of a sound card, of resampling to 16 kHz, of a camera and of their drivers are "
    "not included, so a live total is longer.",
    "The subscriber is on the same machine.",
    "The pauses between utterances are clean (noise at -55 dB); in real noise voice activity ends later or not at all.",
    "The demo clip's voice is synthetic. Its quiet last sounds count as speech down to 2 % of its peak. Of RAVDESS, "
    "only clips without a pause of more than 0.25 s are played.",
    "The picture is the demo clip's, over and over; it does not follow the words. It is 480 × 360 at 25 frames per "
    "second: a camera's larger pictures take longer to decode and search.",
    "Below 1000 utterances p99.9 is the slowest one, below 100 so is p99; percentiles are from an HDR histogram with "
    "three significant digits.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get(common.DATA), metavar="DIR",
        help=f"play RAVDESS speech clips from DIR (default: {common.DATA}, else the demo clip's sentences)",
    )  # fmt: skip
    parser.add_argument("--utterances", type=int, metavar="N", help="in each setting (default: 100; --quick: 2)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all three")
    add_recognizer(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as for stream-run (page.on=true)"
    )
    options = parser.parse_args(arguments)
    return _run(options, options.utterances or (2 if options.quick else 100))


def _run(options: argparse.Namespace, count: int) -> int:
    segments = ravdess_segments(options.data, count) if options.data else demo_segments()
    if options.quick:
        segments = sorted(segments, key=lambda segment: len(segment.samples))
    source = f"RAVDESS, {len(segments)} clips" if options.data else "demo clip"
    speech, video = Config().speech, Config().video
    hangover = f"{speech.hangover_ms} ms, {speech.min_hangover_ms} where silence is sure"
    figures: dict[str, common.Figures] = {}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder, common.progress_bars() as progress:
        script = make_script(Path(folder) / "script.mkv", segments, count, PAUSE_S, True, source)
        for setting in options.settings:
            task = progress.add_task(f"{setting}: {count} utterances", total=1.0)
            watch = measure(
                script, setting, recognizer_of(setting, options), options.set,
                lambda share, task=task: progress.update(task, completed=share),  # type: ignore[misc]
            )  # fmt: skip
            figures[setting], wrong = judge(script, watch, setting)
            progress.update(task, completed=1.0)
            faults += [f"{setting}: {fault}" for fault in wrong]
    settings = {
        "script": f"{count} utterances of the {source} in {script.length_s:.0f} s, pauses from {PAUSE_S} s",
        "settings": ", ".join(options.settings),
        "recogniser of all": options.recognizer,
        "changes": ", ".join(options.set) or "none",
        "configuration": f"defaults (hangover {hangover}; pause_ms {speech.pause_ms}, video.fps {video.fps:g}, "
        f"face detector {video.detector})",
        "quick": options.quick,
    }
    measured = figures if any("total" in result for result in figures.values()) else {}
    result = common.Result("latency", settings, BIAS, measured, faults)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures, hangover))


if __name__ == "__main__":
    sys.exit(exit_code(main))
