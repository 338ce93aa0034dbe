"""PyTorch at a few shapes, each prepared once: as a CUDA graph, or compiled. ``tools/gpu_check.sh`` measures both on a
GPU; until that has been done, the pipeline uses neither (docs/deploy.md)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from pathlib import Path
from types import FunctionType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from emostream.engines.torch import Bound, Torch, exact
from emostream.engines.trt.buffers import Shape, check, ladders, padded, place, split
from emostream.engines.trt.profiles import Profile
from emostream.errors import BackendError

How = Literal["graph", "compiled"]
_MOST_SHAPES = 64  # shapes that are kept, each with its own buffers
_numbers = count()  # numbers the parts in this process
_WARM_UP = 3  # runs before a capture, in which cuDNN and cuBLAS take their memory


class StaticTorch:
    """One ONNX graph in PyTorch, at the shapes of ladders (``trt/buffers.py``), to which inputs are padded. ``graph``:
    a CUDA graph, in which one call starts every kernel of a run; a CPU has no such graphs and runs the same steps one
    by one. ``compiled``: by ``torch.compile``, except for recurrent layers, which the compiler would unroll.

    ``profile``: the range of shapes. Raises BackendError as ``Torch``."""

    def __init__(
        self, path: Path | str, profile: Profile, how: How = "graph", threads: int = 1, device: str | None = None
    ) -> None:
        self._torch = Torch(path, threads, device)
        self.name = f"{self._torch.name}, {how}"
        self._profile, self._how = profile, how
        self._rungs = ladders(profile)
        self._largest = next(iter(profile.values()))[2][0]
        self._dtypes = {name: dtype for name, (dtype, _) in self._torch.signature.items()}
        self._prepared: OrderedDict[tuple[Shape, ...], _Prepared] = OrderedDict()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``. A new shape is prepared first, which takes a while."""
        rows = check(inputs, self._profile, self._dtypes)
        parts = [
            self._run({name: array[part] for name, array in inputs.items()}) for part in split(rows, self._largest)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = {name: padded(array.shape, self._rungs[name]) for name, array in inputs.items()}
        key = tuple(shapes[name] for name in self._profile)
        try:
            with torch.inference_mode(), exact():
                if key not in self._prepared:
                    self._prepared[key] = _Prepared(self._torch, shapes, self._dtypes, self._how)
                    if len(self._prepared) > _MOST_SHAPES:
                        self._prepared.popitem(last=False)
                self._prepared.move_to_end(key)
                outputs = self._prepared[key].run(inputs)
        except RuntimeError as error:
            raise BackendError(f"{self.name} failed: {error}") from error
        rows = len(next(iter(inputs.values())))
        return {name: values[:rows] for name, values in outputs.items()}

    def close(self) -> None:
        """See ``Backend.close``."""
        self._prepared.clear()
        self._torch.close()


class _Prepared:
    """The graph at one shape of each input, with permanent buffers: ``host`` is page-locked for a GPU."""

    def __init__(self, graph: Torch, shapes: dict[str, Shape], dtypes: dict[str, np.dtype], how: How) -> None:
        on_gpu = graph.device.type == "cuda"
        kinds = {name: torch.from_numpy(np.empty(0, dtypes[name])).dtype for name in shapes}
        self._shapes, self._outputs = shapes, graph.outputs
        self._host = {name: torch.ones(shape, dtype=kinds[name], pin_memory=on_gpu) for name, shape in shapes.items()}
        self._inputs = {name: values.to(graph.device) for name, values in self._host.items()}
        parts = _parts(graph.at_shapes_of(self._inputs), graph.outputs)
        if how == "compiled":
            parts = [part if part.is_recurrent else part.compiled() for part in parts]
        self._parts = parts
        self._replay: Callable[[], object] | None = None
        self._results: list[Tensor] = []
        if how == "graph" and on_gpu:
            self._capture()

    def _capture(self) -> None:
        """Record the kernels of a run; later runs start them together."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream().wait_stream(aside)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            self._results = self._compute()
        self._replay = recorded.replay

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, host in self._host.items():
            place(host.numpy().reshape(-1), inputs[name], self._shapes[name])
            if self._inputs[name] is not host:
                self._inputs[name].copy_(host, non_blocking=True)
        if self._replay is not None:
            self._replay()
        else:
            self._results = self._compute()
        return {name: values.cpu().numpy().copy() for name, values in zip(self._outputs, self._results, strict=True)}

    def _compute(self) -> list[Tensor]:
        values = dict(self._inputs)
        for part in self._parts:
            values.update(zip(part.gives, part.function(*[values[name] for name in part.takes]), strict=True))
        return [values[name] for name in self._outputs]


@dataclass(frozen=True)
class _Part:
    """Successive steps as one function from the values ``takes`` to the values ``gives``."""

    function: Callable[..., list[Tensor]]
    takes: list[str]
    gives: list[str]
    is_recurrent: bool

    def compiled(self) -> _Part:
        # torch stops compiling a piece of code after eight times, so each part gets its own code object
        assert isinstance(self.function, FunctionType)
        code = self.function.__code__.replace(co_name=f"part_{next(_numbers)}")
        own = FunctionType(code, self.function.__globals__, code.co_name, None, self.function.__closure__)
        return replace(self, function=torch.compile(own, dynamic=False))


def _parts(steps: Sequence[Bound], outputs: Sequence[str]) -> list[_Part]:
    """The steps, cut around each recurrent layer."""
    groups = [list(group) for _, group in groupby(steps, key=lambda step: step.kind == "GRU")]
    parts: list[_Part] = []
    wanted = set(outputs)
    for group in reversed(groups):
        gives = [step.output for step in group if step.output in wanted]
        inside = {step.output for step in group}
        takes = list(dict.fromkeys(name for step in group for name in step.needs if name not in inside))
        wanted = wanted - inside | set(takes)
        parts.append(_Part(_function(group, takes, gives), takes, gives, group[0].kind == "GRU"))
    return parts[::-1]


def _function(steps: Sequence[Bound], takes: list[str], gives: list[str]) -> Callable[..., list[Tensor]]:
    def function(*tensors: Tensor) -> list[Tensor]:
        values = dict(zip(takes, tensors, strict=True))
        for step in steps:
            step.run(values)
        return [values[name] for name in gives]

    return function
