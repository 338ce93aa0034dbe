"""TensorRT 11 or TensorRT-RTX on an NVIDIA GPU, with memory, stream and context by PyCUDA.

Page-locked host buffers and device buffers of the profile's largest size are allocated once, and TensorRT gets their
addresses once. A run copies its arrays into the host buffers, those to the device, executes and copies back, all on one
stream of its own, then waits for that stream. Shapes are padded to a few sizes, and batches above the profile's largest
are split (see ``buffers``).

CUDA graphs: TensorRT-RTX captures and replays them by itself if its runtime configuration asks for it, as it does here;
where an engine does not allow that (loops may not), it logs the fact and runs without. TensorRT proper expects its
caller to capture the stream, for which PyCUDA (2026.1, by its source) has no call, so every run is enqueued again.

The tests run this file against a stand-in that records calls, and check its calls against the types of the real
bindings. Neither is execution on a GPU: ``stream-engines gpu-check`` is.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emostream.engines.trt import buffers, cuda
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import load_module, logger, reasons
from emostream.errors import BackendError

if TYPE_CHECKING:
    import tensorrt_rtx  # tensorrt has the same API except for CUDA graphs

_log = logging.getLogger(__name__)


class TensorRT:
    """A built engine, ready to run; for one thread at a time. ``name``: such as ``tensorrt/NVIDIA A10``.

    ``profile``: the one that the engine was built for. After a failure on the device the backend is closed.
    Raises BackendError if this machine lacks something (see ``cuda.missing``), if the engine was built for another
    version, GPU or profile, or if memory runs out.
    """

    def __init__(self, engine_path: Path, profile: Profile, runtime: str = "tensorrt") -> None:
        if lacking := cuda.missing(runtime):
            raise BackendError(f"{runtime} cannot run here: " + "; ".join(lacking))
        self.name = f"{runtime}/{cuda.device().name}"
        self._profile = profile
        self._ladders = buffers.ladders(profile)
        self._loaded = _Loaded()
        with _device_errors(engine_path.name), cuda.current(), ExitStack() as held:
            _load(self._loaded, held, engine_path, profile, runtime)
            # also at the end of the process, while PyCUDA is still loaded
            self._release = weakref.finalize(self, _release, held.pop_all())

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph on arrays with the batch on axis 0; see ``Backend.run``."""
        if not self._release.alive:
            raise BackendError(f"{self.name} is closed; load the engine again")
        rows = buffers.check(inputs, self._profile, self._loaded.dtypes)
        largest = next(iter(self._profile.values()))[2][0]
        try:
            with _device_errors(self.name), cuda.current():
                parts = [
                    self._execute({name: array[part] for name, array in inputs.items()}, part.stop - part.start)
                    for part in buffers.split(rows, largest)
                ]
        except BackendError:
            self.close()  # the device's state can no longer be trusted
            raise
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _execute(self, inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """One run of at most the profile's largest batch, in the current context."""
        driver, loaded = cuda.driver(), self._loaded
        logger(loaded.trt).messages.clear()
        for name, array in inputs.items():
            shape = buffers.padded(array.shape, self._ladders[name])
            view = buffers.place(loaded.host[name], array, shape)
            driver.memcpy_htod_async(loaded.device[name], view, loaded.stream)
            _set_shape(loaded, name, shape)
        _infer_shapes(loaded)
        if not loaded.execution.execute_async_v3(loaded.stream.handle):
            raise BackendError(f"TensorRT did not execute: {reasons(loaded.trt)}")
        views = {}
        for name in loaded.outputs:
            shape = tuple(loaded.execution.get_tensor_shape(name))
            views[name] = loaded.host[name][: math.prod(shape)].reshape(shape)
            driver.memcpy_dtoh_async(views[name], loaded.device[name], loaded.stream)
        loaded.stream.synchronize()
        return {name: view[:rows].copy() for name, view in views.items()}  # copied, as the next run overwrites it

    def close(self) -> None:
        """Free all memory; closing twice does nothing."""
        self._release()


class _Loaded:
    """The objects of one engine on the device, one per attribute, so that each can be released in its turn.

    Nothing else may refer to one of them, not even a local variable, which a traceback would keep alive.
    """

    trt: Any  # the module
    stream: Any  # pycuda.driver.Stream
    runtime: tensorrt_rtx.Runtime
    engine: tensorrt_rtx.ICudaEngine
    config: tensorrt_rtx.IRuntimeConfig
    execution: tensorrt_rtx.IExecutionContext

    def __init__(self) -> None:
        self.outputs: list[str] = []
        self.dtypes: dict[str, np.dtype] = {}
        self.host: dict[str, np.ndarray] = {}  # flat and page-locked
        self.device: dict[str, Any] = {}  # pycuda.driver.DeviceAllocation


def _load(to: _Loaded, held: ExitStack, path: Path, profile: Profile, runtime: str) -> None:
    """Read the engine and allocate. ``held`` collects a cleanup for each step and runs them in reverse order."""
    trt = load_module(runtime)
    to.trt = trt
    driver = cuda.driver()
    blob = path.read_bytes()
    logger(trt).messages.clear()
    to.stream = driver.Stream()
    held.callback(delattr, to, "stream")
    to.runtime = trt.Runtime(logger(trt))
    held.callback(delattr, to, "runtime")
    to.engine = to.runtime.deserialize_cuda_engine(blob)
    held.callback(delattr, to, "engine")
    if to.engine is None:
        raise BackendError(
            f"{path}: {runtime} {trt.__version__} cannot read this engine ({reasons(trt)}); it was built for another "
            "version or GPU, or memory is short; delete the file, and the next start builds it again"
        )
    to.config = to.engine.create_runtime_config()
    held.callback(delattr, to, "config")
    if runtime == "tensorrt_rtx":
        to.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    to.execution = to.engine.create_execution_context(to.config)
    held.callback(delattr, to, "execution")
    if to.execution is None:
        size = to.engine.device_memory_size_v2
        raise BackendError(f"{path}: {size:,} bytes of GPU memory to execute in are not free ({reasons(trt)})")
    held.callback(to.device.clear)
    held.callback(to.host.clear)  # not freed by hand: a traceback may keep a view, which must stay readable
    names = [to.engine.get_tensor_name(index) for index in range(to.engine.num_io_tensors)]
    inputs = [name for name in names if to.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    to.outputs = [name for name in names if name not in inputs]
    built_for = {name: tuple(tuple(shape) for shape in to.engine.get_tensor_profile_shape(name, 0)) for name in inputs}
    if built_for != dict(profile):
        raise BackendError(f"{path}: built for {built_for}, not for {dict(profile)}; delete it, and it is built again")
    for name in inputs:
        _set_shape(to, name, profile[name][2])
    _infer_shapes(to)
    for name in names:
        to.dtypes[name] = np.dtype(trt.nptype(to.engine.get_tensor_dtype(name)))
        items = math.prod(to.execution.get_tensor_shape(name))
        size = items * to.dtypes[name].itemsize
        page_locked = partial(driver.pagelocked_empty, items, to.dtypes[name])
        to.host[name] = _allocate(f"{size:,} bytes of page-locked host memory for {name}", page_locked)
        to.device[name] = _allocate(f"{size:,} bytes of GPU memory for {name}", partial(driver.mem_alloc, size))
        held.callback(to.device[name].free)
        if not to.execution.set_tensor_address(name, int(to.device[name])):
            raise BackendError(f"{path}: TensorRT refuses the buffer of {name} ({reasons(trt)})")
    held.callback(lambda: to.stream.synchronize())  # runs first: nothing is freed while it is being copied


def _release(held: ExitStack) -> None:
    try:
        with cuda.current():
            held.close()
    except cuda.driver().Error as error:
        _log.warning("the GPU failed while its memory was freed: %s", error)


def _set_shape(loaded: _Loaded, name: str, shape: buffers.Shape) -> None:
    if not loaded.execution.set_input_shape(name, shape):
        raise BackendError(f"TensorRT refuses shape {shape} for {name} ({reasons(loaded.trt)})")


def _infer_shapes(loaded: _Loaded) -> None:
    try:
        unknown = loaded.execution.infer_shapes()
    except RuntimeError as error:
        raise BackendError(f"TensorRT cannot infer the shapes of this run ({error}; {reasons(loaded.trt)})") from error
    if unknown:
        raise BackendError(f"TensorRT lacks the shapes of {', '.join(unknown)}")


def _allocate(what: str, allocate: Callable[[], Any]) -> Any:
    driver = cuda.driver()
    try:
        return allocate()
    except driver.MemoryError as error:
        free, total = driver.mem_get_info()
        raise BackendError(
            f"out of memory: no {what} ({free:,} of the GPU's {total:,} bytes are free); stop its other users, or set "
            'backend = "onnxruntime" under [fusion]'
        ) from error


@contextmanager
def _device_errors(where: str) -> Iterator[None]:
    try:
        yield
    except cuda.driver().Error as error:
        raise BackendError(f"{where}: the GPU failed: {error}") from error
