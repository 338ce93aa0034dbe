"""PyTorch: runs an ONNX graph operator by operator, for comparison with other backends.

onnx2torch (1.5) would do this, but it supports neither GRU nor GatherElements and needs torchvision. So this is an
interpreter for only the operators in a bundle's graphs, after their definitions for opset 17 in
https://onnx.ai/onnx/operators/. It refuses an unknown operator or attribute.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor

from emostream.engines import signature
from emostream.errors import BackendError

_OPSET = 17
_TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}


class Torch:
    """One ONNX graph in eager PyTorch, on the GPU if torch has one, or on ``device``. ``threads`` applies to all of
    torch in this process. Raises BackendError if the graph cannot be read, has something that this interpreter does not
    know, or cannot be put on the device.
    """

    def __init__(self, path: Path | str, threads: int = 1, device: str | None = None) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.name = f"torch/{self.device.type}"
        try:
            graph = onnx.load(str(path))
        except Exception as error:  # protobuf's exceptions differ between its implementations
            raise BackendError(f"{path}: cannot be read as an ONNX graph ({error})") from error
        opsets = {entry.domain: entry.version for entry in graph.opset_import}
        if opsets != {"": _OPSET}:
            raise BackendError(f"{path}: operators are from {opsets}; the torch backend knows those of opset {_OPSET}")
        try:
            self._constants, self._steps = _steps(graph.graph, self.device)
        except (RuntimeError, AssertionError) as error:  # no memory, no driver; a torch without CUDA asserts it
            raise BackendError(f"{path}: torch cannot put the graph on {self.device} ({error})") from error
        self.outputs = [output.name for output in graph.graph.output]
        self.signature = {
            entry.name: (
                helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type),
                tuple(
                    size.dim_value if size.HasField("dim_value") else None for size in entry.type.tensor_type.shape.dim
                ),
            )
            for entry in graph.graph.input
        }

    @torch.inference_mode()
    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        if not self._steps:
            raise BackendError(f"{self.name} is closed; load the graph again")
        signature.check(inputs, self.signature)
        try:
            with exact():
                values = self.compute({name: torch.tensor(array, device=self.device) for name, array in inputs.items()})
                return {name: value.cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}
        except RuntimeError as error:  # on a GPU: no memory, or an error of an earlier step
            raise BackendError(f"{self.name} failed: {error}") from error

    def compute(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Outputs on the device from inputs on the device. Raises BackendError if a step fails."""
        values: dict[str, Any] = {"": None, **self._constants, **inputs}
        for step in self._steps:
            values[step.output] = self._call(step, values)
            for name in step.last_used:
                del values[name]
        return [values[name] for name in self.outputs]

    def at_shapes_of(self, inputs: dict[str, Tensor]) -> list[Bound]:
        """The steps for inputs of exactly these shapes: what follows from the shapes is computed now, so that nothing
        is copied to or from a GPU between steps. Raises BackendError if a step fails."""
        values: dict[str, Any] = {"": None, **self._constants, **inputs}
        fixed = {"", *self._constants}
        bound = []
        for step in self._steps:
            values[step.output] = self._call(step, values)
            if step.kind == "Shape" or fixed.issuperset(step.inputs):
                fixed.add(step.output)
                continue
            arguments = [values[name] if name in fixed else name for name in step.inputs]
            if step.kind in _LISTED:
                arguments[1:] = [x.tolist() if isinstance(x, Tensor) else x for x in arguments[1:]]
            else:  # Gather's index too: an index that is on the CPU would be copied at each run
                arguments = [x.to(self.device) if isinstance(x, Tensor) else x for x in arguments]
            bound.append(Bound(step.kind, step.function, arguments, step.attributes, step.output))
        return bound

    def _call(self, step: _Step, values: dict[str, Any]) -> Tensor:
        arguments = [values[name] for name in step.inputs]
        if step.kind in _LISTED:
            arguments[1:] = [x if x is None else x.tolist() for x in arguments[1:]]
        elif step.on_one_device and len({x.device for x in arguments if x is not None}) > 1:
            arguments = [x if x is None else x.to(self.device) for x in arguments]
        try:
            return step.function(*arguments, **step.attributes)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # torch raises all of them
            raise BackendError(f"{self.name}: {step.what} failed: {error}") from error

    def close(self) -> None:
        """See ``Backend.close``."""
        self._constants, self._steps = {}, []


@contextmanager
def exact() -> Iterator[None]:
    """Turn off TF32 on a GPU: its mantissa of 10 bits would change results by more than 1e-4."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@dataclass(frozen=True)
class _Step:
    """One operator. ``kind``: its type; ``on_one_device``: whether all its inputs must be on one device; otherwise all
    but the first are sizes or indices. ``last_used``: values that no later step needs."""

    kind: str
    what: str
    function: Callable[..., Tensor]
    attributes: dict[str, Any]
    inputs: list[str]
    output: str
    on_one_device: bool
    last_used: list[str]


@dataclass(frozen=True)
class Bound:
    """A step at fixed shapes. ``arguments``: names of values that differ from run to run, or fixed values."""

    kind: str
    function: Callable[..., Tensor]
    arguments: list[Any]
    attributes: dict[str, Any]
    output: str

    @property
    def needs(self) -> list[str]:
        return [name for name in self.arguments if isinstance(name, str)]

    def run(self, values: dict[str, Tensor]) -> None:
        arguments = [values[x] if isinstance(x, str) else x for x in self.arguments]
        values[self.output] = self.function(*arguments, **self.attributes)


def _steps(graph: onnx.GraphProto, device: torch.device) -> tuple[dict[str, Tensor], list[_Step]]:
    """The graph's constants, and its operators in order. Weights are on the device; sizes, which are integers, on the
    CPU, where reading them does not stall a GPU."""
    constants = {entry.name: _tensor(entry, device) for entry in graph.initializer}
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    outputs = {entry.name for entry in graph.output}
    steps = []
    for index, node in enumerate(graph.node):
        what = f"{node.op_type} {node.name}"
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        for name, value in attributes.items():
            if isinstance(value, onnx.TensorProto):
                attributes[name] = _tensor(value, device)
        if node.op_type == "Constant" and attributes.keys() == {"value"}:
            constants[node.output[0]] = attributes["value"]
            continue
        if node.op_type not in _OPERATORS or node.domain:
            raise BackendError(f"{what}: the torch backend has no operator {node.domain}{node.op_type}; use another")
        function = _OPERATORS[node.op_type]
        unknown = attributes.keys() - inspect.signature(function).parameters.keys()
        if unknown or any(name in last_use or name in outputs for name in node.output[1:]):
            which = ", ".join(sorted(unknown)) or "a second output"
            raise BackendError(f"{what}: the torch backend does not know {which} of this operator; use another")
        inputs = list(node.input)
        if node.op_type == "GRU":
            for position, name in enumerate(inputs[1:4], start=1):
                if name not in constants:
                    raise BackendError(f"{what}: the torch backend needs constant weights; use another")
                inputs[position] = f"{name}, in torch's order"
                constants[inputs[position]] = _gates_in_torch_order(constants[name])
        freed = {name for name in inputs if last_use.get(name) == index} - constants.keys() - outputs - {""}
        on_one_device = device.type != "cpu" and node.op_type not in _SIZED
        steps.append(
            _Step(node.op_type, what, function, attributes, inputs, node.output[0], on_one_device, sorted(freed))
        )
    used = outputs.union(*(step.inputs for step in steps))
    return {name: value for name, value in constants.items() if name in used}, steps


def _tensor(value: onnx.TensorProto, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(numpy_helper.to_array(value).copy())
    return tensor.to(device) if tensor.is_floating_point() else tensor


def _gates_in_torch_order(weights: Tensor) -> Tensor:
    """(1, n · 3 · units, …), gates in ONNX's order (update, reset, new) → (n · 3 · units, …): reset, update, new. A
    bias has n = 2 such parts, input and recurrence."""
    parts = weights[0].chunk(6 if weights.ndim == 2 else 3)
    return torch.cat([parts[first + i] for first in range(0, len(parts), 3) for i in (1, 0, 2)])


# Operators: inputs are positional arguments, attributes have their ONNX names. A graph may set no other attribute.


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    kernel_shape: Sequence[int], pads: Sequence[int], strides: Sequence[int], dilations: Sequence[int], group: int,
) -> Tensor:  # fmt: skip
    axes = len(kernel_shape)
    if pads[:axes] != pads[axes:]:
        raise ValueError(f"padding that differs between the two ends is not supported: {pads}")
    convolve = {1: F.conv1d, 2: F.conv2d}[axes]
    return convolve(x, weight, bias, strides, pads[:axes], dilations, group)


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    flat = (index.reshape(-1) % x.shape[axis]).to(x.device)  # a negative index counts from the end
    return x.index_select(axis, flat).reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def _gemm(x: Tensor, y: Tensor, bias: Tensor, alpha: float = 1.0, beta: float = 1.0, transB: int = 0) -> Tensor:
    return torch.addmm(bias, x, y.T if transB else y, beta=beta, alpha=alpha)


def _gru(
    x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor, lengths: None = None, start: Tensor | None = None, *,
    hidden_size: int, linear_before_reset: int = 0,
) -> Tensor:  # fmt: skip
    """(T, B, D) → (T, 1, B, units). Weights are in torch's order."""
    if lengths is not None or not linear_before_reset:
        raise ValueError("only a GRU without lengths and with linear_before_reset, such as torch's own, is supported")
    if start is None:
        start = x.new_zeros(1, x.shape[1], hidden_size)
    biases = bias.chunk(2)
    return torch.gru(x, start, (weight, recurrence, *biases), True, 1, 0.0, False, False, False)[0][:, None]


def _reshape(x: Tensor, sizes: list[int], allowzero: int = 0) -> Tensor:
    return x.reshape(sizes if allowzero else [size or x.shape[axis] for axis, size in enumerate(sizes)])


def _slice(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Tensor:
    slices = [slice(None)] * x.ndim
    for axis, start, end, stride in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        slices[axis] = slice(start, end, stride)
    return x[tuple(slices)]


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda x, y: x + y,
    "And": lambda x, y: x & y,
    "Cast": lambda x, to: x.to(_TYPES[to]),
    "Clip": lambda x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "ConstantOfShape": lambda shape, value: torch.full(shape.tolist(), value.item(), dtype=value.dtype),
    "Conv": _conv,
    "Div": lambda x, y: torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc"),
    "Equal": lambda x, y: x == y,
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(x.shape, tuple(shape))),
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Gather": _gather,
    "GatherElements": lambda x, index, axis=0: x.gather(axis, index),
    "Gemm": _gemm,
    "Greater": lambda x, y: x > y,
    "GRU": _gru,
    "Identity": lambda x: x,
    "LayerNormalization": lambda x, scale, bias=None, axis=-1, epsilon=1e-5: F.layer_norm(
        x, x.shape[axis:], scale, bias, epsilon
    ),
    "Less": lambda x, y: x < y,
    "MatMul": lambda x, y: x @ y,
    "Mod": lambda x, y: x % y,
    "Mul": lambda x, y: x * y,
    "Pow": lambda x, y: x**y,
    "Range": lambda *ends: torch.arange(*(end.item() for end in ends), dtype=ends[0].dtype),
    "Reciprocal": lambda x: x.reciprocal(),
    "ReduceMean": lambda x, axes, keepdims=1: x.mean(axes, bool(keepdims)),
    "ReduceSum": lambda x, axes, keepdims=1: x.sum(axes, bool(keepdims)),
    "Relu": lambda x: x.relu(),
    "Reshape": _reshape,
    "Shape": lambda x: torch.tensor(x.shape),
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Sqrt": lambda x: x.sqrt(),
    "Squeeze": lambda x, axes: x.squeeze(axes),
    "Sub": lambda x, y: x - y,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": lambda keep, x, y: torch.where(keep, x, y),
}
# operators whose inputs after the first are sizes or axes, as lists
_LISTED = {"Expand", "ReduceSum", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
# … or sizes and indices, which are read on the CPU
_SIZED = _LISTED | {"ConstantOfShape", "Gather", "Range"}
