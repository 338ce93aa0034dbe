"""What every backend offers: named arrays in, named arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

BACKENDS = ("auto", "onnxruntime")


class BackendError(RuntimeError):
    """A backend or a graph cannot be used; the message says what to do."""


class Backend(Protocol):
    """One loaded graph. ``name`` is such as ``onnxruntime/cpu``."""

    name: str

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once on named arrays; returns its outputs by name."""
        ...


def load(path: Path, backend: str = "auto", threads: int = 1) -> Backend:
    """Load an ONNX graph with the backend asked for. ``auto`` takes the fastest one that works here.

    Raises BackendError if the backend is unknown or refuses the graph.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")
    from engines.onnx import OnnxRuntime  # heavy import, on use

    return OnnxRuntime(path, threads)
