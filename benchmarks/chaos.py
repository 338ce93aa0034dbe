"""Reliability: what a run loses when its processes are killed, stopped and suspended at random moments.

    python benchmarks/chaos.py [--minutes M | --hours H] [--seed N] [--docs FILE]

One ``emostream.run`` of the demo clip over and over, with sound, picture and words, at its own pace. Faults are
injected into its node processes one after another, in an order and at moments that the seed decides: SIGKILL, SIGTERM,
and SIGSTOP for 1, 5, 20 and 60 s, to the nodes of sound, picture, speech and fusion. The clip's true utterances are
those found by labelling it without faults. Each utterance of the run is then

    labelled    by a label that overlaps it by half
    told        without one, but within a time that a log line reports as away or dropped
    silent      without one, and nothing reported it: a fault of emostream
    doubled     labelled twice, or a number given twice: a fault
    wrong       labelled differently than without faults, although all of it was heard: a fault

A label is whole if it has all three modalities, sound and picture for .8 of its time. After each fault, the first
utterance that begins 2 s after its end is examined, unless the next fault comes before that is over. Recovery is the
time from a fault's end to the start of the last utterance before the first whole label, 0 if that is the next; it is
left out where another fault comes in between. Figures of one run are a line in RUNS beside the page
(``docs/chaos.jsonl``), whose table adds them up. Exit code 1 if anything was silent, doubled or wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import msgspec
import numpy as np
import psutil

from benchmarks import common
from emostream import Config, Emotion, Labeller, run
from emostream.commands import exit_code
from emostream.errors import ConfigError
from emostream.files import write_atomically
from emostream.stream.sources import DEMO

_BEGIN, _END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
NODES = ("audio.chaos", "video.chaos", "speech.chaos", "fusion")
FAULTS = ("kill", "term", "stop 1", "stop 5", "stop 20", "stop 60")
_TOLD = re.compile(r"from (-?[\d.]+) to (-?[\d.]+) s")
RUNS = "chaos.jsonl"
COUNTS = ("in", "labelled", "told", "silent", "doubled", "wrong")
_WAIT_S = 1.0  # from an utterance's end until its label is out
_WHOLE = 0.8  # coverage from which a modality counts as present


@dataclass(frozen=True)
class Injected:
    """A fault: which one, to which node, and when (seconds since the run's media began)."""

    fault: str
    node: str
    at_s: float


@dataclass
class Seen:
    """What a run published and logged."""

    labels: list[Emotion] = field(default_factory=list)
    told: list[tuple[float, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    injected: list[Injected] = field(default_factory=list)


class After(msgspec.Struct):
    """What followed a kind of fault. ``injected``: how many; ``asked``: after how many of them the next utterance could
    be examined; ``whole``: how many of these were whole; ``recovery_s``: seconds, one for each."""

    injected: int = 0
    asked: int = 0
    whole: int = 0
    recovery_s: list[float] = []


class Outcome(msgspec.Struct):
    """The figures of a run; those of several add up."""

    date: str
    cpu: str
    minutes: float
    seed: int = 0
    counts: dict[str, int] = {}
    after: dict[str, After] = {}


def looped(path: Path, seconds: float) -> tuple[Path, float]:
    """The demo clip repeated for at least this long, without coding it again; and the length of one turn."""
    offset_s = turn_s = 0.0
    with av.open(str(path), "w") as out:
        tracks: dict[int, av.stream.Stream] = {}
        while offset_s < seconds:
            with av.open(str(DEMO)) as clip:
                streams = (*clip.streams.video, *clip.streams.audio)
                tracks = tracks or {t.index: out.add_stream_from_template(t) for t in streams}
                turn_s = (clip.duration or 0) / av.time_base + 0.2  # packets of a track may begin before 0
                for packet in clip.demux(*streams):
                    if packet.dts is None or packet.pts is None or packet.time_base is None:
                        continue
                    shift = round((offset_s + 0.2) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = tracks[packet.stream.index]
                    out.mux(packet)
            offset_s += turn_s
    return path, turn_s


def disturb(seen: Seen, begun: threading.Event, over: threading.Event, length_s: float, seed: int) -> None:
    """Inject faults until the file is nearly over."""
    rng = random.Random(seed)
    begun.wait()
    t0 = time.monotonic()
    plan: list[tuple[str, str]] = []
    while not over.wait(rng.uniform(9, 15)):
        at_s = time.monotonic() - t0
        if at_s > length_s - 30:
            return
        if not plan:
            plan = [(fault, node) for fault in FAULTS for node in NODES]
            rng.shuffle(plan)
        fault, node = plan.pop()
        process = _process(node)
        if process is None:
            continue  # the last fault's victim is not back yet
        seen.injected.append(Injected(fault, node, at_s))
        kind, _, seconds = fault.partition(" ")
        if kind == "stop":
            process.suspend()
            over.wait(float(seconds))
            if process.is_running():
                process.resume()
        else:
            process.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)


def _process(node: str) -> psutil.Process | None:
    for child in psutil.Process().children():
        try:
            if node in child.environ().get("EMOSTREAM_NODE", "").split() and child.status() != "zombie":
                return child
        except psutil.Error:
            continue
    return None


def measure(path: Path, length_s: float, seed: int) -> Seen:
    """Run the file at its own pace while faults are injected."""
    seen, begun, over = Seen(), threading.Event(), threading.Event()

    def on_emotion(emotion: Emotion) -> None:
        if emotion.kind == "utterance":
            seen.labels.append(emotion)

    def on_log(node: str, level: str, text: str) -> None:
        if level in ("warning", "error"):
            seen.lines.append(f"{node}: {text}")
            if match := _TOLD.search(text):
                seen.told.append((float(match[1]), float(match[2])))

    injector = threading.Thread(target=disturb, args=(seen, begun, over, length_s, seed), daemon=True)
    injector.start()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            streams=[{"name": "chaos", "source": f"file:{path}"}],
            bus={"emotion": f"ipc://{folder}/bus"},
            supervisor={"failures": 1000},  # faults come faster here than a policy would allow
        )
        run(
            config, on_emotion=on_emotion, on_log=on_log,
            on_health=lambda health: begun.set() if health.node == "fusion" and health.state == "running" else None,
        )  # fmt: skip
    over.set()
    injector.join()
    return seen


def judge(seen: Seen, clip: list[Emotion], turn_s: float, length_s: float) -> tuple[Outcome, list[str]]:
    """Figures, and the faults of emostream."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    utterances: list[tuple[float, float, bool]] = []  # start, end, and whether its label had all modalities
    turns = int(length_s // turn_s)
    for turn in range(turns):
        for truth in clip:
            start_s, end_s = truth.start_s + turn * turn_s, truth.end_s + turn * turn_s
            matching = [
                label for label in seen.labels
                if min(end_s, label.end_s) - max(start_s, label.start_s) > 0.5 * (end_s - start_s)
            ]  # fmt: skip
            counts["in"] += 1
            told = any(a < end_s + 0.5 and b > start_s - 0.5 for a, b in seen.told)
            if not matching:
                counts["told" if told else "silent"] += 1
                if not told:
                    faults.append(f"the utterance at {start_s:.1f} s has no label, and nothing was said of it")
                utterances.append((start_s, end_s, False))
                continue
            counts["labelled"] += 1
            if len(matching) > 1:
                counts["doubled"] += 1
                faults.append(f"the utterance at {start_s:.1f} s has {len(matching)} labels")
            label = matching[0]
            whole = all(label.modalities[m].coverage > _WHOLE for m in ("audio", "video")) and bool(label.text)
            utterances.append((start_s, end_s, whole))
            if whole and not told and label.label != truth.label:
                counts["wrong"] += 1
                faults.append(f"the utterance at {start_s:.1f} s is {label.label}, undisturbed it is {truth.label}")
    ids = [(label.stream, label.utterance) for label in seen.labels]
    if len(set(ids)) < len(ids):
        counts["doubled"] += len(ids) - len(set(ids))
        faults.append("numbers of utterances came twice")
    outcome = Outcome(date=time.strftime("%Y-%m-%d"), cpu=str(common.machine()["cpu"]), minutes=round(length_s / 60, 1))
    outcome.counts = {count: counts[count] for count in COUNTS}
    outcome.after = _recovery(seen.injected, utterances)
    return outcome, faults


def _recovery(injected: list[Injected], utterances: list[tuple[float, float, bool]]) -> dict[str, After]:
    """By fault: how often it came, whether the first utterance that begins 2 s after its end is whole, and the recovery
    times in seconds. ``utterances``: start and end in seconds, and whether the label is whole."""
    by_fault = {fault: After() for fault in FAULTS}
    for i, one in enumerate(injected):
        after = by_fault[one.fault]
        after.injected += 1
        end_s = one.at_s + float(one.fault.partition(" ")[2] or 0)
        next_fault_s = injected[i + 1].at_s if i + 1 < len(injected) else float("inf")
        later = [(start, whole) for start, end, whole in utterances if start > end_s and end + _WAIT_S < next_fault_s]
        due = [whole for start, whole in later if start > end_s + 2]
        if not due:
            continue
        after.asked += 1
        after.whole += due[0]
        first = next((k for k, (_, whole) in enumerate(later) if whole), None)
        if first is not None:
            after.recovery_s.append(round(later[first - 1][0] - end_s, 2) if first else 0.0)
    return by_fault


def into_page(text: str, runs: Sequence[Outcome], faults: Sequence[str]) -> str:
    """docs/reliability.md with the sums of all runs between its marks. Raises ConfigError if it has none."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ConfigError(f"the page lacks {_BEGIN} and {_END}")
    sums = Counter[str]()
    for outcome in runs:
        sums.update(outcome.counts)
    figures = [("runs", len(runs)), ("minutes", round(sum(outcome.minutes for outcome in runs), 1))]
    figures += [(count, sums[count]) for count in COUNTS]
    rows = [_row(fault, [outcome.after[fault] for outcome in runs if fault in outcome.after]) for fault in FAULTS]
    rows.append(_row("all", [one for outcome in runs for one in outcome.after.values()]))
    heads = ("fault", "injected", "next utterance whole", "recovery s, p50", "recovery s, max")
    shown = "\n\n" + "\n".join(f"- {fault}" for fault in faults) if faults else " none."
    tables = f"{common.table(('what', 'figure'), figures)}\n\n{common.table(heads, rows)}"
    cpus = " and ".join(dict.fromkeys(outcome.cpu for outcome in runs))
    return f"{before}{begin}\nOn {cpus}.\n\n{tables}\n\nFaults of emostream that it showed:{shown}\n{end}{after}"


def _row(name: str, parts: Sequence[After]) -> tuple[object, ...]:
    recovery = [seconds for part in parts for seconds in part.recovery_s]
    return (
        name, sum(part.injected for part in parts),
        f"{sum(part.whole for part in parts)} of {sum(part.asked for part in parts)}",
        round(float(np.median(recovery)), 2) if recovery else "–", max(recovery) if recovery else "–",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=30, help="(default: %(default)s)")
    length.add_argument("--hours", type=float)
    parser.add_argument("--seed", type=int, help="(default: another one each time)")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="add the figures to this Markdown page as well")
    options = parser.parse_args(arguments)
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    seconds = options.hours * 3600 if options.hours else options.minutes * 60
    with tempfile.TemporaryDirectory() as folder, Labeller() as labeller:
        path, turn_s = looped(Path(folder) / "loop.mkv", seconds)
        once, _ = looped(Path(folder) / "once.mkv", 1)
        clip = list(labeller.label(once))
        length_s = int(seconds // turn_s + 1) * turn_s
        seen = measure(path, length_s, seed)
        outcome, faults = judge(seen, clip, turn_s, length_s)
    outcome.seed = seed
    line = msgspec.json.encode(outcome).decode()
    print(msgspec.json.format(line))
    print("\n".join(faults) or "no fault of emostream")
    if os.environ.get("CHAOS_LINES"):
        print("\n".join([*map(str, seen.injected), *seen.lines]), file=sys.stderr)
    if options.docs:
        earlier = (options.docs.parent / RUNS).read_text().splitlines() if (options.docs.parent / RUNS).exists() else []
        lines = [*earlier, line]
        write_atomically(options.docs.parent / RUNS, "\n".join(lines) + "\n")
        runs = [msgspec.json.decode(each, type=Outcome) for each in lines]
        write_atomically(options.docs, into_page(options.docs.read_text(), runs, faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
