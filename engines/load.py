"""Which backend runs a graph."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

from emostream.engines.backend import BACKENDS, Backend
from emostream.engines.bundle import FUSION, FUSION_CPU, Bundle
from emostream.errors import BackendError

_log = logging.getLogger(__name__)
_TENSORRT = ("tensorrt", "tensorrt_rtx")  # in the order of preference
_PACKAGES = {  # by backend: what it imports, and what installs that
    "openvino": {"openvino": "pip install 'emostream[openvino]'"},
    "torch": {"torch": "pip install torch", "onnx": "pip install 'emostream[engines]'"},
}


def load(bundle: Bundle, graph: str, backend: str = "auto", threads: int = 1) -> Backend:
    """Load a graph of a bundle, ``bundle.FUSION`` or ``bundle.FACE``, with the backend asked for.

    ``auto`` is TensorRT, else TensorRT-RTX, where a GPU, the library and PyCUDA are all there, and ONNX Runtime
    everywhere else; the log says what was missing. An engine that then fails to build or to load is a warning in the
    log, and ONNX Runtime runs the graph: a live system goes on. A backend asked for by name has no such substitute.

    TensorRT builds the engine if it is not in the cache yet, which takes a while.
    Raises BackendError if the backend is unknown, lacks something on this machine, or refuses the graph.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")
    if backend == "auto":
        return _fastest(bundle, graph, threads)
    if found := _missing(backend):
        raise BackendError(f"backend {backend!r} cannot run here: {'; '.join(found)}")
    return _load(bundle, graph, backend, threads)


def available() -> dict[str, str]:
    """Each backend, with what it lacks on this machine and what mends that; "" if it can run."""
    return {backend: "; ".join(_missing(backend)) for backend in BACKENDS if backend != "auto"}


def _fastest(bundle: Bundle, graph: str, threads: int) -> Backend:
    runtime = _gpu_runtime()
    if runtime is not None:
        try:
            return _load(bundle, graph, runtime, threads)
        except BackendError as error:
            _log.warning("%s: %s cannot run it, so ONNX Runtime does: %s", graph, runtime, error)
    return _load(bundle, graph, "onnxruntime", threads)


@cache  # told once in a process, not for each graph
def _gpu_runtime() -> str | None:
    lacking = {}
    for runtime in _TENSORRT:
        lacking[runtime] = _missing(runtime)
        if not lacking[runtime]:
            return runtime
    _log.info("backend auto: ONNX Runtime, as TensorRT cannot run here: %s", "; ".join(lacking["tensorrt"]))
    return None


def _missing(backend: str) -> list[str]:
    """What stops a backend on this machine, each with what mends it."""
    if backend in _TENSORRT:
        from emostream.engines.trt import cuda  # on use, like everything below: the libraries are optional or heavy

        return cuda.missing(backend)
    needed = _PACKAGES.get(backend, {})
    return [f"{name} is not installed: {mend}" for name, mend in needed.items() if not _is_there(name)]


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _load(bundle: Bundle, graph: str, backend: str, threads: int) -> Backend:
    path = bundle.path(graph)
    if backend in _TENSORRT:
        from emostream.engines.trt import cuda
        from emostream.engines.trt.backend import TensorRT
        from emostream.engines.trt.build import Options
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

    if graph == FUSION and FUSION_CPU in bundle.manifest.files:
        path = bundle.path(FUSION_CPU)
    return OnnxRuntime(path, threads)
