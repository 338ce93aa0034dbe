"""Endurance: whether a run of an hour grows, slows down, drops anything or drifts.

    python benchmarks/soak.py [--quick] [--minutes M]

One ``stream-run`` of a scripted conversation with sound, picture and words, which FFmpeg plays over and over: sound
and picture each loop on their own, without a gap. Every few seconds, the resident memory, open file descriptors and
threads of each process are read. Heartbeats carry what was dropped; each label carries its latency. There are two
drifts:

    sound − picture     progress of the sound minus progress of the picture, in media time, from the packets and frames
                        counted in heartbeats, each relative to the time since ``go`` at which it was sent
    sound − script      end of an utterance by voice activity detection minus its end in the script

After a warm-up, each quantity is judged by its Theil–Sen slope and its 99 % interval: it is flat if the interval
contains 0 or the slope is below a bound per hour. Anything that is not flat, or was dropped, missed, doubled,
restarted or silent, is a fault: exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks import common, labels, latency
from benchmarks.labels import CONFIRMED, Label, Matching, all_parts, losses, restarted, span_ms
from benchmarks.live_run import LiveRun, Watch, play
from benchmarks.script import BLOCK, RATE_HZ, Script, demo_segments, make_script
from benchmarks.trend import FEWEST, QUANTITIES, Series, slope
from emostream.commands import exit_code
from emostream.stream.config import Config
from emostream.stream.messages import Health
from emostream.stream.sources import DEMO

STREAM = "soak"
NODES = (f"audio.{STREAM}", f"video.{STREAM}", f"speech.{STREAM}", "fusion")
_SILENT_S = 5.0  # a heartbeat is due every second

Samples = dict[str, list[tuple[float, float, int, int]]]  # process → seconds since go, MiB, descriptors, threads


def make_loop(folder: Path, count: int, seconds: float) -> tuple[Script, int]:
    """Write ``sound-loop.mkv`` and ``picture-loop.mkv`` to ``folder``, each at least ``seconds`` long: a script of
    ``count`` utterances over and over, and the demo clip's picture for as long. Returns the script and how often it is
    repeated."""
    demo = demo_segments()
    said = [demo[i % len(demo)] for i in range(count)]

    def script() -> Script:
        return make_script(folder / "sound.mkv", said, count, latency.PAUSE_S, False, "demo clip")

    # whole packets only, since their count serves as a clock
    said[0] = said[0].after_silence(-round(script().length_s * RATE_HZ) % BLOCK)
    looped = script()
    times = math.ceil(seconds / looped.length_s)
    _concat(looped.path, looped.length_s, times)
    with av.open(str(DEMO)) as container:
        picture = container.streams.video[0]
        assert picture.duration is not None and picture.time_base is not None
        picture_s = float(picture.duration * picture.time_base)
    shutil.copy(DEMO, folder / "picture.mp4")
    _concat(folder / "picture.mp4", picture_s, math.ceil(times * looped.length_s / picture_s))
    return looped, times


def _concat(path: Path, length_s: float, times: int) -> None:
    """Write the file repeated ``times`` times, without coding it again: sound.mkv → sound-loop.mkv. Lengths have a
    resolution of a microsecond."""
    entry = f"file {path.name}\nduration {length_s:.6f}\n"
    listed = path.with_suffix(".ffconcat")
    listed.write_text("ffconcat version 1.0\n" + entry * times, encoding="ascii")
    with av.open(str(listed)) as several, av.open(str(path.with_name(f"{path.stem}-loop.mkv")), "w") as out:
        track = (*several.streams.video, *several.streams.audio)[0]
        written = out.add_stream_from_template(track)
        for packet in several.demux(track):
            if packet.dts is not None:
                packet.stream = written
                out.mux(packet)


def measure(folder: Path, length_s: float, every_s: float, progress: Callable[[float], None]) -> tuple[Watch, Samples]:
    """Play what ``make_loop`` wrote and look at all processes every ``every_s``."""
    files = {"audio": folder / "sound-loop.mkv", "video": folder / "picture-loop.mkv"}
    samples: Samples = defaultdict(list)
    next_s = 0.0

    def tick(live: LiveRun, passed_s: float) -> None:
        nonlocal next_s
        if next_s <= passed_s < length_s:
            next_s = passed_s + every_s
            progress(passed_s / length_s)
            for process, name in {**live.nodes(), live.process: "supervisor"}.items():
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended: its heartbeats stop too
                    samples[name].append((passed_s, *_look(process)))

    return play({STREAM: files}, latency.RECOGNIZER, length_s, tick), samples


def _look(process: psutil.Process) -> tuple[float, int, int]:
    with process.oneshot():
        return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()


def match(script: Script, received: Sequence[Label], times: int) -> Matching:
    """As ``labels.match``, for the script played ``times`` over."""
    length_ns = round(script.length_s * 1e9)
    rounds: list[list[Label]] = [[] for _ in range(times)]
    whole = Matching()
    for label in received:
        number = int((label.emotion.start_s + label.emotion.end_s) / 2 // script.length_s)
        (rounds[number] if number < times else whole.unexpected).append(label)
    for i, chosen in enumerate(rounds):
        shift = i * length_ns
        moved = [replace(u, start_ns=u.start_ns + shift, end_ns=u.end_ns + shift) for u in script.utterances]
        part = labels.match(moved, chosen)
        for name in ("pairs", "missed", "doubled", "unexpected"):
            getattr(whole, name).extend(getattr(part, name))
    return whole


def drift(beats: Mapping[str, Sequence[Health]], t0_ns: int, fps: float) -> Series:
    """Sound − picture in milliseconds, at each heartbeat of the sound, with a resolution of one video frame."""
    ahead = {}
    for medium, counter, each_s in (("audio", "chunks", BLOCK / RATE_HZ), ("video", "frames", 1 / fps)):
        running = [b for b in beats.get(f"{medium}.{STREAM}", []) if b.state == "running" and b.counters.get(counter)]
        passed_s = [(beat.sent_ns - t0_ns) / 1e9 for beat in running]
        ahead[medium] = passed_s, [b.counters[counter] * each_s - s for b, s in zip(running, passed_s, strict=True)]
    (times_s, sound), (picture_s, picture) = ahead["audio"], ahead["video"]
    if not times_s or not picture_s:
        return Series("drift", "sound − picture", [], [])
    apart_ms = 1000 * (np.array(sound) - np.interp(times_s, picture_s, picture))
    return Series("drift", "sound − picture", times_s, apart_ms.round(3).tolist())


def longest_silence_s(beats: Mapping[str, Sequence[Health]], t0_ns: int, length_s: float) -> dict[str, float]:
    """The longest time without a heartbeat of each node, between go and the script's end."""
    end_ns = t0_ns + int(length_s * 1e9)
    longest = {}
    for node in NODES:
        sent = [t0_ns, *sorted(b.sent_ns for b in beats.get(node, []) if t0_ns < b.sent_ns < end_ns), end_ns]
        longest[node] = round(max(b - a for a, b in itertools.pairwise(sent)) / 1e9, 3)
    return longest


def judge(
    script: Script, times: int, watch: Watch, samples: Samples, warm_up_s: float, quick: bool
) -> tuple[common.Figures, list[str]]:
    """Figures and faults. If ``quick``, the only slope that counts as a fault is a rise of file descriptors."""
    faults = [*watch.late, *watch.faults]
    if watch.t0_ns is None:
        return {}, faults
    length_s = times * script.length_s
    matching = match(script, watch.labels, times)
    faults += matching.faults()
    lost = losses(watch.last_beats)
    faults += [f"lost: {node} {count}" for node, count in lost.items()]
    again = restarted(watch.beats)
    faults += [f"{node} was started again, since it crashed or gave no sign of life" for node in again]
    silent = longest_silence_s(watch.beats, watch.t0_ns, length_s)
    faults += [f"{node} was silent for {s:.1f} s" for node, s in silent.items() if s > _SILENT_S]
    rows, odd = all_parts(matching.pairs, watch.t0_ns)
    faults += odd
    ends_s = [utterance.end_ns / 1e9 for utterance, _ in rows]
    waits_ms = [span_ms(row, CONFIRMED) for _, row in rows]
    series = [
        Series(quantity, name, [sample[0] for sample in taken], [sample[i] for sample in taken])
        for i, quantity in enumerate(("memory", "descriptors", "threads"), 1)
        for name, taken in samples.items()
    ]
    series.append(Series("latency", CONFIRMED, ends_s, waits_ms))
    series.append(drift(watch.beats, watch.t0_ns, Config().video.fps))
    series.append(Series("drift", "sound − script", ends_s, [row["vad"] for _, row in rows]))
    slopes, steep = judge_slopes(series, warm_up_s, quick)
    figures: common.Figures = {
        "minutes": round(length_s / 60, 2),
        "warm_up_s": warm_up_s,
        "utterances": times * len(script.utterances),
        "labels": len(watch.labels),
        **matching.counts(),
        "lost": lost,
        "started_again": again,
        "longest_silence_s": silent,
        "slopes": slopes,
        "series": [asdict(one) for one in [*series, *_lost(watch)]],
    }
    if waits_ms:
        figures[CONFIRMED] = common.percentiles(waits_ms)
    return figures, faults + steep


def judge_slopes(series: Sequence[Series], warm_up_s: float, quick: bool) -> tuple[list[common.Figures], list[str]]:
    """The slope of each series, and a fault for each one that is judged and not flat."""
    slopes, faults = [], []
    for one in series:
        fit = slope(one, warm_up_s)
        judged = not quick or one.quantity == "descriptors"
        slopes.append({"quantity": one.quantity, "what": one.what, "judged": judged} | (asdict(fit) if fit else {}))
        name = f"{one.quantity}, {one.what}"
        if fit is None and judged:
            faults.append(f"{name}: fewer than {FEWEST} values after the warm-up")
        elif fit is not None and judged and (fit.last - fit.first > 1 if quick else not fit.flat):
            faults.append(f"{name}: {fit.first:.1f} to {fit.last:.1f}, {fit.slope:+.2f} per hour")
    return slopes, faults


def _lost(watch: Watch) -> list[Series]:
    """What each node has dropped or missed so far, for the plot."""
    return [
        Series(
            "lost",
            node,
            [(beat.sent_ns - (watch.t0_ns or 0)) / 1e9 for beat in running],
            [sum(losses([beat]).values()) for beat in running],
        )
        for node, running in ((node, [b for b in beats if b.state == "running"]) for node, beats in watch.beats.items())
    ]


def tables(figures: common.Figures) -> str:
    """What was lost, and the slopes."""
    if not figures:
        return "Nothing was measured."
    lost = ", ".join(f"{node} {count}" for node, count in figures["lost"].items()) or "nothing"
    quiet_node, quiet_s = max(figures["longest_silence_s"].items(), key=lambda item: float(item[1]))
    rows = []
    for fit in figures["slopes"]:
        quantity = QUANTITIES[fit["quantity"]]
        name = f"{fit['quantity']}, {fit['what']}" + (f" ({quantity.unit})" if quantity.unit else "")
        if "slope" not in fit:
            rows.append([name, *[""] * 5, "too few values"])
            continue
        verdict = ("flat" if fit["flat"] else "NOT flat") if fit["judged"] else "not judged"
        interval = f"{fit['low']:+.2f} … {fit['high']:+.2f}"
        rows.append([name, fit["first"], fit["last"], f"{fit['slope']:+.2f}", interval, f"{quantity.bound:g}", verdict])
    text = [
        f"{figures['minutes']:g} minutes: {figures['utterances']} utterances, {figures['labels']} labels, "
        f"{figures['missed']} missed, {figures['doubled']} doubled, {figures['unexpected']} unexpected; lost: {lost}; "
        f"started again: {', '.join(figures['started_again']) or 'none'}; "
        f"longest silence between heartbeats: {quiet_s:.1f} s ({quiet_node}).",
        "",
    ]
    if waits := figures.get(CONFIRMED):
        text += [f"{CONFIRMED}: p50 {waits['p50']:.1f} ms, p99 {waits['p99']:.1f} ms, max {waits['max']:.1f} ms.", ""]
    text += [f"Change per hour after {figures['warm_up_s']:.0f} s of warm-up (Theil–Sen):", ""]
    head = ["", "at first", "at last", "per hour", "99 % interval", "bound", "verdict"]
    return "\n".join([*text, common.table(head, rows)])


def plot(path: Path, figures: common.Figures) -> None:
    """Each quantity over time, one line per process; memory as its change since the warm-up."""
    titles = {
        "memory": "resident memory, change since the warm-up, MiB", "descriptors": "open file descriptors",
        "threads": "threads", "latency": f"{CONFIRMED}, ms", "drift": "drift, ms", "lost": "dropped or missed so far",
    }  # fmt: skip
    palette = (common.LIGHT_BLUE, common.ORANGE, common.BLUE, common.GREEN, "0.2")
    colours = dict(zip((*NODES, "supervisor"), palette, strict=True))
    colours |= {CONFIRMED: common.BLUE, "sound − picture": common.ORANGE, "sound − script": common.BLUE}
    warm_s = figures["warm_up_s"]
    with common.drawing(path, (12.5, 6), 2, 3, sharex=True) as (figure, grid):
        for axes, (quantity, title) in zip(grid.flat, titles.items(), strict=True):
            for one in (one for one in figures["series"] if one["quantity"] == quantity and one["values"]):
                times, values = np.array(one["times_s"]), np.array(one["values"], float)
                if quantity == "memory" and (times >= warm_s).any():
                    values -= values[times >= warm_s][0]
                dots = quantity in ("latency", "drift")
                look = {"marker": ".", "linestyle": "", "markersize": 4} if dots else {"linewidth": 1.2}
                axes.plot(times / 60, values, color=colours[one["what"]], label=one["what"], **look)
            axes.axvspan(0, warm_s / 60, color="0.94", zorder=0)
            axes.set_title(title, loc="left", fontsize=9.5)
            axes.grid(axis="y", color="0.92")
            if quantity in ("latency", "descriptors", "threads", "lost"):
                top = max(1.0, axes.get_ylim()[1])
                axes.set_ylim(-0.03 * top, top)
            if quantity in ("memory", "drift"):
                axes.legend(loc="best", fontsize=8, frameon=True, framealpha=0.8, edgecolor="none")
        grid[0, 0].set_xlim(0, figures["minutes"])
        for axes in grid[-1]:
            axes.set_xlabel("minutes since go (grey: warm-up)")
        figure.suptitle(f"{figures['minutes']:g} minutes of one stream", x=0.01, ha="left", fontsize=12)


BIAS = [
    "The sound is a file's, so its clock is the machine's own: the drift of a sound card's or a camera's clock is not "
    "included, only what the pipeline itself adds.",
    "The same sentences and pictures come over and over: memory that grows with new words or faces is not seen.",
    "Neighbouring samples of memory depend on each other, so the intervals are too narrow; the bounds make up for it.",
    "Pages that processes share count in the resident memory of each of them.",
    "The latencies include what other programs do on the machine.",
]
QUICK_BIAS = (
    "A quick look: slopes of so short a run mean little. Only losses, file descriptors and whether all processes "
    "stayed alive are judged."
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--minutes", type=float, metavar="M", help="at least (default: 60; --quick: half of one)")
    options = parser.parse_args(arguments)
    if options.minutes is not None and options.minutes <= 0:
        parser.error("--minutes: give more than 0")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    seconds = 60 * (options.minutes or (0.5 if options.quick else 60.0))
    every_s = 1.0 if options.quick else 5.0
    with tempfile.TemporaryDirectory() as folder, common.progress_bars() as progress:
        script, times = make_loop(Path(folder), 5 if options.quick else 25, seconds)
        length_s = times * script.length_s
        task = progress.add_task(f"{length_s / 60:.1f} minutes", total=1.0)
        run = measure(Path(folder), length_s, every_s, lambda share: progress.update(task, completed=share))
        progress.update(task, completed=1.0)
    warm_up_s = round(length_s / 4 if options.quick else max(min(60.0, length_s / 4), length_s / 10), 1)
    figures, faults = judge(script, times, *run, warm_up_s, options.quick)
    settings = {
        "script": f"{len(script.utterances)} utterances in {script.length_s:.0f} s, {times} times",
        "recogniser": latency.RECOGNIZER,
        "configuration": "defaults",
        "looked every": f"{every_s:g} s",
        "bounds per hour": "; ".join(f"{name} {q.bound:g} {q.unit}".strip() for name, q in QUANTITIES.items()),
        "quick": options.quick,
    }
    bias = [QUICK_BIAS, *BIAS] if options.quick else BIAS
    result = common.Result("soak", settings, bias, figures, faults)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
