"""A stand-in for a GPU: modules named pycuda.driver and tensorrt or tensorrt_rtx that record calls and are strict.

Nothing here runs on a GPU, or shows that an engine runs, is correct or is fast. The stand-in shows which calls
``engines/trt/backend.py`` makes, and in which order: work waits on its stream until that is synchronized, memory is
filled with garbage, and a call that would make the real libraries fail, crash or return wrong values raises an error
here. test_tensorrt_types checks that its names and parameters are those of the real bindings.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
GARBAGE = 0xAB
FREE, TOTAL = 1_000_000, 8_000_000


class Misuse(Exception):
    """The code under test did something that the real libraries do not allow; no production code catches this."""


def native(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like a function in C++: the traceback of its errors has no frame that would keep its arguments alive."""

    @functools.wraps(function)
    def without_frame(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            del args
            raise error.with_traceback(None)  # noqa: B904

    return without_frame


class Graph:
    """An engine's content: ``compute`` on NumPy arrays, and the shapes of its outputs for those of its inputs."""

    def __init__(
        self,
        profile: dict[str, Any],
        dtypes: dict[str, str],
        outputs: dict[str, Callable[[dict[str, tuple[int, ...]]], tuple[int, ...]]],
        compute: Callable[[Arrays], Arrays],
    ) -> None:
        self.profile, self.dtypes, self.outputs, self.compute = profile, dtypes, outputs, compute


class Gpu:
    """The state of the fake machine.

    ``graphs``: by the content of an engine's file. ``calls``: names of all calls so far. ``fail``: the call that fails,
    by name, or by number from 1 if it is the driver's. ``exhausted_at``: the allocation, from 1, that finds no memory.
    """

    def __init__(self, graphs: dict[bytes, Graph]) -> None:
        self.graphs = graphs
        self.calls: list[str] = []
        self.contexts: list[Any] = []
        self.device: dict[int, Any] = {}
        self.host: dict[int, int] = {}  # id of the owning array → bytes
        self.streams: dict[int, Any] = {}
        self.executed: list[dict[str, tuple[int, ...]]] = []
        self.messages: list[tuple[Any, str]] = []
        self.fail: str | int | None = None
        self.exhausted_at: int | None = None
        self.allocations = self.driver_calls = self.addresses = 0
        self.driver = driver_module(self)

    def called(self, name: str) -> None:
        """Record a call that needs our context."""
        self.calls.append(name)
        if not self.contexts or not self.contexts[-1].primary:
            raise Misuse(f"{name} outside of the primary context")

    def driver_call(self, name: str) -> None:
        self.called(name)
        self.driver_calls += 1
        if self.fail in (name, self.driver_calls):
            raise self.driver.LogicError(f"{name} failed: pretended")

    def allocate(self, size: int) -> int:
        """Address of a new allocation."""
        self.allocations += 1
        if size <= 0:
            raise Misuse(f"allocation of {size} bytes")
        if self.allocations == self.exhausted_at:
            raise self.driver.MemoryError("out of memory: pretended")
        self.addresses += 0x1000_0000
        return self.addresses

    def nothing_is_left(self) -> bool:
        return not (self.device or self.host or self.streams or self.contexts)


def driver_module(gpu: Gpu) -> Any:
    module = bare_module("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    class Context:
        def __init__(self, primary: bool) -> None:
            self.primary = primary

        def push(self) -> None:
            gpu.calls.append("push")
            gpu.contexts.append(self)

        @staticmethod
        def pop() -> None:
            gpu.calls.append("pop")
            gpu.contexts.pop()

        def detach(self) -> None:
            if self in gpu.contexts:
                raise Misuse("a context is detached that is still pushed")

        @staticmethod
        def get_current() -> Context | None:
            return gpu.contexts[-1] if gpu.contexts else None

    class Device:
        def __init__(self, ordinal: int) -> None:
            if ordinal != 0:
                raise LogicError("invalid device ordinal")

        @staticmethod
        def count() -> int:
            return 0 if gpu.fail == "count" else 1

        def name(self) -> str:
            return "Pretended GPU"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 6

        def retain_primary_context(self) -> Context:
            return Context(primary=True)

        def make_context(self) -> Context:
            context = Context(primary=False)
            context.push()
            return context

    class Stream:
        def __init__(self) -> None:
            gpu.driver_call("Stream")
            self.handle = gpu.allocate(1)
            self.waiting: list[Callable[[], None]] = []
            gpu.streams[self.handle] = weakref.ref(self)

        @native
        def synchronize(self) -> None:
            gpu.driver_call("synchronize")
            while self.waiting:
                self.waiting.pop(0)()

        def __del__(self) -> None:
            if hasattr(self, "waiting"):
                gpu.called("~Stream")
                del gpu.streams[self.handle]

    class DeviceAllocation:
        def __init__(self, size: int) -> None:
            gpu.driver_call("mem_alloc")
            self.address = gpu.allocate(size)
            self.bytes = np.full(size, GARBAGE, np.uint8)
            gpu.device[self.address] = self

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            gpu.called("free")
            if any(stream().waiting for stream in gpu.streams.values()):
                raise Misuse("memory freed while work waits on a stream")
            del gpu.device[self.address]

    def pagelocked_empty(shape: int, dtype: np.dtype) -> np.ndarray:
        gpu.driver_call("pagelocked_empty")
        size = math.prod(np.atleast_1d(shape)) * np.dtype(dtype).itemsize
        gpu.allocate(size)
        owner = np.full(size, GARBAGE, np.uint8)
        gpu.host[id(owner)] = size
        weakref.finalize(owner, gpu.host.pop, id(owner)).atexit = False
        return owner.view(dtype).reshape(shape)

    def page_locked(array: np.ndarray) -> np.ndarray:
        """The bytes of an array, which must be contiguous and lie in page-locked memory."""
        owner: Any = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) not in gpu.host or not array.flags.c_contiguous:
            raise Misuse("an asynchronous copy needs contiguous page-locked memory")
        return array.reshape(-1).view(np.uint8)

    def copy(stream: Stream, to: Callable[[], np.ndarray], values: Callable[[], np.ndarray]) -> None:
        if not isinstance(stream, Stream):
            raise Misuse("an asynchronous copy on no stream of ours")
        stream.waiting.append(lambda: np.copyto(to(), values()))

    @native
    def memcpy_htod_async(dest: DeviceAllocation, src: np.ndarray, stream: Stream) -> None:
        gpu.driver_call("memcpy_htod_async")
        source = page_locked(src)
        copy(stream, lambda: gpu.device[dest.address].bytes[: source.size], lambda: source)

    @native
    def memcpy_dtoh_async(dest: np.ndarray, src: DeviceAllocation, stream: Stream) -> None:
        gpu.driver_call("memcpy_dtoh_async")
        target = page_locked(dest)
        copy(stream, lambda: target, lambda: gpu.device[src.address].bytes[: target.size])

    def init() -> None:
        if gpu.fail == "init":
            raise LogicError("cuInit failed: pretended")

    module.Error, module.MemoryError, module.LogicError = Error, MemoryError, LogicError
    module.Context, module.Device, module.Stream, module.mem_alloc = Context, Device, Stream, DeviceAllocation
    module.pagelocked_empty, module.init = pagelocked_empty, init
    module.memcpy_htod_async, module.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    module.mem_get_info = lambda: (FREE, TOTAL)
    module.get_driver_version = lambda: 13020
    return module


def bare_module(name: str) -> Any:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    return module
