"""Writes stream/speech/campplus.onnx, the graph of CAM++ without its weights, from the file that holds them.

    python tools/make_campplus.py FOLDER/campplus_cn_en_common.pt

The architecture is that of H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: A Fast and Efficient Network for
Speaker Verification Using Context-Aware Masking" (Interspeech 2023): residual 2-D convolutions, three densely connected
blocks of dilated convolutions, each masked by its context, and statistical pooling. The graph refers to offsets in that
file, a ZIP archive of plain arrays, from which ONNX Runtime reads the weights. It takes at most 200 rows, 2 s: one
segment of the context.
"""

from __future__ import annotations

import argparse
import pickletools
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from emostream.files import sha256, write_atomically
from emostream.stream import models
from emostream.train.graphs.writer import OPSET, Writer

OUT = Path(__file__).parent.parent / "stream" / "speech" / "campplus.onnx"
_HEADER = 30  # bytes of a local file header in a ZIP archive, without name and extra field
_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation
_EPSILON = 1e-5


def places(path: Path) -> dict[str, tuple[int, int]]:
    """By weight name: offset and length in bytes of its float32 numbers. The file's pickle is parsed as a list of
    instructions and never executed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {Path(entry.filename).name: entry for entry in archive.infolist()}
        index = archive.read(entries["data.pkl"])
        found, name = {}, ""
        for _, value, _ in pickletools.genops(index):
            if not isinstance(value, str):
                continue
            if value.startswith(("head.", "xvector.")):
                name = value
            elif value.isdigit() and name:
                entry = entries[value]
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise SystemExit(f"{path}: {value} is compressed")
                file.seek(entry.header_offset)
                header = file.read(_HEADER)
                at = entry.header_offset + _HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
                found[name] = (at, entry.file_size)
                name = ""
    return found


class SpeakerGraph(Writer):
    """``weights``: where they are in the file called ``file``."""

    def __init__(self, file: str, weights: dict[str, tuple[int, int]]) -> None:
        super().__init__("speaker")
        self._file, self._weights = file, weights

    def weight(self, name: str, *shape: int) -> str:
        """A constant from the file."""
        at, length = self._weights[name]
        if length != 4 * int(np.prod(shape)):
            raise SystemExit(f"{name}: {length} bytes, not those of {shape}")
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._file), ("offset", at), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    wanted = models.MODELS["campplus"].sha256
    if sha256(options.file) != wanted:
        raise SystemExit(f"{options.file}: is not the network that the graph is for (SHA-256 {wanted})")
    model = SpeakerGraph(options.file.name, places(options.file)).build()
    write_atomically(OUT, model.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main())
