"""Torch modules → ONNX graphs by torch's exporter, each compared with its module before it is accepted.

The older exporter (``dynamo=False``) is used on purpose: it traces GRUs to ONNX's own GRU operator.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from emostream.engines.bundle import MODALITIES
from emostream.engines.onnx import OnnxRuntime
from emostream.errors import ExportError
from emostream.stream.features.text import WordPieces
from emostream.train.bundle.face import FaceNet
from emostream.train.bundle.text import TextNet
from emostream.train.graphs.writer import OPSET
from emostream.train.model import Fusion

TOLERANCE = 1e-4
TEXT_TOLERANCE = 0.25
TEXT_EXAMPLES = (
    "no", "i am so happy that you are here", "leave me alone i do not want to talk about it any more",
    "what a wonderful surprise and who would have thought that after all these years we would meet again",
)  # fmt: skip
LENGTHS = (1, 7, 50, 300)
BATCHES = (1, 2, 3, 4)


def _export(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own retirement and each traced shape
        torch.onnx.export(
            module.eval(), args, str(path), input_names=inputs, output_names=outputs, dynamic_axes=axes,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip


def fusion_inputs(
    dims: dict[str, int], lengths: dict[str, list[int]], rng: np.random.Generator, padding: int = 0
) -> dict[str, np.ndarray]:
    """Random features for a batch: (B, T, dim) float32 and (B,) int64 lengths of each modality. Rows beyond the lengths
    are random too, ``padding`` more of them than needed."""
    arrays: dict[str, np.ndarray] = {}
    for name, dim in dims.items():
        rows = max(1, *lengths[name]) + padding
        arrays[name] = rng.normal(0, 3, (len(lengths[name]), rows, dim)).astype(np.float32)
        arrays[f"{name}_len"] = np.array(lengths[name], np.int64)
    return arrays


def export_fusion(model: Fusion, path: Path) -> float:
    """Write ``fusion.onnx`` and check it; returns the largest difference from the torch model.

    Inputs: audio (B, Ta, 120), video (B, Tv, 128), text (B, Tt, Dt) float32, each with its ``_len`` (B,) int64;
    output: logits (B, labels). Batch size and lengths vary. An absent modality has length 0 and one row of anything.
    Raises ExportError if the difference is above ``TOLERANCE``.
    """
    if tuple(model.dims) != MODALITIES:
        raise ExportError(f"a bundle needs {', '.join(MODALITIES)}; this model has {', '.join(model.dims)}")
    rng = np.random.default_rng(0)
    names = [name for m in MODALITIES for name in (m, f"{m}_len")]
    example = fusion_inputs(model.dims, {m: [9, 6] for m in MODALITIES}, rng)
    axes: dict[str, dict[int, str]] = {"logits": {0: "batch"}}
    for m in MODALITIES:
        axes[m] = {0: "batch", 1: f"{m}_rows"}
        axes[f"{m}_len"] = {0: "batch"}
    _export(model, tuple(torch.from_numpy(example[name]) for name in names), path, names, ["logits"], axes)
    return check_fusion(model, path)


@torch.inference_mode()
def check_fusion(model: Fusion, path: Path) -> float:
    """Compare the graph at ``path`` with ``model`` at several lengths and batch sizes, padded, with each subset of
    modalities; returns the largest difference of a logit. Raises ExportError if it is above ``TOLERANCE``."""
    graph = OnnxRuntime(path)
    rng = np.random.default_rng(1)
    worst = 0.0
    for length in LENGTHS:
        for batch in BATCHES:
            for present in range(1, 2 ** len(MODALITIES)):
                lengths = {}
                for bit, m in enumerate(MODALITIES):
                    most = length if present >> bit & 1 else 0
                    lengths[m] = [int(n) for n in rng.integers(min(1, most), most + 1, batch)]
                    lengths[m][0] = most
                arrays = fusion_inputs(model.dims, lengths, rng, padding=int(rng.integers(0, 5)))
                want = model(**{name: torch.from_numpy(a) for name, a in arrays.items()}).numpy()
                got = graph.run(arrays)["logits"]
                worst = max(worst, float(np.abs(got - want).max()))
                alone = {  # the first clip by itself, cut to its length: padding and other clips must not matter
                    name: a[:1] if name.endswith("_len") else a[:1, : max(1, lengths[name][0])]
                    for name, a in arrays.items()
                }
                worst = max(worst, float(np.abs(graph.run(alone)["logits"] - got[:1]).max()))
    if not worst <= TOLERANCE:  # also for NaN
        raise ExportError(f"{path}: differs from the torch model by {worst:.2g}, more than {TOLERANCE:.0e}")
    return worst


@torch.inference_mode()
def export_text(net: TextNet, path: Path, pieces: WordPieces) -> float:
    """Write ``text.onnx``, pieces (B, n) int64 → vectors (B, n, 128) float32, with embeddings and products in int8, and
    check it; returns the mean difference of a vector's value from the torch network's. Raises ExportError if that is
    above ``TEXT_TOLERANCE``: int8 is coarse, but values have a deviation of 1."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    lines = [pieces.line(words.split()) for words in TEXT_EXAMPLES]
    axes = {"pieces": {0: "batch", 1: "rows"}, "vectors": {0: "batch", 1: "rows"}}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "text.onnx"
        _export(net, (torch.from_numpy(lines[0])[None],), whole, ["pieces"], ["vectors"], axes)
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True)
        exact, coarse = OnnxRuntime(whole), OnnxRuntime(path)
        worst = 0.0
        for line in lines:
            want = net(torch.from_numpy(line)[None]).numpy()
            if np.abs(exact.run({"pieces": line[None]})["vectors"] - want).max() > 1e-3:
                raise ExportError(f"{path}: differs from the torch network before it is made smaller")
            worst = max(worst, float(np.abs(coarse.run({"pieces": line[None]})["vectors"] - want).mean()))
    if not worst <= TEXT_TOLERANCE:
        raise ExportError(f"{path}: in int8 differs from the torch network by {worst:.2g} on average")
    return worst


@torch.inference_mode()
def export_face(net: FaceNet, path: Path) -> float:
    """Write ``face.onnx``, crops (N, 48, 48) uint8 → vectors (N, 128) float32, and check it; returns the largest
    difference from the torch network. Raises ExportError if it is above ``TOLERANCE``."""
    rng = np.random.default_rng(0)
    example = torch.from_numpy(rng.integers(0, 256, (2, 48, 48), np.uint8))
    _export(net, (example,), path, ["crops"], ["vectors"], {"crops": {0: "crops"}, "vectors": {0: "crops"}})
    graph = OnnxRuntime(path)
    worst = 0.0
    for n in (1, 2, 7):
        crops = rng.integers(0, 256, (n, 48, 48), np.uint8)
        crops[0] = 128  # a flat crop has no contrast to divide by
        want = net(torch.from_numpy(crops)).numpy()
        worst = max(worst, float(np.abs(graph.run({"crops": crops})["vectors"] - want).max()))
    if not worst <= TOLERANCE:
        raise ExportError(f"{path}: differs from the torch network by {worst:.2g}, more than {TOLERANCE:.0e}")
    return worst
