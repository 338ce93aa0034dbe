"""``python -m engines gpu-check``: TensorRT on a real GPU, of which the tests see nothing. Is it right, does it leak,
does it live beside other users of CUDA, how fast is it?

It writes gpu-report.json and gpu-report.md, made to be committed in docs/.
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
from emostream.engines.trt import cache, cuda
from emostream.engines.trt.backend import TensorRT
from emostream.engines.trt.build import Options
from emostream.engines.trt.profiles import of_bundle
from emostream.engines.trt.runtimes import RUNTIMES, load_module

PRECISIONS = ("fp32", "fp16")
LACKING = 3  # exit code
_MOST_HALF_DIFFERENCE = {FUSION: 0.1, FACE: 0.05}  # of a logit, of a face vector's value; both are of the order of 1
_PARITY = [Case(FUSION, batch, seconds) for batch in (1, 3, 8) for seconds in (0.1, 1, 5, 15)] + [
    Case(FACE, crops) for crops in (1, 8, 64)
]
_TIMED = [Case(FUSION, batch, 5) for batch in (1, 2, 4, 8)] + [Case(FACE, crops) for crops in (1, 8, 64)]
_PARITY_ROUNDS = 100
_WARM_UP = 100  # runs until the GPU has its full clock and all shapes have been met
_MOST_GROWTH = 1 << 20  # bytes of device memory, what other processes take in passing


class Timing(msgspec.Struct):
    """Of one case; the CPU is ONNX Runtime on one thread, in turns with the GPU."""

    p50_ms: float
    p99_ms: float
    rows_per_s: float
    cpu_p50_ms: float


class Checked(msgspec.Struct):
    """One engine. ``difference``: the largest from ONNX Runtime. ``agreement``: share of rows with the same label, None
    for face vectors. ``growth_bytes``: device memory that ``runs`` runs took for good."""

    entry: cache.Entry
    difference: float
    agreement: float | None
    runs: int
    growth_bytes: int
    timings: dict[str, Timing]


class Report(msgspec.Struct):
    """What gpu-check found. ``faults``: what is not as it must be, in words."""

    when: str
    bundle: str
    device: cache.Device
    memory_bytes: int
    machine: str
    runtime: str
    checked: list[Checked]
    beside_others: str
    faults: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Build every engine, run it on this machine's GPU, and write what was found."
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", default="ekman7", help="default: %(default)s")
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: tensorrt, or tensorrt_rtx where only that works")
    parser.add_argument("--runs", type=int, default=10_000, metavar="N", help="in which memory must not grow (10000)")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """0: all is as it must be. 1: it is not. 2: wrong usage. 3: the machine lacks something, which is said."""
    if args.runs < 1:
        print("error: --runs must be at least 1", file=sys.stderr)
        return 2
    runtimes = (args.runtime,) if args.runtime else RUNTIMES
    lacking = {runtime: cuda.missing(runtime) for runtime in runtimes}
    usable = [runtime for runtime, found in lacking.items() if not found]
    if not usable:
        print("TensorRT cannot run on this machine:", file=sys.stderr)
        for line in dict.fromkeys(itertools.chain.from_iterable(lacking.values())):
            print(f"- {line}", file=sys.stderr)
        print("What each kind of machine needs is in docs/deploy.md.", file=sys.stderr)
        return LACKING
    console = Console(stderr=True)
    bundle = open_bundle(args.bundle)
    report = check(bundle, usable[0], args.runs, lambda what: console.print(what, markup=False, highlight=False))
    text = as_markdown(report)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu-report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (args.out / "gpu-report.md").write_text(text, encoding="utf-8")
    print(text)
    for fault in report.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if report.faults else 0


def check(bundle: Bundle, runtime: str, runs: int, progress: Callable[[str], None]) -> Report:
    """Build and try every graph in every precision. Raises BackendError if one cannot be built or run at all."""
    faults: list[str] = []
    checked = []
    device = cuda.device()
    for graph, precision in itertools.product((FUSION, FACE), PRECISIONS):
        where = f"{graph}, {precision}"
        progress(f"{where}: building")
        backend, entry = _built(bundle, graph, runtime, precision)
        reference = OnnxRuntime(bundle.path(graph), threads=1)
        try:
            progress(f"{where}: against ONNX Runtime")
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
                faults.append(f"{where}: {growth:,} bytes of device memory are gone after {runs:,} runs")
        finally:
            backend.close()
            reference.close()
        checked.append(Checked(entry, difference, agreement, runs, growth, timings))
    progress("two engines and another user of CUDA side by side")
    beside = _beside_others(bundle, runtime)
    if beside:
        faults.append(beside)
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"), bundle.id, device, _memory()[1], platform.platform(),
        f"{runtime} {load_module(runtime).__version__}", checked, beside or "right", faults,
    )  # fmt: skip


def as_markdown(report: Report) -> str:
    """The report as a page."""
    lines = [f"# {report.runtime} on {report.device.name}", ""]
    if report.faults:
        lines += ["**Not all is as it must be:**", "", *(f"- {fault}" for fault in report.faults), ""]
    lines += [
        "| graph | precision | layers | MB | built, s | largest difference | same label | memory growth, bytes |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for of in report.checked:
        made = of.entry.report
        label = "" if of.agreement is None else f"{of.agreement:.2%}"
        lines.append(
            f"| {of.entry.graph} | {made.precision} | {made.layers} | {made.size_bytes / 1e6:.1f} | {made.seconds:.1f} "
            f"| {of.difference:.1e} | {label} | {of.growth_bytes:,} in {of.runs:,} runs |"
        )
    lines += ["", "| one run | precision | p50, ms | p99, ms | rows per s | CPU p50, ms |", "|---|---|--:|--:|--:|--:|"]
    for of in report.checked:
        for name, timing in of.timings.items():
            lines.append(
                f"| {name} | {of.entry.report.precision} | {timing.p50_ms:.3f} | {timing.p99_ms:.3f} "
                f"| {timing.rows_per_s:,.0f} | {timing.cpu_p50_ms:.2f} |"
            )
    lines += [
        "",
        f"Two engines and a foreign CUDA context side by side: {report.beside_others}. Times include the copies to the "
        "GPU and back, with lengths that differ by a fifth from run to run; the CPU is ONNX Runtime on one thread. "
        f"{report.bundle}; {report.device.compute}, {report.memory_bytes / 2**30:.1f} GiB, {report.device.driver}; "
        f"{report.machine}; {report.when}.",
    ]
    return "\n".join(lines) + "\n"


def _built(bundle: Bundle, graph: str, runtime: str, precision: str) -> tuple[TensorRT, cache.Entry]:
    options = Options(runtime, precision)
    profile = of_bundle(bundle.manifest, graph, options.max_batch)
    path = cache.engine(bundle.path(graph), profile, options, cuda.device())
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
    taken: dict[Backend, list[float]] = {backend: [], reference: []}
    for number in range(runs):
        inputs = next(drawn)
        for of in (backend, reference) if number % 10 == 0 else (backend,):  # the CPU's are slow, a tenth will do
            begin = time.perf_counter()
            of.run(inputs)
            taken[of].append(time.perf_counter() - begin)
    p50, p99 = np.percentile(taken[backend], (50, 99)) * 1000
    cpu_p50 = float(np.median(taken[reference])) * 1000
    return Timing(float(p50), float(p99), case.batch * runs / sum(taken[backend]), cpu_p50)


def _memory() -> tuple[int, int]:
    """Free and total bytes of the GPU."""
    with cuda.current():
        free, total = cuda.driver().mem_get_info()
    return int(free), int(total)


def _growth(backend: Backend, bundle: Bundle, graph: str, runs: int) -> int:
    drawn = _inputs(bundle, next(case for case in _TIMED if case.graph == graph))
    some = list(itertools.islice(drawn, 50))  # all shapes have been met before it counts
    for inputs in some:
        backend.run(inputs)
    before = _memory()[0]
    for number in range(runs):
        backend.run(some[number % len(some)])
    return before - _memory()[0]


def _beside_others(bundle: Bundle, runtime: str) -> str:
    """What goes wrong, in words, if two engines run in two threads while this thread has a CUDA context of its own."""
    other = cuda.driver().Device(0).make_context()
    try:
        backends = {graph: _built(bundle, graph, runtime, "fp32")[0] for graph in (FUSION, FACE)}
        try:
            inputs = {case.graph: next(_inputs(bundle, case)) for case in (Case(FUSION, 2, 5), Case(FACE, 8))}
            alone = {graph: backend.run(inputs[graph]) for graph, backend in backends.items()}

            def wrong(graph: str) -> int:
                found = 0
                for _ in range(500):
                    for name, values in backends[graph].run(inputs[graph]).items():
                        found += not np.array_equal(values, alone[graph][name])
                return found

            with ThreadPoolExecutor(2) as pool:
                errors = dict(zip(backends, pool.map(wrong, backends), strict=True))
        finally:
            for backend in backends.values():
                backend.close()
        if any(errors.values()):
            return f"side by side, results of {errors} of 500 runs differ from those of a run alone"
        current = cuda.driver().Context.get_current()
        return "" if current == other else "another user's CUDA context is not current any more"
    finally:
        other.pop()
        other.detach()
