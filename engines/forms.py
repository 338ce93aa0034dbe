"""Other forms of the fusion graph's GRUs: the same results from fewer steps, one after the other.

The exporter leaves each encoder with two one-directional GRUs, of which the one that reads back stands between two
length-aware reversals (``train/model.py``, class Encoder). TensorRT imports each GRU as a loop. Its steps wait for each
other, so at small batches their number counts, not their size. Rows beyond a sequence's length come out otherwise than
from the exported graph, which masks them in whatever follows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from emostream.errors import BackendError

FORMS = ("exported", "bidirectional", "single_loop")
# the fewest steps of loops and the smallest engine, and the only one whose recurrence TensorRT takes in bfloat16
BEST = "single_loop"
# An update gate that gets this is 1 and leaves the state as it was; half precision holds it as well.
_SHUT = 1e4
_TO_START = -(2**31) + 1  # the end of a Slice that runs back to row 0


def rewrite(model: onnx.ModelProto, form: str) -> onnx.ModelProto:
    """The model with its GRUs in another form: equal results, but for rounding.

    "exported": the model as it is. "bidirectional": one bidirectional GRU per modality, which is told the lengths.
    "single_loop": all modalities and both directions in one Scan, as long as the longest of them. In the latter two,
    ONNX Runtime also computes what does not depend on the inputs. A model without a GRU comes back as it is.

    Raises BackendError if the GRUs do not stand in pairs as the exporter leaves them, ValueError for another form.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; choose one of: {', '.join(FORMS)}")
    if form == "exported" or not any(node.op_type == "GRU" for node in model.graph.node):
        return model
    encoders = _find(model.graph)
    new = Writer()
    if form == "bidirectional":
        for encoder in encoders:
            _bidirectional(new, encoder)
    else:
        _single_loop(new, encoders)
    replaced = {encoder.states for encoder in encoders}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [node for node in model.graph.node if not replaced & set(node.output)] + new.nodes
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(new.initializers)
    return folded(without_unused(result))


def without_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without nodes that its outputs do not need, in an order in which it can run; changed in place."""
    nodes = _ordered(list(model.graph.node), [output.name for output in model.graph.output])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    return model


# --- reading: the pairs of GRUs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gru:
    """One direction's weights, gates in the order update, reset, new (ONNX's z, r, h)."""

    w: np.ndarray  # (3 H, D)
    r: np.ndarray  # (3 H, H)
    b: np.ndarray  # (6 H,): that of the input's product, then that of the state's


@dataclass(frozen=True)
class _Encoder:
    """A pair of GRUs and the arrays around it, by name."""

    source: str  # (B, T, D), what they read
    length: str  # (B,) int64
    inside: str  # (B, T) bool, true where a row lies inside its sequence
    states: str  # (B, T, 2 H), what they give
    ahead: _Gru
    back: _Gru


class _Mismatch(Exception):
    """A node is not what the exporter leaves there; the message says what it is."""


def _find(graph: onnx.GraphProto) -> list[_Encoder]:
    """The pairs in the order of the graph, found by how operators follow each other, never by names."""
    maker = {name: node for node in graph.node for name in node.output}
    constants = {entry.name: entry for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in (have := _attributes(node)):
            constants[node.output[0]] = have["value"]

    def chain(name: str, *op_types: str) -> onnx.NodeProto:
        """From array ``name`` towards the inputs, along each node's first input. Transposes swap axes 0 and 1."""
        for step, op_type in enumerate(op_types):
            node = maker.get(name)
            if node is None or node.op_type != op_type:
                raise _Mismatch(f"{name!r} comes from {node.op_type if node else 'a stored array'}, not from {op_type}")
            if op_type == "Transpose" and _attributes(node).get("perm") != [1, 0, 2]:
                raise _Mismatch(f"Transpose {node.name!r} does not swap batch and time")
            if step + 1 < len(op_types):
                name = node.input[0]
        assert node is not None
        return node

    def axes(name: str) -> tuple[str, list[int]]:
        """An array seen through Transposes: where they start and the order of the axes in all."""
        order = [0, 1, 2]
        while name in maker and maker[name].op_type == "Transpose":
            perm = _attributes(maker[name])["perm"]
            order, name = [perm[axis] for axis in order], maker[name].input[0]
        return name, order

    def reversal(gather: onnx.NodeProto) -> tuple[str, str]:
        """(length, inside) of a GatherElements that turns each sequence around within its own length."""
        where = chain(gather.input[1], "Expand", "Unsqueeze", "Where")
        inside, turned, row = where.input
        less, outer = chain(inside, "Less"), chain(turned, "Sub")
        inner = chain(outer.input[0], "Sub")  # where(row < length, length - 1 - row, row)
        expected = [row, inner.input[0], row, 1, 1]
        one = numpy_helper.to_array(constants[inner.input[1]]) if inner.input[1] in constants else None
        if [*less.input, outer.input[1], one, _attributes(gather).get("axis", 0)] != expected:
            raise _Mismatch(f"GatherElements {gather.name!r} does not reverse rows within a length")
        return chain(less.input[1], "Unsqueeze").input[0], inside

    def weights(node: onnx.NodeProto) -> _Gru:
        have = _attributes(node)
        have.pop("hidden_size", None)
        names = list(node.input) + [""] * (6 - len(node.input))
        if have != {"linear_before_reset": 1} or names[4] or not set(names[1:4]) <= set(constants):
            raise _Mismatch(f"GRU {node.name!r} has attributes {have}, lengths or weights of another kind")
        start = _attributes(chain(names[5], "ConstantOfShape")).get("value") if names[5] else None
        if start is not None and numpy_helper.to_array(start).any():
            raise _Mismatch(f"GRU {node.name!r} does not start at zero")
        return _Gru(*(numpy_helper.to_array(constants[name])[0] for name in names[1:4]))

    found, read = [], 0
    try:
        for gather in (node for node in graph.node if node.op_type == "GatherElements"):
            users = [node for node in graph.node if gather.output[0] in node.input]
            if len(users) != 1 or users[0].op_type != "Concat":
                continue  # the reversal before a GRU
            if len(users[0].input) != 2 or _attributes(users[0])["axis"] != 2:
                raise _Mismatch(f"Concat {users[0].name!r} does not join two directions")
            ahead = chain(users[0].input[0], "Transpose", "Squeeze", "GRU")
            back = chain(users[0].input[1], "GatherElements", "Transpose", "Squeeze", "GRU")
            first = chain(back.input[0], "Transpose", "GatherElements")
            source = first.input[0]
            length, inside = reversal(first)
            root, order = axes(source)
            if axes(ahead.input[0]) != (root, [order[1], order[0], order[2]]) or reversal(gather)[0] != length:
                raise _Mismatch(f"GRUs {ahead.name!r} and {back.name!r} do not read the same rows")
            found.append(_Encoder(source, length, inside, users[0].output[0], weights(ahead), weights(back)))
            read += 2
        if read != (grus := sum(node.op_type == "GRU" for node in graph.node)):
            raise _Mismatch(f"{read} of {grus} GRUs stand in pairs, one ahead and one back")
        if len({encoder.ahead.r.shape for encoder in found} | {encoder.back.r.shape for encoder in found}) > 1:
            raise _Mismatch("the GRUs are not of one size")
    except _Mismatch as error:
        raise BackendError(
            f"graph {graph.name!r} cannot be rewritten: {error}. Its form must be that of train/export.py: "
            'export the bundle again with this version, or build with the form "exported"'
        ) from error
    return found


def _attributes(node: onnx.NodeProto) -> dict:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


# --- writing: the other forms ----------------------------------------------------------------------------------------


class Writer:
    """Collects nodes and stored arrays under names that no exporter uses."""

    def __init__(self, prefix: str = "forms") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix

    def store(self, value: np.ndarray | list[int] | int) -> str:
        """A stored array: float32 of an array, int64 of a list or a number."""
        name = f"{self._prefix}/constant_{len(self.initializers)}"
        array = np.asarray(value, np.float32 if isinstance(value, np.ndarray) else np.int64)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def add(self, op_type: str, *inputs: str, out: str = "", **attributes: object) -> str:
        """A node with one output, ``out`` or a new name, which is returned."""
        return self.several(op_type, *inputs, out=(out,), **attributes)[0]

    def several(self, op_type: str, *inputs: str, out: Sequence[str] = ("", ""), **attributes: Any) -> list[str]:
        """A node with two or more outputs, a new name for each empty one."""
        name = f"{self._prefix}/{op_type}_{len(self.nodes)}"
        outputs = [given or f"{name}_output_{i}" for i, given in enumerate(out)]
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name, **attributes))
        return outputs


def _bidirectional(g: Writer, encoder: _Encoder) -> None:
    both = (encoder.ahead, encoder.back)
    rows = g.add("Transpose", encoder.source, perm=[1, 0, 2])  # (T, B, D)
    w, r, b = (g.store(np.stack([getattr(one, name) for one in both])) for name in "wrb")
    length = g.add("Cast", encoder.length, to=TensorProto.INT32)
    hidden = encoder.ahead.r.shape[1]
    states = g.add("GRU", rows, w, r, b, length, direction="bidirectional", hidden_size=hidden, linear_before_reset=1)
    states = g.add("Transpose", states, perm=[2, 0, 1, 3])  # (B, T, 2, H)
    g.add("Reshape", states, g.store([0, 0, 2 * hidden]), out=encoder.states)


def _single_loop(g: Writer, encoders: list[_Encoder]) -> None:
    """The inputs' products for all steps first, then a Scan that holds what waits for the state.

    Rows beyond a length close the update gate instead of being masked at each step, so the way back, which meets them
    first, is still at zero where its sequence begins. Padding to the longest modality does the same.
    """
    n, hidden = len(encoders), encoders[0].ahead.r.shape[1]
    gates, shut = 3 * hidden, g.store(np.array(_SHUT))
    rows = [g.add("Slice", g.add("Shape", e.source), *map(g.store, ([1], [2]))) for e in encoders]  # (1,): T
    longest = g.add("Max", *rows)
    split: list[list[str]] = []
    for encoder, own in zip(encoders, rows, strict=True):
        both = (encoder.ahead, encoder.back)
        w = g.store(np.concatenate([one.w for one in both]).T)  # (D, 6 H)
        # the state's bias goes in here too, but for the new gate's: the reset gate comes before that one
        b = g.store(np.concatenate([one.b[:gates] + np.r_[one.b[gates:-hidden], np.zeros(hidden)] for one in both]))
        inputs = g.add("Add", g.add("MatMul", encoder.source, w), b)  # (B, T, 6 H)
        inside = g.add("Unsqueeze", encoder.inside, g.store([2]))
        inputs = g.add("Where", inside, inputs, shut)
        missing = g.add("Sub", longest, own)
        pads = g.add("Concat", g.store([0, 0, 0, 0]), missing, g.store([0]), axis=0)
        padded = g.add("Pad", inputs, pads, shut)  # (B, L, 6 H)
        split.append(g.several("Split", padded, g.store([gates, gates]), axis=2))
    ahead, back = (g.add("Concat", *parts, axis=2) for parts in zip(*split, strict=True))  # (B, L, n 3 H) each
    inputs = g.add("Concat", ahead, _flipped(g, back), axis=2)
    inputs = g.add("Reshape", inputs, g.store([0, 0, 2 * n, gates]))
    inputs = g.add("Transpose", inputs, perm=[1, 2, 0, 3])  # (L, 2 n, B, 3 H)

    order = [e.ahead for e in encoders] + [e.back for e in encoders]
    r = g.store(np.stack([one.r.T for one in order]))  # (2 n, H, 3 H)
    b = g.store(np.stack([one.b[None, -hidden:] for one in order]))  # (2 n, 1, H)
    batch = g.add("Slice", g.add("Shape", encoders[0].source), *map(g.store, ([0], [1])))
    start = g.add("ConstantOfShape", g.add("Concat", g.store([2 * n]), batch, g.store([hidden]), axis=0))
    _, states = g.several("Scan", start, inputs, body=_step(r, b, 2 * n, hidden), num_scan_inputs=1)
    states = g.add("Transpose", states, perm=[2, 0, 1, 3])  # (B, L, 2 n, H)
    ahead, back = g.several("Split", states, g.store([n, n]), axis=2)
    states = g.add("Concat", ahead, _flipped(g, back), axis=3)  # (B, L, n, 2 H)
    for i, (encoder, own) in enumerate(zip(encoders, rows, strict=True)):
        one = g.add("Gather", states, g.store(i), axis=2)  # (B, L, 2 H)
        g.add("Slice", one, g.store([0]), own, g.store([1]), out=encoder.states)


def _flipped(g: Writer, name: str) -> str:
    """The other way round along axis 1."""
    return g.add("Slice", name, *map(g.store, ([-1], [_TO_START], [1], [-1])))


def _step(r: str, b: str, loops: int, hidden: int) -> onnx.GraphProto:
    """One step of ONNX's operator GRU with ``linear_before_reset``; the inputs' product comes from outside."""
    g = Writer("step")
    halves = g.store([2 * hidden, hidden])
    x_gates, x_new = g.several("Split", "x", halves, axis=2)
    h_gates, h_new = g.several("Split", g.add("MatMul", "h", r), halves, axis=2)
    gates = g.add("Sigmoid", g.add("Add", x_gates, h_gates))
    update, reset = g.several("Split", gates, g.store([hidden, hidden]), axis=2)
    new = g.add("Tanh", g.add("Add", x_new, g.add("Mul", reset, g.add("Add", h_new, b))))
    # (1 - update) new + update h; a state of zero stays exactly zero where update is 1
    g.add("Add", new, g.add("Mul", update, g.add("Sub", "h", new)), out="next")
    g.add("Identity", "next", out="state")

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [loops, None, width])

    inputs = [value("h", hidden), value("x", 3 * hidden)]
    return helper.make_graph(g.nodes, "step", inputs, [value("next", hidden), value("state", hidden)], g.initializers)


# --- the whole graph -------------------------------------------------------------------------------------------------


def _ordered(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, each after those that it reads. (A Scan's body reads stored arrays alone.)"""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output}
    reads: dict[int, list[int]] = {}
    todo = [maker[name] for name in outputs]
    while todo:
        if (i := todo.pop()) not in reads:
            reads[i] = [maker[name] for name in nodes[i].input if name in maker]
            todo += reads[i]
    return [nodes[i] for i in TopologicalSorter(reads).static_order()]


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic optimisation, which computes constants and keeps to ONNX's operators."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(path)
    del folded.opset_import[:]  # it lists each operator set that it knows
    folded.opset_import.extend(model.opset_import)
    return folded
