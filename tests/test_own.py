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
from emostream.train.metrics import interval
from tests import media

torch.set_num_threads(1)
FIT = ("fit", "--corpus", "manifest")


def manifest(folder: Path, rows: list[dict[str, str]], name: str = "mine.csv") -> Path:
    path = folder / name
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Three speakers, two moods of two recordings each: one slow and low, the other fast and high; words with some."""
    folder, rows = tmp_path_factory.mktemp("mine"), []
    speech = media.speech_samples(8.0)[8000:]
    for n, speaker in enumerate(("anna", "ben", "carla")):
        for label, pace in (("calm", 0.85), ("wild", 1.3)):
            for take in range(2):
                part = speech[(n + 3 * take) * 12_000 :][:24_000]
                at = np.arange(0, len(part) - 1, pace * (1 + n / 50))
                path = folder / f"{speaker}-{label}-{take}.wav"
                soundfile.write(path, np.interp(at, np.arange(len(part)), part).astype(np.int16), 16_000)
                rows.append(
                    {"path": path.name, "label": label, "speaker": speaker, "text": "well then" if take else ""}
                )
    return manifest(folder, rows)


@pytest.fixture(scope="module")
def made(recordings, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("own")
    command = [*FIT, "--data", str(recordings), "--steps", "12", "--cache", str(out / "cache")]
    assert main([*command, "--out", str(out / "mine")]) == 0
    return out


def test_a_bundle_of_ones_own_labels_recordings(made, bundle):
    mine = open_bundle(made / "mine")
    manifest = mine.manifest
    assert (mine.manifest.name, manifest.labels, manifest.modalities) == ("mine", ["calm", "wild"], ["audio", "text"])
    assert manifest.files["voice.onnx"] == bundle.manifest.files["voice.onnx"]
    assert manifest.files["fusion.onnx"] != bundle.manifest.files["fusion.onnx"]
    figures = manifest.metrics["validation"]["audio"]
    assert figures["items"] == 12 and 0 <= figures["low"] <= figures["accuracy"] <= figures["high"] <= 1
    assert "video" not in manifest.metrics["validation"]
    config = Config(fusion=Fusion(bundle=str(mine.folder)), speech=Speech(recognizer="none"))
    with Labeller(config) as labeller:
        for emotion in labeller.label_arrays(media.speech_samples(6.0), 16_000):
            assert emotion.label in ("calm", "wild") and emotion.modalities["audio"].frames > 0
            assert emotion.valence is None and emotion.adapted == 0  # none of the labels has coordinates or is neutral


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
    assert "no clip has video" in shown and f"--set fusion.bundle={made / 'again'}" in shown
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


def test_one_speaker_and_a_base_without_weights(recordings, bundle, tmp_path, caplog, capsys):
    data = own.Recordings({"audio": [np.zeros((3, 2), np.float32)] * 6}, np.array([0, 1] * 3), np.array(["me"] * 6))
    assert sorted(np.concatenate(own.folds_of(data, 0)).tolist()) == list(range(6))
    assert "one speaker" in caplog.text
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
    with pytest.raises(SystemExit) as caught:
        main(["fit", *wrong])
    assert caught.value.code == 2


def test_values_that_make_no_sense(recordings, capsys):
    assert main([*FIT, "--data", str(recordings), "--steps", "0"]) == 2
    assert "--steps" in capsys.readouterr().err


def test_an_interval_is_wider_where_speakers_differ():
    alike, apart = np.tile([1, 0], 30), np.repeat([1, 0], 30)
    speakers = np.repeat(np.arange(6), 10)
    narrow, wide = (interval(values.astype(float), speakers) for values in (alike, apart))
    assert narrow == (0.5, 0.5) and wide[1] - wide[0] > 0.5
    assert interval(alike.astype(float), speakers) == narrow
