"""ONNX → engine, by TensorRT or TensorRT-RTX, which share one API.

Networks of TensorRT 11 are strongly typed, so precision is set in the graph (``precision``). TensorRT needs the GPU
that it builds for and times its kernels there (*tactics*). TensorRT-RTX also builds ahead of time, one engine for
several compute capabilities, without a GPU, and times nothing: its timing cache has had no effect since 1.2.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from emostream.engines.options import Options
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import logger, plain, reasons
from emostream.errors import BackendError

NEEDS_ONNX = "the onnx package is needed for this and is not installed: pip install 'emostream[engines]'"

_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # builds of one process share TensorRT's logger


@dataclass(frozen=True)
class Report:
    """The result of a build. ``layers``: of the network as parsed, before the builder fuses them. ``seconds``: of the
    whole build. ``sha256``: of the engine."""

    layers: int
    precision: str
    size_bytes: int
    sha256: str
    seconds: float
    runtime: str
    runtime_version: str


class Progress(Protocol):
    """Hears of a build's phases, which nest; called by the thread that builds."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...
    def step_complete(self, phase: str, step: int) -> None: ...
    def phase_finish(self, phase: str) -> None: ...


@cache
def version() -> str:
    """Hash of the code that turns a bundle's graph into an engine."""
    code = hashlib.sha256()
    for name in ("build.py", "precision.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    return code.hexdigest()[:12]


def compile(
    onnx_path: Path,
    profile: Profile,
    options: Options,
    trt: ModuleType,
    timing_cache: bytearray | None = None,
    progress: Progress | None = None,
) -> tuple[bytes, Report]:
    """Build an engine in memory. ``timing_cache``: timings of tactics from earlier builds, updated in place; only for
    ``tensorrt``. Ctrl-C ends the build at its next step and is raised again.

    Raises BackendError, with TensorRT's reasons, if the graph or the profile cannot be built.
    """
    begun = time.monotonic()
    model = _graph(onnx_path, options.precision)
    with _one_at_a_time:
        logger(trt).messages.clear()
        builder = trt.Builder(logger(trt))
        network = parse(onnx_path, model, builder, trt)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 has a mantissa of only 10 bits
        _add_profile(onnx_path, profile, network, builder, config, trt)
        if options.compute:
            config.num_compute_capabilities = len(options.compute)
            for index, capability in enumerate(_capabilities(options.compute, trt)):
                config.set_compute_capability(capability, index)
        if timing_cache is not None:
            tactics = _attach(timing_cache, config)
        cancelled = threading.Event()
        config.progress_monitor = _monitor(trt, progress, cancelled)
        engine = _interruptible(lambda: builder.build_serialized_network(network, config), cancelled)
        if engine is None:
            raise BackendError(f"{onnx_path}: {trt.__name__} built no engine: {reasons(trt)}")
        if timing_cache is not None:
            timing_cache[:] = bytes(tactics.serialize())
        blob = bytes(engine)
        report = Report(
            network.num_layers, options.precision, len(blob), hashlib.sha256(blob).hexdigest(),
            round(time.monotonic() - begun, 3), options.runtime, trt.__version__,
        )  # fmt: skip
    return blob, report


def _graph(path: Path, precision: str) -> bytes:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise BackendError(NEEDS_ONNX) from error
    from emostream.engines.trt.precision import cast

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise BackendError(f"{path}: cannot be read as an ONNX graph ({error})") from error
    return bytes(cast(model, precision).SerializeToString())


def parse(path: Path, model: bytes, builder: Any, trt: Any) -> Any:
    """The graph as an INetworkDefinition; ``path`` is for messages. Raises BackendError that names each operator the
    library cannot take."""
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"operator {error.node_operator()} ({error.node_name()}): {plain(error.desc())}" for error in errors]
        raise BackendError(f"{path}: {trt.__name__} cannot take this graph: {'; '.join(reasons)}")
    return network


def _add_profile(path: Path, profile: Profile, network: Any, builder: Any, config: Any, trt: Any) -> None:
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if unknown := sorted(set(profile) - inputs):  # TensorRT ignores these
        raise BackendError(
            f"{path}: the profile is for {', '.join(unknown)}, the graph takes {', '.join(sorted(inputs))}"
        )
    if not profile:
        return  # all shapes of the graph are fixed; if not, TensorRT complains
    shapes = builder.create_optimization_profile()
    try:
        for name, (smallest, typical, largest) in profile.items():
            shapes.set_shape(name, smallest, typical, largest)
        fits = bool(shapes) and config.add_optimization_profile(shapes) >= 0
    except ValueError as error:
        raise BackendError(f"{path}: the profile {profile} is not valid: {error}") from error
    if not fits:
        raise BackendError(f"{path}: the profile {profile} is not valid: {reasons(trt)}")


def _capabilities(names: tuple[str, ...], trt: Any) -> list[Any]:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if unknown := [name for name in names if name not in known]:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot build for {', '.join(unknown)}; it builds for: {', '.join(known)}"
        )
    return [known[name] for name in names]


def _attach(timing_cache: bytearray, config: Any) -> Any:
    tactics = config.create_timing_cache(bytes(timing_cache))
    if not config.set_timing_cache(tactics, False):
        _log.warning("the cached timings of tactics are from another TensorRT or GPU; they are measured again")
        tactics = config.create_timing_cache(b"")
        config.set_timing_cache(tactics, False)
    return tactics


def _interruptible(build: Callable[[], Any], cancelled: threading.Event) -> Any:
    """Run in a thread: Python handles Ctrl-C only in the main thread, and not while that is inside TensorRT."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        except KeyboardInterrupt:
            cancelled.set()
            raise  # after the pool's thread has ended


def _monitor(trt: Any, progress: Progress | None, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is only known at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if progress is not None:
                progress.phase_start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if progress is not None:
                progress.step_complete(phase, step)
            return not cancelled.is_set()

        def phase_finish(self, phase: str) -> None:
            if progress is not None:
                progress.phase_finish(phase)

    return Monitor()
