"""Runs every backend that works here on the same inputs and compares results, speed and memory.

The backends take turns, in another order each round, so that other load on the machine affects all alike; each finds
the processor's caches full of the others' data, as in a live system. Lengths differ from round to round, as utterances'
lengths do: a backend that prepares for each new shape pays for it here. Memory and load time are measured in a process
that runs one backend alone.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import psutil

from emostream.engines.backend import Backend
from emostream.engines.bundle import FACE, FUSION, MODALITIES, Bundle, Manifest, open_bundle
from emostream.engines.load import available, load
from emostream.errors import BackendError
from emostream.machine import cpu_name, package_versions

REFERENCE = "onnxruntime"
MOST_DIFFERENCE = 1e-4  # in a logit or a value of a face vector, where all compute in float32
LEAST_AGREEMENT = 0.999  # share of rows with the reference's label
THREADS = 1
_PACKAGES = ("numpy", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx-cu13")
_ROWS_PER_S = {"audio": 12.5, "video": 10.0, "text": 2.5}  # voice vectors, faces, words of fluent speech
_SHORTEST = 0.8  # share of a case's length; lengths differ from round to round
_WARM_UP = 3  # rounds that are not measured
ALONE_ROUNDS = 40  # between the two measurements of memory

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Case:
    """The input of one run: a batch of utterances of up to ``seconds``, or of face crops."""

    graph: str
    batch: int
    seconds: float = 0

    @property
    def name(self) -> str:
        return f"fusion, {self.seconds:g} s × {self.batch}" if self.graph == FUSION else f"face × {self.batch}"


CASES = (*(Case(FUSION, batch, seconds) for seconds in (1, 5, 15) for batch in (1, 4)), Case(FACE, 1), Case(FACE, 8))


class Timing(msgspec.Struct):
    """One backend in one case. ``difference``: the largest from the reference."""

    p50_ms: float
    p99_ms: float
    rows_per_s: float
    difference: float


class Alone(msgspec.Struct):
    """A process that runs both graphs on one backend. Each ``_mb`` is its resident memory less that before it imported
    the library: with the graphs loaded; after one run of each case; at its peak (None where the system does not report
    it). ``growth_mb``: what further runs added."""

    load_s: float
    loaded_mb: float
    used_mb: float
    peak_mb: float | None
    growth_mb: float


class Measured(msgspec.Struct):
    """One backend. ``name``: library and device; ``agreement``: see LEAST_AGREEMENT."""

    name: str
    difference: float
    agreement: float
    alone: Alone
    timings: dict[str, Timing]


class Comparison(msgspec.Struct):
    """Backends that were measured; those that lack something on this machine, and those that failed, with reasons."""

    bundle: str
    machine: str
    versions: dict[str, str]
    threads: int
    runs: int
    measured: dict[str, Measured]
    missing: dict[str, str]
    failed: dict[str, str]


def compare(bundle: Bundle, runs: int, progress: Progress = lambda part: None) -> Comparison:
    """Measure over ``runs`` rounds; ``progress`` is called with the part done, from 0 to 1.

    Raises BackendError if the reference itself does not run.
    """
    backends = available()
    usable = [backend for backend, lacking in backends.items() if not lacking]
    loaded: dict[str, dict[str, Backend]] = {}
    failed: dict[str, str] = {}
    alone: dict[str, Alone] = {}
    for number, backend in enumerate(usable, start=1):
        try:  # loaded here first, so that loading is not timed with the building of an engine
            loaded[backend] = {graph: load(bundle, graph, backend, THREADS) for graph in (FUSION, FACE)}
            alone[backend] = _alone_in_a_process(bundle, backend)
        except BackendError as error:
            if backend == REFERENCE:
                raise
            failed[backend] = str(error)
            for graph in loaded.pop(backend, {}).values():
                graph.close()
        progress(0.3 * number / len(usable))
    try:
        measured = _rounds(bundle.manifest, loaded, alone, runs, lambda part: progress(0.3 + 0.7 * part))
    finally:
        for graphs in loaded.values():
            for graph in graphs.values():
                graph.close()
    missing = {backend: lacking for backend, lacking in backends.items() if lacking}
    machine = f"{cpu_name()}, {psutil.cpu_count()} CPUs, {platform.platform()}"
    return Comparison(bundle.id, machine, package_versions(_PACKAGES), THREADS, runs, measured, missing, failed)


def faults(comparison: Comparison) -> list[str]:
    """Backends that failed, or whose results differ from the reference's; one line each."""
    lines = [f"{backend} failed: {reason}" for backend, reason in comparison.failed.items()]
    for backend, measured in comparison.measured.items():
        if not measured.difference <= MOST_DIFFERENCE:  # also for NaN
            lines.append(
                f"{backend} differs from {REFERENCE} by {measured.difference:.2g}, more than {MOST_DIFFERENCE:g}"
            )
        if not measured.agreement >= LEAST_AGREEMENT:
            lines.append(
                f"{backend} gives {REFERENCE}'s label in {measured.agreement:.2%} of rows, not {LEAST_AGREEMENT:.1%}"
            )
    return lines


def draw(case: Case, manifest: Manifest, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random inputs of a case, by name. A batch of utterances is a whole utterance, then the same without each modality
    in turn, as in a live run; crops are noise."""
    if case.graph == FACE:
        return {"crops": rng.integers(0, 256, (case.batch, 48, 48), np.uint8)}
    seconds = case.seconds * rng.uniform(_SHORTEST, 1)
    inputs: dict[str, np.ndarray] = {}
    for first, name in enumerate(MODALITIES, start=1):
        modality = getattr(manifest, name)
        rows = min(modality.max_rows, max(1, round(seconds * _ROWS_PER_S[name])))
        values = rng.normal(0, 3, (1, rows, modality.dim)).astype(np.float32)
        inputs[name] = np.repeat(values, case.batch, axis=0)  # (B, T, dim)
        lengths = np.full(case.batch, rows, np.int64)
        lengths[first::4] = 0
        inputs[name][first::4] = 0
        inputs[f"{name}_len"] = lengths
    return inputs


def _rounds(
    manifest: Manifest, loaded: dict[str, dict[str, Backend]], alone: dict[str, Alone], runs: int, progress: Progress
) -> dict[str, Measured]:
    rng = np.random.default_rng(0)
    seconds: dict[tuple[str, Case], list[float]] = {(backend, case): [] for backend in loaded for case in CASES}
    differences: dict[tuple[str, Case], float] = dict.fromkeys(seconds, 0.0)
    agreeing, rows = dict.fromkeys(loaded, 0), 0
    gc.collect()
    for number in range(-_WARM_UP, runs):
        for case in CASES:
            inputs = draw(case, manifest, rng)
            results = {}
            for backend in rng.permutation(list(loaded)).tolist():
                begin = time.perf_counter()
                outputs = loaded[backend][case.graph].run(inputs)
                elapsed = time.perf_counter() - begin
                (results[backend],) = outputs.values()
                if number >= 0:
                    seconds[backend, case].append(elapsed)
            reference = results[REFERENCE]
            rows += case.batch if case.graph == FUSION else 0
            for backend, result in results.items():
                worst = differences[backend, case]
                differences[backend, case] = float(np.maximum(worst, np.abs(result - reference).max()))  # keeps a NaN
                if case.graph == FUSION:
                    agreeing[backend] += int((result.argmax(1) == reference.argmax(1)).sum())
        progress((number + _WARM_UP + 1) / (runs + _WARM_UP))
    measured = {}
    for backend, graphs in loaded.items():
        timings = {case.name: _timing(seconds[backend, case], case, differences[backend, case]) for case in CASES}
        worst = float(np.max([timing.difference for timing in timings.values()]))
        measured[backend] = Measured(graphs[FUSION].name, worst, agreeing[backend] / rows, alone[backend], timings)
    return measured


def _timing(seconds: Sequence[float], case: Case, difference: float) -> Timing:
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return Timing(float(p50), float(p99), case.batch * len(seconds) / sum(seconds), difference)


def _alone_in_a_process(bundle: Bundle, backend: str) -> Alone:
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(_alone, bundle.folder, backend).result()
    except BrokenProcessPool as error:
        raise BackendError(f"{backend}: the process that ran it alone died: it ran out of memory or crashed") from error


def _alone(folder: Path, backend: str) -> Alone:
    """Measure a backend in this process, a fresh one that has imported nothing heavy yet."""
    bundle = open_bundle(folder)
    process, rng = psutil.Process(), np.random.default_rng(0)

    def resident_mb() -> float:
        gc.collect()
        return float(process.memory_info().rss) / 1e6

    before = resident_mb()
    begin = time.perf_counter()
    graphs = {graph: load(bundle, graph, backend, THREADS) for graph in (FUSION, FACE)}
    load_s = time.perf_counter() - begin
    after_load = resident_mb()
    used = 0.0
    for number in range(ALONE_ROUNDS):
        for case in CASES:
            graphs[case.graph].run(draw(case, bundle.manifest, rng))
        if number == 0:
            used = resident_mb()
    growth, peak = resident_mb() - used, _peak_mb()
    return Alone(load_s, after_load - before, used - before, None if peak is None else peak - before, growth)


def _peak_mb() -> float | None:
    """The peak resident memory of this process. ``getrusage`` would include its parent's before the fork."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
