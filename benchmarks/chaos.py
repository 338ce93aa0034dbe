"""Reliability: what a run loses when its processes are killed, stopped and suspended at random moments.

    python benchmarks/chaos.py [--minutes M] [--seed N] [--docs FILE]

One ``emostream.run`` of the demo clip over and over, with sound, picture and words, at its own pace. Faults are
injected into its node processes one after another, in an order and at moments that the seed decides: SIGKILL, SIGTERM,
and SIGSTOP for 1, 5, 20 and 60 s, to the nodes of sound, picture, speech and fusion. What the clip's utterances are is
known from labelling it undisturbed. Each utterance of the run is then

    labelled    by a label that overlaps it by half
    told        without one, but within a time that a log line names as away or dropped
    silent      without one, and nobody said so: a fault of emostream
    doubled     labelled twice, or a number given twice: a fault
    wrong       labelled otherwise than undisturbed, with all of it heard: a fault

A label is whole if it has all three modalities, sound and picture for .8 of its time. Recovery is the time from a
fault's end to the start of the last utterance before the first whole label, 0 if that is the next. Exit code 1 if
anything was silent, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import av
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
_WHOLE = 0.8  # coverage from which a modality counts as there


@dataclass(frozen=True)
class Injected:
    """A fault: what, to which node, and when (seconds since the run's media began)."""

    fault: str
    node: str
    at_s: float


@dataclass
class Seen:
    """What a run published and said."""

    labels: list[Emotion] = field(default_factory=list)
    told: list[tuple[float, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    injected: list[Injected] = field(default_factory=list)


def looped(path: Path, seconds: float) -> tuple[Path, float]:
    """The demo clip over and over, for at least so long, without coding it again; and the length of one turn."""
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
    while not over.wait(rng.uniform(5, 12)):
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
            if child.environ().get("EMOSTREAM_NODE") == node and child.status() != "zombie":
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


def judge(seen: Seen, clip: list[Emotion], turn_s: float, length_s: float) -> tuple[dict[str, object], list[str]]:
    """Figures, and what is a fault of emostream."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    whole_from: list[tuple[float, bool]] = []  # start of each utterance, and whether its label had all modalities
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
                whole_from.append((start_s, False))
                continue
            counts["labelled"] += 1
            if len(matching) > 1:
                counts["doubled"] += 1
                faults.append(f"the utterance at {start_s:.1f} s has {len(matching)} labels")
            label = matching[0]
            whole = all(label.modalities[m].coverage > _WHOLE for m in ("audio", "video")) and bool(label.text)
            whole_from.append((start_s, whole))
            if whole and not told and label.label != truth.label:
                counts["wrong"] += 1
                faults.append(f"the utterance at {start_s:.1f} s is {label.label}, undisturbed it is {truth.label}")
    ids = [(label.stream, label.utterance) for label in seen.labels]
    if len(set(ids)) < len(ids):
        counts["doubled"] += len(ids) - len(set(ids))
        faults.append("numbers of utterances came twice")
    after, recovery = _recovery(seen, whole_from)
    by_kind = Counter(injected.fault for injected in seen.injected)
    figures: dict[str, object] = {
        "minutes": round(length_s / 60, 1), "injected": len(seen.injected),
        **{f"injected, {k}": by_kind[k] for k in FAULTS},
        **{k: counts[k] for k in ("in", "labelled", "told", "silent", "doubled", "wrong")},
        "whole if begun 2 s after": f"{sum(after)} of {len(after)}",
        "recovery s, p50": round(float(np.median(recovery)), 2) if recovery else None,
        "recovery s, max": round(max(recovery), 2) if recovery else None,
    }  # fmt: skip
    return figures, faults


def _recovery(seen: Seen, utterances: list[tuple[float, bool]]) -> tuple[list[bool], list[float]]:
    """By fault: whether the first utterance that begins 2 s after its end is whole, and the time to recovery."""
    after, recovery = [], []
    for injected in seen.injected:
        _, _, seconds = injected.fault.partition(" ")
        end_s = injected.at_s + float(seconds or 0)
        later = [(start_s, whole) for start_s, whole in utterances if start_s > end_s]
        due = [whole for start_s, whole in later if start_s > end_s + 2]
        if not due:
            continue
        after.append(due[0])
        missed = [start_s for start_s, whole in later]
        first = next((k for k, (_, whole) in enumerate(later) if whole), None)
        if first is not None:
            recovery.append(0.0 if first == 0 else missed[first - 1] - end_s)
    return after, recovery


def into_page(text: str, figures: dict[str, object], faults: list[str]) -> str:
    """docs/reliability.md with these figures between its marks. Raises ConfigError if it has none."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ConfigError(f"the page lacks {_BEGIN} and {_END}")
    rows = common.table(("what", "figure"), list(figures.items()))
    shown = "\n\n" + "\n".join(f"- {fault}" for fault in faults) if faults else " none."
    summary = f"Faults of emostream that it showed:{shown}"
    return f"{before}{begin}\nOn {common.machine()['cpu']}.\n\n{rows}\n\n{summary}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the figures into this Markdown file as well")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, Labeller() as labeller:
        path, turn_s = looped(Path(folder) / "loop.mkv", options.minutes * 60)
        once, _ = looped(Path(folder) / "once.mkv", 1)
        clip = list(labeller.label(once))
        length_s = int(options.minutes * 60 // turn_s + 1) * turn_s
        seen = measure(path, length_s, options.seed)
        figures, faults = judge(seen, clip, turn_s, length_s)
    print(json.dumps({"figures": figures, "faults": faults}, indent=1))
    if os.environ.get("CHAOS_LINES"):
        print("\n".join([*map(str, seen.injected), *seen.lines]), file=sys.stderr)
    if options.docs:
        write_atomically(options.docs, into_page(options.docs.read_text(), figures, faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
