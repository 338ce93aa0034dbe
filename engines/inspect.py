"""What is in a graph: inputs, outputs, operators, parameters, operations; and what TensorRT makes of it.

Operations are counted on shapes that occur: the graph is run once on ONNX Runtime with the arrays in question as
outputs, since shape inference does not see through a graph's own arithmetic on shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from emostream.engines.trt import build, cache
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import logger
from emostream.errors import BackendError
from emostream.files import sha256

SIZES = ("smallest", "typical", "largest")  # the shapes of a profile
_COUNTED = ("Conv", "Gemm", "MatMul", "GRU")  # all others together are a few per cent of these
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class Array(msgspec.Struct):
    """Type and shape of an input or output; a size that varies is a name."""

    dtype: str
    shape: list[int | str]


class Facts(msgspec.Struct):
    """One graph. ``flops``: floating-point operations of one run at the smallest, typical and largest shapes of the
    profile, in convolutions, matrix products and GRUs; a multiplication with an addition counts as two."""

    graph: str
    size_bytes: int
    opset: int
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    profile: Profile
    operators: dict[str, int]
    parameters: int
    flops: dict[str, int]


class Cost(msgspec.Struct):
    """The sequential cost of a graph. ``steps``: those of all its recurrences, one after the other,
    at the profile's typical shapes. ``loops`` and ``layers``: in TensorRT's network as parsed; None if it has not been
    parsed."""

    nodes: int
    steps: int
    loops: int | None = None
    layers: int | None = None


def facts(path: Path, profile: Profile) -> Facts:
    """Raises BackendError if the file is not an ONNX graph."""
    model = _load(path)
    initializers = [np.prod(entry.dims, dtype=int) for entry in model.graph.initializer if entry.data_type in _FLOATS]
    return Facts(
        path.name,
        path.stat().st_size,
        next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        {entry.name: _array(entry) for entry in model.graph.input},
        {entry.name: _array(entry) for entry in model.graph.output},
        profile,
        dict(Counter(node.op_type for node in model.graph.node).most_common()),
        int(sum(initializers)),
        {size: _flops(model, _shapes(profile, index)) for index, size in enumerate(SIZES)},
    )


def cost(path: Path, profile: Profile, trt: Any = None) -> Cost:
    """Count a graph's nodes and steps, and with ``trt``, a TensorRT module, its loops and layers there. No GPU is
    needed. Raises BackendError if the file is not an ONNX graph or the library cannot take it."""
    model = _load(path)
    counts = Cost(len(model.graph.node), _steps(model, _shapes(profile, 1)))
    if trt is not None:
        network = build.parse(path, model.SerializeToString(), trt.Builder(logger(trt)), trt)
        kinds = [network.get_layer(index).type for index in range(network.num_layers)]
        counts.loops, counts.layers = kinds.count(trt.LayerType.TRIP_LIMIT), len(kinds)
    return counts


def cached(path: Path) -> list[cache.Entry]:
    """The engines of a graph in the user's cache, newest first; unreadable entries are left out."""
    digest = sha256(path)
    try:
        notes = sorted(cache.root().glob("*.json"), key=lambda note: note.stat().st_mtime, reverse=True)
    except (BackendError, OSError):  # there is no cache, or this user cannot read it
        return []
    entries = []
    for note in notes:
        try:
            entry = cache.entry(note.with_suffix(".engine"))
        except msgspec.DecodeError:
            continue
        if entry.origin.graph_sha256 == digest:
            entries.append(entry)
    return entries


def _load(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path)
    except (OSError, DecodeError) as error:
        raise BackendError(f"{path}: cannot be read as an ONNX graph ({error})") from error


def _array(entry: onnx.ValueInfoProto) -> Array:
    kind = entry.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return Array(dtype, [size.dim_param or size.dim_value for size in kind.shape.dim])


def _shapes(profile: Profile, index: int) -> dict[str, tuple[int, ...]]:
    return {name: shapes[index] for name, shapes in profile.items()}


def _flops(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    names = [name for node in nodes for name in (*node.input[:3], node.output[0]) if name]
    shape_of = array_shapes(model, shapes, names)
    total = 0
    for node in nodes:
        first, second, result = (shape_of[name] for name in (node.input[0], node.input[1], node.output[0]))
        if node.op_type == "Conv":  # weights: (channels out, channels in of a group, kernel …)
            total += 2 * math.prod(result) * math.prod(second[1:])
        elif node.op_type == "Gemm":
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            total += 2 * math.prod(result) * first[0 if transposed else 1]
        elif node.op_type == "MatMul":
            total += 2 * math.prod(result) * first[-1]
        else:  # GRU: X (time, batch, dim), W (directions, 3 hidden, dim)
            steps, batch, dim = first
            directions, gates, _ = second
            total += 2 * steps * batch * directions * gates * (dim + gates // 3)
    return total


def _steps(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of sequential recurrence steps."""
    sequences = []
    for node in model.graph.node:
        if node.op_type == "GRU":
            sequences.append(node.input[0])
        elif node.op_type == "Scan":
            sequences.append(node.input[-1])  # scanned along axis 0
    shape_of = array_shapes(model, shapes, sequences)
    return sum(shape_of[name][0] for name in sequences)


def array_shapes(
    model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the named arrays in a run on full-length inputs of ``shapes``."""
    known: dict[str, tuple[int, ...]] = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    computed = sorted(set(names) - set(known) - set(shapes))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    inputs = {}
    for entry in model.graph.input:
        shape, dtype = shapes[entry.name], onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        full = shapes[entry.name.removesuffix("_len")][1] if entry.name.endswith("_len") else 0
        inputs[entry.name] = np.full(shape, full, dtype)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it renames arrays
    options.log_severity_level = 3
    if computed:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        known |= {name: value.shape for name, value in zip(computed, session.run(computed, inputs), strict=True)}
    return known | shapes
