"""engines/trt/profiles.py"""

from __future__ import annotations

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.engines.bundle import FACE, FUSION
from emostream.engines.trt.profiles import of_bundle


@pytest.mark.parametrize("graph", [FUSION, FACE])
def test_profile_and_graph_agree(bundle, graph):
    """Names, ranks and fixed sizes are the graph's; sizes that vary there vary in the profile."""
    session = onnxruntime.InferenceSession(str(bundle.path(graph)), providers=["CPUExecutionProvider"])
    profile = of_bundle(bundle.manifest, graph)
    assert set(profile) == {entry.name for entry in session.get_inputs()}
    for entry in session.get_inputs():
        low, typical, high = profile[entry.name]
        for axis, size in enumerate(entry.shape):
            if isinstance(size, int):
                assert low[axis] == typical[axis] == high[axis] == size
            else:
                assert low[axis] == 1 < high[axis]


def test_the_largest_is_the_manifests_window(bundle):
    profile = of_bundle(bundle.manifest, FUSION, 5)
    for name in ("audio", "video", "text"):
        modality = getattr(bundle.manifest, name)
        assert profile[name][2] == (5, modality.max_rows, modality.dim)
        assert profile[f"{name}_len"][2] == (5,)


@given(st.integers(1, 100))
def test_smallest_typical_and_largest_are_in_order_for_any_batch(bundle, max_batch):
    for low, typical, high in of_bundle(bundle.manifest, FUSION, max_batch).values():
        assert all(a <= b <= c for a, b, c in zip(low, typical, high, strict=True))
        assert (low[0], high[0]) == (1, max_batch)


def test_an_unknown_graph_and_a_batch_below_one_are_refused(bundle):
    with pytest.raises(ValueError, match="max_batch is 0"):
        of_bundle(bundle.manifest, FUSION, 0)
    with pytest.raises(ValueError, match="'vocab.txt' is not a graph"):
        of_bundle(bundle.manifest, "vocab.txt")
