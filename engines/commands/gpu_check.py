"""``stream-engines gpu-check``: TensorRT on a real GPU, which the tests never use: are its results right, does it leak,
does it work beside other users of CUDA, and how fast is it?

It writes gpu-report.json and gpu-report.md, to be committed in docs/.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console

from emostream.engines.backend import Backend
from emostream.engines.bundle import FACE, FUSION, Bundle, open_bundle
from emostream.engines.compare import LEAST_AGREEMENT, MOST_DIFFERENCE, Case, draw
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.options import RUNTIMES, Device, Options
from emostream.engines.trt import cache, cuda
from emostream.engines.trt.backend import TensorRT
from emostream.engines.trt.profiles import of_bundle
from emostream.engines.trt.runtimes import load_module
from emostream.errors import ConfigError
from emostream.files import as_json, write_atomically

LACKING = 3  # exit code
_PRECISIONS = ("fp32", "fp16")
_MOST_HALF_DIFFERENCE = {FUSION: 0.1, FACE: 0.05}  # in a logit or a face vector's value; both are of the order of 1
_PARITY = [Case(FUSION, batch, seconds) for batch in (1, 3, 8) for seconds in (0.1, 1, 5, 15)] + [
    Case(FACE, crops) for crops in (1, 8, 64)
]
_TIMED = [Case(FUSION, batch, 5) for batch in (1, 2, 4, 8)] + [Case(FACE, crops) for crops in (1, 8, 64)]
_PARITY_ROUNDS = 100
_SIDE_BY_SIDE = 500  # runs of each engine beside the other
_WARM_UP = 100  # runs until the GPU has its full clock and has seen all shapes
_MOST_GROWTH = 1 << 20  # bytes of device memory: other processes may allocate some meanwhile


class Timing(msgspec.Struct):
    """One case. ``cpu_p50_ms``: ONNX Runtime on one thread, taking turns with the GPU."""

    p50_ms: float
    p99_ms: float
    rows_per_s: float
    cpu_p50_ms: float


class Checked(msgspec.Struct):
    """One engine. ``difference``: the largest from ONNX Runtime. ``agreement``: share of rows with the same label, None
    for face vectors. ``growth_bytes``: device memory that ``runs`` runs took and did not free."""

    entry: cache.Entry
    difference: float
    agreement: float | None
    runs: int
    growth_bytes: int
    timings: dict[str, Timing]


class Report(msgspec.Struct):
    """The result of gpu-check. ``faults``: one line each."""

    when: str
    bundle: str
    device: Device
    memory_bytes: int
    machine: str
    runtime: str
    checked: list[Checked]
    beside_others: str
    faults: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Build every engine, check it on this machine's GPU, and write a report."
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", default="ekman7", help="default: %(default)s")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: tensorrt, or tensorrt_rtx where only that works")
    parser.add_argument(
        "--runs", type=int, default=10_000, metavar="N", help="runs in which memory must not grow (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """0: no faults. 1: faults. 3: the machine lacks something, which is printed. Raises BackendError if an engine
    cannot be built or run at all, ConfigError for wrong usage."""
    if args.runs < 1:
        raise ConfigError("--runs must be at least 1")
    runtimes = (args.runtime,) if args.runtime else RUNTIMES
    lacking = {runtime: cuda.missing(runtime) for runtime in runtimes}
    usable = [runtime for runtime, missing in lacking.items() if not missing]
    if not usable:
        print("TensorRT cannot run on this machine:", file=sys.stderr)
        for line in dict.fromkeys(itertools.chain.from_iterable(lacking.values())):
            print(f"- {line}", file=sys.stderr)
        print("docs/deploy.md lists what each kind of machine needs.", file=sys.stderr)
        return LACKING
    console = Console(stderr=True)
    bundle = open_bundle(args.bundle)
    report = check(bundle, usable[0], args.runs, lambda what: console.print(what, markup=False, highlight=False))
    text = as_markdown(report)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "gpu-report.json", as_json(report))
    write_atomically(args.out / "gpu-report.md", text)
    print(text)
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if report.faults else 0


def check(bundle: Bundle, runtime: str, runs: int, progress: Callable[[str], None]) -> Report:
    """Build and check every graph in every precision; ``progress`` is called with each step in words. Raises
    BackendError if a graph cannot be built or run at all."""
    faults: list[str] = []
    checked = []
    device = cuda.device()
    for graph, precision in itertools.product((FUSION, FACE), _PRECISIONS):
        where = f"{graph}, {precision}"
        progress(f"{where}: building")
        backend, entry = _built(bundle, graph, runtime, precision)
        reference = OnnxRuntime(bundle.path(graph), threads=1)
        try:
            progress(f"{where}: comparing with ONNX Runtime")
            difference, agreement = _parity(backend, reference, bundle, graph)
            most = MOST_DIFFERENCE if precision == "fp32" else _MOST_HALF_DIFFERENCE[graph]
            if not difference <= most:  # a NaN fails too
                faults.append(f"{where}: differs from ONNX Runtime by {difference:.1e}, more than {most:.1e}")
            if agreement is not None and agreement < LEAST_AGREEMENT:
                faults.append(
                    f"{where}: {agreement:.2%} of labels are ONNX Runtime's, fewer than {LEAST_AGREEMENT:.1%}"
                )
            progress(f"{where}: latency and throughput")
            timings = {case.name: _timing(backend, reference, bundle, case) for case in _TIMED if case.graph == graph}
            progress(f"{where}: {runs:,} runs")
            growth = _growth(backend, bundle, graph, runs)
            if growth > _MOST_GROWTH:
                faults.append(f"{where}: {growth:,} bytes of device memory are lost after {runs:,} runs")
        finally:
            backend.close()
            reference.close()
        checked.append(Checked(entry, difference, agreement, runs, growth, timings))
    progress("two engines beside another user of CUDA")
    beside = _beside_others(bundle, runtime)
    if beside:
        faults.append(beside)
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"), bundle.id, device, _memory()[1], platform.platform(),
        f"{runtime} {load_module(runtime).__version__}", checked, beside or "right", faults,
    )  # fmt: skip


def as_markdown(report: Report) -> str:
    """The report as a Markdown page."""
    lines = [f"# {report.runtime} on {report.device.name}", ""]
    if report.faults:
        lines += ["**Faults:**", "", *(f"- {fault}" for fault in report.faults), ""]
    lines += [
        "| graph | precision | layers | MB | built, s | largest difference | same label | memory growth, bytes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for engine in report.checked:
        built = engine.entry.report
        label = "" if engine.agreement is None else f"{engine.agreement:.2%}"
        lines.append(
            f"| {engine.entry.graph} | {built.precision} | {built.layers} | {built.size_bytes / 1e6:.1f} "
            f"| {built.seconds:.1f} | {engine.difference:.1e} | {label} "
            f"| {engine.growth_bytes:,} in {engine.runs:,} runs |"
        )
    lines += ["", "| one run | precision | p50, ms | p99, ms | rows per s | CPU p50, ms |", "|---|---|--:|--:|--:|--:|"]
    for engine in report.checked:
        for name, timing in engine.timings.items():
            lines.append(
                f"| {name} | {engine.entry.report.precision} | {timing.p50_ms:.3f} | {timing.p99_ms:.3f} "
                f"| {timing.rows_per_s:,.0f} | {timing.cpu_p50_ms:.2f} |"
            )
    lines += [
        "",
        f"Two engines beside another user's CUDA context: {report.beside_others}. Times include the copies to the GPU "
        "and back; lengths vary by a fifth from run to run; the CPU is ONNX Runtime on one thread. "
        f"{report.bundle}; {report.device.compute}, {report.memory_bytes / 2**30:.1f} GiB, {report.device.driver}; "
        f"{report.machine}; {report.when}.",
    ]
    return "\n".join(lines) + "\n"


def _built(bundle: Bundle, graph: str, runtime: str, precision: str) -> tuple[TensorRT, cache.Entry]:
    options = Options(runtime, precision)
    profile = of_bundle(bundle.manifest, graph, options.max_batch)
    path = cache.engine(bundle.path_for(graph, runtime), profile, options, cuda.device())
    return TensorRT(path, profile, runtime), cache.entry(path)


def _inputs(bundle: Bundle, case: Case, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        yield draw(case, bundle.manifest, rng)


def _parity(backend: Backend, reference: Backend, bundle: Bundle, graph: str) -> tuple[float, float | None]:
    worst, same, rows = 0.0, 0, 0
    for case in _PARITY:
        if case.graph != graph:
            continue
        for inputs in itertools.islice(_inputs(bundle, case), _PARITY_ROUNDS):
            (ours,), (theirs,) = backend.run(inputs).values(), reference.run(inputs).values()
            worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # keeps a NaN
            same += int((ours.argmax(1) == theirs.argmax(1)).sum())
            rows += len(ours)
    return worst, same / rows if graph == FUSION else None


def _timing(backend: Backend, reference: Backend, bundle: Bundle, case: Case, runs: int = 1000) -> Timing:
    drawn = _inputs(bundle, case)
    for _ in range(_WARM_UP):
        backend.run(next(drawn))
    seconds: dict[Backend, list[float]] = {backend: [], reference: []}
    for number in range(runs):
        inputs = next(drawn)
        for timed in (backend, reference) if number % 10 == 0 else (backend,):  # the CPU is slow: a tenth is enough
            begin = time.perf_counter()
            timed.run(inputs)
            seconds[timed].append(time.perf_counter() - begin)
    p50, p99 = np.percentile(seconds[backend], (50, 99)) * 1000
    cpu_p50 = float(np.median(seconds[reference])) * 1000
    return Timing(float(p50), float(p99), case.batch * runs / sum(seconds[backend]), cpu_p50)


def _memory() -> tuple[int, int]:
    """Free and total bytes of the GPU."""
    with cuda.current():
        free, total = cuda.driver().mem_get_info()
    return int(free), int(total)


def _growth(backend: Backend, bundle: Bundle, graph: str, runs: int) -> int:
    drawn = _inputs(bundle, next(case for case in _TIMED if case.graph == graph))
    repeated = list(itertools.islice(drawn, 50))
    for inputs in repeated:  # every shape once, before memory is measured
        backend.run(inputs)
    before = _memory()[0]
    for number in range(runs):
        backend.run(repeated[number % len(repeated)])
    return before - _memory()[0]


def _beside_others(bundle: Bundle, runtime: str) -> str:
    """Run two engines in two threads while this thread has another CUDA context; returns what goes wrong, in words."""
    other = cuda.driver().Device(0).make_context()
    try:
        backends = {graph: _built(bundle, graph, runtime, "fp32")[0] for graph in (FUSION, FACE)}
        try:
            inputs = {case.graph: next(_inputs(bundle, case)) for case in (Case(FUSION, 2, 5), Case(FACE, 8))}
            alone = {graph: backend.run(inputs[graph]) for graph, backend in backends.items()}

            def wrong(graph: str) -> int:
                count = 0
                for _ in range(_SIDE_BY_SIDE):
                    for name, values in backends[graph].run(inputs[graph]).items():
                        count += not np.array_equal(values, alone[graph][name])
                return count

            with ThreadPoolExecutor(2) as pool:
                errors = dict(zip(backends, pool.map(wrong, backends), strict=True))
        finally:
            for backend in backends.values():
                backend.close()
        if any(errors.values()):
            return f"side by side, the results of {errors} of {_SIDE_BY_SIDE} runs differ from those of a run alone"
        current = cuda.driver().Context.get_current()
        return "" if current == other else "another user's CUDA context is no longer current"
    finally:
        other.pop()
        other.detach()
