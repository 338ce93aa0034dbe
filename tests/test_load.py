"""engines/load.py: which backend is chosen, and what the log says about the others."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from emostream.engines import load
from emostream.engines.backend import BACKENDS
from emostream.engines.bundle import FACE, FUSION, FUSION_GPU
from emostream.engines.options import Device, Options
from emostream.engines.trt import cuda
from emostream.errors import BackendError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """A process that has not looked for a GPU yet."""
    load._gpu_runtime.cache_clear()
    caplog.set_level(logging.INFO)
    yield caplog
    load._gpu_runtime.cache_clear()


def lacking(monkeypatch: pytest.MonkeyPatch, **found: list[str]) -> None:
    monkeypatch.setattr(cuda, "missing", lambda runtime: found[runtime])


def test_a_backend_that_is_unknown(bundle):
    with pytest.raises(BackendError, match="'cuda' is unknown; choose one of: auto"):
        load.load(bundle, FACE, "cuda")


def test_auto_without_a_gpu_is_onnx_runtime_and_the_log_says_once_what_is_missing(bundle, fresh, monkeypatch):
    lacking(monkeypatch, tensorrt=["no NVIDIA driver", "no PyCUDA"], tensorrt_rtx=["no NVIDIA driver"])
    fresh.set_level("DEBUG")
    assert [load.load(bundle, graph).name for graph in (FACE, FUSION)] == ["onnxruntime/cpu"] * 2
    line, why = [record for record in fresh.records if record.name == "emostream.engines.load"]
    assert (line.levelname, line.getMessage()) == ("INFO", "ONNX Runtime on the CPU (others: stream-doctor)")
    assert (why.levelname, why.getMessage()) == ("DEBUG", "TensorRT cannot run here: no NVIDIA driver; no PyCUDA")


@pytest.mark.parametrize(
    ("tensorrt", "tensorrt_rtx", "taken"),
    [([], [], "tensorrt"), ([], ["no library"], "tensorrt"), (["no library"], [], "tensorrt_rtx")],
)
def test_auto_prefers_tensorrt_if_nothing_is_missing(bundle, fresh, monkeypatch, tensorrt, tensorrt_rtx, taken):
    from emostream.engines.trt import backend as module
    from emostream.engines.trt import cache
    from emostream.engines.trt.profiles import of_bundle

    lacking(monkeypatch, tensorrt=tensorrt, tensorrt_rtx=tensorrt_rtx)
    device = Device("Pretended GPU", "SM86", "CUDA 13.2")
    monkeypatch.setattr(cuda, "device", lambda: device)
    monkeypatch.setattr(cache, "engine", lambda *args: args)
    monkeypatch.setattr(module, "TensorRT", lambda *args: SimpleNamespace(args=args))
    profile = of_bundle(bundle.manifest, FUSION, 8)
    args = load.load(bundle, FUSION).args
    assert args == ((bundle.path(FUSION_GPU), profile, Options(runtime=taken), device), profile, taken)
    assert not fresh.records


def test_auto_goes_on_with_onnx_runtime_if_an_engine_cannot_be_built(bundle, fresh, monkeypatch):
    from emostream.engines.trt import cache

    def fail(*_: object) -> None:
        raise BackendError("TensorRT cannot take this graph")

    lacking(monkeypatch, tensorrt=[], tensorrt_rtx=[])
    monkeypatch.setattr(cuda, "device", lambda: None)
    monkeypatch.setattr(cache, "engine", fail)
    assert load.load(bundle, FUSION).name == "onnxruntime/cpu"
    (line,) = [record for record in fresh.records if record.name == "emostream.engines.load"]
    assert line.levelname == "WARNING"
    assert "fusion.onnx: tensorrt cannot run it, so ONNX Runtime does: TensorRT cannot take" in line.getMessage()
    with pytest.raises(BackendError, match="cannot take this graph"):  # chosen by name
        load.load(bundle, FUSION, "tensorrt")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_backend_chosen_by_name_is_never_replaced(bundle, monkeypatch, name):
    lacking(monkeypatch, tensorrt=["no NVIDIA driver", "no PyCUDA"], tensorrt_rtx=["no NVIDIA driver", "no PyCUDA"])
    with pytest.raises(BackendError, match=f"'{name}' cannot run here: no NVIDIA driver; no PyCUDA"):
        load.load(bundle, FUSION, name)


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("torch", "torch"), ("torch", "onnx")])
def test_a_missing_package_is_named_with_its_remedy(bundle, monkeypatch, name, package):
    is_installed = load._is_installed
    monkeypatch.setattr(load, "_is_installed", lambda wanted: wanted != package and is_installed(wanted))
    with pytest.raises(BackendError, match=f"'{name}' cannot run here: {package} is not installed: pip install"):
        load.load(bundle, FACE, name)
    assert f"{package} is not installed" in load.available()[name]


def test_available_names_every_backend():
    backends = load.available()
    assert list(backends) == [name for name in BACKENDS if name != "auto"]
    assert backends["onnxruntime"] == ""


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["emostream.engines.load", "emostream.engines.commands.compare", "emostream.stream.cores.classifier"]
)
def test_no_backend_is_imported_before_it_is_needed(name):
    heavy = {"torch", "openvino", "onnx", "tensorrt", "matplotlib"}
    code = f"import sys, {name}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
