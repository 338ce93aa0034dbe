"""The two TensorRT libraries, which share one API."""

from __future__ import annotations

import importlib
from types import ModuleType

from engines.backend import BackendError

RUNTIMES = ("tensorrt", "tensorrt_rtx")


def load_module(runtime: str) -> ModuleType:
    """Import ``tensorrt`` or ``tensorrt_rtx``. Raises BackendError if it is not installed or cannot be loaded."""
    if runtime not in RUNTIMES:
        raise BackendError(f"runtime {runtime!r} is unknown; choose one of: {', '.join(RUNTIMES)}")
    try:
        return importlib.import_module(runtime)
    except (ImportError, OSError) as error:
        package = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}[runtime]
        raise BackendError(f"{runtime} cannot be imported ({error}); pip install {package}") from error
