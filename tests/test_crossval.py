"""The grid of runs: names, resumption, failures, processes, Ray; the command from corpora to report."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch

from emostream.errors import Problems
from emostream.train.commands.main import main
from emostream.train.corpora import LABELS, fer2013
from emostream.train.study.crossval import GROUPS, check, complete, finished, grid, spec_of, systems
from emostream.train.study.dataset import GroupedFolds
from emostream.train.study.trial import Result, Training, path_of
from tests.grouped import tiny

pytestmark = pytest.mark.slow

torch.set_num_threads(1)
ONE = Training(max_epochs=1)
SPECS = grid(["t-self", "v-self"], "default", 2, 1)


# --- names -----------------------------------------------------------------------------------------------------------


def test_systems_of_the_papers_tables():
    assert len(systems(["paper-table"])) == 14
    assert systems(["trimodal", "avt-self", "a-self"]) == ["avt-self", "avt-cross", "a-self"]
    spec = spec_of("at-cross-nosp", "paper", 2, 1)
    assert (spec.modalities, spec.attention, spec.pooling) == (("audio", "text"), "cross", False)
    for name in GROUPS["paper-table"]:
        assert spec_of(name, "default", 0, 0).system == name


@pytest.mark.parametrize("name", ["", "avt", "ta-self", "aa-self", "avt-diagonal", "x-self", "avt-self-sp", "-self"])
def test_other_names_are_errors_that_explain_the_form_of_names(name):
    with pytest.raises(ValueError, match="avt|letters"):
        systems([name])


def test_grid_has_each_run_once_and_whole_folds_first():
    specs = grid(["a-self", "avt-cross"], "default", 3, 2)
    assert len(set(specs)) == 12 and {s.seed for s in specs[:6]} == {0}
    assert [s.system for s in specs[:2]] == ["a-self", "avt-cross"]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_are_made_once_and_only_missing_ones_again(tmp_path):
    folds, made = tiny(), []
    assert complete(SPECS, ONE, folds, tmp_path, done=lambda spec, outcome: made.append(spec)) == {}
    assert made == SPECS and set(finished(SPECS, ONE, folds, tmp_path)) == set(SPECS)
    complete(SPECS, ONE, folds, tmp_path, done=lambda *_: pytest.fail("made again"))
    path_of(tmp_path, SPECS[1], ONE, folds).unlink()
    made.clear()
    complete(SPECS, ONE, folds, tmp_path, done=lambda spec, outcome: made.append(spec))
    assert made == [SPECS[1]]


def interrupted(spec, outcome):
    raise KeyboardInterrupt


def test_an_interruption_keeps_what_is_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(SPECS, ONE, tiny(), tmp_path, done=interrupted)
    assert len(finished(SPECS, ONE, tiny(), tmp_path)) == 1
    assert [p.suffix for p in (tmp_path / "runs").iterdir()] == [".safetensors"]
    complete(SPECS, ONE, tiny(), tmp_path)
    assert len(finished(SPECS, ONE, tiny(), tmp_path)) == 4


@dataclasses.dataclass(frozen=True)
class Broken(GroupedFolds):
    """Folds where fold 1 cannot be read."""

    def split(self, fold):
        if fold == 1:
            raise OSError("disk on fire")
        return super().split(fold)


def broken():
    folds = tiny()
    return Broken(**{field.name: getattr(folds, field.name) for field in dataclasses.fields(folds)})


def test_a_failing_run_does_not_lose_the_others(tmp_path):
    failures = complete(SPECS, ONE, broken(), tmp_path)
    assert {spec.fold for spec in failures} == {1} and set(failures.values()) == {"OSError: disk on fire"}
    assert {spec.fold for spec in finished(SPECS, ONE, broken(), tmp_path)} == {0}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[k].logits, b[k].logits, atol=1e-5) for k in a)


@pytest.mark.long
@pytest.mark.process
def test_processes_give_the_same_and_survive_failures(tmp_path):
    complete(SPECS, ONE, broken(), tmp_path / "here")
    failures = complete(SPECS, ONE, broken(), tmp_path / "there", jobs=2)
    assert set(failures.values()) == {"OSError: disk on fire"} and {spec.fold for spec in failures} == {1}
    assert same(*(finished(SPECS, ONE, broken(), tmp_path / name) for name in ("here", "there")))


@dataclasses.dataclass(frozen=True)
class Deadly(GroupedFolds):
    """Reading fold 1 kills the process, as the kernel does when memory runs out."""

    def split(self, fold):
        if fold == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().split(fold)


@pytest.mark.long
@pytest.mark.process
def test_a_process_that_dies_is_reported(tmp_path):
    folds = tiny()
    folds = Deadly(**{field.name: getattr(folds, field.name) for field in dataclasses.fields(folds)})
    failures = complete(grid(["t-self"], "default", 2, 1), ONE, folds, tmp_path, jobs=2)
    assert any("process died" in why for why in failures.values())


@pytest.mark.long
@pytest.mark.process
def test_ray_gives_the_same(tmp_path):
    pytest.importorskip("ray")
    specs = SPECS[:2]
    complete(specs, ONE, tiny(), tmp_path / "here")
    calls = []
    assert not complete(specs, ONE, tiny(), tmp_path / "ray", 1, "local", lambda spec, outcome: calls.append(outcome))
    assert all(isinstance(outcome, Result) for outcome in calls) and len(calls) == 2
    assert same(*(finished(specs, ONE, tiny(), tmp_path / name) for name in ("here", "ray")))


def test_one_fold_is_no_cross_validation():
    class One:
        name, label_names, folds, settings, split = "one", ("a", "b", "c"), 1, {}, tiny().split

    with pytest.raises(Problems, match="one fold"):
        check(grid(["t-self"], "default", 1, 1), One())


def test_what_fits_sound_alone_is_said():
    with pytest.raises(
        Problems, match="no item has text or video; what there is fits: --systems a-self,a-none"
    ) as caught:
        check(grid(systems(["paper-table"]), "default", 3, 1), tiny(without=("video", "text")))
    assert len([problem for problem in caught.value.problems if "no item has" in problem]) == 1
    check(grid(["a-self", "a-none"], "default", 3, 1), tiny(without=("video", "text")))


def test_check_lists_all_problems_at_once():
    check(grid(systems(["paper-table"]), "paper", 3, 1), tiny())
    folds = tiny(without=("video",))
    folds.labels["text"][folds.labels["text"] == 1] = 2
    with pytest.raises(Problems) as caught:
        check([*grid(["avt-self"], "default", 3, 1), spec_of("a-cross", "paper", 0, 0)], folds)
    problems = "\n".join(caught.value.problems)
    assert "no item has video; what there is fits: --systems a-self,t-self,at-self,at-cross" in problems
    assert "a-cross: cross-attention" in problems
    assert "fold 0, train: text: no item of a part is labelled 1" in problems


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """RAVDESS, FER2013 and GoEmotions in their layouts: three actors, noise, and as many stills and comments."""
    root, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    (root / "ravdess").mkdir()
    for actor in ("01", "02", "17"):
        for emotion in range(1, 9):
            name = f"03-01-{emotion:02}-01-02-01-{actor}.flac"
            soundfile.write(root / "ravdess" / name, rng.normal(0, 0.1, 6400), 16_000)
    stills = [(cv2.imencode(".png", rng.integers(0, 256, (48, 48), np.uint8))[1].tobytes(), label) for label in
              LABELS * 4]  # fmt: skip
    for folder in ("fer2013", "goemotions"):
        (root / folder).mkdir()
    images, labels = zip(*stills, strict=True)
    parquet.write_table(
        pa.table({"image": images, "label": labels, "split": ["val"] * len(labels)}), root / "fer2013/faces.parquet"
    )
    votes = {
        n: [8 * (fer2013.VOTES[label] == n) for label in labels] for n in (*fer2013.VOTES.values(), *fer2013.OTHERS)
    }
    parquet.write_table(pa.table(votes), root / "fer2013/ferplus.parquet")
    for split in ("train", "dev"):
        texts = [f"i feel {label} number {i}" for i, label in enumerate(labels)]
        parquet.write_table(
            pa.table({"text": [*texts, "!?"], "labels": [*([label] for label in labels), ["joy"]]}),
            root / f"goemotions/{split}.parquet",
        )
    return root


def crossval(*words):
    return main(["crossval", *map(str, words)])


@pytest.mark.long
@pytest.mark.slow
def test_command_from_corpora_to_report(corpora, tmp_path, capsys):
    words = ("--corpus", "label-paired", "--data", corpora, "--out", tmp_path / "out", "--preset", "tiny")
    words += ("--cache", tmp_path / "cache", "--max-epochs", 1, "--report", tmp_path / "docs")
    assert crossval(*words) == 0
    text = (tmp_path / "docs/study.md").read_text()
    assert "label-paired" in text.split("\n\n")[1] and "3 folds × 1 seed;" in text
    assert "--corpus label-paired --data PATH --out DIR --preset tiny --systems trimodal --folds 3" in text
    assert str(tmp_path) not in text + (tmp_path / "docs/study.json").read_text()
    assert json.loads((tmp_path / "docs/study.json").read_text())["runs"] == 6
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").iterdir()}
    assert len(runs) == 6
    assert crossval(*words) == 0  # everything is complete
    assert runs == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").iterdir()}
    assert "study.md" in capsys.readouterr().out


@pytest.mark.slow
def test_command_reports_what_is_wrong_and_writes_nothing(corpora, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("EMOSTREAM_DATA", raising=False)
    base = ("--corpus", "label-paired", "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    data = ("--data", corpora)
    for words, code, text in (
        ((*base,), 2, "--data"),
        ((*base, "--data", tmp_path), 1, "RAVDESS"),
        ((*base, *data, "--systems", "avt-diagonal"), 2, "letters a, v and t"),
        ((*base, *data, "--folds", 2), 2, "at least 3"),
        ((*base, *data, "--folds", 9), 1, "too few"),
        ((*base, *data, "--seeds", 0), 2, "at least 1"),
        ((*base, *data, "--folds", 3, "--variant", "paper", "--systems", "a-cross"), 1, "alone"),
        ((*base, *data, "--folds", 3, "--variant", "paper", "--modality-dropout", "0.5"), 2, "masks"),
        ((*base, *data, "--bundle", "nothing"), 1, "not found"),
    ):
        assert crossval(*words) == code
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.process
def test_ctrl_c_keeps_runs_and_the_next_call_goes_on(corpora, tmp_path):
    command = [
        sys.executable, "-c", "import sys; from tests.test_crossval import crossval; sys.exit(crossval(*sys.argv[1:]))",
        "--corpus", "label-paired", "--data", corpora, "--out", tmp_path / "out", "--cache", tmp_path / "cache",
        "--folds", "3", "--seeds", "40", "--max-epochs", "1", "--systems", "t-self,v-self", "--jobs", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("out/runs/*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all of its processes
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "goes on from there" in errors and "Traceback" not in errors
    kept = sorted((tmp_path / "out/runs").iterdir())
    assert 2 <= len(kept) < 240 and all(Result.load(path).truth.size for path in kept)


def test_a_manifest_of_your_own_recordings(tmp_path):
    """Sounds and words, no picture; labels of its own, folds by speaker."""
    rng = np.random.default_rng(0)
    rows = ["path,label,speaker,text"]
    for speaker in range(4):
        for i, label in enumerate(("bored", "keen")):
            name = f"{speaker}-{i}.wav"
            soundfile.write(tmp_path / name, rng.normal(0, 0.1, 4800), 16_000)
            rows.append(f"{name},{label},s{speaker},i am {label}")
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    words = ("--corpus", "manifest", "--data", tmp_path / "mine.csv", "--out", tmp_path / "out")
    words += ("--cache", tmp_path / "cache", "--folds", 3, "--seeds", 1, "--max-epochs", 1)
    assert crossval(*words, "--systems", "at-self,a-self") == 0
    text = (tmp_path / "out/report/study.md").read_text()
    assert "mine.csv" in text and "synthetic" not in text
    assert crossval(*words, "--systems", "avt-self") == 1  # no picture
    stored = next((tmp_path / "out/runs").glob("*at-self*"))
    assert set(Result.load(stored).items) == {"audio", "text"} and Result.load(stored).logits.shape[1] == 2


@pytest.mark.parametrize("variant", ["default", "paper"])
def test_processed_folds(tmp_path, variant):
    """Small arrays in the layout of IEMOCAP's processed folds."""
    rng = np.random.default_rng(0)
    for fold in ("fold01", "fold02"):
        (tmp_path / "data" / fold).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            arrays = {
                "audio_mfcc": rng.normal(size=(14, 20, 6)), "video": rng.normal(size=(14, 8, 5)),
                "text": rng.normal(size=(14, 9, 4)), "audio_seqN": rng.integers(1, 21, 14),
                "video_seqN": rng.integers(1, 9, 14), "label": np.arange(14) % 7,
            }  # fmt: skip
            for name, array in arrays.items():
                np.save(tmp_path / "data" / fold / f"{split}_{name}.npy", array)
    words = ("--corpus", "iemocap_folds", "--data", tmp_path / "data", "--out", tmp_path / "out", "--seeds", 1)
    assert crossval(*words, "--max-epochs", 1, "--systems", "trimodal", "--variant", variant, "--jobs", 1) == 0
    text = (tmp_path / "out/report/study.md").read_text()
    assert "the corpus's own" in text and ("as they are" in text) == (variant == "paper")
