"""ONNX → engine, by TensorRT or TensorRT-RTX, which share one API.

Precision is made in the graph (``precision``), for networks of TensorRT 11 are strongly typed; its GRUs get the form
that takes the fewest steps (``forms``). TensorRT needs the GPU that it builds for and times its kernels there
(*tactics*); TensorRT-RTX also builds ahead of time, one engine for several compute capabilities, without a GPU, and
times nothing: its timing cache has been without effect since 1.2.
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

from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import RUNTIMES, logger, plain, reasons
from emostream.errors import BackendError

PRECISIONS = ("fp32", "fp16", "bf16")
NEEDS_ONNX = "the onnx package is needed for this and is not installed: pip install 'emostream[engines]'"

_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # builds of one process share TensorRT's logger


@dataclass(frozen=True)
class Options:
    """How to build. ``compute``: capabilities such as SM86 to build for ahead of time (TensorRT-RTX alone); empty: for
    the GPU of this machine. ``max_batch``: the largest batch of the fusion graph. Raises BackendError if they do not
    fit each other."""

    runtime: str = "tensorrt"
    precision: str = "fp32"
    compute: tuple[str, ...] = ()
    max_batch: int = 8

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise BackendError(f"runtime {self.runtime!r} is unknown; choose one of: {', '.join(RUNTIMES)}")
        if self.precision not in PRECISIONS:
            raise BackendError(f"precision {self.precision!r} is unknown; choose one of: {', '.join(PRECISIONS)}")
        if self.compute and self.runtime != "tensorrt_rtx":
            raise BackendError(
                "TensorRT builds only for the GPU of the machine that it runs on; leave out --compute there, or build "
                "ahead of time with --runtime tensorrt_rtx"
            )
        if self.max_batch < 1:
            raise BackendError(f"--max-batch is {self.max_batch}; it must be at least 1")


@dataclass(frozen=True)
class Report:
    """What a build gave. ``layers``: of the network as parsed, before the builder joins them. ``seconds``: for all of
    it. ``sha256``: of the engine."""

    layers: int
    precision: str
    size_bytes: int
    sha256: str
    seconds: float
    runtime: str
    runtime_version: str


class Progress(Protocol):
    """Told of a build's phases, which nest; called by the thread that builds."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None: ...
    def step_complete(self, phase: str, step: int) -> None: ...
    def phase_finish(self, phase: str) -> None: ...


@cache
def version() -> str:
    """Of what turns a bundle's graph into an engine: the hash of the code that does so."""
    code = hashlib.sha256()
    for name in ("build.py", "../forms.py", "precision.py"):
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
    """Build an engine in memory. ``timing_cache``: tactics' times of earlier builds, brought up to date in place; only
    for ``tensorrt``. Ctrl-C ends the build at its next step and is raised again.

    Raises BackendError, with TensorRT's reasons, if the graph or the profile cannot be built.
    """
    begun = time.monotonic()
    model = _graph(onnx_path, options.precision)
    with _one_at_a_time:
        logger(trt).messages.clear()
        builder = trt.Builder(logger(trt))
        network = parse(onnx_path, model, builder, trt)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 keeps ten bits of a factor
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
    from emostream.engines import forms
    from emostream.engines.trt.precision import cast

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise BackendError(f"{path}: cannot be read as an ONNX graph ({error})") from error
    return cast(forms.rewrite(model, forms.BEST), precision).SerializeToString()


def parse(path: Path, model: bytes, builder: Any, trt: Any) -> Any:
    """The graph as an INetworkDefinition; ``path`` is for messages. Raises BackendError that names each operator that
    the library cannot take."""
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        found = [f"operator {error.node_operator()} ({error.node_name()}): {plain(error.desc())}" for error in errors]
        raise BackendError(f"{path}: {trt.__name__} cannot take this graph: {'; '.join(found)}")
    return network


def _add_profile(path: Path, profile: Profile, network: Any, builder: Any, config: Any, trt: Any) -> None:
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    if unknown := sorted(set(profile) - inputs):  # TensorRT passes over these
        raise BackendError(
            f"{path}: the profile is for {', '.join(unknown)}, the graph takes {', '.join(sorted(inputs))}"
        )
    if not profile:
        return  # a graph whose shapes are all fixed; for others TensorRT complains
    shapes = builder.create_optimization_profile()
    try:
        for name, (smallest, typical, largest) in profile.items():
            shapes.set_shape(name, smallest, typical, largest)
        fits = bool(shapes) and config.add_optimization_profile(shapes) >= 0
    except ValueError as error:
        raise BackendError(f"{path}: the profile {profile} does not hold: {error}") from error
    if not fits:
        raise BackendError(f"{path}: the profile {profile} does not hold: {reasons(trt)}")


def _capabilities(names: tuple[str, ...], trt: Any) -> list[Any]:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    if unknown := [name for name in names if name not in known]:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} cannot build for {', '.join(unknown)}; it can for: {', '.join(known)}"
        )
    return [known[name] for name in names]


def _attach(timing_cache: bytearray, config: Any) -> Any:
    tactics = config.create_timing_cache(bytes(timing_cache))
    if not config.set_timing_cache(tactics, False):
        _log.warning("the tactics' times are of another TensorRT or GPU; they are measured anew")
        tactics = config.create_timing_cache(b"")
        config.set_timing_cache(tactics, False)
    return tactics


def _interruptible(build: Callable[[], Any], cancelled: threading.Event) -> Any:
    """Run in a thread, since Python hears Ctrl-C only in the main one, and not while that is inside of TensorRT."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        except KeyboardInterrupt:
            cancelled.set()
            raise  # once the pool's thread has ended


def _monitor(trt: Any, progress: Progress | None, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
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
