"""The stand-in's modules tensorrt and tensorrt_rtx (see recording.py), and the whole fake machine."""

from __future__ import annotations

import ctypes
import enum
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from emostream.engines.options import RUNTIMES
from emostream.engines.trt import cuda, runtimes
from tests.recording import Gpu, Graph, Misuse, bare_module, native


@contextmanager
def machine(graphs: dict[bytes, Graph]) -> Iterator[Gpu]:
    """A fake machine with a GPU, its driver, PyCUDA and both libraries."""

    gpu = Gpu(graphs)
    package = bare_module("pycuda")
    package.driver = gpu.driver
    modules = {"pycuda": package, "pycuda.driver": gpu.driver}
    modules |= {name: tensorrt_module(gpu, name) for name in RUNTIMES}
    remembered = (cuda.driver, cuda._primary_context, runtimes.logger)
    for cached in remembered:
        cached.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(ctypes, "CDLL", lambda name: None)
        yield gpu
    for cached in remembered:
        cached.cache_clear()


def tensorrt_module(gpu: Gpu, name: str) -> Any:
    """``tensorrt`` 11 or ``tensorrt_rtx``."""
    module = bare_module(name)

    class DataType(enum.Enum):
        FLOAT = "float32"
        INT64 = "int64"
        UINT8 = "uint8"

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class CudaGraphStrategy(enum.Enum):
        WHOLE_GRAPH_CAPTURE = 1

    class ILogger:
        WARNING, ERROR, INTERNAL_ERROR = "warning", "error", "internal error"

        def __init__(self) -> None:
            self.ready = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class _Recorded:
        __slots__ = ("__weakref__",)

        def __del__(self) -> None:
            gpu.called(f"~{type(self).__name__}")

    class IRuntimeConfig(_Recorded):
        __slots__ = ("cuda_graph_strategy",) if name == "tensorrt_rtx" else ()

    class IExecutionContext(_Recorded):
        __slots__ = ("_addresses", "_graph", "_inferred", "_shapes")

        def __init__(self, graph: Graph) -> None:
            self._graph = graph
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._inferred = False

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            gpu.called("set_input_shape")
            if name not in self._graph.profile:
                raise Misuse(f"{name} is no input")
            low, _, high = self._graph.profile[name]
            if len(shape) != len(low) or any(not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                raise Misuse(f"{name}: {shape} is outside of the profile")
            self._shapes[name], self._inferred = shape, False
            return not failing("set_input_shape")

        @native
        def infer_shapes(self) -> list[str]:
            gpu.called("infer_shapes")
            if failing("infer_shapes"):
                raise RuntimeError("shapes do not fit: pretended")
            if gpu.fail == "some shapes":
                return ["x"]
            self._inferred = set(self._shapes) == set(self._graph.profile)
            return sorted(set(self._graph.profile) - set(self._shapes))

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if not self._inferred:
                raise Misuse("shapes are asked for before they are inferred")
            return self._shapes[name] if name in self._shapes else self._graph.outputs[name](self._shapes)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            gpu.called("set_tensor_address")
            if memory not in gpu.device or name not in self._graph.dtypes:
                raise Misuse(f"{name} at {memory:#x}, which is not allocated")
            self._addresses[name] = memory
            return not failing("set_tensor_address")

        def execute_async_v3(self, stream_handle: int) -> bool:
            gpu.called("execute_async_v3")
            if stream_handle not in gpu.streams:
                raise Misuse("execution on no stream of ours")
            if set(self._addresses) != set(self._graph.dtypes) or not self._inferred:
                raise Misuse("execution without all addresses and inferred shapes")
            if failing("execute_async_v3"):
                return False
            shapes = dict(self._shapes)
            gpu.executed.append(shapes)
            gpu.streams[stream_handle]().waiting.append(lambda: self._compute(shapes))
            return True

        def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
            inputs = {}
            for name, shape in shapes.items():
                dtype = np.dtype(self._graph.dtypes[name])
                size = math.prod(shape) * dtype.itemsize
                inputs[name] = gpu.device[self._addresses[name]].bytes[:size].view(dtype).reshape(shape)
            for name, values in self._graph.compute(inputs).items():
                if values.dtype != self._graph.dtypes[name] or values.shape != self._graph.outputs[name](shapes):
                    raise Misuse(f"the pretended graph gives {name} as {values.dtype} {values.shape}")
                flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                gpu.device[self._addresses[name]].bytes[: flat.size] = flat

    class ICudaEngine(_Recorded):
        __slots__ = ("_graph",)
        device_memory_size_v2 = 123_456

        def __init__(self, graph: Graph) -> None:
            self._graph = graph

        @property
        def num_io_tensors(self) -> int:
            return len(self._graph.dtypes)

        def get_tensor_name(self, index: int) -> str:
            return list(self._graph.dtypes)[index]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._graph.profile else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> DataType:
            return DataType(self._graph.dtypes[name])

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
            if profile_index != 0 or name not in self._graph.profile:
                raise Misuse(f"no profile {profile_index} of {name}")
            return [list(shape) for shape in self._graph.profile[name]]

        def create_runtime_config(self) -> IRuntimeConfig:
            gpu.called("create_runtime_config")
            return IRuntimeConfig()

        def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
            gpu.called("create_execution_context")
            if (
                name == "tensorrt_rtx"
                and runtime_config.cuda_graph_strategy is not CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            ):
                raise Misuse("no CUDA graphs asked for")
            return None if failing("create_execution_context") else IExecutionContext(self._graph)

    class Runtime(_Recorded):
        __slots__ = ("_logger",)

        def __init__(self, logger: ILogger) -> None:
            gpu.called("Runtime")
            if not logger.ready:
                raise Misuse("ILogger.__init__ was not called")
            self._logger = loggers[:] = [logger]

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            gpu.called("deserialize_cuda_engine")
            return None if failing("deserialize_cuda_engine") else ICudaEngine(gpu.graphs[serialized_engine])

    loggers: list[ILogger] = []

    def failing(call: str) -> bool:
        if gpu.fail == call:
            loggers[0].log(ILogger.ERROR, f"reason of {call}")
        return gpu.fail == call

    for kind in (DataType, TensorIOMode, ILogger, IRuntimeConfig, IExecutionContext, ICudaEngine, Runtime):
        setattr(module, kind.__name__, kind)
    if name == "tensorrt_rtx":
        module.CudaGraphStrategy = CudaGraphStrategy
    module.nptype = lambda trt_type: np.dtype(trt_type.value).type
    module.__version__ = "11.4.0"
    return module
