"""``stream-engines compare``: the comparison as a table, as JSON and as a picture."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from emostream.engines.bundle import open_bundle
from emostream.engines.compare import ALONE_ROUNDS, REFERENCE, Comparison, Measured, compare, faults
from emostream.errors import ConfigError
from emostream.files import as_json, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare every backend that works here with ONNX Runtime: results, latency, memory, load time."
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="rounds to measure (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures into FILE")


def run(args: argparse.Namespace) -> int:
    """0: all agree. 1: a backend failed or its results differ. Raises BackendError if the reference does not run,
    ConfigError for wrong usage."""
    if args.runs < 1:
        raise ConfigError("--runs must be at least 1")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("comparing", total=1.0)
        comparison = compare(open_bundle(args.bundle), args.runs, lambda part: bar.update(task, completed=part))
    show(comparison, Console())
    if args.json:
        write_atomically(args.json, as_json(comparison))
    if args.plot:
        plot(comparison, args.plot)
    lines = faults(comparison)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return 1 if lines else 0


def show(comparison: Comparison, console: Console) -> None:
    """Print tables of latency, throughput, results and memory, then what is missing and how it was measured."""
    backends = list(comparison.measured.values())
    cases = list(backends[0].timings)

    def table(title: str, rows: dict[str, Callable[[Measured], str]]) -> None:
        grid = Table(Column(title), *(Column(backend.name, justify="right") for backend in backends))
        for name, cell in rows.items():
            grid.add_row(name, *(cell(backend) for backend in backends))
        console.print(grid)

    def latency(case: str) -> Callable[[Measured], str]:
        return lambda backend: f"{backend.timings[case].p50_ms:.2f} / {backend.timings[case].p99_ms:.2f}"

    def throughput(case: str) -> Callable[[Measured], str]:
        return lambda backend: f"{backend.timings[case].rows_per_s:,.0f}"

    table("one run, ms: p50 / p99", {case: latency(case) for case in cases})
    table("rows per second", {case: throughput(case) for case in cases})
    table(f"compared with {REFERENCE}", {
        "largest difference": lambda backend: f"{backend.difference:.1e}",
        "same label": lambda backend: f"{backend.agreement:.2%}",
    })  # fmt: skip
    table("alone in a process", {
        "load, s": lambda backend: f"{backend.alone.load_s:.2f}",
        "memory when loaded, MB": lambda backend: f"{backend.alone.loaded_mb:.0f}",
        "… after each case once": lambda backend: f"{backend.alone.used_mb:.0f}",
        "… at its peak": lambda backend: "?" if backend.alone.peak_mb is None else f"{backend.alone.peak_mb:.0f}",
        f"growth in {ALONE_ROUNDS} rounds, MB": lambda backend: f"{backend.alone.growth_mb:.0f}",
    })  # fmt: skip
    for backend, lacking in comparison.missing.items():
        console.print(f"not here: {backend}: {lacking}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{comparison.bundle}; {comparison.runs} rounds in which all backends take turns on the same random inputs, "
        f"{comparison.threads} thread each; lengths vary by a fifth; {comparison.machine}; "
        + ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def plot(comparison: Comparison, path: Path) -> None:
    """Draw the latency in each case and the memory of each backend into an image file."""
    from matplotlib.figure import Figure  # on use: the import is slow, and an edge device may lack it
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    backends = list(comparison.measured.values())
    cases = list(backends[0].timings)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's, safe for colour blindness
    figure = Figure(figsize=(9, 1.5 + 0.16 * len(cases) * (len(backends) + 1)), layout="constrained")
    times, memory = figure.subplots(1, 2, width_ratios=(2, 1))
    places, step = np.arange(len(cases)), 0.7 / len(backends)
    for number, (backend, colour) in enumerate(zip(backends, colours, strict=False)):
        y = places + (number - (len(backends) - 1) / 2) * step
        p50 = [backend.timings[case].p50_ms for case in cases]
        times.hlines(y, p50, [backend.timings[case].p99_ms for case in cases], color=colour, linewidth=2)
        times.plot(p50, y, "o", color=colour, markersize=5, label=backend.name)
        used, growth = backend.alone.used_mb, backend.alone.growth_mb
        memory.barh(number, used, 0.6, color=colour)
        memory.barh(number, max(0, growth), 0.6, left=used, color=colour, alpha=0.4)
    times.set_yticks(places, cases)
    times.set_xscale("log")
    times.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    times.xaxis.set_minor_formatter(NullFormatter())
    times.set_xlabel("ms for one run: median (dot) to 99th percentile")
    times.legend(frameon=False)
    memory.set_yticks(np.arange(len(backends)), [backend.name for backend in backends])
    memory.set_xlabel(f"MB added to a process;\npale: by {ALONE_ROUNDS} more rounds")
    for axes in (times, memory):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.9")
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix(".") or "png", dpi=150)
    write_atomically(path, picture.getvalue())
