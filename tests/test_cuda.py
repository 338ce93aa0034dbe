"""engines/trt/cuda.py: what this machine lacks, and its GPU, on a fake machine (see recording.py)."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator

import pytest

from emostream.engines.options import Device
from emostream.engines.trt import cuda
from emostream.errors import BackendError
from tests.recording import Gpu
from tests.recording_tensorrt import machine


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with machine({}) as gpu:
        yield gpu


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_rtx"])
def test_nothing_is_missing(gpu: Gpu, runtime: str):
    assert cuda.missing(runtime) == []


def test_device(gpu: Gpu):
    assert cuda.device() == Device("Pretended GPU", "SM86", "CUDA 13.2")


def test_everything_that_is_missing_is_named_once(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    def not_there(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", not_there)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    lacking = cuda.missing("tensorrt")
    assert (
        len(lacking) == 2 and "no NVIDIA driver" in lacking[0] and "tensorrt" in lacking[1]
    )  # PyCUDA needs the driver
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "PyCUDA is not installed" in cuda.missing("tensorrt")[2]


def test_broken_pycuda_is_named(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    (found,) = cuda.missing("tensorrt")
    assert "PyCUDA is not usable" in found and "pip install --force-reinstall" in found


@pytest.mark.parametrize("fail, message", [("init", "cuInit failed"), ("count", "finds no GPU")])
def test_a_driver_without_a_gpu(gpu: Gpu, fail: str, message: str):
    gpu.fail = fail
    (found,) = cuda.missing("tensorrt")
    assert message in found and "nvidia-smi" in found
    with pytest.raises(BackendError, match=message):
        cuda.device()


def test_tensorrt_10_is_too_old(gpu: Gpu, monkeypatch: pytest.MonkeyPatch):
    for runtime, lacks in ("tensorrt", 1), ("tensorrt_rtx", 0):  # RTX has version numbers of its own
        monkeypatch.setattr(sys.modules[runtime], "__version__", "10.3.0")
        assert len(cuda.missing(runtime)) == lacks
    assert "TensorRT 10.3.0 is too old" in cuda.missing("tensorrt")[0]


def test_the_previous_context_is_current_again_even_after_an_error(gpu: Gpu):
    other = gpu.driver.Device(0).make_context()
    with pytest.raises(ZeroDivisionError), cuda.current():
        assert gpu.contexts[-1].primary
        _ = 1 / 0
    assert gpu.contexts == [other]


def test_one_primary_context_for_all(gpu: Gpu):
    with cuda.current(), cuda.current():
        assert gpu.contexts[0] is gpu.contexts[1]
    assert not gpu.contexts
