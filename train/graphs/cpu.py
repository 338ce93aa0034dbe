"""The fusion model for a CPU, written in the operators that ONNX Runtime runs fastest there.

What ``train.export`` traces is plain ONNX, which every runtime reads. Here are the same weights with fewer and larger
operators: one bidirectional GRU per modality, which is told the lengths; attention as ONNX Runtime's own operator
(domain com.microsoft); normalisation of features within the weights that follow it; convolutions as products of
two-dimensional matrices, with bias and ReLU; means over time, and over modalities, as products.
``train.export`` holds the result to the torch model.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from emostream.engines.forms import Writer
from emostream.train.model import MASKED, POOLING_EPS, Attention, Encoder, Fusion

OPSET = 17
_CONTRIB = "com.microsoft"
_END = 2**31 - 1  # of a Slice that goes on to the last row


def cpu_graph(model: Fusion) -> onnx.ModelProto:
    """The graph of ``model``, with the inputs and the output of ``train.export.export_fusion``."""
    g = Writer("cpu")
    names = list(model.encoders)
    width = model.hidden_layer.out_features
    lengths = g.add("Concat", *(g.add("Unsqueeze", f"{m}_len", g.store([1, 2])) for m in names), axis=2)  # (B, 1, M)
    here = g.add("Greater", lengths, g.store(0))  # (B, 1, M)
    strides = [encoder.stride for encoder in model.encoders.values()]
    rows = _rounded_up(g, lengths, strides)  # (B, 1, M): valid rows of the states
    weight = g.add("Reciprocal", g.add("Cast", g.add("Max", rows, g.store(1)), to=TensorProto.FLOAT))
    rows_of, weight_of, counts = (
        dict(zip(names, _columns(g, x, len(names)), strict=True))
        for x in (rows, weight, g.add("Cast", rows, to=TensorProto.INT32))
    )
    states: dict[str, str] = {}  # (B, T', W)
    count: dict[str, str] = {}  # (B,) int32: how many of them are valid
    share: dict[str, str] = {}  # (B, 1, T'): what each row counts in a mean over time
    for m, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        count[m] = g.add("Reshape", counts[m], g.store([-1]))
        states[m] = _encode(g, encoder, m, count[m])
        inside = g.add("Less", _numbered(g, states[m]), rows_of[m])
        share[m] = g.add("Where", inside, weight_of[m], g.store(np.array(0.0)))

    vectors = []  # (B, 1, W) each
    for (target, source), attend in zip(model.pairs, model.attentions, strict=True):
        assert isinstance(attend, Attention)
        answer = _attend(g, attend, states[target], states[source], count[source])
        vectors.append(g.add("MatMul", share[target], answer))
    present = []  # (B, 1, …) bool, by pairs and by means of states
    if model.attention == "self":
        present.append(here)
    elif model.pairs:
        ends = ([names.index(pair[end]) for pair in model.pairs] for end in (0, 1))
        present.append(g.add("And", *(g.add("Gather", here, g.store(end), axis=2) for end in ends)))
    if model.attention in ("cross", "none"):
        vectors += [g.add("MatMul", share[m], states[m]) for m in names]
        others = g.add("ReduceSum", g.add("Cast", here, to=TensorProto.INT64), g.store([2]))  # (B, 1, 1)
        alone = g.add("And", here, g.add("Equal", others, g.store(1)))
        present.append(here if model.attention == "none" else alone)
    stacked = g.add("Concat", *vectors, axis=1) if len(vectors) > 1 else vectors[0]  # (B, N, W)
    joined = g.add("Concat", *present, axis=2) if len(present) > 1 else present[0]
    keep = g.add("Cast", joined, to=TensorProto.FLOAT)  # (B, 1, N)
    hidden, classifier = _numbers(model.hidden_layer), _numbers(model.classifier)
    if model.pooling:
        pooled = _statistics(g, stacked, keep, width)
        hidden[1] -= hidden[0][:, width:].sum(1) * POOLING_EPS**0.5  # taken off each deviation
    else:
        pooled = g.add("Mul", stacked, g.add("Transpose", keep, perm=[0, 2, 1]))
        pooled = g.add("Reshape", pooled, g.store([0, len(vectors) * width]))
    g.add("Gemm", _dense(g, pooled, *hidden), *map(g.store, classifier), out="logits", transB=1)
    return _model(g, model)


def _encode(g: Writer, encoder: Encoder, m: str, count: str) -> str:
    """States (B, T', W), as ``Encoder.forward``; rows beyond ``count`` (B,) are zeros."""
    x = m
    mean, scale = encoder.mean.numpy(), 1 / encoder.std.numpy()
    if encoder.step > 1:
        x = g.add("Slice", x, *map(g.store, ([0], [_END], [1], [encoder.step])))
    w, r, b = _gru(encoder)
    if encoder.conv is None:  # rows beyond the length are skipped by the GRU alone
        b[:, : b.shape[1] // 2] -= (w * scale) @ mean
        w = w * scale
    else:
        size = g.add("Shape", x)
        batch, rows = (g.add("Slice", size, g.store([i]), g.store([i + 1])) for i in (0, 1))
        missing = g.add("Mod", g.add("Neg", rows), g.store([encoder.taken * encoder.mean_of]))
        x = g.add("Pad", x, g.add("Concat", g.store([0, 0, 0, 0]), missing, g.store([0]), axis=0))
        length = g.add("Unsqueeze", _rounded_up(g, f"{m}_len", encoder.step), g.store([1, 2]))
        inside = g.add("Less", g.add("Unsqueeze", _numbered(g, x), g.store([1])), length)  # (B, T, 1)
        x = g.add("Where", inside, x, g.store(mean))
        weight, bias = _numbers(encoder.conv)
        weight = weight * np.tile(scale, encoder.taken)
        bias = bias - weight @ np.tile(mean, encoder.taken)
        x = _dense(g, g.add("Reshape", x, g.store([-1, weight.shape[1]])), weight, bias)
        width = weight.shape[0]
        if encoder.mean_of > 1:
            x = g.add("Reshape", x, g.store([-1, encoder.mean_of, width]))
            x = g.add("ReduceMean", x, axes=[1], keepdims=0)
        x = g.add("Reshape", x, g.add("Concat", batch, g.store([-1, width]), axis=0))
    units = encoder.ahead.hidden_size
    states = g.add(
        "GRU", g.add("Transpose", x, perm=[1, 0, 2]), *map(g.store, (w, r, b)), count,
        direction="bidirectional", hidden_size=units, linear_before_reset=1,
    )  # fmt: skip
    states = g.add("Transpose", states, perm=[2, 0, 1, 3])  # (B, T', 2, W/2)
    return g.add("Reshape", states, g.store([0, 0, 2 * units]))


def _gru(encoder: Encoder) -> list[np.ndarray]:
    """Both directions' weights and biases, gates in ONNX's order (update, reset, new) for torch's (reset, update, new):
    (2, 3 H, D), (2, 3 H, H), (2, 6 H)."""

    def both(name: str) -> np.ndarray:
        found = []
        for gru in (encoder.ahead, encoder.back):
            reset, update, new = getattr(gru, name).detach().numpy().reshape(3, gru.hidden_size, -1)
            found.append(np.concatenate([update, reset, new]))
        return np.stack(found)

    biases = np.concatenate([both("bias_ih_l0"), both("bias_hh_l0")], axis=1)[..., 0]
    return [both("weight_ih_l0"), both("weight_hh_l0"), biases]


def _attend(g: Writer, attend: Attention, target: str, source: str, source_rows: str) -> str:
    """``Attention.forward``: (B, Tq, W)."""
    weight, bias = _numbers(attend.query_key_value)
    settings = {"domain": _CONTRIB, "num_heads": attend.heads, "mask_filter_value": MASKED}
    if target == source:
        answer = g.add("Attention", target, g.store(weight.T), g.store(bias), source_rows, **settings)
    else:
        parts = [g.store(part.T) for part in np.split(weight, 3)]
        given = [g.add("MatMul", x, w) for x, w in zip((target, source, source), parts, strict=True)]
        answer = g.add("MultiHeadAttention", *given, g.store(bias), source_rows, **settings)
    out, out_bias = _numbers(attend.out)
    # the bias last: in the usual order ONNX Runtime makes one operator of sum and normalisation, which takes longer
    answer = g.add("Add", g.add("Add", g.add("MatMul", answer, g.store(out.T)), target), g.store(out_bias))
    norm = map(g.store, _numbers(attend.norm))
    return g.add("LayerNormalization", answer, *norm, axis=-1, epsilon=attend.norm.eps)


def _statistics(g: Writer, vectors: str, keep: str, width: int) -> str:
    """``train.model.statistics`` but for the constant that it takes off the deviation: (B, 2 W)."""
    count = g.add("Max", g.add("ReduceSum", keep, g.store([2])), g.store(np.array(1.0)))  # (B, 1, 1)
    share = g.add("Div", keep, count)  # (B, 1, N)
    mean = g.add("MatMul", share, vectors)  # (B, 1, W)
    off = g.add("Sub", vectors, mean)
    variance = g.add("MatMul", share, g.add("Mul", off, off))
    deviation = g.add("Sqrt", g.add("Add", variance, g.store(np.array(POOLING_EPS))))
    return g.add("Reshape", g.add("Concat", mean, deviation, axis=2), g.store([0, 2 * width]))


def _numbered(g: Writer, x: str) -> str:
    """(T,): 0, 1, … for the rows of x (B, T, …)."""
    return g.add("Range", g.store(0), g.add("Gather", g.add("Shape", x), g.store(1)), g.store(1))


def _rounded_up(g: Writer, length: str, by: list[int] | int) -> str:
    """Lengths through strides."""
    if by == 1:
        return length
    return g.add("Div", g.add("Add", length, g.store(np.subtract(by, 1).tolist())), g.store(by))


def _columns(g: Writer, x: str, number: int) -> list[str]:
    """(B, 1, number) → as many (B, 1, 1)."""
    return g.several("Split", x, g.store([1] * number), out=[""] * number, axis=2) if number > 1 else [x]


def _dense(g: Writer, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
    """A layer with ReLU: (N, in) → (N, out)."""
    return g.add("Relu", g.add("Gemm", x, g.store(weight), g.store(bias), transB=1))


def _numbers(layer: nn.Module) -> list[np.ndarray]:
    """Weight and bias."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    return [weight.detach().numpy().copy(), bias.detach().numpy().copy()]


def _model(g: Writer, model: Fusion) -> onnx.ModelProto:
    inputs = []
    for m, dim in model.dims.items():
        inputs.append(helper.make_tensor_value_info(m, TensorProto.FLOAT, ["batch", f"{m}_rows", dim]))
        inputs.append(helper.make_tensor_value_info(f"{m}_len", TensorProto.INT64, ["batch"]))
    labels = model.classifier.out_features
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])
    graph = helper.make_graph(g.nodes, "fusion", inputs, [output], g.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="emostream")
