"""What is in a graph: inputs, outputs, operators, parameters, operations; and what its forms compile to.

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

from emostream.engines import forms
from emostream.engines.trt import build, cache
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import logger
from emostream.errors import BackendError

SIZES = ("smallest", "typical", "largest")  # of a profile
_COUNTED = ("Conv", "Gemm", "MatMul", "GRU")  # the rest is some per cent of it


class Array(msgspec.Struct):
    """Type and shape of an input or output; a size that varies is a name."""

    dtype: str
    shape: list[int | str]


class Facts(msgspec.Struct):
    """Of one graph. ``flops``: floating-point operations of one run at the smallest, typical and largest shapes of the
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


class Form(msgspec.Struct):
    """One form of a graph (see ``forms``). ``steps``: of its loops, one after the other, at the profile's typical
    shapes. ``loops`` and ``layers``: in TensorRT's network as parsed."""

    nodes: int
    steps: int
    loops: int
    layers: int


def facts(path: Path, profile: Profile) -> Facts:
    """Raises BackendError if the file is no ONNX graph."""
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


def form(path: Path, name: str, profile: Profile, trt: Any) -> Form:
    """What a form of the graph becomes in TensorRT's network; ``trt``: the module. No GPU is needed.

    Raises BackendError if the library cannot take it.
    """
    model = forms.rewrite(_load(path), name)
    network = build.parse(path, model.SerializeToString(), trt.Builder(logger(trt)), trt)
    loops = sum(network.get_layer(index).type == trt.LayerType.TRIP_LIMIT for index in range(network.num_layers))
    return Form(len(model.graph.node), _steps(model, _shapes(profile, 1)), loops, network.num_layers)


def cached(path: Path) -> list[cache.Entry]:
    """The engines of a graph in the user's cache, newest first; others' and unreadable ones are left out."""
    digest = cache.sha256(path.read_bytes())
    found = []
    for note in sorted(cache.root().glob("*.json"), key=lambda note: note.stat().st_mtime, reverse=True):
        try:
            entry = cache.entry(note.with_suffix(".engine"))
        except msgspec.DecodeError:
            continue
        if entry.origin.graph_sha256 == digest:
            found.append(entry)
    return found


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


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
    found = array_shapes(model, shapes, [name for node in nodes for name in (*node.input[:3], node.output[0]) if name])
    total = 0
    for node in nodes:
        first, second, made = (found[name] for name in (node.input[0], node.input[1], node.output[0]))
        if node.op_type == "Conv":  # weights: (channels out, channels in of a group, kernel …)
            total += 2 * math.prod(made) * math.prod(second[1:])
        elif node.op_type == "Gemm":
            transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
            total += 2 * math.prod(made) * first[0 if transposed else 1]
        elif node.op_type == "MatMul":
            total += 2 * math.prod(made) * first[-1]
        else:  # GRU: X (time, batch, dim), W (directions, 3 hidden, dim)
            steps, batch, dim = first
            directions, gates, _ = second
            total += 2 * steps * batch * directions * gates * (dim + gates // 3)
    return total


def _steps(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many steps of recurrences come one after the other."""
    read = []
    for node in model.graph.node:
        if node.op_type == "GRU":
            read.append(node.input[0])
        elif node.op_type == "Scan":
            read.append(node.input[-1])  # scanned along axis 0
    found = array_shapes(model, shapes, read)
    return sum(found[name][0] for name in read)


def array_shapes(
    model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays named in a run on full-length inputs of ``shapes``."""
    found: dict[str, tuple[int, ...]] = {entry.name: tuple(entry.dims) for entry in model.graph.initializer}
    wanted = sorted(set(names) - set(found) - set(shapes))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    inputs = {}
    for entry in model.graph.input:
        shape, dtype = shapes[entry.name], onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
        full = shapes[entry.name.removesuffix("_len")][1] if entry.name.endswith("_len") else 0
        inputs[entry.name] = np.full(shape, full, dtype)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it renames arrays
    options.log_severity_level = 3
    if wanted:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found |= {name: value.shape for name, value in zip(wanted, session.run(wanted, inputs), strict=True)}
    return found | shapes
