"""Start-up: from the command to the first label, by part.

    python benchmarks/startup.py [--quick]

Starts ``stream-run`` on the demo clip, in real time, with default settings, and notes when its supervisor is up, when
each node's process starts and is ready, when the run begins ("go") and when the first estimate and label reach a
subscriber. Warm runs follow a run that is discarded; before a cold run, the system is asked to forget the contents of
all files of Python, its packages and emostream (posix_fadvise, no root needed). What each process does before it is
ready (imports, loading) is then timed on its own, and imports are listed by package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import psutil

from benchmarks import common
from benchmarks.live_run import LiveRun, environment
from benchmarks.script import LEAD_IN_S, RATE_HZ, demo_segments
from emostream.commands import exit_code
from emostream.stream.emotion import Emotion
from emostream.stream.messages import Control, Health

AIM_MS = 4000.0  # goal: all nodes ready, warm
TOP = 10
NODES = ("audio.demo", "speech.demo", "video.demo", "fusion")
MILESTONES = ("supervisor up", "all processes started", "all nodes ready", "go", "first estimate", "first label")
DISK = "MiB read from disk"
_GIVE_UP_S = 60.0

# What each process imports, and then loads, before it can be ready. A node imports the command too: that is how
# multiprocessing's "spawn" finds its main function.
_NODE = "import emostream.stream.run_command, emostream.stream.nodes.process"
_FILE = "from emostream.stream.sources.file import FileSource; from emostream.stream.sources import DEMO"
WORK = {
    "supervisor": (
        "from emostream.stream import plan, run_command, summary, supervisor, view; "
        "import emostream.stream.sources.file",
        "from pathlib import Path; from emostream.stream.clock import SystemClock; "
        "from emostream.stream.config import load_config; config = load_config(None, ['bus.emotion=ipc://ENDPOINT']); "
        "emostream.stream.plan.make_plan(config, Path('.'), SystemClock())",
    ),
    "audio.demo": (
        f"{_NODE}, emostream.stream.nodes.capture, emostream.stream.cores.audio; {_FILE}",
        "FileSource(DEMO, frozenset({'audio'}), 10).open()",
    ),
    "speech.demo": (
        f"{_NODE}, emostream.stream.nodes.speech; from emostream.stream.config import Config",
        "emostream.stream.nodes.speech.load_vad(); emostream.stream.nodes.speech.make_recognizer(Config().speech)",
    ),
    "video.demo": (
        f"{_NODE}, emostream.stream.nodes.capture, emostream.stream.cores.video; {_FILE}; "
        "from emostream.stream.config import Config",
        "FileSource(DEMO, frozenset({'video'}), 10).open(); emostream.stream.cores.video.make_detector(Config().video)",
    ),
    "fusion": (
        f"{_NODE}, emostream.stream.nodes.fusion, emostream.stream.cores.classifier; "
        "from emostream.engines.bundle import open_bundle",
        "emostream.stream.cores.classifier.Classifier(open_bundle('ekman7')).warm_up()",
    ),
}

BIAS = [
    "When a process started is known in steps of 10 ms (the kernel's clock ticks).",
    "The processes start together and share the cores, so each takes longer in a run than alone.",
    "Imports by package are from python -X importtime, which makes imports a little slower.",
    "Cold: the system forgets file contents, but not directory entries, nor libraries that other running programs use; "
    "after a reboot a start takes longer. The disk reads of a run show how cold it was.",
    "The first label waits for the demo clip's first sentence to end, {end:.2f} s after go, and for the endpoint.",
]


def measure(to_label: bool) -> tuple[dict[str, float], list[str]]:
    """One run: milliseconds from the command to each milestone and to each node's start and readiness, and MiB read
    from disk; and faults. ``to_label``: wait for the first label, not just for ``go``."""
    times: dict[str, float] = {}
    ready: dict[str, float] = {}
    with LiveRun(["--quiet"], NODES) as live:

        def ms(when_ns: int) -> float:
            return round((when_ns - live.started_ns) / 1e6, 1)

        interrupted = False
        for seen in live.observed():
            if live.clock.now_ns() - live.started_ns > _GIVE_UP_S * 1e9:
                return times, [f"it had not ended after {_GIVE_UP_S:g} s"]
            if seen is None:
                continue
            match seen.message:
                case None:
                    times["supervisor up"] = ms(seen.received_ns)
                case Health(state="ready" | "running") as health:
                    ready.setdefault(health.node, ms(health.sent_ns))
                case Control(command="go") as control if "go" not in times:
                    times["go"] = ms(control.at_ns)
                    times |= _processes(live)
                case Emotion() as emotion:
                    kind = "first label" if emotion.kind == "utterance" else "first estimate"
                    times.setdefault(kind, ms(seen.received_ns))
            if not interrupted and ("first label" if to_label else "go") in times:
                interrupted = True
                live.interrupt()
        faults = live.faults()
    if missing := [name for name in NODES if ready.get(name, float("inf")) > times.get("go", 0)]:
        faults.append(f"not ready before go, by their heartbeats: {', '.join(missing)}")
    else:
        times |= {f"{name} ready": when for name, when in ready.items()}
        times["all nodes ready"] = max(ready.values())
    if absent := [name for name in (MILESTONES if to_label else MILESTONES[:4]) if name not in times]:
        faults.append(f"never seen: {', '.join(absent)}")
    return times, faults


def _processes(live: LiveRun) -> dict[str, float]:
    """When the nodes' processes started, and how much all processes have read from disk so far."""
    begun_s = live.process.create_time()
    nodes = live.nodes()
    times = {f"{name} started": round((node.create_time() - begun_s) * 1000, 1) for node, name in nodes.items()}
    times["all processes started"] = max(times.values(), default=0.0)
    if psutil.LINUX:
        read = sum(process.io_counters().read_bytes for process in (*nodes, live.process))
        times[DISK] = round(read / 2**20, 1)
    return times


def forget_files() -> None:
    """Ask the system to forget the contents of the files that a start reads."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for folder in (*folders, *(common.ROOT / name for name in ("emostream", "stream", "engines"))):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alone(name: str) -> dict[str, float]:
    """Milliseconds that a process needs for importing and for loading, when nothing else runs."""
    imports, loads = WORK[name]
    code = (
        "import time; a = time.perf_counter()\n"
        f"{imports}\nb = time.perf_counter()\n{loads}\nc = time.perf_counter()\nprint((b - a) * 1000, (c - b) * 1000)"
    )
    importing, loading = map(float, _python("-c", code).stdout.split()[-2:])
    return {"imports": round(importing, 1), "loading": round(loading, 1)}


def imports_by_package(name: str) -> dict[str, float]:
    """Milliseconds that each package takes to import, for all that a process imports until it is ready."""
    return parse_importtime(_python("-X", "importtime", "-c", "\n".join(WORK[name])).stderr)


def parse_importtime(text: str) -> dict[str, float]:
    """The sum of each top-level package's own import times in milliseconds, longest first."""
    spent: Counter[str] = Counter()
    for line in text.splitlines():
        if match := re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
            spent[match[2].partition(".")[0]] += int(match[1])
    return {name: round(us / 1000, 1) for name, us in spent.most_common()}


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="eb-") as folder:
        return subprocess.run(
            [sys.executable, *(argument.replace("ENDPOINT", f"{folder}/labels") for argument in arguments)],
            capture_output=True, text=True, check=True, env=environment(),
        )  # fmt: skip


def summarise(runs: Sequence[Mapping[str, float]]) -> common.Figures:
    """Percentiles of each time over the runs that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: common.percentiles([run[name] for run in runs if name in run]) for name in names}


def tables(figures: common.Figures) -> str:
    """Milestones, nodes and imports; times in milliseconds from the command."""
    kinds = [kind for kind in ("warm", "cold") if kind in figures]
    if "warm" not in kinds:
        return "Nothing was measured."
    header = [f"{kind} {column}" for kind in kinds for column in ("p50", "max")]
    rows = [
        [name, *(figures[kind].get(name, {}).get(column, "") for kind in kinds for column in ("p50", "max"))]
        for name in (*MILESTONES, DISK)
    ]
    counts = ", ".join(f"{figures[kind]['go']['n']} {kind}" for kind in kinds)
    met = "met" if figures["aim_met"] else "NOT met"
    text = [f"Milliseconds from the command; runs: {counts}. Aim: all nodes ready in {AIM_MS:.0f}, warm: {met}.", ""]
    text += [common.table(["", *header], rows), ""]
    text += ["By process (p50 of the warm runs; imports and loading when alone, best of 3):", ""]
    nodes = []
    for name, spent in figures["alone"].items():
        when = [figures["warm"].get(f"{name} {what}", {}).get("p50", "") for what in ("started", "ready")]
        nodes.append([name, *when, spent["imports"], spent["loading"]])
    text += [common.table(["", "started", "ready", "imports", "loading"], nodes), ""]
    text += [f"The {TOP} packages that take longest to import, own time in milliseconds:", ""]
    for name, packages in figures["imports"].items():
        text.append(f"- {name}: " + ", ".join(f"{package} {ms:.0f}" for package, ms in list(packages.items())[:TOP]))
    return "\n".join(text)


def plot(path: Path, figures: common.Figures) -> None:
    """When each process starts and is ready, warm; and how long it imports and loads when alone."""
    p50 = {name: times["p50"] / 1000 for name, times in figures["warm"].items()}
    spans = {"supervisor": (0.0, p50["supervisor up"], "0.25")}
    spans |= {name: (p50[f"{name} started"], p50[f"{name} ready"], common.BLUE) for name in NODES}
    spans["to first label"] = (p50["go"], p50["first label"], common.ORANGE)
    widths = {"gridspec_kw": {"width_ratios": [1.7, 1]}}
    with common.drawing(path, (11.5, 3.9), 1, 2, sharey=True, **widths) as (_, ((left, right),)):
        for i, (start, end, colour) in enumerate(spans.values()):
            left.barh(i, end - start, 0.6, left=start, color=colour)
            inside = i > 0  # the supervisor's bar is too short for a number
            left.annotate(
                f"{end:.2f}", (end, i), xytext=(-4 if inside else 4, 0), textcoords="offset points", va="center",
                ha="right" if inside else "left", color="white" if colour == common.BLUE else "black",
            )  # fmt: skip
        for when, text, line in ((p50["go"], "go", "-"), (AIM_MS / 1000, "aim: ready", ":")):
            left.axvline(when, color="0.4", linewidth=1, linestyle=line, zorder=0)
            left.annotate(text, (when, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color="0.3")
        left.set_yticks(range(len(spans)), list(spans))
        left.set_xlabel("seconds from the command (warm, p50)")
        for i, spent in enumerate(figures["alone"].values()):
            begun = 0.0
            for what, colour in (("imports", common.LIGHT_BLUE), ("loading", common.ORANGE)):
                right.barh(i, spent[what] / 1000, 0.6, left=begun, color=colour, label=None if i else what)
                begun += spent[what] / 1000
        right.set_xlabel("seconds, each process alone")
        right.legend(loc="lower right")
        left.invert_yaxis()
        for axes in (left, right):
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="0.92")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--runs", type=int, metavar="N", help="number of warm runs (default: 10; --quick: 2)")
    options = parser.parse_args(arguments)
    warm = options.runs or (2 if options.quick else 10)
    can_forget = hasattr(os, "posix_fadvise")
    cold = (1 if options.quick else 3) if can_forget else 0

    runs: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    faults: list[str] = []
    spent: dict[str, dict[str, float]] = {}
    packages: dict[str, dict[str, float]] = {}
    with common.progress_bars() as progress:
        task = progress.add_task("runs", total=1 + warm + cold)
        for kind in ["discarded", *["warm"] * warm, *["cold"] * cold]:
            if kind == "cold":
                forget_files()
            times, wrong = measure(to_label=kind == "warm")
            faults += [f"{kind}: {fault}" for fault in wrong]
            if kind in runs and not wrong:
                runs[kind].append(times)
            progress.advance(task)
        task = progress.add_task("processes alone", total=len(WORK))
        for name in WORK:
            packages[name] = imports_by_package(name)  # also makes the files warm again
            spent[name] = min((alone(name) for _ in range(3)), key=lambda parts: sum(parts.values()))
            progress.advance(task)

    figures: common.Figures = {}
    if runs["warm"]:
        figures = {kind: summarise(times) for kind, times in runs.items() if times}
        figures["aim_met"] = median(run["all nodes ready"] for run in runs["warm"]) <= AIM_MS
        figures |= {"alone": spent, "imports": packages, "each": runs}
    end_s = LEAD_IN_S + demo_segments()[0].end / RATE_HZ
    bias = [line.format(end=end_s) for line in BIAS]
    if not can_forget:
        bias.append("No cold runs: this system has no posix_fadvise.")
    settings = {"source": "demo", "configuration": "defaults", "warm": warm, "cold": cold, "quick": options.quick}
    result = common.Result("startup", settings, bias, figures, faults)
    return common.finish(options.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(exit_code(main))
