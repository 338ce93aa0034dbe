"""``python -m engines inspect``: what is in a bundle's graphs, what they compile to, which engines there are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Column, Table

from emostream.engines import forms
from emostream.engines.bundle import FACE, FUSION, open_bundle
from emostream.engines.inspect import Array, Facts, Form, cached, facts, form
from emostream.engines.trt import cache
from emostream.engines.trt.profiles import of_bundle
from emostream.engines.trt.runtimes import RUNTIMES, load_module
from emostream.errors import BackendError


class Inspection(msgspec.Struct):
    """By graph. ``parsed_by`` names the library that made ``forms``; where there is none, both are empty."""

    bundle: str
    graphs: dict[str, Facts]
    parsed_by: str
    forms: dict[str, dict[str, Form]]
    engines: dict[str, list[cache.Entry]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show inputs, outputs, profiles, operators, parameters, FLOPs and engines of a bundle's graphs."
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="name of a shipped bundle, or a folder")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="largest batch of fusion (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to FILE")


def run(args: argparse.Namespace) -> int:
    """0: shown. 1: the bundle cannot be opened or the file not written. 2: wrong usage."""
    if args.max_batch < 1:
        print("error: --max-batch must be at least 1", file=sys.stderr)
        return 2
    found = _inspect(args.bundle, args.max_batch)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    show(found, Console())
    return 0


def _inspect(name: str, max_batch: int) -> Inspection:
    bundle = open_bundle(name)
    profiles = {graph: of_bundle(bundle.manifest, graph, max_batch) for graph in (FUSION, FACE)}
    graphs = {graph: facts(bundle.path(graph), profile) for graph, profile in profiles.items()}
    engines = {graph: cached(bundle.path(graph)) for graph in profiles}
    found = Inspection(bundle.id, graphs, "", {}, engines)
    for runtime in RUNTIMES:
        try:
            trt = load_module(runtime)
        except BackendError:
            continue
        found.parsed_by = f"{runtime} {trt.__version__}"
        found.forms[FUSION] = {name: form(bundle.path(FUSION), name, profiles[FUSION], trt) for name in forms.FORMS}
        found.forms[FACE] = {forms.FORMS[0]: form(bundle.path(FACE), forms.FORMS[0], profiles[FACE], trt)}
        break
    return found


def show(found: Inspection, console: Console) -> None:
    for graph in found.graphs.values():
        _show_graph(graph, console)
    if found.forms:
        table = Table("form", *(Column(name, justify="right") for name in ("nodes", "loops", "steps", "layers")))
        for graph_name, forms_ in found.forms.items():
            for name, of in forms_.items():
                marked = " (built)" if len(forms_) > 1 and name == forms.BEST else ""
                table.add_row(
                    f"{graph_name}, {name}{marked}", *(str(n) for n in (of.nodes, of.loops, of.steps, of.layers))
                )
        console.print(table)
        _line(console, f"loops and layers: in the network of {found.parsed_by}; steps: at typical shapes")
    else:
        _line(console, "layers of each form: not counted, as neither tensorrt nor tensorrt_rtx is installed")
    for graph_name, entries in found.engines.items():
        for entry in entries:
            device, report = entry.origin.device, entry.report
            _line(
                console,
                f"engine of {graph_name}: {report.runtime} {report.runtime_version}, {report.precision}, "
                f"{device.compute}, {report.size_bytes / 1e6:.1f} MB, {report.layers} layers, "
                f"built in {report.seconds:.1f} s",
            )
        if not entries:
            _line(console, f"engine of {graph_name}: none in {cache.root()}")


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
