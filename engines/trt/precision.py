"""Half-precision copies of a graph: products in float16 or bfloat16, the rest in float32.

TensorRT 11 takes precision from the graph's types alone. The known converters (``onnxruntime.transformers.float16``,
onnxconverter-common) do not support bfloat16 and need lists of what to leave in float32, so this module converts to
both types, in one walk through the graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from emostream.engines.options import PRECISIONS
from emostream.errors import BackendError

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_BF16_OPSET = 22  # the first whose Conv and GRU take bfloat16

# Nearly all of the work and of the weights. TensorRT's importer takes a GRU in float16 only if it has no lengths (it
# mixes in float32 constants otherwise), and none in bfloat16, so those stay float32.
_PRODUCTS = {"Conv", "Gemm", "MatMul", "GRU"}
# They round nothing, so they run in the type of their first input.
_MOVES = {"Gather", "GatherElements", "Relu", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
# These run in the low type if all their inputs are of that type or constants: TensorRT fuses a bias or a residual with
# the product that it is added to if both have one type.
_JOINS = {"Add", "Concat"}


def cast(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The float32 model with its products in ``precision``; inputs and outputs keep their names and types.

    "fp32" is the model itself. For "fp16" and "bf16", Conv, Gemm and MatMul run in that type, also in a Scan's body, as
    do operators that only move or add up their results, and their weights are stored in it; in "fp16" also GRU, unless
    it has lengths. Softmax, normalisation, masks, means and deviations stay float32, and so does the state of a Scan.
    The opset of a bfloat16 model is 22 or later.

    Raises BackendError if a weight is too large for float16, ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; choose one of: {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if precision == "bf16" and opset < _BF16_OPSET:
        result = version_converter.convert_version(model, _BF16_OPSET)
    _Walk(_TYPES[precision], {}).through(result.graph)
    return result


class _Walk:
    """State of the walk through one graph, in the order of its nodes. Arrays have their names in the float32 model."""

    def __init__(self, low_type: int, owners: dict[str, onnx.GraphProto]) -> None:
        self._type = low_type
        self._owners = owners  # float32 constant → the graph that stores it
        self._low: dict[str, str] = {}  # array → its low copy
        self._computed_low: set[str] = set()  # arrays whose low copy is the original
        self._uncast: set[str] = set()  # those of them that have no float32 copy so far
        self._nodes: list[onnx.NodeProto] = []

    def through(self, graph: onnx.GraphProto) -> None:
        self._owners |= {entry.name: graph for entry in graph.initializer if entry.data_type == TensorProto.FLOAT}
        for node in graph.node:
            for body in (entry.g for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH):
                for name in _read(body):
                    self._in_full(name)
                _Walk(self._type, self._owners).through(body)
            low = self._low_inputs(node)
            for i, name in enumerate(node.input):
                if i in low:
                    node.input[i] = self._in_low(name)
                elif node.op_type == "Shape" and name in self._computed_low:  # which does not depend on the type
                    node.input[i] = self._low[name]
                else:
                    self._in_full(name)
            self._nodes.append(node)
            for i, name in enumerate(node.output if low else ()):
                if name:
                    node.output[i] = self._low[name] = f"{name}/low"
                    self._computed_low.add(name)
                    self._uncast.add(name)
        for output in graph.output:
            self._in_full(output.name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        read = _read(graph)
        stored = [entry for entry in graph.initializer if entry.name in read]
        del graph.initializer[:]
        graph.initializer.extend(stored)

    def _low_inputs(self, node: onnx.NodeProto) -> list[int]:
        """Indices of the inputs that must be low; none if the node runs in float32."""
        inputs = [i for i, name in enumerate(node.input) if name]
        if node.op_type == "GRU" and (self._type == TensorProto.BFLOAT16 or 4 in inputs):  # 4: lengths
            return []
        if node.op_type in _PRODUCTS:
            return inputs
        low = [i for i in inputs if node.input[i] in self._computed_low]
        if node.op_type in _MOVES and 0 in low:
            return [0]
        if node.op_type in _JOINS and low and all(i in low or node.input[i] in self._owners for i in inputs):
            return inputs
        return []

    def _in_low(self, name: str) -> str:
        """The low copy of an array, created if there is none."""
        if name in self._low:
            return self._low[name]
        low = f"{name}/low"
        if (owner := self._owners.get(name)) is None:
            self._nodes.append(helper.make_node("Cast", [name], [low], low, to=self._type))
        elif all(entry.name != low for entry in owner.initializer):
            stored = next(entry for entry in owner.initializer if entry.name == name)
            array = numpy_helper.to_array(stored)
            with np.errstate(over="ignore"):  # checked below
                lower = array.astype(helper.tensor_dtype_to_np_dtype(self._type))
            if not np.isfinite(lower.astype(np.float32)).all():
                raise BackendError(
                    f"weight {name!r} reaches {np.abs(array).max():.3g}, too much for {lower.dtype}; "
                    'build with the precision "fp32" or "bf16"'
                )
            owner.initializer.append(numpy_helper.from_array(lower, low))
        self._low[name] = low
        return low

    def _in_full(self, name: str) -> None:
        """Make sure that an array has its float32 copy before the next node."""
        if name in self._uncast:
            self._uncast.remove(name)
            self._nodes.append(
                helper.make_node("Cast", [self._low[name]], [name], f"{name}/full", to=TensorProto.FLOAT)
            )


def _read(graph: onnx.GraphProto) -> set[str]:
    """Names of all arrays that a graph reads or returns, including the graphs inside it."""
    names = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in graph.node:
        names = names.union(*(_read(entry.g) for entry in node.attribute if entry.type == onnx.AttributeProto.GRAPH))
    return names
