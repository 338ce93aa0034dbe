"""train/bundle/own.py and judge.py: stream-train fit --corpus manifest, and evaluate."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from emostream import Config, Labeller
from emostream.engines.bundle import open_bundle
from emostream.stream.config import Fusion, Speech
from emostream.train.bundle import own
from emostream.train.commands.main import main
from emostream.train.corpora import Clip
from emostream.train.graphs import portable
from emostream.train.metrics import interval, resampled, scores
from tests import media

pytestmark = pytest.mark.slow  # all of them together

torch.set_num_threads(1)
FIT = ("fit", "--corpus", "manifest")


def manifest(folder: Path, rows: list[dict[str, str]], name: str = "mine.csv") -> Path:
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def record(folder: Path) -> Path:
    """Three speakers, two moods of two recordings each: one slow and low, the other fast and high; words with some.
    Returns their manifest."""
    rows = []
    speech = media.speech_samples(8.0)[8000:]
    for n, speaker in enumerate(("anna", "ben", "carla")):
        for label, pace in (("calm", 0.85), ("wild", 1.3)):
            for take in range(2):
                part = speech[(n + 3 * take) * 12_000 :][:24_000]
                positions = np.arange(0, len(part) - 1, pace * (1 + n / 50))
                path = folder / f"{speaker}-{label}-{take}.wav"
                soundfile.write(path, np.interp(positions, np.arange(len(part)), part).astype(np.int16), 16_000)
                rows.append(
                    {
                        "path": path.name,
                        "label": label,
                        "speaker": speaker,
                        "text": "well then" if take else "",
                        "valence": "0.25" if label == "calm" else "-0.5",
                        "arousal": "-0.75" if label == "calm" else "1",
                    }
                )
    return manifest(folder, rows)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("mine"))


@pytest.fixture(scope="module")
def made(recordings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("own")
    command = [*FIT, "--data", str(recordings), "--steps", "12", "--cache", str(out / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "LENGTHS", (1, 7))  # of the comparison with the graphs, which test_graphs is about
        assert main([*command, "--out", str(out / "mine")]) == 0
    return out


def test_a_bundle_of_ones_own_labels_recordings(made, bundle):
    mine = open_bundle(made / "mine")
    manifest = mine.manifest
    assert (mine.manifest.name, manifest.labels, manifest.modalities) == ("mine", ["calm", "wild"], ["audio", "text"])
    assert manifest.files["voice.onnx"] == bundle.manifest.files["voice.onnx"]
    assert manifest.files["fusion.onnx"] != bundle.manifest.files["fusion.onnx"]
    figures = manifest.metrics["validation"]["audio"]
    assert figures["items"] == 12
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = figures["intervals"][name]
        assert 0 <= low <= figures[name] <= high <= 1
    assert manifest.temperature["audio"] == 1 and manifest.uncertain_below == 0.75  # 12 answers are too few to fit them
    calibration = manifest.metrics["calibration"]
    assert calibration["temperature"]["audio"] == "1: 12 answers are too few to fit one"
    assert calibration["uncertain_below"].startswith("halfway")
    assert "video" not in manifest.metrics["validation"]
    config = Config(fusion=Fusion(bundle=str(mine.folder)), speech=Speech(recognizer="none"))
    with Labeller(config) as labeller:
        emotions = list(labeller.label_arrays(media.speech_samples(6.0), 16_000))
    assert emotions and manifest.coordinates == {"calm": (0.25, -0.75), "wild": (-0.5, 1.0)}
    for emotion in emotions:
        assert emotion.label in ("calm", "wild") and emotion.modalities["audio"].frames > 0
        assert emotion.adapted == 0  # no label is neutral
        assert emotion.valence == pytest.approx(0.25 - 0.75 * emotion.probabilities["wild"], abs=1e-3)
        assert emotion.arousal == pytest.approx(-0.75 + 1.75 * emotion.probabilities["wild"], abs=1e-3)


@pytest.mark.long
def test_it_is_the_same_again_from_what_was_kept(recordings, made, capsys):
    command = [
        *FIT,
        "--data",
        str(recordings),
        "--steps",
        "12",
        "--cache",
        str(made / "cache"),
    ]
    assert main([*command, "--out", str(made / "again")]) == 0
    shown = capsys.readouterr().out
    assert "note: no clip has video: the bundle does not use it" in shown
    assert "note: 6 of 12 clips have no text: row 1" in shown
    assert "note: 3 speakers" in shown and f"--set fusion.bundle={made / 'again'}" in shown
    assert (made / "mine/fusion.onnx").read_bytes() == (made / "again/fusion.onnx").read_bytes()


def test_labels_that_the_base_has_begin_as_they_are_there(bundle):
    model = own.start(bundle, ["hungry", "joy"])
    whole = own.start(bundle, bundle.manifest.labels)
    joy = bundle.manifest.labels.index("joy")
    assert torch.equal(model.classifier.weight[1], whole.classifier.weight[joy])
    assert torch.equal(model.hidden_layer.weight, whole.hidden_layer.weight)


def test_evaluate_compares_bundles_on_the_same_clips(recordings, made, capsys):
    command = ["evaluate", "--data", str(recordings), "--bundle", str(made / "mine"), "--bundle", str(made / "mine")]
    assert main([*command, "--cache", str(made / "cache"), "--out", str(made / "report")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("12 clips, accuracy") == 2 and "accuracy +0.000 (+0.000 to +0.000)" in shown
    assert shown.count("IT WAS TRAINED ON THESE RECORDINGS") == 2
    report = (made / "report/evaluation.md").read_text()
    assert "| calm | 6 |" in report and "bundle-2.png" in report
    assert (made / "report/bundle-1.png").stat().st_size > 5000


def test_evaluate_refuses_labels_that_a_bundle_does_not_have(recordings, tmp_path, capsys):
    assert main(["evaluate", "--data", str(recordings), "--cache", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "does not know the label 'calm'" in errors and "'wild'" in errors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [dict(row, label="calm") for row in rows], "there is one label, 'calm'"),
        (lambda rows: [*rows, dict(rows[0], label="odd", end_s="1")], "label 'odd' has one clip"),
        (lambda rows: [dict(row, path="none.wav") for row in rows], "row 12: .*none.wav"),
        (lambda rows: [{key: row[key] for key in ("path", "label")} for row in rows], "has no column speaker"),
        (lambda rows: [dict(row, loudness="3") for row in rows], "has the unknown column 'loudness'"),
        (
            lambda rows: [dict(row, valence="2", arousal="0") for row in rows],
            "row 3: valence '2' is not a number from -1",
        ),
        (
            lambda rows: [dict(row, valence="", arousal="0") for row in rows],
            "row 1: has only one of valence and arousal",
        ),
        (
            lambda rows: [dict(row, label=f"{row['label']}{n}") for n, row in enumerate(rows)],
            "row 12: label 'wild11' has",
        ),
        (lambda rows: [dict(row, fold=str(n % 3)) for n, row in enumerate(rows)], "is in fold"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said_at_once(recordings, tmp_path, capsys, change, says):
    rows = list(csv.DictReader(recordings.open()))
    for path in recordings.parent.glob("*.wav"):
        (tmp_path / path.name).symlink_to(path)
    command = [*FIT, "--data", str(manifest(tmp_path, change(rows))), "--cache", str(tmp_path)]
    assert main(command) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not (Path("bundles") / "mine").exists()


def some(labels, speakers, folds=None) -> own.Recordings:
    rows = {m: [np.zeros((3 * (m == "audio"), 2), np.float32)] * len(labels) for m in ("audio", "video", "text")}
    return own.Recordings(rows, np.array(labels), np.array(speakers), None if folds is None else np.array(folds))


def clips_of(data: own.Recordings, dimensions=None) -> list[Clip]:
    names = ["calm", "wild"]
    return [
        Clip(f"row {i + 1}", names[k], who, who, dimensions=None if dimensions is None else dimensions[i])
        for i, (k, who) in enumerate(zip(data.labels, data.speakers, strict=True))
    ]


@pytest.mark.parametrize(
    "data",
    [
        some([0, 1] * 3, ["me"] * 6),
        some([0, 0, 1, 1], list("abcd")),  # more speakers than clips of a label
        some([0] * 9 + [1] * 2, list("aaabbbcccde")),
        some([0, 1] * 6, list("abcdef") * 2),
    ],
)
def test_each_clip_is_judged_once_by_a_network_that_met_neither_it_nor_its_speaker(data):
    folds = own.folds_of(data, 0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(data.labels))) and 2 <= len(folds) <= own.FOLDS
    if len(set(data.speakers)) > 1:
        assert sum(len(set(data.speakers[test])) for test in folds) == len(set(data.speakers))


def test_folds_of_the_manifest_are_kept():
    folds = own.folds_of(some([0, 1] * 3, list("aabbcc"), [7, 7, 2, 2, 4, 4]), 0)
    assert [test.tolist() for test in folds] == [[2, 3], [4, 5], [0, 1]]


def test_notes_say_what_limits_the_figures():
    alone = some([0, 1] * 3, ["me"] * 6)
    notes = own.notes_on(alone, clips_of(alone), ["calm", "wild"], own.folds_of(alone, 0))
    assert notes[0].startswith("one speaker") and "no clip has text: the bundle does not use it" in notes
    split = some([0, 0, 1, 1], list("aabb"))
    (few, *rest) = own.notes_on(split, clips_of(split), ["calm", "wild"], own.folds_of(split, 0))
    assert few.startswith("2 speakers") and sum("has not met it" in note for note in rest) == 2
    rated = clips_of(split, [(0.5, 0.5), None, None, None])
    assert any(
        note.startswith("valence and arousal are given for 1 of 4") for note in own.notes_on(split, rated, [], [])
    )


def test_valence_and_arousal_of_labels_are_the_mean_of_their_clips():
    data = some([0, 0, 1], list("abc"))
    points = [(0.2, -0.5), (0.4, -0.1), (-1.0, 1.0)]
    assert own.coordinates_of(clips_of(data, points)) == {"calm": (0.3, -0.3), "wild": (-1.0, 1.0)}
    assert own.coordinates_of(clips_of(data, [*points[:2], None])) == {}


def test_a_base_without_weights(recordings, bundle, tmp_path, capsys):
    folder = tmp_path / "old"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).symlink_to(path) if path.name != "manifest.json" else None
    about = json.loads((bundle.folder / "manifest.json").read_text())
    for name in about["files"]:
        (folder / name).unlink()
        (folder / name).write_bytes(bundle.path(name).read_bytes())
    del about["files"]["fusion.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(about))
    command = [
        *FIT,
        "--data",
        str(recordings),
        "--base",
        str(folder),
        "--cache",
        str(tmp_path),
    ]
    assert main(command) == 1
    assert "has no fusion.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [[], ["--preset", "tiny", "--corpus", "manifest"], ["--corpus", "ravdess"]])
def test_a_preset_or_a_corpus(wrong):
    assert main(["fit", *wrong]) == 2


def test_all_that_is_wrong_is_said_in_one_list(recordings, tmp_path, capsys):
    rows = list(csv.DictReader(recordings.open()))
    rows[0] |= {"label": "odd", "size": "1"}
    rows[3] |= {"path": "gone.wav"}
    assert main([*FIT, "--data", str(manifest(recordings.parent, rows, "bad.csv")), "--cache", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert "3 problems" in errors
    assert all(text in errors for text in ("column 'size'", "row 1: label 'odd' has one clip", "row 4: ")), errors


def test_evaluate_asks_only_for_labels_that_occur(recordings, tmp_path, capsys):
    rows = list(csv.DictReader(recordings.open()))
    rows = [dict(row, label={"calm": "sadness", "wild": "anger"}[row["label"]]) for row in rows]
    path = manifest(recordings.parent, rows, "known.csv")
    assert main(["evaluate", "--data", str(path), "--cache", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "never asked for: disgust, fear, joy, neutral, surprise" in shown and "TRAINED ON" not in shown
    assert "joy |" not in (tmp_path / "out/evaluation.md").read_text()


def test_values_that_make_no_sense(recordings, capsys):
    assert main([*FIT, "--data", str(recordings), "--steps", "0"]) == 2
    assert "--steps" in capsys.readouterr().err


def test_an_interval_is_wider_where_speakers_differ():
    truth, speakers = np.tile([0, 1], 30), np.repeat(np.arange(6), 10)
    always_half = np.where(np.arange(60) % 4 < 2, truth, 1 - truth)
    some_speakers = np.where(speakers < 3, truth, 1 - truth)
    narrow, wide = (resampled(truth, answers, speakers) for answers in (always_half, some_speakers))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = interval(wide[name])
        assert high - low > 0.5 > np.ptp(interval(narrow[name]))


def test_resampled_figures_are_scikit_learns():
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(3, size=40), rng.integers(4, size=40)
    together = resampled(np.tile(truth, 3), np.tile(answers, 3), np.repeat(["a", "b", "c"], 40))  # three alike
    for name, value in scores(truth, answers).items():
        if name != "items":
            assert np.allclose(together[name], value, atol=1e-4)
