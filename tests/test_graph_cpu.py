"""train/graphs/cpu.py. Tests of both hand-written graphs are in test_graphs.py."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from emostream.engines.bundle import FUSION, FUSION_CPU, MODALITIES
from emostream.engines.onnx import OnnxRuntime
from emostream.train.graphs import portable
from emostream.train.graphs.cpu import cpu_graph
from tests.nets import small


@pytest.mark.slow
def test_a_wrong_graph_is_refused(tmp_path):
    model = small()
    broken = cpu_graph(model)
    gru = next(node for node in broken.graph.node if node.op_type == "GRU")
    gru.input[4] = ""  # without lengths the backward direction begins in the padding
    onnx.save(broken, tmp_path / "cpu.onnx")
    with pytest.raises(portable.ExportError, match=r"cpu\.onnx: differs from the torch model by"):
        portable.check_fusion(model, tmp_path / "cpu.onnx")


def test_the_shipped_graph_gives_the_portable_graphs_logits(bundle):
    """Neither was changed without the other; and the graph has far fewer nodes."""
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    exported, cpu = OnnxRuntime(bundle.path(FUSION)), OnnxRuntime(bundle.path(FUSION_CPU))
    rng = np.random.default_rng(0)
    for rows in (1, 7, 50, 150):
        lengths = {m: [rows, 0 if m == "text" else rows // 2 + 1] for m in MODALITIES}
        arrays = portable.fusion_inputs(dims, lengths, rng)
        want = exported.run(arrays)["logits"]
        np.testing.assert_allclose(cpu.run(arrays)["logits"], want, rtol=0, atol=1e-4)
    nodes = [onnx.load(bundle.path(name)).graph.node for name in (FUSION, FUSION_CPU)]
    assert len(nodes[1]) < 0.4 * len(nodes[0])
    assert sum(node.op_type == "GRU" for node in nodes[1]) == 3
