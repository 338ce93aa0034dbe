"""tools/gpu_check.sh on a machine without a GPU, and PyTorch at prepared shapes on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from emostream.engines.bundle import FACE, FUSION
from emostream.engines.compare import MOST_DIFFERENCE, Case, draw
from emostream.engines.onnx import OnnxRuntime
from emostream.engines.torch import Torch
from emostream.engines.torch_static import StaticTorch
from emostream.engines.trt.profiles import of_bundle
from emostream.errors import BackendError

ROOT = Path(__file__).parent.parent


def script(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "tools/gpu_check.sh"), *map(str, words)]
    environment = os.environ | {"PYTHON": sys.executable} | env
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_without_a_gpu_each_part_says_what_is_missing(tmp_path):
    done = script("--from", ".", "--out", tmp_path)
    assert done.returncode == 3, done.stderr
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert set(report["parts"]) == {"pycuda", "tensorrt_rtx", "torch", "torch_compiled", "onnxruntime", "live"}
    for part, found in report["parts"].items():
        assert found["state"] == "missing" and f"{part}: {found['missing']}\n" in done.stderr
    assert (tmp_path / "gpu-report.md").read_text().startswith("# No GPU was used\n")


@pytest.mark.process
def test_what_takes_too_long_is_stopped_and_wrong_usage_is_said(tmp_path):
    for words, code in ((("--nonsense",), 2), (("--device", "tpu"), 2), (("--prepare",), 2), (("--help",), 0)):
        assert script(*words).returncode == code
    done = script("--from", ".", "--out", tmp_path, GPU_CHECK_S="0")
    assert done.returncode == 1 and "torch: stopped after its time" in done.stderr
    report = json.loads((tmp_path / "gpu-report.json").read_text())
    assert {found["state"] for found in report["parts"].values()} == {"timed out"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "cases"),
    [(FACE, [Case(FACE, 1), Case(FACE, 3)]), (FUSION, [Case(FUSION, 1, 5), Case(FUSION, 3, 0.1), Case(FUSION, 9, 1)])],
)
def test_prepared_shapes_give_onnx_runtimes_results(bundle, graph, cases):
    backend = StaticTorch(bundle.path(graph), of_bundle(bundle.manifest, graph), device="cpu")
    reference, rng = OnnxRuntime(bundle.path(graph)), np.random.default_rng(0)
    for case in [*cases, *cases]:
        inputs = draw(case, bundle.manifest, rng)
        (ours,), (theirs,) = backend.run(inputs).values(), reference.run(inputs).values()
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < MOST_DIFFERENCE
    backend.close()


@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use_is_an_error_of_the_backend(bundle):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendError, match="torch cannot put the graph on cuda"):
        Torch(bundle.path(FUSION), device="cuda")
