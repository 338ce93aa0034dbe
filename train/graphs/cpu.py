"""The fusion model for a CPU, written in the operators that ONNX Runtime runs fastest there.

Compared with the exported graph it has fewer and larger operators: one bidirectional GRU per modality, which gets the
lengths; attention as ONNX Runtime's own operator (domain com.microsoft); normalisation of features folded into the
weights that follow it; means over time, and over modalities, as matrix products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from emostream.train.graphs.fusion import FusionGraph, gru_weights, weight_and_bias
from emostream.train.model import MASKED, Attention, Encoder, Fusion

_CONTRIB = "com.microsoft"


def cpu_graph(model: Fusion) -> onnx.ModelProto:
    """The graph of ``model``, with the inputs and the output of ``portable.export_fusion``."""
    return _CpuGraph(model, "cpu").build()


class _CpuGraph(FusionGraph):
    domains = ("", _CONTRIB)

    def encode(self, counts: str) -> dict[str, str]:
        self.count: dict[str, str] = {}  # (B,) int32: how many states are valid
        states = {}
        columns = self.columns(self.add("Cast", counts, to=TensorProto.INT32))
        for (m, encoder), column in zip(self.encoders.items(), columns, strict=True):
            self.count[m] = self.add("Reshape", column, self.store([-1]))
            states[m] = self._read(m, encoder)
        return states

    def _read(self, m: str, encoder: Encoder) -> str:
        """States of one modality (B, T', W); rows beyond its length are zeros."""
        mean, scale = encoder.mean.numpy(), 1 / encoder.std.numpy()
        w, r, input_bias, state_bias = (np.stack(parts) for parts in zip(*gru_weights(encoder), strict=True))
        if encoder.conv is None:  # the GRU alone skips rows beyond the length
            x = self.stepped(m, encoder)
            input_bias = input_bias - (w * scale) @ mean
            w = w * scale
        else:
            x, batch = self.even_rows(m, encoder)
            weight, bias = weight_and_bias(encoder.conv)
            weight = weight * np.tile(scale, encoder.taken)
            bias = bias - weight @ np.tile(mean, encoder.taken)
            x = self.convolved(x, batch, encoder, weight, bias)
        units = encoder.ahead.hidden_size
        b = np.concatenate([input_bias, state_bias], axis=1)
        states = self.add(
            "GRU", self.add("Transpose", x, perm=[1, 0, 2]), *map(self.store, (w, r, b)), self.count[m],
            direction="bidirectional", hidden_size=units, linear_before_reset=1,
        )  # fmt: skip
        states = self.add("Transpose", states, perm=[2, 0, 1, 3])  # (B, T', 2, W/2)
        return self.add("Reshape", states, self.store([0, 0, 2 * units]))

    def attend(self, attention: Attention, target: str, source: str) -> str:
        weight, bias = weight_and_bias(attention.query_key_value)
        ours, theirs = self.states[target], self.states[source]
        settings: dict[str, Any] = {"domain": _CONTRIB, "num_heads": attention.heads, "mask_filter_value": MASKED}
        if target == source:
            answer = self.add("Attention", ours, self.store(weight.T), self.store(bias), self.count[source], **settings)
        else:
            parts = [self.store(part.T) for part in np.split(weight, 3)]
            projected = [self.add("MatMul", x, w) for x, w in zip((ours, theirs, theirs), parts, strict=True)]
            answer = self.add("MultiHeadAttention", *projected, self.store(bias), self.count[source], **settings)
        out, out_bias = weight_and_bias(attention.out)
        # bias last: in the usual order ONNX Runtime fuses sum and normalisation into one operator, which is slower
        answer = self.add("Add", self.add("MatMul", answer, self.store(out.T)), ours)
        return self.normalised(attention, self.add("Add", answer, self.store(out_bias)))

    def weighted_mean(self, share: str, rows: str) -> str:
        return self.add("MatMul", share, rows)
