"""What the two hand-written graphs of the fusion model have in common: all but the recurrence, attention and means.

``train/graphs/portable.py`` traces the model and gets plain ONNX that every runtime reads. The other graphs are written
from the same weights with fewer nodes: ``cpu.py`` in the operators that ONNX Runtime runs fastest on a CPU, ``gpu.py``
in a form that costs TensorRT the fewest steps. ``fast.py`` compares both with the torch model.

Shapes: B batch, M modalities, T rows of features, T' encoder states, W width, N vectors to pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from emostream.train.graphs.writer import OPSET, Writer
from emostream.train.model import POOLING_EPS, Attention, Encoder, Fusion

END = 2**31 - 1  # a Slice up to here goes to the last row


class FusionGraph(Writer, ABC):
    """Writes one model; ``build`` may be called once. Inputs and output are those of ``portable.export_fusion``."""

    domains: tuple[str, ...] = ("",)  # of the operators

    def __init__(self, model: Fusion, prefix: str) -> None:
        super().__init__(prefix)
        self.model = model
        self.names = list(model.encoders)
        self.encoders = {m: encoder for m, encoder in model.encoders.items() if isinstance(encoder, Encoder)}
        self.width = model.hidden_layer.out_features
        self.inside: dict[str, str] = {}  # (B, 1, T') bool: true at valid states

    @abstractmethod
    def encode(self, counts: str) -> dict[str, str]:
        """States (B, T', W) of each modality, finite everywhere; ``counts`` (B, 1, M) int64 of them are valid."""

    @abstractmethod
    def attend(self, attention: Attention, target: str, source: str) -> str:
        """``Attention.forward`` on the states of two modalities, given by name: (B, T', W)."""

    @abstractmethod
    def weighted_mean(self, share: str, rows: str) -> str:
        """Means over rows (B, T, W) with weights (B, 1, T) that sum to 1: (B, 1, W)."""

    def build(self) -> onnx.ModelProto:
        """The whole graph."""
        model, names = self.model, self.names
        lengths = self.concat([self.add("Unsqueeze", f"{m}_len", self.store([1, 2])) for m in names], axis=2)  # (B,1,M)
        here = self.add("Greater", lengths, self.store(0))  # (B, 1, M) bool
        counts = self.rounded_up(lengths, [encoder.stride for encoder in self.encoders.values()])
        self.states = self.encode(counts)
        weights = self.add("Reciprocal", self.add("Cast", self.add("Max", counts, self.store(1)), to=TensorProto.FLOAT))
        share: dict[str, str] = {}  # (B, 1, T') each: the weight of each row in a mean over time
        zero = self.store(np.array(0.0))
        for m, count, weight in zip(names, self.columns(counts), self.columns(weights), strict=True):
            self.inside[m] = self.add("Less", self.row_numbers(self.states[m]), count)
            share[m] = self.add("Where", self.inside[m], weight, zero)

        vectors = []  # (B, 1, W) each
        for (target, source), attention in zip(model.pairs, model.attentions, strict=True):
            assert isinstance(attention, Attention)
            vectors.append(self.add("MatMul", share[target], self.attend(attention, target, source)))
        present = []  # (B, 1, …) bool, for pairs and for means of states
        if model.attention == "self":
            present.append(here)
        elif model.pairs:
            ends = ([names.index(pair[end]) for pair in model.pairs] for end in (0, 1))
            present.append(self.add("And", *(self.add("Gather", here, self.store(end), axis=2) for end in ends)))
        if model.attention in ("cross", "none"):
            vectors += [self.add("MatMul", share[m], self.states[m]) for m in names]
            others = self.add("ReduceSum", self.add("Cast", here, to=TensorProto.INT64), self.store([2]))  # (B, 1, 1)
            alone = self.add("And", here, self.add("Equal", others, self.store(1)))
            present.append(here if model.attention == "none" else alone)
        stacked = self.concat(vectors, axis=1)  # (B, N, W)
        keep = self.add("Cast", self.concat(present, axis=2), to=TensorProto.FLOAT)  # (B, 1, N)
        hidden, classifier = weight_and_bias(model.hidden_layer), weight_and_bias(model.classifier)
        if model.pooling:
            pooled = self.statistics(stacked, keep)
            hidden[1] -= hidden[0][:, self.width :].sum(1) * POOLING_EPS**0.5  # subtracted from each deviation
        else:
            pooled = self.add("Mul", stacked, self.add("Transpose", keep, perm=[0, 2, 1]))
            pooled = self.add("Reshape", pooled, self.store([0, len(vectors) * self.width]))
        self.add("Gemm", self.dense(pooled, *hidden), *map(self.store, classifier), out="logits", transB=1)
        return self._model()

    def statistics(self, vectors: str, keep: str) -> str:
        """``train.model.statistics`` without the constant that it subtracts from the deviation: (B, 2 W)."""
        count = self.add("Max", self.add("ReduceSum", keep, self.store([2])), self.store(np.array(1.0)))  # (B, 1, 1)
        share = self.add("Div", keep, count)  # (B, 1, N)
        mean = self.weighted_mean(share, vectors)
        off = self.add("Sub", vectors, mean)
        variance = self.weighted_mean(share, self.add("Mul", off, off))
        deviation = self.add("Sqrt", self.add("Add", variance, self.store(np.array(POOLING_EPS))))
        return self.add("Reshape", self.concat([mean, deviation], axis=2), self.store([0, 2 * self.width]))

    def even_rows(self, m: str, encoder: Encoder) -> tuple[str, str]:
        """What an encoder with a convolution reads: every ``step``-th row of features, padded until the convolution and
        the mean after it come out even, and the features' mean beyond the length: (B, T, D). Also the size B, (1,)."""
        x = self.stepped(m, encoder)
        batch, rows = self.size(x, 0), self.size(x, 1)
        missing = self.add("Mod", self.add("Neg", rows), self.store([encoder.taken * encoder.mean_of]))
        pads = self.concat([self.store([0, 0, 0, 0]), missing, self.store([0])], axis=0)
        x = self.add("Pad", x, pads)
        length = self.add("Unsqueeze", self.rounded_up(f"{m}_len", encoder.step), self.store([1, 2]))
        inside = self.add("Less", self.add("Unsqueeze", self.row_numbers(x), self.store([1])), length)  # (B, T, 1)
        return self.add("Where", inside, x, self.store(encoder.mean.numpy())), batch

    def convolved(self, x: str, batch: str, encoder: Encoder, weight: np.ndarray, bias: np.ndarray) -> str:
        """The convolution as a product of two-dimensional matrices, ReLU and mean: (B, T, D) → (B, T', W)."""
        width = len(weight)
        x = self.dense(self.add("Reshape", x, self.store([-1, weight.shape[1]])), weight, bias)
        if encoder.mean_of > 1:
            x = self.add("Reshape", x, self.store([-1, encoder.mean_of, width]))
            x = self.add("ReduceMean", x, axes=[1], keepdims=0)
        return self.add("Reshape", x, self.concat([batch, self.store([-1, width])], axis=0))

    def stepped(self, m: str, encoder: Encoder) -> str:
        """Every ``step``-th row of a modality's features."""
        if encoder.step == 1:
            return m
        return self.add("Slice", m, *map(self.store, ([0], [END], [1], [encoder.step])))

    def size(self, x: str, axis: int) -> str:
        """(1,) int64: the size of an axis."""
        return self.add("Gather", self.add("Shape", x), self.store([axis]))

    def row_numbers(self, x: str) -> str:
        """(T,) int64: 0, 1, … for the rows of x (B, T, …)."""
        rows = self.add("Gather", self.add("Shape", x), self.store(1))
        return self.add("Range", self.store(0), rows, self.store(1))

    def rounded_up(self, length: str, stride: list[int] | int) -> str:
        """Lengths divided by strides, rounded up."""
        if stride == 1:
            return length
        return self.add("Div", self.add("Add", length, self.store(np.subtract(stride, 1).tolist())), self.store(stride))

    def columns(self, x: str) -> list[str]:
        """(B, 1, M) → M arrays (B, 1, 1)."""
        return self.split(x, [1] * len(self.names), axis=2)

    def dense(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """A linear layer with ReLU: (N, in) → (N, out)."""
        return self.add("Relu", self.add("Gemm", x, self.store(weight), self.store(bias), transB=1))

    def normalised(self, attention: Attention, x: str) -> str:
        """Attention's layer norm: (B, T', W)."""
        norm = attention.norm
        return self.add("LayerNormalization", x, *map(self.store, weight_and_bias(norm)), axis=-1, epsilon=norm.eps)

    def _model(self) -> onnx.ModelProto:
        inputs = []
        for m, dim in self.model.dims.items():
            inputs.append(helper.make_tensor_value_info(m, TensorProto.FLOAT, ["batch", f"{m}_rows", dim]))
            inputs.append(helper.make_tensor_value_info(f"{m}_len", TensorProto.INT64, ["batch"]))
        labels = self.model.classifier.out_features
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])
        graph = helper.make_graph(self.nodes, "fusion", inputs, [output], self.initializers)
        opsets = [helper.make_opsetid(domain, 1 if domain else OPSET) for domain in self.domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="emostream")


def weight_and_bias(layer: nn.Module) -> list[np.ndarray]:
    """Copies of a layer's weight and bias."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    return [weight.detach().numpy().copy(), bias.detach().numpy().copy()]


class GruWeights(NamedTuple):
    """One direction, with gates in ONNX's order: update, reset, new."""

    w: np.ndarray  # (3 H, D), of the input
    r: np.ndarray  # (3 H, H), of the state
    input_bias: np.ndarray  # (3 H,)
    state_bias: np.ndarray  # (3 H,)


def gru_weights(encoder: Encoder) -> list[GruWeights]:
    """The weights of an encoder's two directions, ahead and back."""

    def in_onnx_order(parameter: Tensor) -> np.ndarray:
        reset, update, new = np.split(parameter.detach().numpy(), 3)
        return np.concatenate([update, reset, new])

    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    grus = (encoder.ahead, encoder.back)
    return [GruWeights(*(in_onnx_order(gru.get_parameter(name)) for name in names)) for gru in grus]
