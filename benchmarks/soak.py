"""Endurance: whether a run of an hour grows, slows, drops or drifts.

    python benchmarks/soak.py [--quick] [--minutes M]

One ``stream-run`` of a scripted conversation with sound, picture and words, which FFmpeg plays over and over: sound
and picture each loop on their own, without a gap. Every few seconds each process is asked for its resident
memory, open file descriptors and threads; heartbeats tell what was dropped; each label tells its latency. Drift is

    sound − picture     media time that the sound has played less that which the picture has, from the packets and
                        frames counted in heartbeats, each less the time since ``go`` at which its heartbeat was sent
    sound − script      where voice activity saw an utterance end less where the script says so

After a warm-up, a Theil–Sen slope with its 99 % interval is taken of each. It is flat if the interval contains 0 or the
slope is below a bound an hour. What is not flat, dropped, missed, doubled, started again or silent is a fault: exit
code 1.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import psutil

from benchmarks import common, latency
from benchmarks.script import BLOCK, RATE_HZ, Script, demo_segments, make_script
from benchmarks.throughput import CONFIRMED, restarted
from emostream.stream.config import Config
from emostream.stream.messages import Control, Emotion, Health
from emostream.stream.sources import DEMO

STREAM = "soak"
NODES = (f"audio.{STREAM}", f"video.{STREAM}", f"speech.{STREAM}", "fusion")
HOUR_S = 3600.0
_SILENT_S = 5.0  # a heartbeat is due each second
_START_S = 90.0
_POINTS = 1000  # of a series at most: the slopes of all their pairs are taken
_FEWEST = 10
_CONFIDENCE = 0.99  # some twenty slopes are judged: at 0.95, one is often found steep by chance


@dataclass(frozen=True)
class Quantity:
    """``bound``: a slope an hour below which it is flat; ``both``: falling is as bad as rising."""

    unit: str
    bound: float
    both: bool = False


QUANTITIES = {
    "memory": Quantity("MiB", 1.0),
    "descriptors": Quantity("", 1.0),
    "threads": Quantity("", 1.0),
    "latency": Quantity("ms", 1.0),
    "drift": Quantity("ms", 1.0, both=True),
}


@dataclass(frozen=True)
class Series:
    """``quantity`` (of QUANTITIES) of ``what``; times in seconds since go."""

    quantity: str
    what: str
    times_s: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Slope:
    """An hour's change and its 99 % interval; the medians of the first and last tenth of the values."""

    n: int
    first: float
    last: float
    slope: float
    low: float
    high: float
    flat: bool


@dataclass
class Watch:
    """What was seen of the run. ``samples``: by process, (seconds since go, MiB, descriptors, threads)."""

    t0_ns: int | None = None
    labels: list[latency.Label] = field(default_factory=list)
    beats: dict[str, list[Health]] = field(default_factory=lambda: defaultdict(list))
    samples: dict[str, list[tuple[float, float, int, int]]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)


def make_loop(folder: Path, count: int, seconds: float) -> tuple[Script, int]:
    """Write ``sound.ffconcat`` and ``picture.ffconcat`` to ``folder``, of at least ``seconds``: a script of ``count``
    utterances over and over, and the demo clip's picture for as long. Returns the script and how often it comes."""
    demo = demo_segments()
    said = [demo[i % len(demo)] for i in range(count)]

    def script() -> Script:
        return make_script(folder / "sound.mkv", said, count, latency.PAUSE_S, False, "demo clip")

    lacking = -round(script().length_s * RATE_HZ) % BLOCK  # whole packets only: their number tells the time
    silence = np.zeros(lacking, np.float32)
    first = said[0]
    samples = np.concatenate([silence, first.samples])
    said[0] = replace(first, samples=samples, start=first.start + lacking, end=first.end + lacking)
    made = script()
    times = math.ceil(seconds / made.length_s)
    _concat(made.path, made.length_s, times)
    with av.open(str(DEMO)) as container:
        picture = container.streams.video[0]
        assert picture.duration is not None and picture.time_base is not None
        picture_s = float(picture.duration * picture.time_base)
    shutil.copy(DEMO, folder / "picture.mp4")
    _concat(folder / "picture.mp4", picture_s, math.ceil(times * made.length_s / picture_s))
    return made, times


def _concat(path: Path, length_s: float, times: int) -> None:
    """FFmpeg's list of files to play one after the other; it takes lengths in microseconds."""
    entry = f"file {path.name}\nduration {length_s:.6f}\n"
    path.with_suffix(".ffconcat").write_text("ffconcat version 1.0\n" + entry * times, encoding="ascii")


def play(folder: Path, length_s: float, every_s: float, progress: Callable[[float], None]) -> Watch:
    """Play what ``make_loop`` wrote and look at all processes every ``every_s``."""
    tracks = {"audio": "sound", "video": "picture"}
    sources = ", ".join(f"{m} = {json.dumps(f'file:{folder / name}.ffconcat')}" for m, name in tracks.items())
    stream = f"[{{name = {json.dumps(STREAM)}, {sources}}}]"
    arguments = ["--quiet", "--set", f"streams={stream}", "--set", f"speech.recognizer={latency.SETTINGS['all'][1]}"]
    watch = Watch()
    with common.LiveRun(arguments, NODES) as live:
        give_up_ns = live.started_ns + int((length_s + 2 * _START_S) * 1e9)
        next_s = 0.0
        for seen in live.seen():
            now_ns = live.clock.now_ns()
            if now_ns > give_up_ns:
                watch.faults.append(f"the run had not ended {2 * _START_S:g} s after its script was over")
                break
            if watch.t0_ns is not None and next_s <= (at_s := (now_ns - watch.t0_ns) / 1e9) < length_s:
                next_s = at_s + every_s
                progress(at_s / length_s)
                for process, name in {**live.nodes(), live.process: "supervisor"}.items():
                    with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile: then heartbeats stop too
                        watch.samples[name].append((at_s, *_look(process)))
            if seen is None:
                continue
            match seen.what:
                case Emotion(kind="utterance") as emotion:
                    watch.labels.append(latency.Label(seen.received_ns, emotion))
                case Health() as health:
                    watch.beats[health.node].append(health)
                case Control(command="go") as control if watch.t0_ns is None:
                    watch.t0_ns = control.at_ns
        else:
            watch.faults += live.faults()
    if watch.t0_ns is None:
        watch.faults.append("the pipeline never began")
    return watch


def _look(process: psutil.Process) -> tuple[float, int, int]:
    with process.oneshot():
        return process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()


def match(script: Script, labels: Sequence[latency.Label], times: int) -> latency.Matching:
    """As latency.match, with the script ``times`` over."""
    length_ns = round(script.length_s * 1e9)
    of: list[list[latency.Label]] = [[] for _ in range(times)]
    found = latency.Matching()
    for label in labels:
        time = int((label.emotion.start_s + label.emotion.end_s) / 2 // script.length_s)
        (of[time] if time < times else found.unexpected).append(label)
    for i, chosen in enumerate(of):
        shift = i * length_ns
        moved = [replace(u, start_ns=u.start_ns + shift, end_ns=u.end_ns + shift) for u in script.utterances]
        part = latency.match(moved, chosen)
        for name in ("pairs", "missed", "doubled", "unexpected"):
            getattr(found, name).extend(getattr(part, name))
    return found


def drift(beats: Mapping[str, Sequence[Health]], t0_ns: int, fps: float) -> Series:
    """Sound − picture in milliseconds, at each heartbeat of the sound; by steps of the picture's frames."""
    ahead = {}
    counted = (("audio", "chunks", BLOCK / RATE_HZ), ("video", "frames", 1 / fps))
    for medium, counter, each_s in counted:
        of = [b for b in beats.get(f"{medium}.{STREAM}", []) if b.state == "running" and b.counters.get(counter)]
        passed = [(beat.sent_ns - t0_ns) / 1e9 for beat in of]
        ahead[medium] = passed, [b.counters[counter] * each_s - s for b, s in zip(of, passed, strict=True)]
    (times_s, sound), (picture_s, picture) = ahead["audio"], ahead["video"]
    if not times_s or not picture_s:
        return Series("drift", "sound − picture", [], [])
    apart = 1000 * (np.array(sound) - np.interp(times_s, picture_s, picture))
    return Series("drift", "sound − picture", times_s, apart.round(3).tolist())


def slope(series: Series, from_s: float) -> Slope | None:
    """Its Theil–Sen slope from ``from_s`` on, None of fewer than 10 values. A long series is taken as the medians of
    neighbours."""
    from scipy.stats import theilslopes

    quantity = QUANTITIES[series.quantity]
    kept = [(t, v) for t, v in zip(series.times_s, series.values, strict=True) if t >= from_s]
    if len(kept) < _FEWEST:
        return None
    blocks = np.array_split(np.array(kept), min(_POINTS, len(kept)))
    hours, values = np.array([np.median(block, axis=0) for block in blocks]).T / [[HOUR_S], [1.0]]
    found = theilslopes(values, hours, _CONFIDENCE)
    size = abs(found.slope) if quantity.both else found.slope
    tenth = max(1, len(kept) // 10)
    first, last = (float(np.median([v for _, v in part])) for part in (kept[:tenth], kept[-tenth:]))
    low, high = float(found.low_slope), float(found.high_slope)
    flat = bool(low <= 0 <= high or size < quantity.bound)
    return Slope(len(kept), first, last, float(found.slope), low, high, flat)


def alive(beats: Mapping[str, Sequence[Health]], t0_ns: int, length_s: float) -> dict[str, float]:
    """Seconds of the longest silence of each node between go and the script's end."""
    end_ns = t0_ns + int(length_s * 1e9)
    found = {}
    for node in NODES:
        sent = [t0_ns, *sorted(b.sent_ns for b in beats.get(node, []) if t0_ns < b.sent_ns < end_ns), end_ns]
        found[node] = round(max(b - a for a, b in itertools.pairwise(sent)) / 1e9, 3)
    return found


def judge(script: Script, times: int, watch: Watch, warm_up_s: float, quick: bool) -> tuple[dict, list[str]]:
    """Figures and faults; ``quick``: slopes are no faults, only a rise of file descriptors is."""
    faults = list(watch.faults)
    if watch.t0_ns is None:
        return {}, faults
    length_s = times * script.length_s
    found = match(script, watch.labels, times)
    for what, utterances in (("missed", found.missed), ("doubled", found.doubled)):
        faults += [f"{what}: {u.name}, {u.start_ns / 1e9:.2f} to {u.end_ns / 1e9:.2f} s" for u in utterances]
    faults += [f"unexpected label: {one.emotion.start_s:.2f} s" for one in found.unexpected]
    lost = latency.losses(beats[-1] for beats in watch.beats.values() if beats)
    faults += [f"lost: {node} {count}" for node, count in lost.items()]
    again = restarted(watch.beats)
    faults += [f"{node} was started again, since it crashed or gave no sign of life" for node in again]
    silent = alive(watch.beats, watch.t0_ns, length_s)
    faults += [f"{node} was silent for {s:.1f} s" for node, s in silent.items() if s > _SILENT_S]
    series = [
        Series(quantity, name, [s[0] for s in of], [s[i] for s in of])
        for i, quantity in enumerate(("memory", "descriptors", "threads"), 1)
        for name, of in watch.samples.items()
    ]
    ends, waits, offs = [], [], []
    for utterance, label in found.pairs:
        try:
            parts = latency.parts(utterance, label, watch.t0_ns)
        except ValueError as error:
            faults.append(f"{utterance.name}, {utterance.start_ns / 1e9:.2f} s: {error}")
        else:
            ends.append(utterance.end_ns / 1e9)
            waits.append(parts["total"] - sum(parts[name] for name in latency.SPANS[CONFIRMED]))
            offs.append(parts["vad"])
    series.append(Series("latency", CONFIRMED, ends, waits))
    series += [drift(watch.beats, watch.t0_ns, Config().video.fps), Series("drift", "sound − script", ends, offs)]
    slopes = []
    for one in series:
        of = slope(one, warm_up_s)
        judged = not quick or one.quantity == "descriptors"
        slopes.append({"quantity": one.quantity, "what": one.what, "judged": judged} | (asdict(of) if of else {}))
        if of is None and judged:
            faults.append(f"{one.quantity}, {one.what}: fewer than {_FEWEST} values after the warm-up")
        elif of is not None and judged and (of.last - of.first > 1 if quick else not of.flat):
            faults.append(f"{one.quantity}, {one.what}: {of.first:.1f} to {of.last:.1f}, {of.slope:+.2f} an hour")
    figures = {
        "minutes": round(length_s / 60, 2),
        "warm_up_s": warm_up_s,
        "utterances": times * len(script.utterances),
        "labels": len(watch.labels),
        "missed": len(found.missed),
        "doubled": len(found.doubled),
        "unexpected": len(found.unexpected),
        "lost": lost,
        "started_again": again,
        "longest_silence_s": silent,
        "slopes": slopes,
        "series": [asdict(one) for one in [*series, *_lost(watch)]],
    }
    if waits:
        figures[CONFIRMED] = common.percentiles(waits)
    return figures, faults


def _lost(watch: Watch) -> list[Series]:
    """What each node has dropped or missed so far, for the plot."""
    return [
        Series(
            "lost",
            node,
            [(beat.sent_ns - (watch.t0_ns or 0)) / 1e9 for beat in of],
            [sum(latency.losses([beat]).values()) for beat in of],
        )
        for node, of in ((node, [b for b in of if b.state == "running"]) for node, of in watch.beats.items())
    ]


def tables(figures: Mapping) -> str:
    """What was lost, and the slopes."""
    if not figures:
        return "Nothing was measured."
    lost = ", ".join(f"{node} {count}" for node, count in figures["lost"].items()) or "nothing"
    quiet = max(figures["longest_silence_s"].items(), key=lambda of: of[1])
    rows = []
    for of in figures["slopes"]:
        quantity = QUANTITIES[of["quantity"]]
        name = f"{of['quantity']}, {of['what']}" + (f" ({quantity.unit})" if quantity.unit else "")
        if "slope" not in of:
            rows.append([name, *[""] * 5, "too few values"])
            continue
        verdict = ("flat" if of["flat"] else "NOT flat") if of["judged"] else "not judged"
        interval = f"{of['low']:+.2f} … {of['high']:+.2f}"
        rows.append([name, of["first"], of["last"], f"{of['slope']:+.2f}", interval, f"{quantity.bound:g}", verdict])
    head = ["", "at first", "at last", "an hour", "99 % interval", "bound", "verdict"]
    text = [
        f"{figures['minutes']:g} minutes: {figures['utterances']} utterances, {figures['labels']} labels, "
        f"{figures['missed']} missed, {figures['doubled']} doubled, {figures['unexpected']} unexpected; lost: {lost}; "
        f"started again: {', '.join(figures['started_again']) or 'none'}; "
        f"longest silence between heartbeats: {quiet[1]:.1f} s ({quiet[0]}).",
        "",
    ]
    if told := figures.get(CONFIRMED):
        text += [f"{CONFIRMED}: p50 {told['p50']:.1f} ms, p99 {told['p99']:.1f} ms, max {told['max']:.1f} ms.", ""]
    text += [f"Change an hour after {figures['warm_up_s']:.0f} s of warm-up (Theil–Sen):", ""]
    return "\n".join([*text, common.table(head, rows)])


def plot(path: Path, figures: Mapping) -> None:
    """Each quantity over time, a line for each process; memory as its change since the warm-up."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files on any machine, with no display
    import matplotlib.pyplot as plt

    titles = {
        "memory": "resident memory, change since the warm-up, MiB", "descriptors": "open file descriptors",
        "threads": "threads", "latency": f"{CONFIRMED}, ms", "drift": "drift, ms", "lost": "dropped or missed, in all",
    }  # fmt: skip
    colours = dict(zip((*NODES, "supervisor"), ("#56B4E9", "#E69F00", "#0072B2", "#009E73", "0.2"), strict=True))
    colours |= {CONFIRMED: "#0072B2", "sound − picture": "#E69F00", "sound − script": "#0072B2"}
    style: dict = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "savefig.facecolor": "white", "legend.frameon": False, "legend.fontsize": 8,
    }  # fmt: skip
    warm_s = figures["warm_up_s"]
    with plt.rc_context(style):
        figure, grid = plt.subplots(2, 3, figsize=(12.5, 6), sharex=True, layout="constrained")
        for axes, (quantity, title) in zip(grid.flat, titles.items(), strict=True):
            for of in (one for one in figures["series"] if one["quantity"] == quantity and one["values"]):
                times, values = np.array(of["times_s"]), np.array(of["values"], float)
                if quantity == "memory" and (times >= warm_s).any():
                    values -= values[times >= warm_s][0]
                dots = quantity in ("latency", "drift")
                look = {"marker": ".", "linestyle": "", "markersize": 4} if dots else {"linewidth": 1.2}
                axes.plot(times / 60, values, color=colours[of["what"]], label=of["what"], **look)
            axes.axvspan(0, warm_s / 60, color="0.94", zorder=0)
            axes.set_title(title, loc="left", fontsize=9.5)
            axes.grid(axis="y", color="0.92")
            if quantity in ("latency", "descriptors", "threads", "lost"):
                top = max(1.0, axes.get_ylim()[1])
                axes.set_ylim(-0.03 * top, top)
            if quantity in ("memory", "drift"):
                axes.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none")
        grid[0, 0].set_xlim(0, figures["minutes"])
        for axes in grid[-1]:
            axes.set_xlabel("minutes since go (grey: warm-up)")
        figure.suptitle(f"{figures['minutes']:g} minutes of one stream", x=0.01, ha="left", fontsize=12)
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


BIAS = [
    "The sound is a file's, so its clock is the machine's own: the drift of a sound card's or a camera's clock is not "
    "in it, only what the pipeline itself adds.",
    "The same sentences and pictures over and over: memory that grows with what is new (words, faces) is not seen.",
    "Neighbouring samples of memory depend on each other, so the intervals are too narrow; the bounds make up for it.",
    "Resident memory counts pages that processes share in each of them.",
    "What other programs do on the machine is in the latencies.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--minutes", type=float, metavar="M", help="at least (default: 60; --quick: half of one)")
    given = parser.parse_args(arguments)
    if given.minutes is not None and given.minutes <= 0:
        parser.error("--minutes: give more than 0")

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    seconds = 60 * (given.minutes or (0.5 if given.quick else 60.0))
    every_s = 1.0 if given.quick else 5.0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns) as progress:
        script, times = make_loop(Path(folder), 5 if given.quick else 25, seconds)
        length_s = times * script.length_s
        task = progress.add_task(f"{length_s / 60:.1f} minutes", total=1.0)
        watch = play(Path(folder), length_s, every_s, lambda part: progress.update(task, completed=part))
        progress.update(task, completed=1.0)
    warm_up_s = round(length_s / 4 if given.quick else max(min(60.0, length_s / 4), length_s / 10), 1)
    figures, faults = judge(script, times, watch, warm_up_s, given.quick)
    settings = {
        "script": f"{len(script.utterances)} utterances in {script.length_s:.0f} s, {times} times",
        "recogniser": latency.SETTINGS["all"][1],
        "configuration": "defaults",
        "looked every": f"{every_s:g} s",
        "bounds an hour": "; ".join(f"{name} {q.bound:g} {q.unit}".strip() for name, q in QUANTITIES.items()),
        "quick": given.quick,
    }
    bias = [*BIAS]
    if given.quick:
        bias.insert(0, "A quick look: slopes of so short a run mean little. Only what was lost, file descriptors and "
                       "whether all processes stayed alive are judged.")  # fmt: skip
    result = common.Result("soak", settings, bias, figures, faults)
    return common.finish(given.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(main())
