"""The hand-written fusion graphs of a bundle: written, compared with the torch model, and tried out before training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch

from emostream.engines.bundle import FUSION, FUSION_CPU, FUSION_GPU
from emostream.errors import ExportError
from emostream.train.graphs import portable
from emostream.train.graphs.cpu import cpu_graph
from emostream.train.graphs.gpu import gpu_graph
from emostream.train.model import Fusion, build

# by file in a bundle: what writes it, and where that is
GRAPHS: dict[str, tuple[Callable[[Fusion], onnx.ModelProto], str]] = {
    FUSION_CPU: (cpu_graph, "train/graphs/cpu.py"),
    FUSION_GPU: (gpu_graph, "train/graphs/gpu.py"),
}


def export_fast(model: Fusion, folder: Path) -> dict[str, float]:
    """Write each fast graph into ``folder`` and check it; returns the largest difference from the torch model by file.

    Raises ExportError if a graph cannot be written for this model or does not give its logits.
    """
    return {file: _export(model, folder / file, *GRAPHS[file]) for file in GRAPHS}


def try_exports(attention: str, dims: Mapping[str, int], fast: bool = True) -> None:
    """Export a network with random weights, so that a graph that no longer fits ``train/model.py`` is noticed before
    hours of training. ``fast``: also the fast graphs. Raises ExportError that says which file to change."""
    with torch.random.fork_rng(devices=[]):  # so that this does not affect training
        torch.manual_seed(0)
        model = build(attention=attention, dims=dims).eval()
        assert isinstance(model, Fusion)
        with torch.no_grad():
            for encoder in model.encoders.values():
                encoder.get_buffer("mean").normal_()
                encoder.get_buffer("std").uniform_(0.5, 2)
            for weights in model.parameters():
                weights.mul_(1.5)  # spreads the logits, so that a wrong graph differs clearly
    with tempfile.TemporaryDirectory() as folder:
        portable.export_fusion(model, Path(folder) / FUSION)
        if fast:
            export_fast(model, Path(folder))


def _export(model: Fusion, path: Path, write: Callable[[Fusion], onnx.ModelProto], source: str) -> float:
    try:
        onnx.save(write(model), path)
        return portable.check_fusion(model, path)
    except Exception as error:  # a graph written for another network can fail in any way
        raise ExportError(
            f"{path.name} does not fit the network of train/model.py ({type(error).__name__}: {error}); change "
            f"{source} accordingly, or make the bundle without fast graphs: --portable"
        ) from error
