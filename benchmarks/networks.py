"""The networks alone, by backend: this project's against the network that the paper's authors published.

    python benchmarks/networks.py [--quick]

Fusion on windows of 1, 3, 5, 10 and 15 s with all three modalities, and at 5 s on batches of up to 16; the face encoder
on batches of crops. Systems: the published network in torch (eager) and exported plainly to ONNX Runtime, on arrays of
the same lengths; this project's in torch (eager, and compiled where a compiler is there), and on every backend of
``engines`` that works on this machine, ONNX Runtime with the graph as exported and with the form for a CPU that it
uses. One thread each. All systems take turns on the same kind of inputs, in another order in each round, so that what
else the machine does hits all alike; ratios are those of medians of one such run. At its turn a system runs several
times: the first run finds the processor's caches full of the others' data ("first"), the rest find its own ("again").
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import common
from emostream.engines.bundle import FACE, FUSION, MODALITIES, Bundle, open_bundle
from emostream.engines.load import available, load
from emostream.engines.onnx import OnnxRuntime
from emostream.errors import BackendError

WINDOWS_S = (1, 3, 5, 10, 15)
BATCHES = (1, 2, 4, 8, 16)
CROPS = (1, 4, 16, 64)
TYPICAL_S = 5
_AGAIN = 4  # repeated runs at each turn
ROWS_PER_S = {"audio": 100, "video": 10, "text": 3}
PAPER_EAGER, PAPER_ONNX, OURS = "published, torch eager", "published, onnxruntime", "ours, onnxruntime"
AIMS = {PAPER_EAGER: 20.0, PAPER_ONNX: 4.0}  # how many times faster ours is to be, at 5 s
BIAS = [
    "lengths are the same in every round; a backend that prepares anew for each length is flattered "
    "(python -m engines compare varies them)",
    "a live system runs the network a few times a second among other work, which is nearer to the first runs; a "
    "benchmark of one system in a loop shows the repeated ones",
    "the published network has features of its own width (2048 per face, 300 per word) and fixed numbers of rows, "
    "which are here set to those of each window",
]
System = Callable[[int, float], Callable[[], object]]  # (batch, seconds) → one run


def rows_of(seconds: float) -> dict[str, int]:
    """Rows of each modality in a window."""
    return {m: max(1, round(seconds * rate)) for m, rate in ROWS_PER_S.items()}


def fusion_systems(bundle: Bundle, folder: Path, compiled: bool) -> dict[str, System]:
    """By name. The published network is built anew for each length, which it needs."""
    import torch

    from emostream.train import model

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)

    def arrays(dims: dict[str, int], batch: int, seconds: float) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for m, rows in rows_of(seconds).items():
            made[m] = rng.normal(0, 1, (batch, rows, dims[m])).astype(np.float32)
            made[f"{m}_len"] = np.full(batch, rows, np.int64)
        return made

    def paper(seconds: float) -> torch.nn.Module:
        return model.build("paper", rows=rows_of(seconds)).eval()

    def eager(net: torch.nn.Module, inputs: dict[str, np.ndarray]) -> Callable[[], object]:
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}

        def once() -> object:
            with torch.inference_mode():
                return net(**given)

        return once

    def paper_eager(batch: int, seconds: float) -> Callable[[], object]:
        return eager(paper(seconds), arrays(model.PAPER_DIMS, batch, seconds))

    def paper_onnx(batch: int, seconds: float) -> Callable[[], object]:
        path = folder / f"paper-{batch}-{seconds:g}.onnx"
        inputs = {m: array for m, array in arrays(model.PAPER_DIMS, batch, seconds).items() if m in MODALITIES}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Positional(paper(seconds)), tuple(torch.from_numpy(inputs[m]) for m in MODALITIES), str(path),
                input_names=list(MODALITIES), output_names=["logits"], opset_version=17, dynamo=False,
            )  # fmt: skip
        graph = OnnxRuntime(path)
        return lambda: graph.run({m: inputs[m] for m in MODALITIES})

    class _Positional(torch.nn.Module):
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, audio: torch.Tensor, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return self.net(audio=audio, video=video, text=text)

    ours = model.build().eval()  # its weights do not matter to time
    dims = {m: getattr(bundle.manifest, m).dim for m in MODALITIES}
    found: dict[str, System] = {
        PAPER_EAGER: paper_eager,
        PAPER_ONNX: paper_onnx,
        "ours, torch eager": lambda batch, seconds: eager(ours, arrays(dims, batch, seconds)),
    }
    if compiled:
        optimised = torch.compile(ours, dynamic=False)

        def torch_compile(batch: int, seconds: float) -> Callable[[], object]:
            once = eager(optimised, arrays(dims, batch, seconds))  # type: ignore[arg-type]
            once()
            return once

        found["ours, torch.compile"] = torch_compile

    def on(backend) -> System:
        def system(batch: int, seconds: float) -> Callable[[], object]:
            inputs = arrays(dims, batch, seconds)
            return lambda: backend.run(inputs)

        return system

    found["ours, onnxruntime, as exported"] = on(OnnxRuntime(bundle.path(FUSION)))
    for backend, lacking in available().items():
        if not lacking and backend != "torch":  # which is ours in eager mode once more
            found[f"ours, {backend}"] = on(load(bundle, FUSION, backend))
    return found


def face_systems(bundle: Bundle) -> dict[str, System]:
    rng = np.random.default_rng(0)

    def on(backend) -> System:
        def system(batch: int, _: float) -> Callable[[], object]:
            crops = rng.integers(0, 256, (batch, 48, 48), np.uint8)
            return lambda: backend.run({"crops": crops})

        return system

    return {name: on(load(bundle, FACE, name)) for name, lacking in available().items() if not lacking}


def measure(
    systems: dict[str, System], cases: list[tuple[int, float]], rounds: int, progress: Callable[[str], None]
) -> tuple[dict[str, dict[str, dict[str, float]]], list[str]]:
    """By case and system: percentiles in milliseconds of the repeated runs, and ``first`` p50 of the first ones. A
    system that fails is a fault in words, and left out."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
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


def ratios(figures: dict[str, dict[str, dict[str, float]]], of: str) -> dict[str, float]:
    """How many times faster than each system of AIMS ours is at the typical window, batch 1, by medians; ``of``: "p50",
    of repeated runs, or "first"."""
    at = figures[name_of(1, TYPICAL_S)]
    return {name: round(at[name][of] / at[OURS][of], 2) for name in AIMS if name in at}


def tables(fusion: dict, faces: dict) -> str:
    """Medians by window, by batch, and of the face encoder; and the ratios that are aimed at."""
    parts = []
    for title, figures, cases in (
        ("fusion, p50 ms", fusion, [name_of(1, s) for s in WINDOWS_S]),
        ("fusion at 5 s, p50 ms", fusion, [name_of(b, TYPICAL_S) for b in BATCHES]),
        ("face encoder, p50 ms", faces, [name_of(c, 0) for c in CROPS]),
    ):
        cases = [case for case in cases if case in figures]
        systems = list(dict.fromkeys(name for case in cases for name in figures[case]))
        rows = [
            [
                name,
                *(
                    f"{figures[case][name]['p50']:.2f} ({figures[case][name]['first']:.2f})"
                    if name in figures[case]
                    else ""
                    for case in cases
                ),
            ]
            for name in systems
        ]
        parts.append(common.table([title, *cases], rows))
    again, first = ratios(fusion, "p50"), ratios(fusion, "first")
    rows = [[name, f"{again[name]:.1f} ×", f"{first[name]:.1f} ×", f"{AIMS[name]:g} ×"] for name in again]
    parts.append(common.table(["ours at 5 s × 1 is faster than", "again", "first", "aim"], rows))
    parts.append("p50 of repeated runs, in brackets of the first ones of a turn.")
    return "\n\n".join(parts)


def plot(fusion: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cases, x, label in (
        (left, [name_of(1, s) for s in WINDOWS_S], WINDOWS_S, "window, s (batch 1)"),
        (right, [name_of(b, TYPICAL_S) for b in BATCHES], BATCHES, "batch (5 s)"),
    ):
        for name in fusion[name_of(1, TYPICAL_S)]:
            points = [
                (at, fusion[case][name]["p50"])
                for at, case in zip(x, cases, strict=True)
                if name in fusion.get(case, {})
            ]
            axes.plot(*zip(*points, strict=True), "o-", label=name, linewidth=2.5 if name == OURS else 1)
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("p50 of one run, ms")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--bundle", default="ekman7", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each case (default: 200, quick 40)")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (40 if arguments.quick else 200)
    bundle = open_bundle(arguments.bundle)
    windows = (1, TYPICAL_S, 15) if arguments.quick else WINDOWS_S
    batches = (4,) if arguments.quick else BATCHES[1:]
    cases = [(1, float(s)) for s in windows] + [(b, float(TYPICAL_S)) for b in batches]

    def progress(case: str) -> None:
        print(f"  {case}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        fusion, faults = measure(fusion_systems(bundle, Path(folder), not arguments.quick), cases, rounds, progress)
    crops = CROPS[:2] if arguments.quick else CROPS
    faces, more = measure(face_systems(bundle), [(c, 0.0) for c in crops], rounds, progress)
    settings = {"bundle": bundle.id, "rounds": rounds, "threads": 1, "quick": arguments.quick}
    bias = BIAS + (["too few rounds to quote"] if arguments.quick else [])
    figures = {
        "fusion": fusion,
        "face": faces,
        "faster than": {of: ratios(fusion, of) for of in ("p50", "first")},
        "missing": {k: v for k, v in available().items() if v},
    }
    result = common.Result("networks", settings, bias, figures, faults + more)
    return common.finish(arguments.out, result, tables(fusion, faces), lambda path: plot(fusion, path))


if __name__ == "__main__":
    sys.exit(main())
