"""Start-up: from the command to the first label, by part.

    python benchmarks/startup.py [--quick]

Starts ``stream-run`` on the demo clip, in real time, with default settings, and notes when its supervisor is up, when
each node's process starts and is ready, when the run begins ("go") and when the first estimate and label reach a
subscriber. Warm runs follow a run that is thrown away; before a cold run, the system is asked to forget the contents
of all files of Python, its packages and emostream (posix_fadvise, no root needed). What each process does before it is
ready (imports, loading) is timed once more alone, and imports are listed by package.
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
from benchmarks.script import LEAD_IN_S, RATE_HZ, demo_segments
from emostream.stream.messages import Control, Emotion, Health

AIM_MS = 4000.0  # all nodes ready, warm
TOP = 10
NODES = ("audio.demo", "speech.demo", "video.demo", "fusion")
MILESTONES = ("supervisor up", "all processes started", "all nodes ready", "go", "first estimate", "first label")
DISK = "MiB read from disk"
_GIVE_UP_S = 60.0
_ROOT = Path(__file__).parent.parent

# What a process imports and then loads before it can be ready. A node imports the command as well: that is how
# multiprocessing's "spawn" gets at its main function.
_NODE = "import emostream.stream.cli, emostream.stream.nodes.runtime"
_FILE = "from emostream.stream.sources.file import FileSource; from emostream.stream.sources import DEMO"
WORK = {
    "supervisor": (
        "from emostream.stream import cli, summary, supervisor, view; import emostream.stream.sources.file",
        "from pathlib import Path; from emostream.stream.clock import SystemClock; "
        "from emostream.stream.config import load_config; config = load_config(None, ['bus.emotion=ipc://ENDPOINT']); "
        "emostream.stream.supervisor.make_plan(config, Path('.'), SystemClock())",
    ),
    "audio.demo": (
        f"{_NODE}, emostream.stream.nodes.capture, emostream.stream.cores.audio; {_FILE}",
        "FileSource(DEMO, frozenset({'audio'}), 10).open()",
    ),
    "speech.demo": (
        f"{_NODE}, emostream.stream.nodes.speech; from emostream.stream.config import Speech",
        "emostream.stream.nodes.speech.load_vad(); emostream.stream.nodes.speech.make_recognizer(Speech())",
    ),
    "video.demo": (
        f"{_NODE}, emostream.stream.nodes.capture, emostream.stream.cores.video; {_FILE}; "
        "from emostream.stream.config import Video",
        "FileSource(DEMO, frozenset({'video'}), 10).open(); emostream.stream.cores.video.make_detector(Video())",
    ),
    "fusion": (
        f"{_NODE}, emostream.stream.nodes.fusion; from emostream.engines.bundle import open_bundle",
        "emostream.stream.nodes.fusion.Classifier(open_bundle('ekman7')).warm_up()",
    ),
}

BIAS = [
    "The starts of processes are in steps of 10 ms (the kernel's clock ticks).",
    "The processes start at once and share the cores, so in a run each takes longer than alone.",
    "Imports by package are from python -X importtime, which makes imports a little slower.",
    "Cold: file contents are forgotten, but not directory entries, nor libraries that other running programs use; "
    "after a reboot it takes longer. The disk reads of a run show how cold it was.",
    "The first label waits for the demo clip's first sentence to end, {end:.2f} s after go, and for the endpoint.",
]


def measure(to_label: bool) -> tuple[dict[str, float], list[str]]:
    """One run: milliseconds from the command to each milestone and to each node's start and readiness, MiB read from
    disk; and faults. ``to_label``: wait for the first label, not just for ``go``."""
    at: dict[str, float] = {}
    ready: dict[str, float] = {}
    faults: list[str] = []
    with common.LiveRun(["--quiet"], NODES) as live:

        def ms(when_ns: int) -> float:
            return round((when_ns - live.started_ns) / 1e6, 1)

        interrupted = False
        for seen in live.seen():
            if live.clock.now_ns() - live.started_ns > _GIVE_UP_S * 1e9:
                return at, [f"it had not ended after {_GIVE_UP_S:g} s"]
            if seen is None:
                continue
            match seen.what:
                case None:
                    at["supervisor up"] = ms(seen.received_ns)
                case Health(state="ready" | "running") as health:
                    ready.setdefault(health.node, ms(health.sent_ns))
                case Control(command="go") as control if "go" not in at:
                    at["go"] = ms(control.at_ns)
                    at |= _processes(live)
                case Emotion() as emotion:
                    kind = "first label" if emotion.kind == "utterance" else "first estimate"
                    at.setdefault(kind, ms(seen.received_ns))
            if not interrupted and ("first label" if to_label else "go") in at:
                interrupted = True
                live.interrupt()
        faults += live.faults()
    if missing := [name for name in NODES if ready.get(name, float("inf")) > at.get("go", 0)]:
        faults.append(f"not heard to be ready before go: {', '.join(missing)}")
    else:
        at |= {f"{name} ready": when for name, when in ready.items()}
        at["all nodes ready"] = max(ready.values())
    if absent := [name for name in (MILESTONES if to_label else MILESTONES[:4]) if name not in at]:
        faults.append(f"never seen: {', '.join(absent)}")
    return at, faults


def _processes(live: common.LiveRun) -> dict[str, float]:
    """When the nodes' processes started, and what all have read from disk by now."""
    begun_s = live.process.create_time()
    nodes = live.nodes()
    at = {f"{name} started": round((node.create_time() - begun_s) * 1000, 1) for node, name in nodes.items()}
    at["all processes started"] = max(at.values(), default=0.0)
    if psutil.LINUX:
        read = sum(process.io_counters().read_bytes for process in (*nodes, live.process))
        at[DISK] = round(read / 2**20, 1)
    return at


def forget_files() -> None:
    """Ask the system to forget the contents of the files that a start reads."""
    folders = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for folder in (*folders, _ROOT / "stream", _ROOT / "engines"):
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alone(name: str) -> dict[str, float]:
    """Milliseconds that importing and loading take in a process of its own."""
    imports, loads = WORK[name]
    code = (
        "import time; a = time.perf_counter()\n"
        f"{imports}\nb = time.perf_counter()\n{loads}\nc = time.perf_counter()\nprint((b - a) * 1000, (c - b) * 1000)"
    )
    importing, loading = map(float, _python("-c", code).stdout.split()[-2:])
    return {"imports": round(importing, 1), "loading": round(loading, 1)}


def imports_by_package(name: str) -> dict[str, float]:
    """Milliseconds of import by package, of all that the process imports until it is ready."""
    return parse_importtime(_python("-X", "importtime", "-c", "\n".join(WORK[name])).stderr)


def parse_importtime(text: str) -> dict[str, float]:
    """Sum of each top-level package's own import times in milliseconds, longest first."""
    spent: Counter[str] = Counter()
    for line in text.splitlines():
        if match := re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
            spent[match[2].partition(".")[0]] += int(match[1])
    return {name: round(us / 1000, 1) for name, us in spent.most_common()}


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="eb-") as folder:
        return subprocess.run(
            [sys.executable, *(argument.replace("ENDPOINT", f"{folder}/labels") for argument in arguments)],
            capture_output=True, text=True, check=True, env=common.environment(),
        )  # fmt: skip


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Percentiles of each time over the runs that had it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: common.percentiles([run[name] for run in runs if name in run]) for name in names}


def tables(figures: Mapping[str, dict]) -> str:
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
    text += ["By process (p50 of the warm runs; imports and loading alone, best of 3):", ""]
    nodes = []
    for name, spent in figures["alone"].items():
        when = [figures["warm"].get(f"{name} {what}", {}).get("p50", "") for what in ("started", "ready")]
        nodes.append([name, *when, spent["imports"], spent["loading"]])
    text += [common.table(["", "started", "ready", "imports", "loading"], nodes), ""]
    text += [f"Slowest imports by package, own time in milliseconds, the first {TOP}:", ""]
    for name, packages in figures["imports"].items():
        text.append(f"- {name}: " + ", ".join(f"{package} {ms:.0f}" for package, ms in list(packages.items())[:TOP]))
    return "\n".join(text)


def plot(path: Path, figures: Mapping[str, dict]) -> None:
    """When each process starts and is ready, warm; and what it does until then, alone."""
    import matplotlib

    matplotlib.use("Agg")  # draws into files on any machine, with no display
    import matplotlib.pyplot as plt

    blue, light, orange, dark = "#0072B2", "#56B4E9", "#E69F00", "0.25"
    style: dict = {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.axisbelow": True, "savefig.facecolor": "white", "legend.frameon": False,
    }  # fmt: skip
    p50 = {name: of["p50"] / 1000 for name, of in figures["warm"].items()}
    spans = {"supervisor": (0.0, p50["supervisor up"], dark)}
    spans |= {name: (p50[f"{name} started"], p50[f"{name} ready"], blue) for name in NODES}
    spans["to first label"] = (p50["go"], p50["first label"], orange)
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11.5, 3.9), sharey=True, layout="constrained", gridspec_kw={"width_ratios": [1.7, 1]}
        )
        for i, (start, end, colour) in enumerate(spans.values()):
            left.barh(i, end - start, 0.6, left=start, color=colour)
            inside = i > 0  # the supervisor's bar is too short for a number
            left.annotate(
                f"{end:.2f}", (end, i), xytext=(-4 if inside else 4, 0), textcoords="offset points", va="center",
                ha="right" if inside else "left", color="white" if colour == blue else "black",
            )  # fmt: skip
        for when, text, line in ((p50["go"], "go", "-"), (AIM_MS / 1000, "aim: ready", ":")):
            left.axvline(when, color="0.4", linewidth=1, linestyle=line, zorder=0)
            left.annotate(text, (when, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color="0.3")
        left.set_yticks(range(len(spans)), list(spans))
        left.set_xlabel("seconds from the command (warm, p50)")
        for i, spent in enumerate(figures["alone"].values()):
            done = spent["imports"] / 1000
            right.barh(i, done, 0.6, color=light, label="imports" if i == 0 else None)
            right.barh(i, spent["loading"] / 1000, 0.6, left=done, color=orange, label="loading" if i == 0 else None)
        right.set_xlabel("seconds, each process alone")
        right.legend(loc="lower right")
        left.invert_yaxis()
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="0.92")
        figure.savefig(path, dpi=150, metadata={"Software": None})
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--runs", type=int, metavar="N", help="warm ones (default: 10; --quick: 2)")
    given = parser.parse_args(arguments)
    warm = given.runs or (2 if given.quick else 10)
    can_forget = hasattr(os, "posix_fadvise")
    cold = (1 if given.quick else 3) if can_forget else 0

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    runs: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    faults: list[str] = []
    spent: dict[str, dict[str, float]] = {}
    packages: dict[str, dict[str, float]] = {}
    with Progress(*columns) as progress:
        task = progress.add_task("runs", total=1 + warm + cold)
        for kind in ["thrown away", *["warm"] * warm, *["cold"] * cold]:
            if kind == "cold":
                forget_files()
            at, found = measure(to_label=kind == "warm")
            faults += [f"{kind}: {fault}" for fault in found]
            if kind in runs and not found:
                runs[kind].append(at)
            progress.advance(task)
        task = progress.add_task("processes alone", total=len(WORK))
        for name in WORK:
            packages[name] = imports_by_package(name)  # also makes the files warm again
            spent[name] = min((alone(name) for _ in range(3)), key=lambda of: sum(of.values()))
            progress.advance(task)

    figures: dict = {}
    if runs["warm"]:
        figures = {kind: summarise(of) for kind, of in runs.items() if of}
        figures["aim_met"] = median(run["all nodes ready"] for run in runs["warm"]) <= AIM_MS
        figures |= {"alone": spent, "imports": packages, "each": runs}
    end_s = LEAD_IN_S + demo_segments()[0].end / RATE_HZ
    bias = [line.format(end=end_s) for line in BIAS]
    if not can_forget:
        bias.append("No cold runs: this system has no posix_fadvise.")
    settings = {"source": "demo", "configuration": "defaults", "warm": warm, "cold": cold, "quick": given.quick}
    result = common.Result("startup", settings, bias, figures, faults)
    return common.finish(given.out, result, tables(figures), lambda path: plot(path, figures))


if __name__ == "__main__":
    sys.exit(main())
