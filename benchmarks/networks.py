"""The networks alone, by backend: this project's against the network that the paper's authors published.

    python benchmarks/networks.py [--quick]

Fusion runs on windows of 1, 3, 5, 10 and 15 s with all three modalities, and at 5 s on batches of up to 16; the face
encoder on batches of crops. The systems are: the published network in torch (eager) and exported plainly to ONNX
Runtime, on arrays of the same lengths; this project's in torch (eager, and compiled if a compiler is there), and on
every backend of ``engines`` that works on this machine, where ONNX Runtime runs both the graph as exported and the form
for a CPU that it uses. Each has one thread.

All systems take turns on inputs of the same kind, in another order in each round, so that other work on the machine
affects all alike; ratios are those of medians of one such run. A system runs several times in its turn: the first run
finds the processor's caches full of the others' data ("first"), the rest find its own ("again").
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import common
from emostream.commands import exit_code
from emostream.engines.backend import Backend
from emostream.engines.bundle import FACE, FUSION, MODALITIES, VOICE, Bundle, open_bundle
from emostream.engines.load import available, load
from emostream.engines.onnx import OnnxRuntime
from emostream.errors import BackendError
from emostream.stream.features.logmel import DIM as MELS
from emostream.stream.features.voice import STRIDE

if TYPE_CHECKING:
    import torch

WINDOWS_S = (1, 3, 5, 10, 15)
BATCHES = (1, 2, 4, 8, 16)
CROPS = (1, 4, 16, 64)
TYPICAL_S = 5
_AGAIN = 4  # repeated runs at each turn
ROWS_PER_S = {"audio": 100, "video": 10, "text": 3}  # MFCC, faces, words
OUR_ROWS_PER_S = {"audio": 12.5, "video": 10, "text": 4}  # voice vectors, faces, pieces of words
PAPER_EAGER, PAPER_ONNX, OURS = "published, torch eager", "published, onnxruntime", "ours, onnxruntime"
WITH_VOICE = "ours, onnxruntime, and the whole voice encoder"
AIMS = {PAPER_EAGER: 20.0, PAPER_ONNX: 4.0}  # how many times faster ours should be, at 5 s
BIAS = [
    "Lengths are the same in every round, which flatters a backend that has to prepare for each new length "
    "(stream-engines compare varies them).",
    "A live system runs the network a few times a second among other work, which is closer to the first runs; a "
    "benchmark of one system in a loop shows the repeated ones.",
    "The published network has features of its own width (2048 per face, 300 per word) and fixed numbers of rows, "
    "which are set to those of each window here. It reads 100 rows of MFCC a second, ours 12.5 vectors of the voice "
    "encoder. One line has its work too, for the whole window at once; live it is done as sound comes.",
]
Run = Callable[[], object]
System = Callable[[int, float], Run]  # batch, seconds → one run
Times = dict[str, dict[str, dict[str, float]]]  # case → system → percentiles in milliseconds


def rows_of(seconds: float, rates: Mapping[str, float] = ROWS_PER_S) -> dict[str, int]:
    """How many rows of each modality a window has."""
    return {m: max(1, round(seconds * rate)) for m, rate in rates.items()}


def fusion_systems(bundle: Bundle, folder: Path, compiled: bool) -> dict[str, System]:
    """All systems that run fusion, by name. The published network needs its lengths fixed, so each case builds it."""
    import torch

    from emostream.train import model

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def arrays(
        dims: dict[str, int], batch: int, seconds: float, rates: Mapping[str, float] = ROWS_PER_S
    ) -> dict[str, np.ndarray]:
        inputs: dict[str, np.ndarray] = {}
        for m, rows in rows_of(seconds, rates).items():
            inputs[m] = rng.normal(0, 1, (batch, rows, dims[m])).astype(np.float32)
            inputs[f"{m}_len"] = np.full(batch, rows, np.int64)
        return inputs

    def paper_eager(batch: int, seconds: float) -> Run:
        paper = model.build("paper", rows=rows_of(seconds)).eval()
        return _eager(paper, arrays(model.PAPER_DIMS, batch, seconds))

    def paper_onnx(batch: int, seconds: float) -> Run:
        paper = model.build("paper", rows=rows_of(seconds)).eval()
        inputs = {m: array for m, array in arrays(model.PAPER_DIMS, batch, seconds).items() if m in MODALITIES}
        path = folder / f"paper-{batch}-{seconds:g}.onnx"
        return _run_on(_export(paper, inputs, path), inputs)

    ours = model.build().eval()  # its weights do not affect its speed
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}

    def our_inputs(batch: int, seconds: float) -> dict[str, np.ndarray]:
        return arrays(dims, batch, seconds, OUR_ROWS_PER_S)

    systems: dict[str, System] = {
        PAPER_EAGER: paper_eager,
        PAPER_ONNX: paper_onnx,
        "ours, torch eager": lambda batch, seconds: _eager(ours, our_inputs(batch, seconds)),
    }
    if compiled:
        optimised = torch.compile(ours, dynamic=False)
        systems["ours, torch.compile"] = lambda batch, seconds: _eager(optimised, our_inputs(batch, seconds))
    systems["ours, onnxruntime, as exported"] = _on(OnnxRuntime(bundle.path(FUSION)), our_inputs)
    for backend, lacking in available().items():
        if not lacking and backend != "torch":  # torch would repeat ours in eager mode
            systems[f"ours, {backend}"] = _on(load(bundle, FUSION, backend), our_inputs)
    voice, fusion = load(bundle, VOICE, "onnxruntime"), load(bundle, FUSION, "onnxruntime")

    def with_voice(batch: int, seconds: float) -> Run:
        rows = rng.normal(10, 2, (1, our_inputs(1, seconds)["audio"].shape[1] * STRIDE, MELS)).astype(np.float32)
        inputs = our_inputs(batch, seconds)

        def once() -> object:
            for _ in range(batch):
                voice.run({"rows": rows})
            return fusion.run(inputs)

        return once

    systems[WITH_VOICE] = with_voice
    return systems


def face_systems(bundle: Bundle) -> dict[str, System]:
    """The face encoder on every backend that works here, by name."""
    rng = np.random.default_rng(0)

    def crops(batch: int, _: float) -> dict[str, np.ndarray]:
        return {"crops": rng.integers(0, 256, (batch, 48, 48), np.uint8)}

    return {name: _on(load(bundle, FACE, name), crops) for name, lacking in available().items() if not lacking}


def _on(backend: Backend, make_inputs: Callable[[int, float], dict[str, np.ndarray]]) -> System:
    return lambda batch, seconds: _run_on(backend, make_inputs(batch, seconds))


def _run_on(backend: Backend, inputs: dict[str, np.ndarray]) -> Run:
    return lambda: backend.run(inputs)


def _eager(net: Callable[..., object], arrays: dict[str, np.ndarray]) -> Run:
    import torch

    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def once() -> object:
        with torch.inference_mode():
            return net(**inputs)

    return once


def _export(net: torch.nn.Module, arrays: dict[str, np.ndarray], path: Path) -> OnnxRuntime:
    """The published network in ONNX Runtime, exported without any change for speed."""
    import torch

    class Positional(torch.nn.Module):  # the exporter takes positional inputs only
        def forward(self, audio: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> Any:
            return net(audio=audio, video=video, text=text)

    wrapped = Positional()
    wrapped.net = net
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped, tuple(torch.from_numpy(arrays[m]) for m in MODALITIES), str(path),
            input_names=list(MODALITIES), output_names=["logits"], opset_version=17, dynamo=False,
        )  # fmt: skip
    return OnnxRuntime(path)


def measure(
    systems: dict[str, System], cases: list[tuple[int, float]], rounds: int, progress: Callable[[str], None]
) -> tuple[Times, list[str]]:
    """Percentiles of the repeated runs, and as ``first`` the median of the first ones. A system that fails is left out
    and counts as a fault."""
    figures: Times = {}
    faults = []
    rng = np.random.default_rng(1)
    for batch, seconds in cases:
        case = name_of(batch, seconds)
        progress(case)
        runs = {}
        for name, system in systems.items():
            try:
                runs[name] = system(batch, seconds)
                for _ in range(3):
                    runs[name]()
            except (BackendError, RuntimeError) as error:
                runs.pop(name, None)
                faults.append(f"{name}, {case}: {' '.join(str(error).split())[:300]}")
        first: dict[str, list[float]] = {name: [] for name in runs}
        again: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name in rng.permutation(list(runs)).tolist():
                for taken in (first, *[again] * _AGAIN):
                    begin = time.perf_counter()
                    runs[name]()
                    taken[name].append((time.perf_counter() - begin) * 1000)
        figures[case] = {
            name: common.percentiles(again[name]) | {"first": round(float(np.median(first[name])), 3)} for name in runs
        }
    return figures, faults


def name_of(batch: int, seconds: float) -> str:
    return f"{seconds:g} s × {batch}" if seconds else f"{batch} crops"


def ratios(figures: Times, runs: str) -> dict[str, float]:
    """How many times faster than each system of AIMS ours is at the typical window, batch 1, by medians of ``runs``:
    "p50" for the repeated ones, or "first"."""
    typical = figures[name_of(1, TYPICAL_S)]
    return {name: round(typical[name][runs] / typical[OURS][runs], 2) for name in AIMS if name in typical}


def tables(fusion: Times, faces: Times) -> str:
    """Medians by window, by batch, and for the face encoder; and the ratios with their goals."""

    def cell(times: dict[str, dict[str, float]], name: str) -> str:
        return f"{times[name]['p50']:.2f} ({times[name]['first']:.2f})" if name in times else ""

    parts = []
    for title, figures, cases in (
        ("fusion, p50 ms", fusion, [name_of(1, s) for s in WINDOWS_S]),
        ("fusion at 5 s, p50 ms", fusion, [name_of(b, TYPICAL_S) for b in BATCHES]),
        ("face encoder, p50 ms", faces, [name_of(c, 0) for c in CROPS]),
    ):
        cases = [case for case in cases if case in figures]
        systems = list(dict.fromkeys(name for case in cases for name in figures[case]))
        rows = [[name, *(cell(figures[case], name) for case in cases)] for name in systems]
        parts.append(common.table([title, *cases], rows))
    again, first = ratios(fusion, "p50"), ratios(fusion, "first")
    rows = [[name, f"{again[name]:.1f} ×", f"{first[name]:.1f} ×", f"{AIMS[name]:g} ×"] for name in again]
    parts.append(common.table(["ours at 5 s × 1 is faster than", "again", "first", "aim"], rows))
    parts.append("p50 of the repeated runs of a turn; in brackets, of its first run.")
    return "\n\n".join(parts)


def plot(path: Path, fusion: Times) -> None:
    """p50 of every system against the window's length, and against the batch."""
    with common.drawing(path, (9, 4), 1, 2, sharey=True) as (figure, ((left, right),)):
        for axes, cases, x, label in (
            (left, [name_of(1, s) for s in WINDOWS_S], WINDOWS_S, "window, s (batch 1)"),
            (right, [name_of(b, TYPICAL_S) for b in BATCHES], BATCHES, "batch (5 s)"),
        ):
            for name in fusion[name_of(1, TYPICAL_S)]:
                points = [
                    (position, fusion[case][name]["p50"])
                    for position, case in zip(x, cases, strict=True)
                    if name in fusion.get(case, {})
                ]
                axes.plot(*zip(*points, strict=True), "o-", label=name, linewidth=2.5 if name == OURS else 1)
            axes.set_xlabel(label)
            axes.set_yscale("log")
            axes.grid(color="0.9")
        left.set_ylabel("p50 of one run, ms")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__)
    parser.add_argument("--bundle", default="ekman7", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each case (default: 200; --quick: 40)")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (40 if options.quick else 200)
    bundle = open_bundle(options.bundle)
    windows = (1, TYPICAL_S, 15) if options.quick else WINDOWS_S
    batches = (4,) if options.quick else BATCHES[1:]
    cases = [(1, float(s)) for s in windows] + [(b, float(TYPICAL_S)) for b in batches]

    def progress(case: str) -> None:
        print(f"  {case}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        fusion, faults = measure(fusion_systems(bundle, Path(folder), not options.quick), cases, rounds, progress)
    crops = CROPS[:2] if options.quick else CROPS
    faces, more = measure(face_systems(bundle), [(c, 0.0) for c in crops], rounds, progress)
    settings = {"bundle": bundle.id, "rounds": rounds, "threads": 1, "quick": options.quick}
    bias = BIAS + ([common.QUICK_BIAS] if options.quick else [])
    figures: common.Figures = {
        "fusion": fusion,
        "face": faces,
        "faster than": {runs: ratios(fusion, runs) for runs in ("p50", "first")},
        "missing": {backend: lacking for backend, lacking in available().items() if lacking},
    }
    result = common.Result("networks", settings, bias, figures, faults + more)
    return common.finish(options.out, result, tables(fusion, faces), lambda path: plot(path, fusion))


if __name__ == "__main__":
    sys.exit(exit_code(main))
