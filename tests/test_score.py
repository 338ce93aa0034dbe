"""Scores of live labels against a corpus's held-out recordings."""

import json
import shutil
from pathlib import Path

import pytest

from emostream.engines.bundle import open_bundle
from emostream.errors import CorpusError
from emostream.stream.emotion import Emotion, encode_emotion
from emostream.train.bundle.score import count, read_labels, score
from emostream.train.commands.main import main
from emostream.train.corpora import LABELS, Item


def label(stream, name, start_s=0.0, end_s=1.0, sure=0.7):
    rest = (1 - sure) / 6
    return Emotion(
        kind="utterance", stream=stream, seq=0, utterance=0, start_s=start_s, end_s=end_s, label=name, confidence=sure,
        uncertain=False, probabilities={other: sure if other == name else rest for other in LABELS}, text="", words=[],
        modalities={}, latency_ms=None, captured_ns=0, published_ns=0, bundle="b", backend="x",
    )  # fmt: skip


ITEMS = [Item(Path(f"{name}.wav"), name, "val") for name in ("anger", "fear", "joy")]


def test_a_recording_with_several_utterances_gets_their_mean_by_length():
    said = [label("anger.wav", "anger", 0, 2), label("anger.wav", "joy", 3, 4), label("fear.wav", "joy")]
    figures = score(ITEMS, said)
    assert figures["items"] == 3 and figures["accuracy"] == pytest.approx(1 / 3, abs=1e-3)
    assert figures["without_utterance"] == 1
    shorter = score(ITEMS, [label("anger.wav", "anger", 0, 1), label("anger.wav", "joy", 1, 4)])
    assert shorter["accuracy"] == 0


def test_only_recordings_can_be_scored():
    with pytest.raises(CorpusError, match="only recordings"):
        score([Item("some text", "joy", "val")], [])


def test_labels_without_a_corpus_are_counted(tmp_path, capsys):
    said = [label("a", "joy"), label("a", "joy"), label("b", "anger"), label("b", "neutral")]
    said[0].uncertain = True
    assert count(said) == {"utterances": 4, "anger": 0.25, "joy": 0.5, "neutral": 0.25, "uncertain": 0.25}
    assert count([]) == {"utterances": 0}
    labels = tmp_path / "labels.jsonl"
    labels.write_bytes(b"\n".join(encode_emotion(one) for one in said))
    assert main(["score", str(labels)]) == 0
    assert f"{labels}: utterances 4 anger 0.25 joy 0.5 neutral 0.25 uncertain 0.25" in capsys.readouterr().out
    assert main(["score", str(labels), "--record", "ekman7", "none"]) == 2
    assert "needs --corpus" in capsys.readouterr().err


def test_command_scores_and_records_into_a_manifest(tmp_path, capsys):
    clips = tmp_path / "ravdess"
    clips.mkdir()
    names = {"joy": "03-01-03-01-02-01-17.flac", "anger": "03-01-05-01-02-01-18.flac"}
    for name in (*names.values(), "03-01-05-01-02-01-01.flac"):  # the last one's actor is not held out
        (clips / name).touch()
    labels = tmp_path / "labels.jsonl"
    labels.write_bytes(b"".join(encode_emotion(label(file, name)) + b"\n" for name, file in names.items()))
    assert len(read_labels(labels)) == 2
    folder = shutil.copytree(open_bundle("ekman7").folder, tmp_path / "bundle")
    command = ["score", str(labels), "--corpus", "ravdess", "--data", str(tmp_path)]
    assert main([*command, "--record", str(folder), "no words"]) == 0
    assert "items 2 accuracy 1.0" in capsys.readouterr().out
    kept = open_bundle(folder).manifest.metrics["live"]["ravdess, no words"]
    assert kept["items"] == 2 and kept["accuracy"] == 1.0 and kept["recogniser"] == "no words"
    labels.write_text(json.dumps({"kind": "utterance"}))
    assert main(command) == 1
    assert "not the output of stream-label" in capsys.readouterr().err
