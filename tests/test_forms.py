"""A rewritten graph gives what the graph gave, at every length, whatever is absent and whatever the padding holds."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from engines.backend import BackendError
from engines.forms import FORMS, rewrite

BUNDLE = Path(__file__).parents[1] / "engines/bundles/ekman7"
DIMS = {"audio": 120, "video": 128, "text": 80}


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def fusion():
    model = onnx.load(BUNDLE / "fusion.onnx")
    return model, session(model)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_changes_no_logit(fusion, form):
    model, original = fusion
    rewritten = session(rewrite(model, form))
    rng = np.random.default_rng(0)
    for lengths in ([(1, 1, 1)], [(500, 50, 15)], [(7, 0, 0), (300, 13, 5)], [(0, 9, 0), (0, 0, 3), (41, 2, 64)]):
        arrays = {}
        for at, (name, dim) in enumerate(DIMS.items()):
            n = np.array([one[at] for one in lengths], np.int64)
            arrays[name] = rng.normal(0, 3, (len(n), max(1, n.max()) + 2, dim)).astype(np.float32)
            arrays[f"{name}_len"] = n
        (want,), (got,) = original.run(None, arrays), rewritten.run(None, arrays)
        assert np.abs(want - got).max() <= 1e-4


def test_an_unknown_form_is_refused(fusion):
    with pytest.raises((BackendError, ValueError), match="nonsense"):
        rewrite(fusion[0], "nonsense")
