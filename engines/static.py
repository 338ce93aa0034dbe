"""Shapes that a graph computes at each run although they are known: made constants.

The exporter writes ``x.unflatten(2, (6, 20))`` as six small operators that read the shape of x, cut it, and join the
parts for Reshape. Each takes about as long as a product of this network's matrices.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from engines import forms
from engines.inspect import array_shapes

# Sizes of axes that vary, in two trial runs: no size of one is any other's, nor is a fixed size of these networks.
_PRIMES = ((3, 411, 97, 29), (5, 709, 53, 41))


def reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a constant for the shape of each Reshape whose sizes are those of its input, fixed, or one that
    follows from the others. What that is, is read off two runs with sizes that cannot be mistaken for each other, so
    the result is to be held against the original, as ``train.export`` does.

    An input that varies in more ways than batch and three lengths raises ValueError.
    """
    symbols = list(dict.fromkeys(d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim))
    symbols = [symbol for symbol in symbols if symbol]
    if len(symbols) > len(_PRIMES[0]):
        raise ValueError(f"inputs vary in {', '.join(symbols)}, more than {len(_PRIMES[0])}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [node for node in result.graph.node if node.op_type == "Reshape"]
    names = [name for node in nodes for name in (node.input[0], node.output[0])]
    runs = []
    for primes in _PRIMES:
        size = dict(zip(symbols, primes, strict=False))
        shapes = {
            entry.name: tuple(size.get(d.dim_param, d.dim_value) for d in entry.type.tensor_type.shape.dim)
            for entry in model.graph.input
        }
        runs.append(array_shapes(model, shapes, names))
    for number, node in enumerate(nodes):
        before, after = ([run[name] for run in runs] for name in (node.input[0], node.output[0]))
        to = [_size(axis, *before, *after) for axis in range(len(after[0]))]
        if to.count(-1) > 1:
            continue
        name = f"static/shape_{number}"
        result.graph.initializer.append(numpy_helper.from_array(np.array(to, np.int64), name))
        node.input[1] = name
    return forms.folded(forms.without_unused(result))


def _size(axis: int, before_a: tuple, before_b: tuple, after_a: tuple, after_b: tuple) -> int:
    """For Reshape: a fixed size, 0 for the input's at this axis, -1 for what follows from the rest."""
    if after_a[axis] == after_b[axis]:
        return after_a[axis]
    here = axis < len(before_a) and (before_a[axis], before_b[axis]) == (after_a[axis], after_b[axis])
    return 0 if here else -1
