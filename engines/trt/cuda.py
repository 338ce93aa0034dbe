"""CUDA through PyCUDA: what TensorRT lacks on this machine, the device, and its context.

The context is the device's primary one, which the CUDA runtime, and so TensorRT and torch, uses too. It is retained
once per process and never released: PyCUDA leaves a released primary context on the driver's stack, where the thread's
next user would find it. Each use pushes and pops it, so the context that was current before is current again.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from emostream.engines.options import Device
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError

_OLDEST = 11  # the first version of TensorRT whose networks are always strongly typed


def missing(runtime: str) -> list[str]:
    """What ``tensorrt`` or ``tensorrt_rtx`` lacks on this machine, each with its remedy; empty if it can run."""
    lacking = []
    try:
        ctypes.CDLL("libcuda.so.1")
        has_driver = True
    except OSError:
        has_driver = False
        lacking.append("no NVIDIA driver (libcuda.so.1 not found): install one; nvidia-smi must list a GPU")
    if has_driver or importlib.util.find_spec(runtime) is None:  # the import is slow, and useless without a driver
        try:
            version = load_module(runtime).__version__
            if runtime == "tensorrt" and int(version.split(".")[0]) < _OLDEST:
                lacking.append(f"TensorRT {version} is too old: pip install 'tensorrt>={_OLDEST}', see docs/deploy.md")
        except BackendError as error:
            lacking.append(str(error))
    if importlib.util.find_spec("pycuda") is None:
        lacking.append("PyCUDA is not installed: pip install pycuda (pip compiles it, which needs the CUDA toolkit)")
    elif has_driver:
        try:
            driver()
        except BackendError as error:
            lacking.append(str(error))
    return lacking


@cache
def driver() -> Any:
    """``pycuda.driver``, initialised. Raises BackendError if it cannot be loaded or finds no GPU."""
    try:
        import pycuda.driver as module
    except (ImportError, OSError) as error:
        raise BackendError(
            f"PyCUDA is not usable ({error}); build it against the installed CUDA: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        ) from error
    try:
        module.init()
        count = module.Device.count()
    except module.Error as error:
        raise BackendError(f"the NVIDIA driver does not start ({error}); run nvidia-smi to see why") from error
    if not count:
        raise BackendError("the NVIDIA driver finds no GPU; see nvidia-smi -L and CUDA_VISIBLE_DEVICES")
    return module


@cache
def _primary_context() -> Any:
    return driver().Device(0).retain_primary_context()


@contextmanager
def current() -> Iterator[None]:
    """Make the first device's primary context current in this thread, and restore the previous one afterwards."""
    context = _primary_context()
    context.push()
    try:
        yield
    finally:
        context.pop()


def device() -> Device:
    """The GPU in use: the first of CUDA_VISIBLE_DEVICES. Raises BackendError as ``driver`` does."""
    gpu = driver().Device(0)
    major, minor = gpu.compute_capability()
    version = driver().get_driver_version()  # the newest CUDA that the driver supports, 13020 for 13.2
    return Device(gpu.name(), f"SM{major}{minor}", f"CUDA {version // 1000}.{version % 1000 // 10}")
