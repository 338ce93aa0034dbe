"""train/graphs/gpu.py: one loop of plain operators. Tests of both hand-written graphs are in test_graphs.py."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import shape_inference

from emostream.engines.bundle import FUSION, FUSION_GPU, MODALITIES, open_bundle
from emostream.engines.onnx import OnnxRuntime
from emostream.train.graphs import portable
from emostream.train.graphs.gpu import gpu_graph
from tests.nets import small


@pytest.fixture(scope="module")
def shipped(bundle) -> tuple[OnnxRuntime, OnnxRuntime]:
    return OnnxRuntime(bundle.path(FUSION)), OnnxRuntime(bundle.path(FUSION_GPU))


@cache
def dims() -> dict[str, int]:
    return {m: getattr(open_bundle("ekman7").manifest, m).dim for m in MODALITIES}


def arrays(lengths: list[tuple[int, int, int]], padding: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs for a batch of (audio, video, text) lengths; rows beyond them hold large random values."""
    by_modality = {m: [clip[i] for clip in lengths] for i, m in enumerate(MODALITIES)}
    inputs = portable.fusion_inputs(dims(), by_modality, np.random.default_rng(seed), padding)
    for m in MODALITIES:
        inputs[m][np.arange(inputs[m].shape[1]) >= inputs[f"{m}_len"][:, None]] *= 100
    return inputs


LENGTHS = st.tuples(
    st.sampled_from([0, 1, 2, 5, 41, 300, 1500]), st.sampled_from([0, 1, 13, 150]), st.sampled_from([0, 1, 7, 64])
)


@pytest.mark.long
@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(LENGTHS.filter(any), min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 9))
@example([(1, 1, 1)], 0, 0)
@example([(500, 50, 15)], 0, 0)
@example([(1500, 150, 64)] * 8, 0, 0)
@example([(0, 150, 0), (0, 0, 64), (3, 0, 0)], 2, 0)  # audio's sequence is not the longest
def test_the_shipped_graph_gives_the_portable_graphs_logits(shipped, lengths, padding, seed):
    inputs = arrays(lengths, padding, seed)
    want, got = (graph.run(inputs)["logits"] for graph in shipped)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_a_clip_without_any_modality_stays_finite(shipped):
    assert np.isfinite(shipped[1].run(arrays([(0, 0, 0)], 0, 0))["logits"]).all()


def test_it_is_one_loop_in_plain_onnx(bundle):
    exported, gpu = (onnx.load(bundle.path(name)) for name in (FUSION, FUSION_GPU))
    onnx.checker.check_model(gpu, full_check=True)
    assert [entry.name for entry in gpu.graph.input] == [entry.name for entry in exported.graph.input]
    assert [entry.type for entry in gpu.graph.input] == [entry.type for entry in exported.graph.input]
    assert list(gpu.graph.output) == list(exported.graph.output)
    assert [(entry.domain, entry.version) for entry in gpu.opset_import] == [("", 17)]
    counts = Counter(node.op_type for node in gpu.graph.node)
    assert {node.domain for node in gpu.graph.node} == {""}
    assert (counts["Scan"], counts["GRU"], counts["Loop"]) == (1, 0, 0)
    assert counts.total() < len(exported.graph.node) / 3


def test_no_node_and_no_constant_is_unused(bundle):
    graph = onnx.load(bundle.path(FUSION_GPU)).graph
    body = next(entry.g for node in graph.node for entry in node.attribute if entry.name == "body")
    read = {name for g in (graph, body) for node in g.node for name in node.input} | {"logits"}
    unused = [node.name for node in graph.node if not read & set(node.output)]
    assert unused == []
    assert {entry.name for g in (graph, body) for entry in g.initializer} <= read


def test_shapes_follow_from_the_inputs():
    """TensorRT has to know each array's rank and type before it runs."""
    model = shape_inference.infer_shapes(gpu_graph(small()), check_type=True, strict_mode=True)
    known = {entry.name for entry in model.graph.value_info} | {"logits"}
    outputs = {name for node in model.graph.node for name in node.output}
    assert outputs == known


def test_a_model_gives_the_same_bytes_each_time():
    torch.manual_seed(1)
    first, second = (gpu_graph(small()).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
