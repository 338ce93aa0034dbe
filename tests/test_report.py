"""The report, written from made-up runs."""

import json

import cv2
import numpy as np
import pytest

from emostream.errors import CorpusError
from emostream.train.metrics import accuracy
from emostream.train.study import plots
from emostream.train.study.crossval import GROUPS, grid
from emostream.train.study.report import title, write
from emostream.train.study.stats import compare
from emostream.train.study.trial import Result, Training
from tests.grouped import tiny

pytestmark = pytest.mark.slow

TRAINING = Training(max_epochs=7)
COMMAND = "python -m train crossval --corpus label-paired --data PATH --out DIR"


def answers(spec, right, rng):
    truth = np.arange(60) % 3
    predicted = np.where(rng.random(60) < right, truth, (truth + 1) % 3)
    logits = 2.0 * np.eye(3, dtype=np.float32)[predicted] + rng.normal(0, 0.1, (60, 3)).astype(np.float32)
    items = dict.fromkeys(spec.modalities, np.arange(60))
    dev = [{"loss": 1.0, "accuracy": 0.5}] * 4
    return Result(spec, TRAINING, logits, truth, items, dev, 3, 36.0, 250_000, 30, 10)


@pytest.fixture
def no_pictures(monkeypatch):
    """For what is about the text."""
    for name in ("bars", "confusion", "reliability_diagram", "recall_bars"):
        monkeypatch.setattr(plots, name, lambda *_: None)


@pytest.fixture(scope="module")
def specs():
    return grid(GROUPS["paper-table"], "default", 3, 2)


@pytest.fixture(scope="module")
def results(specs):
    rng = np.random.default_rng(0)
    return {s: answers(s, 0.4 + 0.15 * len(s.modalities) + 0.02 * s.fold, rng) for s in specs}


@pytest.fixture(scope="module")
def written(tmp_path_factory, specs, results):
    out = tmp_path_factory.mktemp("docs")
    files = write(out, tiny(), results, specs, TRAINING, COMMAND)
    assert sorted(files) == sorted(out.iterdir())
    return out


def test_tables_have_mean_and_deviation_over_folds(written, results):
    text = (written / "study.md").read_text()
    each = np.array(
        [
            [
                accuracy(r.truth, r.logits.argmax(1))
                for s, r in results.items()
                if s.system == "at-cross" and s.fold == f
            ]
            for f in range(3)
        ]
    )
    folds = each.mean(1)
    row = next(line for line in text.splitlines() if line.startswith("| A+T | cross |"))
    assert f"| {folds.mean():.3f} ({folds.std(ddof=1):.3f}) |" in row and "0.25 M" in row
    ablation = text.split("## Ablation")[1].split("## ")[0]
    order = [line.split("|")[1].strip() for line in ablation.splitlines() if line.startswith("| ")][2:]
    assert order == ["Cross-noSP", "Cross", "Self-noSP", "Self", "Cross+Self"]


def test_the_limits_come_first_and_the_command_follows(written):
    title_line, limits, command, *_ = (written / "study.md").read_text().split("\n\n")
    assert title_line.startswith("# ")
    for word in ("label-paired", "synthetic", "independent given the label", "still", "acted", "3 folds × 2 seeds",
                 "5 × 10"):  # fmt: skip
        assert word in limits
    assert COMMAND in (written / "study.md").read_text() and "Corpus: tiny" in command


def test_columns_have_both_names(written):
    text = (written / "study.md").read_text()
    assert 'balanced accuracy (the paper\'s "WA")' in text and 'accuracy (the paper\'s "UWA")' in text


def test_json_has_the_comparisons_and_every_value(written, results):
    record = json.loads((written / "study.json").read_text())
    values = {s: np.array(x["by_fold_and_seed"]["accuracy"]) for s, x in record["systems"].items()}
    assert values["avt-self"].shape == (3, 2) and len(values) == 14
    want = compare(values["avt-self"], values["avt-cross"], 10 / 30)
    accuracy = record["comparisons"]["avt-cross against avt-self"]["accuracy"]
    assert accuracy["p"] == pytest.approx(want.p, abs=1e-3) and accuracy["low"] == pytest.approx(want.low, abs=1e-4)
    assert record["labels"] == ["calm", "cross", "glad"] and record["training"]["max_epochs"] == 7


def test_plots_are_images_of_a_readable_size(written):
    for name in ("accuracy", "confusion", "recall", "reliability"):
        image = cv2.imread(str(written / f"study-{name}.png"))
        assert min(image.shape[:2]) > 300 and (image[0, 0] == 255).all()
        assert f"study-{name}.png" in (written / "study.md").read_text()


def test_a_system_with_a_missing_run_is_named_and_not_shown(no_pictures, tmp_path, specs, results):
    some = {s: r for s, r in results.items() if s.system != "avt-self" or s.seed == 0}
    write(tmp_path, tiny(), some, specs, TRAINING, COMMAND)
    text = (tmp_path / "study.md").read_text()
    assert "some of their runs are missing: avt-self." in text and "| A+V+T | self |" not in text
    with pytest.raises(CorpusError, match="no system"):
        write(tmp_path / "none", tiny(), {}, specs, TRAINING, COMMAND)
    assert not (tmp_path / "none").exists()


def test_a_corpus_of_aligned_items_has_other_limits(no_pictures, tmp_path, specs, results):
    write(tmp_path, tiny(aligned=True), results, specs, TRAINING, COMMAND)
    limits = (tmp_path / "study.md").read_text().split("\n\n")[1]
    assert "synthetic" not in limits and "degrees of freedom" in limits


def test_a_label_that_one_fold_lacks(tmp_path, results):
    specs = grid(["avt-self"], "default", 3, 2)
    some = {}
    for spec in specs:
        r = results[spec]
        keep = r.truth != 2 if spec.fold == 0 else np.ones(60, bool)
        some[spec] = Result(**{**r.__dict__, "logits": r.logits[keep], "truth": r.truth[keep]})
    write(tmp_path, tiny(), some, specs, TRAINING, COMMAND)
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["systems"]["avt-self"]["recall"][2] > 0.5


def test_titles():
    assert [title(s) for s in ("a-self", "at-cross-nosp", "avt-both")] == ["A", "A+T cross, no SP", "A+V+T cross+self"]
