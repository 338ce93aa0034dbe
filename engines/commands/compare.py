"""``python -m engines compare``: the comparison as a table, as JSON and as a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from emostream.engines.bundle import open_bundle
from emostream.engines.compare import ALONE_ROUNDS, REFERENCE, Comparison, Measured, compare, faults
from emostream.errors import BackendError, BundleError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Hold every backend that works here against ONNX Runtime: results, latency, memory, load time."
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="rounds that are measured (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the figures into FILE")


def run(args: argparse.Namespace) -> int:
    """0: all agree. 1: one failed or its results differ, or it could not be measured. 2: wrong usage."""
    if args.runs < 1:
        print("error: --runs must be at least 1", file=sys.stderr)
        return 2
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("comparing", total=1.0)
            comparison = compare(open_bundle(args.bundle), args.runs, lambda part: bar.update(task, completed=part))
    except (BackendError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(comparison, Console())
    try:
        if args.json:
            args.json.write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
        if args.plot:
            plot(comparison, args.plot)
    except OSError as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        return 1
    found = faults(comparison)
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found else 0


def show(comparison: Comparison, console: Console) -> None:
    """Print tables of latency and of the rest, what is missing, and how all this was measured."""
    measured = list(comparison.measured.values())
    cases = list(measured[0].timings)

    def table(title: str, rows: dict[str, Callable[[Measured], str]]) -> None:
        made = Table(Column(title), *(Column(of.name, justify="right") for of in measured))
        for name, cell in rows.items():
            made.add_row(name, *(cell(of) for of in measured))
        console.print(made)

    def latency(case: str) -> Callable[[Measured], str]:
        return lambda of: f"{of.timings[case].p50_ms:.2f} / {of.timings[case].p99_ms:.2f}"

    def throughput(case: str) -> Callable[[Measured], str]:
        return lambda of: f"{of.timings[case].rows_per_s:,.0f}"

    table("one run, ms: p50 / p99", {case: latency(case) for case in cases})
    table("rows per second", {case: throughput(case) for case in cases})
    table(f"against {REFERENCE}", {
        "largest difference": lambda of: f"{of.difference:.1e}",
        "same label": lambda of: f"{of.agreement:.2%}",
    })  # fmt: skip
    table("alone in a process", {
        "load, s": lambda of: f"{of.alone.load_s:.2f}",
        "memory when loaded, MB": lambda of: f"{of.alone.loaded_mb:.0f}",
        "… after each case once": lambda of: f"{of.alone.used_mb:.0f}",
        "… at its peak": lambda of: "?" if of.alone.peak_mb is None else f"{of.alone.peak_mb:.0f}",
        f"growth in {ALONE_ROUNDS} rounds, MB": lambda of: f"{of.alone.growth_mb:.0f}",
    })  # fmt: skip
    for backend, lacking in comparison.missing.items():
        console.print(f"not here: {backend}: {lacking}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{comparison.bundle}; {comparison.runs} rounds in which all backends take turns on the same random inputs, "
        f"{comparison.threads} thread each; lengths differ by a fifth; {comparison.machine}; "
        + ", ".join(f"{name} {version}" for name, version in comparison.versions.items()),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def plot(comparison: Comparison, path: Path) -> None:
    """Draw latency of each case and memory of each backend into an image file."""
    from matplotlib.figure import Figure  # on use: it takes long to import, and an edge device need not have it
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    measured = list(comparison.measured.values())
    cases = list(measured[0].timings)
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito's, which all see
    figure = Figure(figsize=(9, 1.5 + 0.16 * len(cases) * (len(measured) + 1)), layout="constrained")
    times, memory = figure.subplots(1, 2, width_ratios=(2, 1))
    at, step = np.arange(len(cases)), 0.7 / len(measured)
    for number, (of, colour) in enumerate(zip(measured, colours, strict=False)):
        y = at + (number - (len(measured) - 1) / 2) * step
        p50 = [of.timings[case].p50_ms for case in cases]
        times.hlines(y, p50, [of.timings[case].p99_ms for case in cases], color=colour, linewidth=2)
        times.plot(p50, y, "o", color=colour, markersize=5, label=of.name)
        memory.barh(number, of.alone.used_mb, 0.6, color=colour)
        memory.barh(number, max(0, of.alone.growth_mb), 0.6, left=of.alone.used_mb, color=colour, alpha=0.4)
    times.set_yticks(at, cases)
    times.set_xscale("log")
    times.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    times.xaxis.set_minor_formatter(NullFormatter())
    times.set_xlabel("ms for one run: median (dot) to 99th percentile")
    times.legend(frameon=False)
    memory.set_yticks(np.arange(len(measured)), [of.name for of in measured])
    memory.set_xlabel(f"MB added to a process;\npale: by {ALONE_ROUNDS} more rounds")
    for axes in (times, memory):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.9")
    figure.savefig(path, dpi=150)
