"""engines/load.py: which backend is taken, and what is told of those that are not."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from emostream.engines import load
from emostream.engines.backend import BACKENDS
from emostream.engines.bundle import FACE, FUSION
from emostream.engines.trt import cuda
from emostream.errors import BackendError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """As in a process that has not yet looked for a GPU."""
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
    assert [load.load(bundle, graph).name for graph in (FACE, FUSION)] == ["onnxruntime/cpu"] * 2
    (line,) = [record for record in fresh.records if record.name == "emostream.engines.load"]
    assert line.levelname == "INFO"
    assert "ONNX Runtime, as TensorRT cannot run here: no NVIDIA driver; no PyCUDA" in line.getMessage()


@pytest.mark.parametrize(
    ("tensorrt", "tensorrt_rtx", "taken"),
    [([], [], "tensorrt"), ([], ["no library"], "tensorrt"), (["no library"], [], "tensorrt_rtx")],
)
def test_auto_takes_tensorrt_first_where_all_is_there(bundle, fresh, monkeypatch, tensorrt, tensorrt_rtx, taken):
    from emostream.engines.trt import backend as module
    from emostream.engines.trt import cache
    from emostream.engines.trt.build import Options
    from emostream.engines.trt.profiles import of_bundle

    lacking(monkeypatch, tensorrt=tensorrt, tensorrt_rtx=tensorrt_rtx)
    device = cache.Device("Pretended GPU", "SM86", "CUDA 13.2")
    monkeypatch.setattr(cuda, "device", lambda: device)
    monkeypatch.setattr(cache, "engine", lambda *asked: asked)
    monkeypatch.setattr(module, "TensorRT", lambda *asked: SimpleNamespace(asked=asked))
    profile = of_bundle(bundle.manifest, FUSION, 8)
    asked = load.load(bundle, FUSION).asked
    assert asked == ((bundle.path(FUSION), profile, Options(runtime=taken), device), profile, taken)
    assert not fresh.records


def test_auto_goes_on_where_an_engine_cannot_be_built(bundle, fresh, monkeypatch):
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
    with pytest.raises(BackendError, match="cannot take this graph"):  # asked for by name
        load.load(bundle, FUSION, "tensorrt")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_a_backend_asked_for_by_name_is_never_another(bundle, monkeypatch, name):
    lacking(monkeypatch, tensorrt=["no NVIDIA driver", "no PyCUDA"], tensorrt_rtx=["no NVIDIA driver", "no PyCUDA"])
    with pytest.raises(BackendError, match=f"'{name}' cannot run here: no NVIDIA driver; no PyCUDA"):
        load.load(bundle, FUSION, name)


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("torch", "torch"), ("torch", "onnx")])
def test_a_package_that_is_missing_is_named_with_what_installs_it(bundle, monkeypatch, name, package):
    there = load._is_there
    monkeypatch.setattr(load, "_is_there", lambda wanted: wanted != package and there(wanted))
    with pytest.raises(BackendError, match=f"'{name}' cannot run here: {package} is not installed: pip install"):
        load.load(bundle, FACE, name)
    assert f"{package} is not installed" in load.available()[name]


def test_every_backend_is_known_to_be_available_or_not():
    found = load.available()
    assert list(found) == [name for name in BACKENDS if name != "auto"]
    assert found["onnxruntime"] == ""


@pytest.mark.parametrize(
    "name", ["emostream.engines.load", "emostream.engines.commands.compare", "emostream.stream.cores.classifier"]
)
def test_no_backend_is_imported_before_it_is_asked_for(name):
    heavy = {"torch", "openvino", "onnx", "tensorrt", "matplotlib"}
    code = f"import sys, {name}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
