"""Chooses and loads the backend that runs a graph."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

from emostream.engines.backend import BACKENDS, Backend
from emostream.engines.bundle import Bundle
from emostream.engines.options import RUNTIMES, Options
from emostream.errors import BackendError

_log = logging.getLogger(__name__)
_PACKAGES = {  # by backend: the packages it imports, and how to install each
    "openvino": {"openvino": "pip install 'emostream[openvino]'"},
    "torch": {"torch": "pip install torch", "onnx": "pip install 'emostream[engines]'"},
}


def load(bundle: Bundle, graph: str, backend: str = "auto", threads: int = 1) -> Backend:
    """Load a graph of a bundle, ``bundle.FUSION`` or ``bundle.FACE``, on a backend.

    ``auto`` is TensorRT, or else TensorRT-RTX, if this machine has a GPU, the library and PyCUDA; otherwise ONNX
    Runtime, and the log says what is missing. If an engine then fails to build or to load, the log has a warning and
    ONNX Runtime runs the graph, so that a live system goes on. A backend chosen by name has no such substitute.

    TensorRT builds the engine if the cache does not have it yet, which takes a while.
    Raises BackendError if the backend is unknown, lacks something on this machine, or refuses the graph.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")
    if backend == "auto":
        return _fastest(bundle, graph, threads)
    if lacking := _missing(backend):
        raise BackendError(f"backend {backend!r} cannot run here: {'; '.join(lacking)}")
    return _load(bundle, graph, backend, threads)


def available() -> dict[str, str]:
    """What each backend lacks on this machine, with the remedy; "" if it can run."""
    return {backend: "; ".join(_missing(backend)) for backend in BACKENDS if backend != "auto"}


def _fastest(bundle: Bundle, graph: str, threads: int) -> Backend:
    runtime = _gpu_runtime()
    if runtime is not None:
        try:
            return _load(bundle, graph, runtime, threads)
        except BackendError as error:
            _log.warning("%s: %s cannot run it, so ONNX Runtime does: %s", graph, runtime, error)
    return _load(bundle, graph, "onnxruntime", threads)


@cache  # logs once per process, not for each graph
def _gpu_runtime() -> str | None:
    lacking = {}
    for runtime in RUNTIMES:
        lacking[runtime] = _missing(runtime)
        if not lacking[runtime]:
            return runtime
    _log.info("ONNX Runtime on the CPU (others: stream-doctor)")
    _log.debug("TensorRT cannot run here: %s", "; ".join(lacking["tensorrt"]))
    return None


def _missing(backend: str) -> list[str]:
    """What a backend lacks on this machine, each with its remedy."""
    if backend in RUNTIMES:
        from emostream.engines.trt import cuda  # imported on use, as all below: the libraries are optional or heavy

        return cuda.missing(backend)
    needed = _PACKAGES.get(backend, {})
    return [f"{name} is not installed: {remedy}" for name, remedy in needed.items() if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _load(bundle: Bundle, graph: str, backend: str, threads: int) -> Backend:
    path = bundle.path_for(graph, backend)
    if backend in RUNTIMES:
        from emostream.engines.trt import cuda
        from emostream.engines.trt.backend import TensorRT
        from emostream.engines.trt.cache import engine
        from emostream.engines.trt.profiles import of_bundle

        options = Options(runtime=backend)
        profile = of_bundle(bundle.manifest, graph, options.max_batch)
        return TensorRT(engine(path, profile, options, cuda.device()), profile, backend)
    if backend == "openvino":
        from emostream.engines.openvino import OpenVino

        return OpenVino(path, threads)
    if backend == "torch":
        from emostream.engines.torch import Torch

        return Torch(path, threads)
    from emostream.engines.onnx import OnnxRuntime

    return OnnxRuntime(path, threads)
