"""A rewritten graph gives what the graph gave, at every length, whatever is absent and whatever the padding holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import compose, helper, numpy_helper

from emostream.engines.forms import BEST, FORMS, rewrite
from emostream.errors import BackendError

BUNDLE = Path(__file__).parents[1] / "engines/bundles/ekman7"
DIMS = {"audio": 120, "video": 128, "text": 80}
FUSION = onnx.load(BUNDLE / "fusion.onnx")


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


REWRITTEN = {form: rewrite(FUSION, form) for form in FORMS}
SESSIONS = {form: session(model) for form, model in REWRITTEN.items()}


def arrays(lengths: list[tuple[int, int, int]], padding: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs for a batch of (audio, video, text) lengths; rows beyond them hold large random values."""
    rng = np.random.default_rng(seed)
    result = {}
    for at, (name, dim) in enumerate(DIMS.items()):
        n = np.array([one[at] for one in lengths], np.int64)
        x = rng.normal(0, 3, (len(n), max(1, n.max()) + padding, dim)).astype(np.float32)
        x[np.arange(x.shape[1]) >= n[:, None]] *= 100
        result |= {name: x, f"{name}_len": n}
    return result


LENGTHS = st.tuples(
    st.sampled_from([0, 1, 2, 5, 41, 300, 1500]), st.sampled_from([0, 1, 13, 150]), st.sampled_from([0, 1, 7, 64])
)


@settings(max_examples=30, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 9))
@example([(1, 1, 1)], 0, 0)
@example([(500, 50, 15)], 0, 0)
@example([(1500, 150, 64)] * 8, 0, 0)
@example([(0, 150, 0), (0, 0, 64), (3, 0, 0)], 2, 0)  # the longest loop is not audio's
@example([(0, 0, 0)], 0, 0)
def test_a_form_changes_no_logit(lengths, padding, seed):
    inputs = arrays(lengths, padding, seed)
    (want,) = SESSIONS["exported"].run(None, inputs)
    for form in FORMS:
        (got,) = SESSIONS[form].run(None, inputs)
        assert np.abs(want - got).max() <= 1e-4, form  # false for NaN


def test_what_each_form_is_made_of():
    counts = {form: Counter(node.op_type for node in model.graph.node) for form, model in REWRITTEN.items()}
    loops = {form: (count["GRU"], count["Scan"]) for form, count in counts.items()}
    assert loops == {"exported": (6, 0), "bidirectional": (3, 0), "single_loop": (0, 1)}
    assert BEST in FORMS
    for form in ("bidirectional", "single_loop"):
        assert counts[form]["GatherElements"] == counts[form]["Constant"] == 0
        assert counts[form].total() < counts["exported"].total() / 2


@pytest.mark.parametrize("form", FORMS)
def test_inputs_outputs_and_operator_set_stay_and_the_graph_is_valid(form):
    model = REWRITTEN[form]
    onnx.checker.check_model(model, full_check=True)
    assert list(model.graph.input) == list(FUSION.graph.input)
    assert list(model.graph.output) == list(FUSION.graph.output)
    assert list(model.opset_import) == list(FUSION.opset_import)
    assert {node.domain for node in model.graph.node} == {""}


def test_the_same_graph_gives_the_same_bytes_and_is_left_as_it_was():
    before = FUSION.SerializeToString(deterministic=True)
    for form in FORMS:
        assert rewrite(FUSION, form).SerializeToString(deterministic=True) == REWRITTEN[form].SerializeToString(
            deterministic=True
        )
    assert FUSION.SerializeToString(deterministic=True) == before


def test_a_graph_without_a_gru_stays_as_it_is():
    face = onnx.load(BUNDLE / "face.onnx")
    for form in FORMS:
        assert rewrite(face, form) == face


def test_names_do_not_matter():
    renamed = onnx.ModelProto()
    renamed.CopyFrom(FUSION)
    graph = compose.add_prefix_graph(renamed.graph, "other_", rename_inputs=False, rename_outputs=False)
    renamed.graph.CopyFrom(graph)
    inputs = arrays([(41, 13, 7)], 0, 0)
    (want,) = SESSIONS["exported"].run(None, inputs)
    assert np.abs(session(rewrite(renamed, "single_loop")).run(None, inputs)[0] - want).max() <= 1e-4


# --- graphs that are not the exporter's -------------------------------------------------------------------------------


def changed(op_type: str, which: int = 0) -> tuple[onnx.ModelProto, onnx.NodeProto]:
    model = onnx.ModelProto()
    model.CopyFrom(FUSION)
    return model, [node for node in model.graph.node if node.op_type == op_type][which]


def attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def reset_before_product(model, node):
    attribute(node, "linear_before_reset", 0)


def reverse_direction(model, node):
    attribute(node, "direction", "reverse")


def start_at_one(model, node):
    start = next(other for other in model.graph.node if node.input[5] in other.output)
    attribute(start, "value", numpy_helper.from_array(np.ones(1, np.float32)))


def computed_weights(model, node):
    node.input[1] = "audio"


def lengths_of_its_own(model, node):
    node.input[4] = "audio_len"


def other_axis(model, node):
    attribute(node, "axis", 0)


def other_rows(model, node):
    gathers = [other for other in model.graph.node if other.op_type == "GatherElements"]
    node.input[0] = gathers[-1].input[0]


def other_length(model, node):
    less = [other for other in model.graph.node if other.op_type == "Less"]
    less[1].input[1] = less[-1].input[1]


def turned_back_by_another_length(model, node):
    gathers = [other for other in model.graph.node if other.op_type == "GatherElements"]
    node.input[1] = gathers[-1].input[1]


def not_less(model, node):
    for less in (other for other in model.graph.node if other.op_type == "Less"):
        less.op_type = "LessOrEqual"


def other_transpose(model, node):
    attribute(next(other for other in model.graph.node if node.input[0] in other.output), "perm", [1, 2, 0])


@pytest.mark.parametrize(
    ("change", "op_type", "which", "says"),
    [
        (reset_before_product, "GRU", 0, "attributes"),
        (reverse_direction, "GRU", 1, "attributes"),
        (start_at_one, "GRU", 0, "start at zero"),
        (computed_weights, "GRU", 0, "weights of another kind"),
        (lengths_of_its_own, "GRU", 0, "lengths"),
        (other_axis, "GatherElements", 0, "reverse rows"),
        (other_rows, "GatherElements", 0, "same rows"),
        (other_length, "GRU", 0, "reverse rows"),
        (turned_back_by_another_length, "GatherElements", 1, "same rows"),
        (not_less, "GRU", 0, "LessOrEqual"),
        (other_transpose, "GRU", 1, "swap batch and time"),
    ],
)
@pytest.mark.parametrize("form", ["bidirectional", "single_loop"])
def test_a_graph_of_another_shape_is_refused(form, change, op_type, which, says):
    model, node = changed(op_type, which)
    change(model, node)
    with pytest.raises(BackendError, match=says) as error:
        rewrite(model, form)
    assert 'form "exported"' in str(error.value)


def test_a_gru_without_its_pair_is_refused():
    model, node = changed("GRU")
    inputs = [node.input[0], *node.input[1:]]
    model.graph.node.append(helper.make_node("GRU", inputs, ["alone"], hidden_size=60, linear_before_reset=1))
    with pytest.raises(BackendError, match="6 of 7 GRUs"):
        rewrite(model, "single_loop")


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"nonsense.*exported, bidirectional, single_loop"):
        rewrite(FUSION, "nonsense")
