"""engines/torch.py: each operator compared with ONNX Runtime's, and what it refuses. Whole graphs: test_backends.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from emostream.engines.onnx import OnnxRuntime
from emostream.engines.torch import Torch
from emostream.errors import BackendError


def tiny(path: Path, *nodes: onnx.NodeProto, opset: int = 17) -> Path:
    """A graph x (2, n) → y."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None]) for name in "xy")
    graph = helper.make_graph(list(nodes), "tiny", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (helper.make_node("Erf", ["x"], ["y"], "strange"), "Erf strange: the torch backend has no operator Erf"),
        (helper.make_node("Relu", ["x"], ["y"], domain="com.example"), "no operator com.example"),
        (helper.make_node("Mod", ["x", "x"], ["y"], fmod=1), "does not know fmod"),
        (helper.make_node("GRU", ["x", "x", "x"], ["y"], hidden_size=3), "constant weights"),
    ],
)
def test_an_operator_that_the_torch_backend_does_not_know(tmp_path, node, says):
    with pytest.raises(BackendError, match=says):
        Torch(tiny(tmp_path / "x.onnx", node))


def test_another_opset_is_refused(tmp_path):
    with pytest.raises(BackendError, match="opset 17"):
        Torch(tiny(tmp_path / "x.onnx", helper.make_node("Relu", ["x"], ["y"]), opset=20))


def test_operators_that_fail_are_named(tmp_path):
    path = tiny(tmp_path / "x.onnx", helper.make_node("MatMul", ["x", "x"], ["y"], "square"))
    with pytest.raises(BackendError, match="MatMul square failed"):
        Torch(path).run({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Div", [np.array([7, -7, 9]), np.array([2, 2, -4])], {}),
        ("Mod", [np.array([7, -7, 9]), np.array([2, 3, -4])], {}),
        ("Gather", [np.arange(24.0).reshape(2, 3, 4), np.array([[0, -1], [1, 1]])], {"axis": 1}),
        ("Gather", [np.array([5, 6, 7]), np.array(-1)], {"axis": 0}),
        (
            "Slice",
            [np.arange(24.0).reshape(4, 6), np.array([-3]), np.array([2**62]), np.array([-1]), np.array([2])],
            {},
        ),
        ("Slice", [np.arange(6), np.array([1]), np.array([-1])], {}),
        ("Reshape", [np.arange(24.0).reshape(2, 3, 4), np.array([0, -1])], {}),
        ("Expand", [np.arange(3.0)[:, None], np.array([2, 1, 4])], {}),
        ("Unsqueeze", [np.arange(3.0), np.array([-1, 0])], {}),
        ("Squeeze", [np.zeros((1, 3, 1)), np.array([0, 2])], {}),
        ("Range", [np.array(1), np.array(8), np.array(3)], {}),
        ("Flatten", [np.zeros((2, 3, 4))], {"axis": 2}),
        ("Flatten", [np.zeros((2, 3, 4))], {"axis": 0}),
        ("ReduceSum", [np.arange(24.0).reshape(2, 3, 4), np.array([0, -1])], {"keepdims": 0}),
        ("ReduceMean", [np.arange(24.0).reshape(2, 3, 4)], {"axes": [1]}),
        ("Clip", [np.arange(5.0), np.array(1.0), np.array(3.0)], {}),
        ("Gemm", [np.eye(2), np.arange(6.0).reshape(3, 2), np.arange(3.0)], {"alpha": 0.5, "beta": 2.0, "transB": 1}),
        ("Softmax", [np.arange(6.0).reshape(2, 3)], {"axis": 0}),
    ],
)
def test_torchs_operators_are_onnx_runtimes(tmp_path, op, inputs, attributes):
    inputs = [x.astype(np.float32) if x.dtype == np.float64 else x for x in inputs]
    names = [f"in{i}" for i in range(len(inputs))]
    weights = [onnx.numpy_helper.from_array(x, name) for x, name in zip(inputs, names, strict=True)]
    kind = onnx.helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    y = helper.make_tensor_value_info("y", kind, None)
    x = helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "one", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    arrays = {"unused": np.zeros(1, np.float32)}
    want, got = (backend(tmp_path / "x.onnx").run(arrays)["y"] for backend in (OnnxRuntime, Torch))
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert got.shape == want.shape
