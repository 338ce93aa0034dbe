"""Both hand-written fusion graphs give the torch model's logits in every variant, whatever the lengths and padding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.engines.bundle import MODALITIES
from emostream.engines.onnx import OnnxRuntime
from emostream.train.graphs import fast, portable
from emostream.train.model import ATTENTION, Fusion
from tests.nets import SMALL, small

VARIANTS = [(file, attention) for file in fast.GRAPHS for attention in ATTENTION]


@pytest.fixture(scope="module", params=VARIANTS, ids="-".join)
def variant(request, tmp_path_factory) -> tuple[Fusion, OnnxRuntime]:
    """A small model with random normalisation, and one of its graphs."""
    file, attention = request.param
    model = small(attention, pooling=attention != "both")
    for encoder in model.encoders.values():
        encoder.mean.normal_()
        encoder.std.uniform_(0.2, 3)
    write, _ = fast.GRAPHS[file]
    path = tmp_path_factory.mktemp("graphs") / file
    onnx.save(write(model), path)
    return model, OnnxRuntime(path)


@pytest.mark.slow
@settings(max_examples=25)  # of each variant
@given(
    st.lists(st.tuples(*(st.integers(0, 90) for _ in MODALITIES)).filter(any), min_size=1, max_size=5),
    st.integers(0, 40),
)
def test_logits_are_the_torch_models(variant, lengths, padding):
    model, graph = variant
    rng = np.random.default_rng(len(lengths))
    by_modality = {m: [clip[i] for clip in lengths] for i, m in enumerate(MODALITIES)}
    arrays = portable.fusion_inputs(SMALL, by_modality, rng, padding)
    with torch.inference_mode():
        want = model(**{name: torch.from_numpy(a) for name, a in arrays.items()}).numpy()
    np.testing.assert_allclose(graph.run(arrays)["logits"], want, rtol=0, atol=1e-4)


def test_rows_beyond_a_length_do_not_matter_even_if_they_are_not_numbers(variant):
    _, graph = variant
    lengths = {"audio": [41, 3, 0, 1], "video": [0, 9, 3, 1], "text": [3, 0, 7, 1]}
    arrays = portable.fusion_inputs(SMALL, lengths, np.random.default_rng(0), padding=3)
    want = graph.run(arrays)["logits"]
    for m in MODALITIES:
        for i, n in enumerate(lengths[m]):
            arrays[m][i, n:] = np.nan
    np.testing.assert_array_equal(graph.run(arrays)["logits"], want)
