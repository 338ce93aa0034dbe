"""``stream-engines inspect``: what is in a bundle's graphs, what they cost, and their engines in the cache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Column, Table

from emostream.engines.bundle import FACE, FUSION, FUSION_CPU, FUSION_GPU, open_bundle
from emostream.engines.inspect import Array, Cost, Facts, cached, cost, facts
from emostream.engines.options import RUNTIMES
from emostream.engines.trt import cache
from emostream.engines.trt.profiles import of_bundle
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError, ConfigError
from emostream.files import as_json, write_atomically

_FILES = {FUSION: FUSION, FUSION_CPU: FUSION, FUSION_GPU: FUSION, FACE: FACE}  # by file: the graph that it holds


class Inspection(msgspec.Struct):
    """``graphs``: by graph, its portable file. ``costs`` and ``engines``: by file; engines only of files that TensorRT
    runs. ``parsed_by``: the library that counted loops and layers, or ""."""

    bundle: str
    graphs: dict[str, Facts]
    parsed_by: str
    costs: dict[str, Cost]
    engines: dict[str, list[cache.Entry]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show inputs, outputs, profiles, operators, parameters, FLOPs and engines of a bundle's graphs."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="largest batch of fusion (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE")


def run(args: argparse.Namespace) -> int:
    """Raises BundleError or BackendError if a graph cannot be read, ConfigError for wrong usage."""
    if args.max_batch < 1:
        raise ConfigError("--max-batch must be at least 1")
    inspection = _inspect(args.bundle, args.max_batch)
    if args.json:
        write_atomically(args.json, as_json(inspection))
    show(inspection, Console())
    return 0


def _inspect(name: str, max_batch: int) -> Inspection:
    bundle = open_bundle(name)
    profiles = {graph: of_bundle(bundle.manifest, graph, max_batch) for graph in (FUSION, FACE)}
    graphs = {graph: facts(bundle.path(graph), profile) for graph, profile in profiles.items()}
    trt = _library()
    costs = {}
    for file, graph in _FILES.items():
        if file in bundle.manifest.files:  # a CPU graph has operators of ONNX Runtime's own
            costs[file] = cost(bundle.path(file), profiles[graph], None if file == FUSION_CPU else trt)
    built = [bundle.path_for(graph, RUNTIMES[0]) for graph in profiles]
    return Inspection(
        bundle.id, graphs, f"{trt.__name__} {trt.__version__}" if trt else "", costs,
        {path.name: cached(path) for path in built},
    )  # fmt: skip


def _library() -> Any:
    """The first TensorRT library that is installed, or None."""
    for runtime in RUNTIMES:
        try:
            return load_module(runtime)
        except BackendError:
            continue
    return None


def show(found: Inspection, console: Console) -> None:
    """Print a table for each graph, then one with a row for each file, then the engines."""
    for graph in found.graphs.values():
        _show_graph(graph, console)
    table = Table("file", *(Column(name, justify="right") for name in ("nodes", "loops", "steps", "layers")))
    for file, counted in found.costs.items():
        marked = f"{file} (TensorRT builds this)" if file in found.engines else file
        numbers = (counted.nodes, counted.loops, counted.steps, counted.layers)
        table.add_row(marked, *("" if number is None else str(number) for number in numbers))
    console.print(table)
    if found.parsed_by:
        _line(console, f"loops and layers: in the network of {found.parsed_by}; steps: at typical shapes")
    else:
        _line(console, "loops and layers: not counted, as neither tensorrt nor tensorrt_rtx is installed")
    for file, entries in found.engines.items():
        for entry in entries:
            device, report = entry.origin.device, entry.report
            _line(
                console,
                f"engine of {file}: {report.runtime} {report.runtime_version}, {report.precision}, "
                f"{device.compute}, {report.size_bytes / 1e6:.1f} MB, {report.layers} layers, "
                f"built in {report.seconds:.1f} s",
            )
        if not entries:
            _line(console, f"engine of {file}: none in the cache")


def _show_graph(graph: Facts, console: Console) -> None:
    table = Table("", "type", "shape", "smallest", "typical", "largest", title=graph.graph, title_justify="left")
    for name, array in graph.inputs.items():
        table.add_row(f"→ {name}", *_type(array), *(_shape(shape) for shape in graph.profile[name]))
    for name, array in graph.outputs.items():
        table.add_row(f"{name} →", *_type(array))
    console.print(table)
    flops = ", ".join(f"{size} {value / 1e6:,.1f}" for size, value in graph.flops.items())
    _line(
        console,
        f"{graph.size_bytes / 1e6:.2f} MB, opset {graph.opset}, {graph.parameters:,} parameters; "
        f"MFLOP in a run: {flops}",
    )
    operators = ", ".join(f"{count} {name}" for name, count in graph.operators.items())
    _line(console, f"{sum(graph.operators.values())} nodes: {operators}\n")


def _type(array: Array) -> tuple[str, str]:
    return array.dtype, _shape(array.shape)


def _shape(shape: list[int | str] | tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
