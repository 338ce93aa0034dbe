"""The fusion model for TensorRT: all modalities and both directions in one loop, in ONNX's own operators.

TensorRT imports each GRU as a loop. The steps of a loop wait for each other, so at small batches their number counts,
not their size. The exported graph has two GRUs per modality, six loops in all; here is one Scan that is as long as the
longest modality. It has the fewest steps and the smallest engine, and its recurrence is the only one that TensorRT
takes in bfloat16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from emostream.train.graphs.fusion import FusionGraph, gru_weights, weight_and_bias
from emostream.train.graphs.writer import Writer
from emostream.train.model import MASKED, Attention, Encoder, Fusion

# An update gate with this input is 1 and keeps the state unchanged; half precision can represent it too.
_SHUT = 1e4
_TO_START = -(2**31) + 1  # a Slice backwards to here goes to row 0


def gpu_graph(model: Fusion) -> onnx.ModelProto:
    """The graph of ``model``, with the inputs and the output of ``portable.export_fusion``."""
    return _GpuGraph(model, "gpu").build()


class _GpuGraph(FusionGraph):
    def encode(self, counts: str) -> dict[str, str]:
        """The inputs' products for all steps first, then a Scan over what depends on the state.

        Beyond a sequence's length the update gate is shut, which replaces masking the state at each step. The backward
        direction meets those rows first, so its state is still zero where its sequence begins. Padding to the longest
        modality works the same way.
        """
        n, hidden = len(self.encoders), self.width // 2
        gates, shut = 3 * hidden, self.store(np.array(_SHUT))
        sources = {m: self._gru_input(m, encoder) for m, encoder in self.encoders.items()}
        rows = [self.size(source, 1) for source in sources.values()]  # (1,) each: T'
        longest = self.add("Max", *rows)
        directions = {m: gru_weights(encoder) for m, encoder in self.encoders.items()}
        halves: list[list[str]] = []
        for (m, source), own, count in zip(sources.items(), rows, self.columns(counts), strict=True):
            w = np.concatenate([gru.w for gru in directions[m]])  # (6 H, D)
            # the state's bias is added here too, except the new gate's, which the reset gate multiplies
            biases = [gru.input_bias + np.r_[gru.state_bias[:-hidden], np.zeros(hidden)] for gru in directions[m]]
            inputs = self.add("MatMul", source, self.store(w.T))
            inputs = self.add("Add", inputs, self.store(np.concatenate(biases)))  # (B, T', 6 H)
            inside = self.add("Less", self.add("Unsqueeze", self.row_numbers(source), self.store([1])), count)
            inputs = self.add("Where", inside, inputs, shut)
            missing = self.add("Sub", longest, own)
            pads = self.concat([self.store([0, 0, 0, 0]), missing, self.store([0])], axis=0)
            padded = self.add("Pad", inputs, pads, shut)  # (B, L, 6 H)
            halves.append(self.split(padded, [gates, gates], axis=2))
        ahead, back = (self.concat(parts, axis=2) for parts in zip(*halves, strict=True))  # (B, L, n 3 H) each
        inputs = self.concat([ahead, self._reversed(back)], axis=2)
        inputs = self.add("Reshape", inputs, self.store([0, 0, 2 * n, gates]))
        inputs = self.add("Transpose", inputs, perm=[1, 2, 0, 3])  # (L, 2 n, B, 3 H)

        in_order = [directions[m][i] for i in (0, 1) for m in directions]
        r = self.store(np.stack([gru.r.T for gru in in_order]))  # (2 n, H, 3 H)
        new_bias = self.store(np.stack([gru.state_bias[None, -hidden:] for gru in in_order]))  # (2 n, 1, H)
        batch = self.size(self.names[0], 0)
        start = self.add("ConstantOfShape", self.concat([self.store([2 * n]), batch, self.store([hidden])], axis=0))
        body = _step(r, new_bias, 2 * n, hidden)
        _, states = self.add_many("Scan", start, inputs, out=("", ""), body=body, num_scan_inputs=1)
        states = self.add("Transpose", states, perm=[2, 0, 1, 3])  # (B, L, 2 n, H)
        ahead, back = self.split(states, [n, n], axis=2)
        states = self.concat([ahead, self._reversed(back)], axis=3)  # (B, L, n, 2 H)
        by_modality = {}
        for i, (m, own) in enumerate(zip(self.names, rows, strict=True)):
            padded = self.add("Gather", states, self.store(i), axis=2)  # (B, L, 2 H)
            by_modality[m] = self.add("Slice", padded, self.store([0]), own, self.store([1]))
        return by_modality

    def _gru_input(self, m: str, encoder: Encoder) -> str:
        """(B, T', D). Features are normalised in float32, since in half precision a large mean would cost digits."""
        if encoder.conv is None:
            return self._scaled(self.stepped(m, encoder), encoder)
        x, batch = self.even_rows(m, encoder)
        return self.convolved(self._scaled(x, encoder), batch, encoder, *weight_and_bias(encoder.conv))

    def _scaled(self, x: str, encoder: Encoder) -> str:
        off = self.add("Sub", x, self.store(encoder.mean.numpy()))
        return self.add("Mul", off, self.store(1 / encoder.std.numpy()))

    def _reversed(self, x: str) -> str:
        """The rows along axis 1 in reverse order."""
        return self.add("Slice", x, *map(self.store, ([-1], [_TO_START], [1], [-1])))

    def attend(self, attention: Attention, target: str, source: str) -> str:
        width, heads = self.width, attention.heads
        weight, bias = weight_and_bias(attention.query_key_value)
        scale = (width // heads) ** -0.5
        weight[:width] *= scale  # queries
        bias[:width] *= scale
        ours, theirs = self.states[target], self.states[source]
        if target == source:
            query, key, value = self._heads(ours, weight, bias, 3, heads)
        else:
            (query,) = self._heads(ours, weight[:width], bias[:width], 1, heads)
            key, value = self._heads(theirs, weight[width:], bias[width:], 2, heads)
        score = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))  # (B, H, Tq, Ts)
        mask = self.add("Where", self.inside[source], self.store(np.array(0.0)), self.store(np.array(MASKED)))
        score = self.add("Add", score, self.add("Unsqueeze", mask, self.store([1])))
        answer = self.add("MatMul", self.add("Softmax", score, axis=3), value)
        answer = self.add("Transpose", answer, perm=[0, 2, 1, 3])  # (B, Tq, H, W/H)
        answer = self.add("Reshape", answer, self.store([0, 0, width]))
        out, out_bias = weight_and_bias(attention.out)
        answer = self.add("Add", self.add("MatMul", answer, self.store(out.T)), self.store(out_bias))
        return self.normalised(attention, self.add("Add", ours, answer))

    def _heads(self, x: str, weight: np.ndarray, bias: np.ndarray, parts: int, heads: int) -> list[str]:
        """(B, T, W) → ``parts`` arrays (B, H, T, W/H)."""
        x = self.add("Add", self.add("MatMul", x, self.store(weight.T)), self.store(bias))
        x = self.add("Reshape", x, self.store([0, 0, parts, heads, self.width // heads]))
        x = self.add("Transpose", x, perm=[2, 0, 3, 1, 4])  # (parts, B, H, T, W/H)
        return [self.add("Gather", x, self.store(i), axis=0) for i in range(parts)]

    def weighted_mean(self, share: str, rows: str) -> str:
        """A sum instead of a matrix product, so that it stays float32 in a half-precision engine."""
        weighted = self.add("Mul", self.add("Transpose", share, perm=[0, 2, 1]), rows)
        return self.add("ReduceSum", weighted, self.store([1]))


def _step(r: str, new_bias: str, rows: int, hidden: int) -> onnx.GraphProto:
    """One step of ONNX's operator GRU with ``linear_before_reset``, for ``rows`` GRUs; x is the inputs' product."""
    g = Writer("step")
    x_gates, x_new = g.split("x", [2 * hidden, hidden], axis=2)
    h_gates, h_new = g.split(g.add("MatMul", "h", r), [2 * hidden, hidden], axis=2)
    gates = g.add("Sigmoid", g.add("Add", x_gates, h_gates))
    update, reset = g.split(gates, [hidden, hidden], axis=2)
    new = g.add("Tanh", g.add("Add", x_new, g.add("Mul", reset, g.add("Add", h_new, new_bias))))
    # (1 - update) new + update h; a state of zero stays exactly zero where update is 1
    g.add("Add", new, g.add("Mul", update, g.add("Sub", "h", new)), out="next")
    g.add("Identity", "next", out="state")

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, None, width])

    inputs = [value("h", hidden), value("x", 3 * hidden)]
    return helper.make_graph(g.nodes, "step", inputs, [value("next", hidden), value("state", hidden)], g.initializers)
