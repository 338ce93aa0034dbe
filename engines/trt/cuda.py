"""CUDA through PyCUDA: what stops TensorRT here, which device there is, and its context.

The context is the device's primary one, which the CUDA runtime (and so TensorRT and torch) uses as well. It is retained
once in a process and never released before its end: PyCUDA leaves a released primary context on the driver's stack,
where the next user of the thread would find it. For each use it is pushed and popped, so that whatever context another
user has made current is current again afterwards.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from emostream.engines.trt.cache import Device
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError

_OLDEST = 11  # the first version of TensorRT whose networks are always strongly typed


def missing(runtime: str) -> list[str]:
    """What stops ``tensorrt`` or ``tensorrt_rtx`` on this machine, each with what mends it; empty if nothing does."""
    found = []
    try:
        ctypes.CDLL("libcuda.so.1")
        has_driver = True
    except OSError:
        has_driver = False
        found.append("no NVIDIA driver (libcuda.so.1 is not there): install one, until nvidia-smi lists a GPU")
    if has_driver or importlib.util.find_spec(runtime) is None:  # not imported in vain: that takes a while
        try:
            version = load_module(runtime).__version__
            if runtime == "tensorrt" and int(version.split(".")[0]) < _OLDEST:
                found.append(f"TensorRT {version} is too old: pip install 'tensorrt>={_OLDEST}', see docs/deploy.md")
        except BackendError as error:
            found.append(str(error))
    if importlib.util.find_spec("pycuda") is None:
        found.append("PyCUDA is not installed: pip install pycuda (it is built there, and needs the CUDA toolkit)")
    elif has_driver:
        try:
            driver()
        except BackendError as error:
            found.append(str(error))
    return found


@cache
def driver() -> ModuleType:
    """``pycuda.driver``, initialised. Raises BackendError if it cannot be loaded or finds no GPU."""
    try:
        import pycuda.driver as module
    except (ImportError, OSError) as error:
        raise BackendError(
            f"PyCUDA is not usable ({error}); build it against the CUDA that is installed: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        ) from error
    try:
        module.init()
        count = module.Device.count()
    except module.Error as error:
        raise BackendError(f"the NVIDIA driver does not start ({error}); see what nvidia-smi says") from error
    if not count:
        raise BackendError("the NVIDIA driver finds no GPU; see nvidia-smi -L and CUDA_VISIBLE_DEVICES")
    return module


@cache
def _primary_context() -> Any:
    return driver().Device(0).retain_primary_context()


@contextmanager
def current() -> Iterator[None]:
    """The first device's primary context is this thread's current one; then again what was so before."""
    context = _primary_context()
    context.push()
    try:
        yield
    finally:
        context.pop()


def device() -> Device:
    """The GPU that is used: the first of CUDA_VISIBLE_DEVICES. Raises BackendError as ``driver`` does."""
    gpu = driver().Device(0)
    major, minor = gpu.compute_capability()
    version = driver().get_driver_version()  # the newest CUDA that the driver speaks, 13020 for 13.2
    return Device(gpu.name(), f"SM{major}{minor}", f"CUDA {version // 1000}.{version % 1000 // 10}")
