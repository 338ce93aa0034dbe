"""engines/static.py: arithmetic on shapes that are known becomes constants, and nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import forms, static
from engines.onnx import OnnxRuntime
from train import export
from train.model import MODALITIES, build


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> tuple[OnnxRuntime, OnnxRuntime, onnx.ModelProto, onnx.ModelProto]:
    """A small model as exported, and the form for a CPU of it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("graphs")
    model = build(hidden=12, heads=2, dims={"audio": 8, "video": 6, "text": 5}).eval()
    export.export_fusion(model, folder / "fusion.onnx")
    assert export.export_fusion_cpu(model, folder / "fusion.onnx", folder / "cpu.onnx") < export.TOLERANCE
    paths = folder / "fusion.onnx", folder / "cpu.onnx"
    return *(OnnxRuntime(path) for path in paths), *(onnx.load(path) for path in paths)


@given(
    st.lists(st.tuples(*(st.integers(0, 90) for _ in MODALITIES)).filter(any), min_size=1, max_size=5),
    st.integers(0, 7),
)
def test_results_are_those_of_the_exported_graph(graphs, lengths, padding):
    rng = np.random.default_rng(len(lengths))
    arrays = export.fusion_inputs(
        {"audio": 8, "video": 6, "text": 5},
        {m: [row[i] for row in lengths] for i, m in enumerate(MODALITIES)}, rng, padding,
    )  # fmt: skip
    np.testing.assert_allclose(graphs[1].run(arrays)["logits"], graphs[0].run(arrays)["logits"], atol=1e-4)


def test_fewer_nodes_and_constant_shapes(graphs):
    *_, exported, cpu = graphs
    assert len(cpu.graph.node) < 0.5 * len(exported.graph.node)
    stored = {entry.name for entry in cpu.graph.initializer}
    shapes = [node.input[1] for node in cpu.graph.node if node.op_type == "Reshape"]
    assert shapes and set(shapes) <= stored
    assert sum(node.op_type == "GRU" for node in cpu.graph.node) == 3
    assert [list(map(str, g.graph.input)) for g in (cpu,)] == [list(map(str, exported.graph.input))]


def test_the_shipped_cpu_graph_is_that_of_the_shipped_graph(bundle):
    """Made anew from fusion.onnx it gives the same logits, so nobody has changed one without the other."""
    from engines.bundle import FUSION, FUSION_CPU

    assert FUSION_CPU in bundle.manifest.files
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    exported, cpu = OnnxRuntime(bundle.path(FUSION)), OnnxRuntime(bundle.path(FUSION_CPU))
    rng = np.random.default_rng(0)
    for rows in (1, 7, 50, 150):
        arrays = export.fusion_inputs(dims, {m: [rows, 0 if m == "text" else rows // 2 + 1] for m in MODALITIES}, rng)
        np.testing.assert_allclose(cpu.run(arrays)["logits"], exported.run(arrays)["logits"], atol=1e-4)
    assert len(onnx.load(bundle.path(FUSION_CPU)).graph.node) < len(
        forms.rewrite(onnx.load(bundle.path(FUSION)), "bidirectional").graph.node
    )


def test_a_size_that_cannot_be_known_stays(tmp_path):
    """x (a, b) → (a * b): one size that follows from the rest; x with two more such axes is left as it is."""
    from onnx import TensorProto, helper

    shape = helper.make_node("Shape", ["x"], ["s"])
    nodes = [
        shape,
        helper.make_node("ReduceProd", ["s"], ["p"], keepdims=1),
        helper.make_node("Reshape", ["x", "p"], ["y"]),
    ]
    arrays = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["c"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", arrays[:1], arrays[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    made = static.reshapes(model)
    assert [node.op_type for node in made.graph.node] == ["Reshape"]
    five = helper.make_tensor_value_info("x", TensorProto.FLOAT, list("abcde"))
    del model.graph.input[:]
    model.graph.input.append(five)
    with pytest.raises(ValueError, match="inputs vary in a, b, c, d, e"):
        static.reshapes(model)
