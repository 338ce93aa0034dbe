"""TensorRT 11 or TensorRT-RTX on an NVIDIA GPU, with memory, stream and context by PyCUDA.

Page-locked host buffers and device buffers of the profile's largest size are made once and their addresses given to
TensorRT once; a run lays its arrays into the host buffers, copies them to the device, executes and copies back, all on
one stream of our own, then waits for that stream. Shapes are padded up to few ones and batches above the profile's
largest are split (see ``buffers``).

CUDA graphs: TensorRT-RTX captures and replays them by itself when its runtime configuration asks for it, as here; where
an engine does not allow it (loops may not), it logs so and runs plainly. TensorRT proper expects its caller to capture
the stream, for which PyCUDA (2026.1, by its source) has no call, so there every run is enqueued anew.

The tests drive this file against a stand-in that records calls, and check its calls against the types of the real
bindings. Neither is execution on a GPU: that is what ``python -m engines gpu-check`` is for.
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
    import tensorrt_rtx  # of what is used here, all but CUDA graphs is the same in tensorrt

_log = logging.getLogger(__name__)


class TensorRT:
    """A built engine, ready to run; used by one thread at a time. ``name``: such as ``tensorrt/NVIDIA A10``.

    ``profile`` is the one that the engine was built for. After a failure on the device the backend is closed.
    Raises BackendError if something that it needs is missing on this machine (see ``cuda.missing``), if the engine is
    of another version, GPU or profile, or if memory runs out.
    """

    def __init__(self, engine_path: Path, profile: Profile, runtime: str = "tensorrt") -> None:
        if found := cuda.missing(runtime):
            raise BackendError(f"{runtime} cannot run here: " + "; ".join(found))
        self.name = f"{runtime}/{cuda.device().name}"
        self._profile = profile
        self._ladders = buffers.ladders(profile)
        self._loaded = _Loaded()
        with _device_errors(engine_path.name), cuda.current(), ExitStack() as held:
            _load(self._loaded, held, engine_path, profile, runtime)
            # also at the end of the process, while PyCUDA is still there
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
            self.close()  # what the device holds cannot be trusted any more
            raise
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _execute(self, inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
        """One run of at most the profile's largest batch, in the current context."""
        driver, at = cuda.driver(), self._loaded
        logger(at.trt).messages.clear()
        for name, array in inputs.items():
            shape = buffers.padded(array.shape, self._ladders[name])
            view = buffers.place(at.host[name], array, shape)
            driver.memcpy_htod_async(at.device[name], view, at.stream)
            _set_shape(at, name, shape)
        _infer_shapes(at)
        if not at.execution.execute_async_v3(at.stream.handle):
            raise BackendError(f"TensorRT did not execute: {reasons(at.trt)}")
        views = {}
        for name in at.outputs:
            shape = tuple(at.execution.get_tensor_shape(name))
            views[name] = at.host[name][: math.prod(shape)].reshape(shape)
            driver.memcpy_dtoh_async(views[name], at.device[name], at.stream)
        at.stream.synchronize()
        return {name: view[:rows].copy() for name, view in views.items()}  # the buffer is written again by the next run

    def close(self) -> None:
        """Give back all memory; closing twice does nothing."""
        self._release()


class _Loaded:
    """What one engine has on the device, attribute by attribute, so that each can be released in its turn.

    Nothing else refers to one of these, not even a local variable, which a traceback would keep.
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
    """Read the engine and allocate. ``held`` gets what undoes each step, and so undoes them in the reverse order."""
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
            f"{path}: {runtime} {trt.__version__} cannot read this engine ({reasons(trt)}); it is of another "
            "version or GPU, or memory is short; delete the file, it is built anew at the next start"
        )
    to.config = to.engine.create_runtime_config()
    held.callback(delattr, to, "config")
    if runtime == "tensorrt_rtx":
        to.config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    to.execution = to.engine.create_execution_context(to.config)
    held.callback(delattr, to, "execution")
    if to.execution is None:
        size = to.engine.device_memory_size_v2
        raise BackendError(f"{path}: no {size:,} bytes of GPU memory to execute in ({reasons(trt)})")
    held.callback(to.device.clear)
    held.callback(to.host.clear)  # not freed by hand: a view that an error's traceback keeps must stay readable
    names = [to.engine.get_tensor_name(index) for index in range(to.engine.num_io_tensors)]
    inputs = [name for name in names if to.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    to.outputs = [name for name in names if name not in inputs]
    built_for = {name: tuple(tuple(of) for of in to.engine.get_tensor_profile_shape(name, 0)) for name in inputs}
    if built_for != dict(profile):
        raise BackendError(f"{path}: built for {built_for}, not for {dict(profile)}; delete it, it is built anew")
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
    held.callback(lambda: to.stream.synchronize())  # first: nothing is freed that is still being copied


def _release(held: ExitStack) -> None:
    try:
        with cuda.current():
            held.close()
    except cuda.driver().Error as error:
        _log.warning("the GPU failed while its memory was given back: %s", error)


def _set_shape(at: _Loaded, name: str, shape: buffers.Shape) -> None:
    if not at.execution.set_input_shape(name, shape):
        raise BackendError(f"TensorRT refuses shape {shape} for {name} ({reasons(at.trt)})")


def _infer_shapes(at: _Loaded) -> None:
    try:
        unknown = at.execution.infer_shapes()
    except RuntimeError as error:
        raise BackendError(f"TensorRT cannot infer the shapes of this run ({error}; {reasons(at.trt)})") from error
    if unknown:
        raise BackendError(f"TensorRT lacks the shapes of {', '.join(unknown)}")


def _allocate(what: str, allocate: Callable[[], Any]) -> Any:
    driver = cuda.driver()
    try:
        return allocate()
    except driver.MemoryError as error:
        free, total = driver.mem_get_info()
        raise BackendError(
            f"out of memory: no {what} ({free:,} of the GPU's {total:,} bytes are free); end what else uses it, or set "
            'backend = "onnxruntime" under [fusion]'
        ) from error


@contextmanager
def _device_errors(where: str) -> Iterator[None]:
    try:
        yield
    except cuda.driver().Error as error:
        raise BackendError(f"{where}: the GPU failed: {error}") from error
