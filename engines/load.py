"""Which backend runs a graph."""

from __future__ import annotations

from pathlib import Path

from engines.backend import BACKENDS, Backend, BackendError


def load(path: Path, backend: str = "auto", threads: int = 1) -> Backend:
    """Load an ONNX graph with the backend asked for. ``auto`` takes the fastest one that works here.

    Raises BackendError if the backend is unknown or refuses the graph.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")
    from engines.onnx import OnnxRuntime  # heavy import, on use

    return OnnxRuntime(path, threads)
