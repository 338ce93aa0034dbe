"""Writes stream/speech/campplus.onnx, the graph of CAM++ without its weights, from the file that holds them.

    python tools/make_campplus.py FOLDER/campplus_cn_en_common.pt

The architecture is that of H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: A Fast and Efficient Network for
Speaker Verification Using Context-Aware Masking" (Interspeech 2023): residual 2-D convolutions, three densely connected
blocks of dilated convolutions, each masked by its context, and statistical pooling. The graph refers to offsets in that
file, a ZIP archive of plain arrays, from which ONNX Runtime reads the weights. It takes at most 200 rows, 2 s: one
segment of the context.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from emostream.train.graphs.writer import OPSET
from tools.torch_file import FileWriter, places, write_graph

OUT = Path(__file__).parent.parent / "stream" / "speech" / "campplus.onnx"
_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation
_EPSILON = 1e-5


class SpeakerGraph(FileWriter):
    def normalised(self, x: str, name: str, size: int, relu: bool = True) -> str:
        parts = [self.weight(f"{name}.{part}", size) for part in ("weight", "bias", "running_mean", "running_var")]
        x = self.add("BatchNormalization", x, *parts, epsilon=_EPSILON)
        return self.add("Relu", x) if relu else x

    def conv(self, x: str, name: str, out: int, into: int, *kernel: int, strides: Sequence[int] = (), dilation: int = 1,
             bias: bool = False) -> str:  # fmt: skip
        """A convolution that preserves the length, apart from strides."""
        wanted = [self.weight(f"{name}.weight", out, into, *kernel)]
        wanted += [self.weight(f"{name}.bias", out)] if bias else []
        pads = [(size - 1) // 2 * dilation for size in kernel] * 2
        dilations = [dilation] * len(kernel)
        return self.add("Conv", x, *wanted, pads=pads, strides=strides or [1] * len(kernel), dilations=dilations)

    def residual(self, x: str, name: str, stride: int) -> str:
        y = self.normalised(self.conv(x, f"{name}.conv1", 32, 32, 3, 3, strides=(stride, 1)), f"{name}.bn1", 32)
        y = self.normalised(self.conv(y, f"{name}.conv2", 32, 32, 3, 3), f"{name}.bn2", 32, relu=False)
        if stride > 1:
            x = self.conv(x, f"{name}.shortcut.0", 32, 32, 1, 1, strides=(stride, 1))
            x = self.normalised(x, f"{name}.shortcut.1", 32, relu=False)
        return self.add("Relu", self.add("Add", y, x))

    def head(self, rows: str) -> str:
        """(1, T, 80) → (1, 320, T)"""
        x = self.add("Unsqueeze", self.add("Transpose", rows, perm=[0, 2, 1]), self.store([1]))
        x = self.normalised(self.conv(x, "head.conv1", 32, 1, 3, 3), "head.bn1", 32)
        for layer in (1, 2):
            x = self.residual(x, f"head.layer{layer}.0", stride=2)
            x = self.residual(x, f"head.layer{layer}.1", stride=1)
        x = self.normalised(self.conv(x, "head.conv2", 32, 32, 3, 3, strides=(2, 1)), "head.bn2", 32)
        return self.add("Reshape", x, self.store([0, 320, -1]))

    def layer(self, x: str, name: str, width: int, dilation: int) -> str:
        """Adds 32 channels, masked by their context: mean over all rows plus mean over the segment, here the same."""
        x = self.normalised(x, f"{name}.nonlinear1.batchnorm", width)
        x = self.normalised(self.conv(x, f"{name}.linear1", 128, width, 1), f"{name}.nonlinear2.batchnorm", 128)
        y = self.conv(x, f"{name}.cam_layer.linear_local", 32, 128, 3, dilation=dilation)
        context = self.add("ReduceMean", x, axes=[2])
        context = self.conv(self.add("Add", context, context), f"{name}.cam_layer.linear1", 64, 128, 1, bias=True)
        context = self.conv(self.add("Relu", context), f"{name}.cam_layer.linear2", 32, 64, 1, bias=True)
        return self.add("Mul", y, self.add("Sigmoid", context))

    def pooled(self, x: str) -> str:
        """(1, C, T) → (1, 2 C, 1): mean and deviation over time."""
        mean = self.add("ReduceMean", x, axes=[2])
        apart = self.add("Sub", x, mean)
        last = self.add("Slice", self.add("Shape", x), self.store([2]), self.store([3]))
        others = self.add("Cast", self.add("Sub", last, self.store([1])), to=TensorProto.FLOAT)
        squares = self.add("ReduceSum", self.add("Mul", apart, apart), self.store([2]))
        return self.concat([mean, self.add("Sqrt", self.add("Div", squares, others))], axis=1)

    def build(self) -> onnx.ModelProto:
        x = self.conv(self.head("rows"), "xvector.tdnn.linear", 128, 320, 5, strides=[2])
        x, width = self.normalised(x, "xvector.tdnn.nonlinear.batchnorm", 128), 128
        for block, (layers, dilation) in enumerate(_BLOCKS, 1):
            for layer in range(1, layers + 1):
                more = self.layer(x, f"xvector.block{block}.tdnnd{layer}", width, dilation)
                x, width = self.concat([x, more], axis=1), width + 32
            x = self.normalised(x, f"xvector.transit{block}.nonlinear.batchnorm", width)
            x, width = self.conv(x, f"xvector.transit{block}.linear", width // 2, width, 1), width // 2
        x = self.pooled(self.normalised(x, "xvector.out_nonlinear.batchnorm", width))
        x = self.conv(x, "xvector.dense.linear", 192, 2 * width, 1)
        name = "xvector.dense.nonlinear.batchnorm"
        centre, spread = self.weight(f"{name}.running_mean", 192), self.weight(f"{name}.running_var", 192)
        ones, zeros = self.store(np.ones(192)), self.store(np.zeros(192))
        x = self.add("BatchNormalization", x, ones, zeros, centre, spread, epsilon=_EPSILON)
        self.add("Reshape", x, self.store([192]), out="vector")
        rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, [1, "time", 80])
        vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [192])
        graph = helper.make_graph(self.nodes, "speaker", [rows], [vector], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def build(file: Path) -> onnx.ModelProto:
    return SpeakerGraph("speaker", file.name, places(file, ("head.", "xvector."))).build()


def main(arguments: Sequence[str] | None = None) -> int:
    return write_graph(arguments, __doc__, "campplus", OUT, build)


if __name__ == "__main__":
    sys.exit(main())
