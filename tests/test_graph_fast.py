"""train/graphs/fast.py: a change of the model that a hand-written graph does not follow is noticed before training."""

from __future__ import annotations

import pytest
import torch

from emostream.engines.bundle import FUSION_CPU, FUSION_GPU
from emostream.errors import ExportError
from emostream.train.bundle import recipe
from emostream.train.commands.main import main
from emostream.train.graphs import fast, portable
from emostream.train.model import Fusion
from tests.nets import small

pytestmark = pytest.mark.slow

FORWARD = Fusion.forward
SOURCES = {FUSION_CPU: "train/graphs/cpu.py", FUSION_GPU: "train/graphs/gpu.py"}


@pytest.fixture(autouse=True)
def few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough lengths to find a graph that is wrong everywhere."""
    monkeypatch.setattr(portable, "LENGTHS", (1, 7))
    monkeypatch.setattr(portable, "BATCHES", (1, 2))


@pytest.fixture
def changed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody doubles the logits in ``train/model.py`` and does not touch the graphs."""
    monkeypatch.setattr(Fusion, "forward", lambda self, *args, **kwargs: 2 * FORWARD(self, *args, **kwargs))


def keep_only(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.setattr(fast, "GRAPHS", {file: fast.GRAPHS[file]})


def test_both_graphs_are_written_and_compared(tmp_path):
    differences = fast.export_fast(small(), tmp_path)
    assert list(differences) == [FUSION_CPU, FUSION_GPU] == [path.name for path in sorted(tmp_path.iterdir())]
    assert 0 < max(differences.values()) < 1e-4


def test_the_model_of_today_can_be_exported():
    state = torch.get_rng_state()
    fast.try_exports("self", {"text": 16})
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it would have drawn


@pytest.mark.parametrize("file", SOURCES)
def test_a_graph_that_differs_names_its_source_and_the_way_out(changed_model, monkeypatch, file):
    keep_only(monkeypatch, file)
    with pytest.raises(
        ExportError, match=rf"{file} .* differs from the torch model .*change {SOURCES[file]} .*--portable"
    ):
        fast.try_exports("self", {"text": 16})


@pytest.mark.parametrize("file", SOURCES)
def test_a_graph_that_cannot_be_written_names_its_source_too(monkeypatch, file):
    keep_only(monkeypatch, file)
    build = fast.build

    def without_a_layer(**options):
        model = build(**options)
        model.classifier = torch.nn.Sequential(model.classifier)
        return model

    monkeypatch.setattr(fast, "build", without_a_layer)
    with pytest.raises(ExportError, match=rf"change {SOURCES[file]} "):
        fast.try_exports("self", {"text": 16})


def test_the_portable_graph_follows_any_change(changed_model):
    fast.try_exports("self", {"text": 16}, fast=False)


@pytest.fixture
def corpora_without_items(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*_: object) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr(
        recipe, "load_all", lambda data: ({corpus: [] for corpus in (*recipe.NEEDED, *recipe.OPTIONAL)}, [])
    )
    monkeypatch.setattr(recipe, "make_speech", no_training)


@pytest.mark.long
@pytest.mark.slow
def test_no_training_begins_with_a_graph_that_differs(changed_model, corpora_without_items, tmp_path, capsys):
    command = ["fit", "--preset", "tiny", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "change train/graphs/cpu.py" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(AssertionError, match="training has begun"):
        main([*command, "--portable"])
