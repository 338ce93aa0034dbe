"""train/graphs/cpu.py: the graph for a CPU gives the torch model's logits, and is smaller than the exported graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emostream.engines.bundle import FUSION, FUSION_CPU
from emostream.engines.onnx import OnnxRuntime
from emostream.train.graphs import portable as export
from emostream.train.graphs.cpu import cpu_graph
from emostream.train.model import ATTENTION, MODALITIES, Fusion
from tests.nets import SMALL, small


@pytest.fixture(scope="module", params=ATTENTION)
def nets(request, tmp_path_factory) -> tuple[Fusion, OnnxRuntime]:
    """A small model with random normalisation, and its graph for a CPU."""
    model = small(request.param, pooling=request.param != "both")
    for encoder in model.encoders.values():
        encoder.mean.normal_()
        encoder.std.uniform_(0.2, 3)
    path = tmp_path_factory.mktemp("graphs") / "cpu.onnx"
    onnx.save(cpu_graph(model), path)
    assert export.check_fusion(model, path) < export.TOLERANCE
    return model, OnnxRuntime(path)


@given(
    st.lists(st.tuples(*(st.integers(0, 90) for _ in MODALITIES)).filter(any), min_size=1, max_size=5),
    st.integers(0, 40),
)
def test_results_are_those_of_the_torch_model(nets, lengths, padding):
    model, graph = nets
    rng = np.random.default_rng(len(lengths))
    arrays = export.fusion_inputs(
        SMALL, {m: [row[i] for row in lengths] for i, m in enumerate(MODALITIES)}, rng, padding
    )
    with torch.inference_mode():
        want = model(**{name: torch.from_numpy(a) for name, a in arrays.items()}).numpy()
    np.testing.assert_allclose(graph.run(arrays)["logits"], want, atol=1e-4)


def test_rows_beyond_a_length_do_not_matter_even_if_they_are_not_numbers(nets):
    _, graph = nets
    lengths = {"audio": [41, 3, 0, 1], "video": [0, 9, 3, 1], "text": [3, 0, 7, 1]}
    arrays = export.fusion_inputs(SMALL, lengths, np.random.default_rng(0), padding=3)
    want = graph.run(arrays)["logits"]
    for m in MODALITIES:
        for i, n in enumerate(lengths[m]):
            arrays[m][i, n:] = np.nan
    np.testing.assert_array_equal(graph.run(arrays)["logits"], want)


def test_a_wrong_graph_is_refused(tmp_path):
    model = small()
    broken = cpu_graph(model)
    gru = next(node for node in broken.graph.node if node.op_type == "GRU")
    gru.input[4] = ""  # without lengths the backward direction begins in the padding
    onnx.save(broken, tmp_path / "cpu.onnx")
    with pytest.raises(export.ExportError, match=r"cpu\.onnx: differs from the torch model by"):
        export.check_fusion(model, tmp_path / "cpu.onnx")


def test_the_shipped_cpu_graph_gives_the_portable_graphs_logits(bundle):
    """So nobody has changed one without the other; and it has far fewer nodes."""
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    exported, cpu = OnnxRuntime(bundle.path(FUSION)), OnnxRuntime(bundle.path(FUSION_CPU))
    rng = np.random.default_rng(0)
    for rows in (1, 7, 50, 150):
        arrays = export.fusion_inputs(dims, {m: [rows, 0 if m == "text" else rows // 2 + 1] for m in MODALITIES}, rng)
        np.testing.assert_allclose(cpu.run(arrays)["logits"], exported.run(arrays)["logits"], atol=1e-4)
    nodes = [onnx.load(bundle.path(name)).graph.node for name in (FUSION, FUSION_CPU)]
    assert len(nodes[1]) < 0.4 * len(nodes[0])
    assert sum(node.op_type == "GRU" for node in nodes[1]) == 3
