"""engines/commands/gpu_check.py on the stand-in: its calls and its report. Nothing here runs on a GPU."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from emostream.engines.bundle import FACE, FUSION, FUSION_GPU
from emostream.engines.commands import gpu_check
from emostream.engines.commands.main import main
from emostream.engines.compare import Case
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.trt import build, cuda
from emostream.engines.trt.build import Report
from emostream.engines.trt.profiles import of_bundle
from tests.recording import Gpu, Graph
from tests.recording_tensorrt import machine


@pytest.fixture
def gpu(bundle, tmp_path, monkeypatch) -> Iterator[Gpu]:
    """A fake machine whose engines compute what ONNX Runtime does, with few runs of each case."""
    graphs = {}
    outputs = {FUSION_GPU: (FUSION, "logits", "audio", 7), FACE: (FACE, "vectors", "crops", 128)}
    for file, (graph, name, first, width) in outputs.items():
        profile = of_bundle(bundle.manifest, graph)
        dtypes = {key: "int64" if key.endswith("_len") else "float32" for key in profile}
        dtypes |= {"crops": "uint8"} if graph == FACE else {}
        shape = {name: lambda shapes, first=first, width=width: (shapes[first][0], width)}
        reference = OnnxRuntime(bundle.path(file))
        graphs[file.encode()] = Graph(profile, dtypes | {name: "float32"}, shape, reference.run)

    def compile(path, profile, options, trt, times=None, progress=None):
        blob = path.name.encode()
        digest = hashlib.sha256(blob).hexdigest()
        return blob, Report(3, options.precision, len(blob), digest, 0.1, options.runtime, trt.__version__)

    monkeypatch.setenv("EMOSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "compile", compile)
    few = {"_PARITY_ROUNDS": 2, "_WARM_UP": 1, "_SIDE_BY_SIDE": 20, "_PARITY": [Case(FUSION, 3, 1), Case(FACE, 8)]}
    for name, value in few.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setattr(gpu_check, "_TIMED", [Case(FUSION, 2, 1), Case(FACE, 1)])
    monkeypatch.setattr(gpu_check._timing, "__defaults__", (11,))
    with machine(graphs) as gpu:
        yield gpu


@pytest.mark.slow
def test_report_and_page(gpu, tmp_path, capsys):
    out = tmp_path / "docs"
    assert main(["gpu-check", "ekman7", "--runs", "20", "--out", str(out)]) == 0
    report = json.loads((out / "gpu-report.json").read_text())
    built = [(engine["entry"]["graph"], engine["entry"]["report"]["precision"]) for engine in report["checked"]]
    assert built == [(FUSION_GPU, "fp32"), (FUSION_GPU, "fp16"), (FACE, "fp32"), (FACE, "fp16")]
    assert report["device"]["name"] == "Pretended GPU" and report["runtime"] == "tensorrt 11.4.0"
    assert report["beside_others"] == "right" and not report["faults"]
    for engine in report["checked"]:
        assert engine["difference"] < 1e-5 and engine["growth_bytes"] == 0 and engine["runs"] == 20
        (timing,) = engine["timings"].values()
        assert 0 < timing["p50_ms"] <= timing["p99_ms"] and timing["rows_per_s"] > 0
    page = (out / "gpu-report.md").read_text()
    assert page in capsys.readouterr().out
    assert page.startswith("# tensorrt 11.4.0 on Pretended GPU") and "| fusion, 1 s × 2 | fp16 |" in page
    assert gpu.nothing_is_left()


@pytest.mark.slow
def test_runtime_can_be_chosen(gpu, tmp_path):
    assert main(["gpu-check", "--runtime", "tensorrt_rtx", "--runs", "1", "--out", str(tmp_path)]) == 0
    assert "tensorrt_rtx" in (tmp_path / "gpu-report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("wrong_by", [1e-3, 10.0, np.nan])
def test_wrong_results_are_faults(gpu, tmp_path, capsys, wrong_by):
    graph = gpu.graphs[FUSION_GPU.encode()]
    right = graph.compute

    def wrong(inputs):
        (logits,) = right(inputs).values()
        return {"logits": logits + np.float32(wrong_by) * np.arange(7, dtype=np.float32)}

    graph.compute = wrong
    assert main(["gpu-check", "--runs", "1", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "fault: fusion.onnx, fp32: differs from ONNX Runtime by" in said
    assert ("of labels are ONNX Runtime's" in said) == (wrong_by != 1e-3)
    assert "**Faults:**" in (tmp_path / "gpu-report.md").read_text()


@pytest.mark.slow
def test_memory_that_is_not_freed_is_a_fault(gpu, tmp_path, capsys, monkeypatch):
    free = [10**9]

    def mem_get_info():
        free[0] -= 1 << 21
        return free[0], 1 << 33

    monkeypatch.setattr(gpu.driver, "mem_get_info", mem_get_info)
    assert main(["gpu-check", "--runs", "1", "--out", str(tmp_path)]) == 1
    assert "2,097,152 bytes of device memory are lost after 1 runs" in capsys.readouterr().err


@pytest.mark.slow
def test_results_that_change_side_by_side_are_a_fault(gpu, tmp_path, capsys):
    graph = gpu.graphs[FUSION_GPU.encode()]
    right, random = graph.compute, np.random.default_rng(0)

    def unsteady(inputs):
        (logits,) = right(inputs).values()
        return {"logits": logits + random.uniform(0, 1e-6, logits.shape).astype(np.float32)}

    graph.compute = unsteady
    assert main(["gpu-check", "--runs", "1", "--out", str(tmp_path)]) == 1
    assert "side by side, the results of" in capsys.readouterr().err
    assert gpu.nothing_is_left()


def test_an_engine_that_fails_is_an_error_and_nothing_is_left(gpu, tmp_path, capsys):
    gpu.fail = "execute_async_v3"
    assert main(["gpu-check", "--runs", "1", "--out", str(tmp_path)]) == 1
    assert "error: TensorRT did not execute: reason of execute_async_v3" in capsys.readouterr().err
    assert gpu.nothing_is_left() and not (tmp_path / "gpu-report.json").exists()


def test_without_a_gpu_it_says_once_what_is_missing_and_exits_3(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cuda, "missing", lambda runtime: ["no NVIDIA driver", f"no {runtime}"])
    assert main(["gpu-check", "--out", str(tmp_path / "docs")]) == 3
    said = capsys.readouterr().err
    assert said.count("- no NVIDIA driver\n") == 1 and "- no tensorrt\n" in said and "- no tensorrt_rtx\n" in said
    assert "docs/deploy.md" in said and not (tmp_path / "docs").exists()


@pytest.mark.process
def test_the_real_command_on_this_machine(tmp_path):
    """Without a GPU it exits 3; with one, a test is not the place to measure."""
    if not cuda.missing("tensorrt") or not cuda.missing("tensorrt_rtx"):
        pytest.skip("TensorRT can run here: see python -m engines gpu-check")
    command = [sys.executable, "-m", "engines", "gpu-check", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stderr.startswith("TensorRT cannot run on this machine:\n- ")


def test_wrong_usage(capsys):
    assert main(["gpu-check", "--runs", "0"]) == 2
    assert "--runs must be at least 1" in capsys.readouterr().err
