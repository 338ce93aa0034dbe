"""Writes ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17  # of every graph in a bundle: the newest that all backends read


class Writer:
    """Collects the nodes and constants of one graph. ``prefix`` keeps its names apart from those of an outer graph."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix

    def store(self, value: np.ndarray | list[int] | int) -> str:
        """A constant: float32 from an array, int64 from a list or a number."""
        name = f"{self._prefix}/constant_{len(self.initializers)}"
        array = np.asarray(value, np.float32 if isinstance(value, np.ndarray) else np.int64)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def add(self, op_type: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node with one output, ``out`` or a new name, which is returned."""
        return self.add_many(op_type, *inputs, out=(out,), **attributes)[0]

    def add_many(self, op_type: str, *inputs: str, out: Sequence[str], **attributes: Any) -> list[str]:
        """A node with several outputs; each that is "" gets a new name."""
        name = f"{self._prefix}/{op_type}_{len(self.nodes)}"
        outputs = [wanted or f"{name}_output_{i}" for i, wanted in enumerate(out)]
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name, **attributes))
        return outputs

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Consecutive parts of an array along an axis."""
        if len(sizes) == 1:
            return [x]
        return self.add_many("Split", x, self.store(list(sizes)), out=[""] * len(sizes), axis=axis)

    def concat(self, parts: Sequence[str], axis: int) -> str:
        """Arrays joined along an axis."""
        return self.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
