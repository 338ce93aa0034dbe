"""``stream-engines build``: a bundle's graphs → engines in the user's cache."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.table import Column, Table

from emostream.engines.bundle import FACE, FUSION, open_bundle
from emostream.engines.options import AHEAD_OF_TIME, PRECISIONS, RUNTIMES, Device, Options, ahead_of_time
from emostream.engines.trt import cache
from emostream.engines.trt.profiles import of_bundle
from emostream.errors import BackendError
from emostream.files import as_json, write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compile a bundle's graphs and keep the engines in the user's cache, where the live pipeline finds those for "
        "this machine's GPU. An engine that is up to date is not built again. Building ahead of time shows that the "
        "graphs compile for a GPU of another machine; the pipeline there builds its own engines."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--runtime", choices=RUNTIMES, default="tensorrt", help="library to build for (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of products and weights (%(default)s)")
    parser.add_argument(
        "--compute", type=_capabilities, default=(), metavar="SM86,SM89,…",
        help="GPUs to build for ahead of time, with TensorRT-RTX, which needs none; default: the GPU of this machine",
    )  # fmt: skip
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="largest batch of fusion (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the engines' entries in the cache to FILE")


def run(args: argparse.Namespace) -> int:
    """Raises BackendError if an engine cannot be built, ConfigError for options that do not fit together."""
    options = Options(args.runtime, args.precision, args.compute, args.max_batch)
    built: dict[Path, cache.Entry] = {}
    bundle = open_bundle(args.bundle)
    device = ahead_of_time(args.compute) if args.compute else _device(args.runtime)
    for graph in (FUSION, FACE):
        profile = of_bundle(bundle.manifest, graph, options.max_batch)
        with Bars(console=Console(stderr=True), transient=True) as bars:
            file = bundle.path_for(graph, options.runtime)
            path = cache.engine(file, profile, options, device, progress=_Bars(bars))
        built[path] = cache.entry(path)
    if args.json:
        write_atomically(args.json, as_json(list(built.values())))
    show(built, Console())
    return 0


def show(built: dict[Path, cache.Entry], console: Console) -> None:
    """Print a row and the path of each engine."""
    right = ("layers", "MB", "seconds")
    columns = ["graph", "for", "precision", *right, "SHA-256"]
    table = Table(*(Column(name, justify="right" if name in right else "left") for name in columns))
    for entry in built.values():
        report, device = entry.report, entry.origin.device
        table.add_row(
            entry.graph, device.compute.replace("+", ", "), report.precision, str(report.layers),
            f"{report.size_bytes / 1e6:.1f}", f"{report.seconds:.1f}", report.sha256[:12],
        )  # fmt: skip
    console.print(table)
    for path, entry in built.items():
        device = entry.origin.device
        console.print(
            f"{entry.graph}: {path}, by {entry.report.runtime} {entry.report.runtime_version}, "
            + ("ahead of time" if device.name == AHEAD_OF_TIME else f"for {device.name}, {device.driver}"),
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _capabilities(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().upper() for name in text.split(",")))
    if "" in names:
        raise argparse.ArgumentTypeError("separate compute capabilities with commas, as in SM86,SM89")
    return names


def _device(runtime: str) -> Device:
    from emostream.engines.trt import cuda

    if lacking := cuda.missing(runtime):
        ahead = ", or build ahead of time: --runtime tensorrt_rtx --compute SM86,SM89,SM120"
        raise BackendError(f"no engine for this machine's GPU: {'; '.join(lacking)}{ahead}")
    return cuda.device()


class _Bars:
    """Shows TensorRT's phases as progress bars, nested ones indented."""

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
