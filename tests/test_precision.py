"""engines/trt/precision.py: which arrays of a low-precision graph are low, and that labels stay the same.

ONNX Runtime on the CPU has no bfloat16 products and turns most float16 ones into float32. So that the tests really
round, ``rounded`` writes it out: every low array becomes a float32 one that has been cast to the low type and back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from emostream.engines.bundle import MODALITIES, open_bundle
from emostream.engines.options import PRECISIONS
from emostream.engines.trt.precision import cast
from emostream.errors import BackendError

BUNDLE = Path(__file__).parents[1] / "engines/bundles/ekman7"
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LOW = tuple(TYPES)
DIMS = {m: getattr(open_bundle("ekman7").manifest, m).dim for m in MODALITIES}
GRAPHS = {name: onnx.load(BUNDLE / f"{name}.onnx") for name in ("face", "fusion", "fusion-gpu")}
CASES = pytest.mark.parametrize(("graph", "precision"), [(g, p) for g in GRAPHS for p in LOW])


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray], optimise: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:  # the optimiser could remove a pair of Casts that rounds
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model_bytes = model.SerializeToString()
    return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def bodies(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and those inside its nodes."""
    inner = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [graph, *(body for one in inner for body in bodies(one))]


def goal(node: onnx.NodeProto) -> int | None:
    return next(a.i for a in node.attribute if a.name == "to") if node.op_type == "Cast" else None


def types(graph: onnx.GraphProto, known: dict[str, int]) -> dict[str, int]:
    entries = [*graph.value_info, *graph.input, *graph.output]
    return (
        known
        | {entry.name: entry.type.tensor_type.elem_type for entry in entries}
        | {entry.name: entry.data_type for entry in graph.initializer}
    )


def typed(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, list[int], list[int]]]:
    """Every node, also of inner graphs, with the types of its inputs and outputs as ONNX infers them."""
    model = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    outer = types(model.graph, {"": TensorProto.UNDEFINED})
    nodes = []
    for graph in bodies(model.graph):
        own = types(graph, outer)
        nodes += [(n, [own[name] for name in n.input], [own[name] for name in n.output]) for n in graph.node]
    return nodes


def rounded(model: onnx.ModelProto, low: int) -> onnx.ModelProto:
    """The low graph in float32, where each low array is float32 after a Cast to the low type and back."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    low_names = {
        name for node, _, kinds in typed(model) for name, kind in zip(node.output, kinds, strict=True) if kind == low
    }
    assert low_names
    for graph in reversed(bodies(result.graph)):  # inner ones first: extend() below copies them
        for entry in graph.initializer:
            if entry.data_type == low:
                entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float32), entry.name))
        nodes = []
        for node in list(graph.node):
            nodes.append(node)
            if goal(node) == low:
                next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT
            for i, name in enumerate(node.output):
                if name in low_names:
                    node.output[i] = f"{name}/exact"
                    nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/low_type"], to=low))
                    nodes.append(helper.make_node("Cast", [f"{name}/low_type"], [name], to=TensorProto.FLOAT))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
    return result


def clips(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of ``n`` random clips, each with some modality."""
    rng = np.random.default_rng(seed)
    inputs = {}
    longest = {"audio": 120, "video": 40, "text": 12}
    for at, (name, dim) in enumerate(DIMS.items()):
        length = rng.integers(0, longest[name] + 1, n) * (rng.random(n) < 0.8)
        length[at::3] = np.maximum(length[at::3], 1)
        inputs[name] = rng.normal(0, 3, (n, longest[name], dim)).astype(np.float32)
        inputs[f"{name}_len"] = length.astype(np.int64)
    return inputs


@pytest.mark.slow
@CASES
def test_labels_stay(graph, precision):
    if graph == "face":
        rng = np.random.default_rng(0)
        inputs = {"crops": rng.integers(0, 256, (8, 48, 48), np.uint8)}
    else:
        inputs = clips(200)
    want = run(GRAPHS[graph], inputs)
    low = cast(GRAPHS[graph], precision)
    answers = [run(rounded(low, TYPES[precision]), inputs, optimise=False)]
    if precision == "fp16":
        answers.append(run(low, inputs))
    for got in answers:
        assert got.dtype == np.float32
        difference = np.abs(got - want).max()
        assert 0 < difference < {"fp16": 0.02, "bf16": 0.2}[precision]  # 0: nothing was rounded
        if graph != "face":
            assert (got.argmax(1) == want.argmax(1)).mean() >= 0.99


@CASES
def test_products_are_low_and_the_rest_is_not(graph, precision):
    model = cast(GRAPHS[graph], precision)
    onnx.checker.check_model(model, full_check=True)
    low = TYPES[precision]
    seen = set()
    for node, inputs, outputs in typed(model):
        floats = {kind for kind in (*inputs, *outputs) if kind in (TensorProto.FLOAT, low)}
        kept = node.op_type == "GRU" and precision == "bf16"
        if node.op_type in ("Conv", "Gemm", "MatMul", "GRU") and not kept:
            assert floats == {low}, node
            seen.add(node.op_type)
        elif (
            node.op_type
            in (
                "Softmax LayerNormalization Where ReduceSum ReduceMean Sqrt Div Mul Sub Pow Pad Scan Sigmoid Tanh GRU"
            ).split()
        ):
            assert low not in floats, node
    assert "MatMul" in seen if graph != "face" else {"Conv", "Gemm"} <= seen


def test_a_scan_multiplies_in_the_low_type():
    body = bodies(cast(GRAPHS["fusion-gpu"], "bf16").graph)[1]
    assert [goal(node) for node in body.node if node.op_type == "Cast"] == [TensorProto.BFLOAT16, TensorProto.FLOAT]


@CASES
def test_inputs_and_outputs_stay_and_the_file_is_smaller(graph, precision):
    before = GRAPHS[graph].SerializeToString(deterministic=True)
    model = cast(GRAPHS[graph], precision)
    assert list(model.graph.input) == list(GRAPHS[graph].graph.input)
    assert list(model.graph.output) == list(GRAPHS[graph].graph.output)
    assert model.ByteSize() < 0.75 * len(before)  # .5 if the GRUs are low as well
    assert GRAPHS[graph].SerializeToString(deterministic=True) == before


@CASES
def test_no_cast_is_undone_or_repeated(graph, precision):
    low = TYPES[precision]
    for body in bodies(cast(GRAPHS[graph], precision).graph):
        to = {node.output[0]: goal(node) for node in body.node if node.op_type == "Cast"}
        casts = [(node.input[0], goal(node)) for node in body.node if goal(node) in (low, TensorProto.FLOAT)]
        assert len(set(casts)) == len(casts)
        for name, kind in casts:
            assert {to.get(name), kind} != {low, TensorProto.FLOAT}
        for name in (name for name, kind in to.items() if kind == TensorProto.FLOAT):
            assert {node.op_type for node in body.node if name in node.input} != {"Shape"}
        stored = [entry.name for entry in body.initializer]
        read = {name for one in bodies(body) for node in one.node for name in node.input}
        assert len(stored) == len(set(stored)) and set(stored) <= read


def test_fp32_is_the_model_itself():
    assert cast(GRAPHS["fusion"], "fp32") == GRAPHS["fusion"]


def product(weight: float) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    stored = numpy_helper.from_array(np.full((2, 2), weight, np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", values[:1], values[1:], [stored])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_weight_too_large_for_float16_is_refused():
    with pytest.raises(BackendError, match=r"'w' reaches 7e\+04.*float16.*bf16"):
        cast(product(7e4), "fp16")
    assert cast(product(7e4), "bf16").graph.initializer[0].data_type == TensorProto.BFLOAT16


def test_a_constant_that_is_also_read_in_float32_is_kept_in_it():
    model = product(0.1)
    model.graph.node.insert(0, helper.make_node("Mul", ["x", "w"], ["z"]))
    model.graph.node[1].input[0] = "z"
    low = cast(model, "fp16")
    assert {entry.data_type for entry in low.graph.initializer} == {TensorProto.FLOAT, TensorProto.FLOAT16}
    x = np.ones((2, 2), np.float32)
    assert np.allclose(run(low, {"x": x}), 0.02, rtol=1e-3)


def test_an_inner_graph_reads_a_product_in_float32_and_one_cast_serves_all_readers():
    model = product(0.1)
    model.graph.node[0].output[0] = "p"

    def body(op_type: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(op_type, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, ["p"], [op_type])], op_type, [], [out])

    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    branches = {"then_branch": body("Sigmoid"), "else_branch": body("Tanh")}
    model.graph.node.append(helper.make_node("If", ["yes"], ["q"], **branches))
    model.graph.node.append(helper.make_node("Mul", ["p", "q"], ["y"]))
    x = np.ones((1, 2), np.float32)
    low = cast(model, "fp16")
    assert [node.op_type for node in low.graph.node] == ["Cast", "MatMul", "Cast", "If", "Mul"]
    assert np.allclose(run(low, {"x": x}), 0.2 / (1 + np.exp(-0.2)), rtol=1e-3)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=", ".join(PRECISIONS)):
        cast(GRAPHS["fusion"], "int8")
