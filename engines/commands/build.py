"""``python -m engines build``: a bundle's graphs → engines in the user's cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.table import Column, Table

from emostream.engines.bundle import FACE, FUSION, open_bundle
from emostream.engines.trt import cache
from emostream.engines.trt.build import PRECISIONS, Options
from emostream.engines.trt.profiles import of_bundle
from emostream.engines.trt.runtimes import RUNTIMES
from emostream.errors import BackendError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compile a bundle's graphs and keep the engines in the user's cache, where the live pipeline finds those for "
        "this machine's GPU. An engine that is there and up to date is not built again. One built ahead of time shows "
        "that the graphs compile for a GPU that is elsewhere; the pipeline there builds its own."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--runtime", choices=RUNTIMES, default="tensorrt", help="library to build for (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of products and weights (%(default)s)")
    parser.add_argument(
        "--compute", type=_capabilities, default=(), metavar="SM86,SM89,…",
        help="GPUs to build for ahead of time, which TensorRT-RTX does without one; default: the GPU of this machine",
    )  # fmt: skip
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="largest batch of fusion (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is noted of the engines to FILE")


def run(args: argparse.Namespace) -> int:
    """0: both engines are there. 1: one could not be built. 2: options that do not fit each other."""
    try:
        options = Options(args.runtime, args.precision, args.compute, args.max_batch)
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    built: dict[Path, cache.Entry] = {}
    bundle = open_bundle(args.bundle)
    device = cache.ahead_of_time(args.compute) if args.compute else _device(args.runtime)
    for graph in (FUSION, FACE):
        profile = of_bundle(bundle.manifest, graph, options.max_batch)
        with Bars(console=Console(stderr=True), transient=True) as bars:
            path = cache.engine(bundle.path(graph), profile, options, device, progress=_Shown(bars))
        built[path] = cache.entry(path)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(list(built.values())), indent=2) + b"\n")
    show(built, Console())
    return 0


def show(built: dict[Path, cache.Entry], console: Console) -> None:
    """Print a row for each engine, and where they are."""
    right = ("layers", "MB", "seconds")
    columns = ["graph", "for", "precision", *right, "SHA-256"]
    made = Table(*(Column(name, justify="right" if name in right else "left") for name in columns))
    for entry in built.values():
        report, device = entry.report, entry.origin.device
        made.add_row(
            entry.graph, device.compute.replace("+", ", "), report.precision, str(report.layers),
            f"{report.size_bytes / 1e6:.1f}", f"{report.seconds:.1f}", report.sha256[:12],
        )  # fmt: skip
    console.print(made)
    for path, entry in built.items():
        device = entry.origin.device
        console.print(
            f"{entry.graph}: {path}, by {entry.report.runtime} {entry.report.runtime_version}, "
            + ("ahead of time" if device.name == cache.AHEAD_OF_TIME else f"for {device.name}, {device.driver}"),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _capabilities(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().upper() for name in text.split(",")))
    if "" in names:
        raise argparse.ArgumentTypeError("give compute capabilities with commas between them, such as SM86,SM89")
    return names


def _device(runtime: str) -> cache.Device:
    from emostream.engines.trt import cuda

    if found := cuda.missing(runtime):
        ahead = ", or build ahead of time: --runtime tensorrt_rtx --compute SM86,SM89,SM120"
        raise BackendError(f"no engine for this machine's GPU: {'; '.join(found)}{ahead}")
    return cuda.device()


class _Shown:
    """TensorRT's phases as bars, those inside of others indented."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._open: dict[str, tuple[TaskID, int]] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        depth = self._open[parent][1] + 1 if parent in self._open else 0
        self._open[phase] = self._bars.add_task("  " * depth + phase, total=steps), depth

    def step_complete(self, phase: str, step: int) -> None:
        self._bars.update(self._open[phase][0], completed=step + 1)

    def phase_finish(self, phase: str) -> None:
        self._bars.remove_task(self._open.pop(phase)[0])
