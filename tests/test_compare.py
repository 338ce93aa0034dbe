"""engines/compare.py and its command."""

from __future__ import annotations

import math
import os

import matplotlib.image
import msgspec
import numpy as np
import pytest

from emostream.engines import compare as module
from emostream.engines.bundle import FUSION, MODALITIES
from emostream.engines.commands.main import main
from emostream.engines.compare import (  # fmt: skip
    CASES,
    LEAST_AGREEMENT,
    MOST_DIFFERENCE,
    Alone,
    Comparison,
    Measured,
    Timing,
    compare,
    draw,
    faults,
)
from emostream.engines.load import load
from emostream.errors import BackendError

pytestmark = pytest.mark.slow


def measured(name: str, difference: float = 0.0, agreement: float = 1.0) -> Measured:
    timings = {case.name: Timing(1.5, 2.5, 400.0, difference) for case in CASES}
    return Measured(name, difference, agreement, Alone(0.5, 50.0, 100.0, None, 2.0), timings)


def comparison(**backends: Measured) -> Comparison:
    results = {"onnxruntime": measured("onnxruntime/cpu"), **backends}
    missing = {"tensorrt": "pip install 'emostream[gpu]'"}
    return Comparison("ekman7@0", "a machine", {"python": "3.11"}, 1, 5, results, missing, {})


class Inexact:
    """ONNX Runtime whose results are off by ``error``."""

    name = "torch/cpu"

    def __init__(self, bundle, graph: str, error: float) -> None:
        self.exact, self.error, self.closed = load(bundle, graph, "onnxruntime"), error, False

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values + np.float32(self.error) for name, values in self.exact.run(inputs).items()}

    def close(self) -> None:
        self.closed = True


def _die(*_: object) -> None:
    os._exit(9)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Pretends that only the named backends are installed, each with the given error in its results, or failing."""
    loaded: list[Inexact] = []

    def apply(**errors: float | str) -> list[Inexact]:
        def pretended(bundle, graph: str, backend: str, threads: int):
            error = errors[backend]
            if isinstance(error, str):
                raise BackendError(error)
            loaded.append(Inexact(bundle, graph, error))
            return loaded[-1]

        monkeypatch.setattr(module, "available", lambda: {**dict.fromkeys(errors, ""), "tensorrt": "no GPU"})
        monkeypatch.setattr(module, "load", pretended)
        monkeypatch.setattr(module, "ALONE_ROUNDS", 1)
        monkeypatch.setattr(module, "_alone_in_a_process", lambda bundle, backend: Alone(0.1, 1.0, 2.0, 3.0, 0.0))
        return loaded

    return apply


@pytest.mark.parametrize("case", [case for case in CASES if case.graph == FUSION], ids=lambda case: case.name)
def test_lengths_are_those_of_utterances(bundle, case):
    inputs = draw(case, bundle.manifest, np.random.default_rng(0))
    most = {"audio": 12.5 * case.seconds, "video": 10 * case.seconds, "text": 2.5 * case.seconds}
    for name in MODALITIES:
        lengths = inputs[f"{name}_len"]
        assert inputs[name].shape == (case.batch, lengths[0], getattr(bundle.manifest, name).dim)
        assert 0.8 * most[name] - 1 <= lengths[0] <= min(most[name] + 1, getattr(bundle.manifest, name).max_rows)
    present = [{name for name in MODALITIES if inputs[f"{name}_len"][row]} for row in range(case.batch)]
    whole = set(MODALITIES)
    assert present == [whole, whole - {"audio"}, whole - {"video"}, whole - {"text"}][: case.batch]


def test_inputs_fit_the_graphs_and_differ_from_round_to_round(bundle):
    rng = np.random.default_rng(0)
    for case in CASES:
        graph = load(bundle, case.graph, "onnxruntime")
        first, second = (draw(case, bundle.manifest, rng) for _ in range(2))
        assert len(next(iter(graph.run(first).values()))) == case.batch
        assert any(not np.array_equal(first[name], second[name]) for name in first)


def test_results_are_compared_with_onnx_runtimes(bundle, only):
    loaded = only(onnxruntime=0.0, openvino=1e-5, torch=1e-2)
    parts: list[float] = []
    comparison = compare(bundle, 2, parts.append)
    assert comparison.measured["onnxruntime"].difference == 0
    assert comparison.measured["openvino"].difference == pytest.approx(1e-5, rel=0.5)
    assert comparison.measured["torch"].difference == pytest.approx(1e-2, rel=0.1)
    assert {backend.agreement for backend in comparison.measured.values()} == {1.0}  # all logits are off by the same
    assert list(comparison.measured["torch"].timings) == [case.name for case in CASES]
    for timing in comparison.measured["torch"].timings.values():
        assert 0 < timing.p50_ms <= timing.p99_ms
        assert timing.rows_per_s > 0
    assert comparison.missing == {"tensorrt": "no GPU"}
    assert [line.split(" by ")[0] for line in faults(comparison)] == ["torch differs from onnxruntime"]
    assert all(graph.closed for graph in loaded)
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1)


def test_a_backend_that_returns_nan_differs(bundle, only):
    only(onnxruntime=0.0, torch=math.nan)
    comparison = compare(bundle, 1)
    assert math.isnan(comparison.measured["torch"].difference)
    assert any("torch differs" in line for line in faults(comparison))


def test_a_backend_that_fails_does_not_stop_the_others(bundle, only):
    only(onnxruntime=0.0, openvino="no memory", torch=0.0)
    comparison = compare(bundle, 1)
    assert list(comparison.measured) == ["onnxruntime", "torch"]
    assert comparison.failed == {"openvino": "no memory"}
    assert faults(comparison) == ["openvino failed: no memory"]


def test_a_backend_that_fails_alone_is_closed(bundle, only, monkeypatch):
    loaded = only(onnxruntime=0.0, torch=0.0)

    def fail(bundle, backend: str) -> Alone:
        if backend == "torch":
            raise BackendError("its process died")
        return Alone(0.1, 1.0, 2.0, 3.0, 0.0)

    monkeypatch.setattr(module, "_alone_in_a_process", fail)
    comparison = compare(bundle, 1)
    assert list(comparison.measured) == ["onnxruntime"]
    assert comparison.failed == {"torch": "its process died"}
    assert all(graph.closed for graph in loaded)


def test_without_the_reference_nothing_is_compared(bundle, only):
    only(onnxruntime="graph is damaged", torch=0.0)
    with pytest.raises(BackendError, match="graph is damaged"):
        compare(bundle, 1)


@pytest.mark.parametrize(
    ("difference", "agreement", "count"),
    [
        (MOST_DIFFERENCE, LEAST_AGREEMENT, 0), (2 * MOST_DIFFERENCE, 1.0, 1), (0.0, LEAST_AGREEMENT - 1e-6, 1),
        (math.nan, math.nan, 2),
    ],
)  # fmt: skip
def test_what_is_a_fault(difference, agreement, count):
    assert len(faults(comparison(torch=measured("torch/cpu", difference, agreement)))) == count


def test_a_label_that_differs_is_counted(bundle, only, monkeypatch):
    """One utterance gets another label in each of the three cases with four: 3 of 3 · (1 + 4) rows."""
    only(onnxruntime=0.0, torch=0.0)
    plain = Inexact.run

    def flipped(self: Inexact, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = plain(self, inputs)
        if self.flips and len(outputs.get("logits", ())) == 4:
            outputs["logits"] = outputs["logits"].copy()
            outputs["logits"][0] *= -1
        return outputs

    load_inexact = module.load
    monkeypatch.setattr(Inexact, "run", flipped)

    def pretended(bundle, graph: str, backend: str, threads: int):
        inexact = load_inexact(bundle, graph, backend, threads)
        inexact.flips = backend == "torch"
        return inexact

    monkeypatch.setattr(module, "load", pretended)
    assert compare(bundle, 1).measured["torch"].agreement == pytest.approx(1 - 3 / 15)


@pytest.mark.long
@pytest.mark.process
def test_memory_and_load_time_are_those_of_another_process(bundle, monkeypatch):
    """A real measurement, with ballast in this process, which must not count."""
    ballast = np.ones(50_000_000)  # 400 MB
    alone = module._alone_in_a_process(bundle, "onnxruntime")
    assert len(ballast)
    assert 0 < alone.load_s < 30
    assert 5 < alone.loaded_mb < alone.used_mb < 300
    assert alone.peak_mb is None or alone.used_mb <= alone.peak_mb < 350
    assert alone.growth_mb < 100


@pytest.mark.process
def test_a_process_that_dies_is_an_error(bundle, monkeypatch):
    monkeypatch.setattr(module, "_alone", _die)
    with pytest.raises(BackendError, match="onnxruntime: the process that ran it alone died"):
        module._alone_in_a_process(bundle, "onnxruntime")


@pytest.mark.process
def test_an_error_in_that_process_is_raised_here(bundle):
    with pytest.raises(BackendError, match="'nothing' is unknown"):
        module._alone_in_a_process(bundle, "nothing")


# The command


def command(*words: str) -> int:
    return main(["compare", *words])


@pytest.mark.slow
def test_the_command_writes_a_table_json_and_a_picture(only, tmp_path, capsys):
    only(onnxruntime=0.0, torch=1e-6)
    assert command("ekman7", "--runs", "1", "--json", f"{tmp_path}/c.json", "--plot", f"{tmp_path}/c.png") == 0
    out = capsys.readouterr().out
    for word in ("onnxruntime", "fusion, 15 s × 4", "face × 8", "not here: tensorrt: no GPU", "1 thread each"):
        assert word in out
    saved = msgspec.json.decode((tmp_path / "c.json").read_bytes(), type=Comparison)
    assert saved.measured["torch"].difference > 0
    picture = matplotlib.image.imread(tmp_path / "c.png")
    assert picture[..., :3].std() > 0.05  # not blank


@pytest.mark.slow
def test_the_commands_exit_codes(only, tmp_path, capsys, monkeypatch):
    assert command("ekman7", "--runs", "0") == 2
    assert command(f"{tmp_path}/none") == 1
    assert "not found" in capsys.readouterr().err
    only(onnxruntime=0.0, torch=1e-2)
    assert command("ekman7", "--runs", "1") == 1
    assert "error: torch differs from onnxruntime by 0.01" in capsys.readouterr().err
    only(onnxruntime=0.0)
    assert command("ekman7", "--runs", "1", "--json", f"{tmp_path}/no/c.json") == 1
    assert f"error: {tmp_path}/no/c.json: cannot be read or written" in capsys.readouterr().err


def test_brackets_in_a_remedy_are_printed(capsys):
    from rich.console import Console

    from emostream.engines.commands.compare import show

    show(comparison(), Console())
    assert "not here: tensorrt: pip install 'emostream[gpu]'" in capsys.readouterr().out
