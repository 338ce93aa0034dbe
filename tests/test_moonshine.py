"""stream/speech/moonshine.py: the real network on real sound."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import RunOptions

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.features.text import tokens
from emostream.stream.speech import moonshine, moonshine_network
from emostream.stream.speech.moonshine_network import Token, read_tokens
from emostream.stream.speech.recognizer import make_recognizer
from tests import media
from tests.processes import Pipeline
from tests.test_recognizers import check_words, recognise

FOLDER = models.locate(models.MOONSHINE)
needs_model = pytest.mark.skipif(FOLDER is None, reason=f"needs Moonshine: {models.how_to_get(models.MOONSHINE)}")
FIRST = "this is the best day of my life and i am so happy".split()  # commas depend on the processor
SPOKEN = slice(8_000, 52_000)  # the demo's first sentence, 0.5 to 3.25 s


@pytest.fixture(scope="module")
def recognizer() -> moonshine.MoonshineRecognizer:
    assert FOLDER is not None
    return moonshine.MoonshineRecognizer(FOLDER)


def text(words) -> str:
    return " ".join(word.word for word in words)


def plain(words) -> list[str]:
    return tokens(text(words))


@needs_model
@pytest.mark.slow
def test_a_sentence_as_it_is_spoken_and_at_its_end(recognizer):
    sound = media.speech_samples(4)[SPOKEN]
    partials, words = recognise(recognizer, sound)
    assert plain(words) == FIRST and text(words).startswith("This is") and text(words).endswith(" I am so happy.")
    check_words(words, len(sound) / 16_000)
    assert all(word.confidence > 0.5 for word in words)
    assert text(partials[2]).startswith("This is") and len(partials[2]) < len(partials[-1]) <= len(words)
    assert words[0].start_s < 0.1 and words[-1].end_s > 2.6
    assert recognise(recognizer, sound)[1] == words  # nothing is left of the first time


@needs_model
@pytest.mark.slow
def test_the_final_run_begins_early_and_serves_the_end(recognizer, monkeypatch):
    """Silence after the expected end costs no further run; speech that goes on does, and loses nothing."""
    runs: list[int] = []
    real = recognizer._network.transcribe
    monkeypatch.setattr(recognizer._network, "transcribe", lambda *args: runs.append(len(args[0])) or real(*args))
    sound = media.speech_samples(4)
    recognizer.begin()
    recognizer.push(sound[8_000:30_000])
    recognizer.expect_end(0.064)
    recognizer.push(sound[30_000:53_000])  # it did not end: 3.31 s, 64 ms after the last speech
    recognizer.expect_end(0.064)
    recognizer.push(np.zeros(1024, np.int16))
    recognizer.expect_end(0.128)
    assert plain(recognizer.finish()) == FIRST
    assert runs in ([22_000, 45_000], [45_000])  # the first may have been dropped before it began


@needs_model
def test_in_real_time_nothing_waits_before_the_end(monkeypatch):
    assert FOLDER is not None
    recognizer = moonshine.MoonshineRecognizer(FOLDER, patient=False)
    gate, real, runs = threading.Event(), recognizer._network.transcribe, []
    monkeypatch.setattr(
        recognizer._network, "transcribe", lambda *args: runs.append(len(args[0])) or (gate.wait(30) and real(*args))
    )
    sound = media.speech_samples(4)[SPOKEN]
    recognizer.begin()
    for at in range(0, len(sound), 4000):
        recognizer.push(sound[at : at + 4000])
        assert recognizer.partial() == []
    recognizer.expect_end(0.0)
    assert not recognizer.ready()
    gate.set()
    assert plain(recognizer.finish()) == FIRST
    assert runs == [8000, len(sound)]  # the words so far did not pile up


@needs_model
def test_silence_noise_and_scraps_have_no_words(recognizer):
    rng = np.random.default_rng(1)
    for sound in (
        np.zeros(0, np.int16),
        np.zeros(16_000, np.int16),
        media.speech_samples(4)[20_000:23_000],
        rng.normal(0, 3000, 32_000).astype(np.int16),
        rng.integers(-20, 20, 48_000).astype(np.int16),
    ):
        recognizer.begin()
        recognizer.push(sound)
        assert recognizer.finish() == []


@needs_model
@pytest.mark.slow
@pytest.mark.parametrize("every", [pytest.param(8000, marks=pytest.mark.long), 40 * 16_000])
def test_forty_seconds_without_a_pause(recognizer, every):
    """A long segment is split between words, which keep their times."""
    sound = np.concatenate([media.speech_samples(25.5)] * 2)[: 40 * 16_000]
    recognizer.begin()
    counts = [0]
    for at in range(0, len(sound), every):
        recognizer.push(sound[at : at + every])
        counts += [len(recognizer.partial())] if every < len(sound) else []
    words = recognizer.finish()
    check_words(words, 40)
    said = text(words).lower()
    assert all(part in said for part in ("so happy", "very angry", "so afraid", "sad and lonely", "next meeting"))
    assert said.count("so happy") == 2 and len(words) >= 70
    assert every == len(sound) or (counts[-1] > 0.8 * len(words) and min(np.diff(counts)) > -5)
    happy = [word for word in words if word.word == "happy."]
    assert abs(happy[1].start_s - happy[0].start_s - 25.5) < 0.5


@needs_model
@pytest.mark.slow
def test_a_draft_changes_the_work_not_the_words(recognizer, monkeypatch):
    network, sound = recognizer._network, media.speech_samples(4)[SPOKEN]
    steps = []
    real = network._step
    monkeypatch.setattr(network, "_step", lambda *args: steps.append(args) or real(*args))
    tokens = network.transcribe(sound)
    numbers, alone = [token.number for token in tokens], len(steps)
    for draft, most in (
        (numbers, 1),
        (numbers[:5], alone - 4),
        ([*numbers[:3], 77, 78], alone - 2),
        ([77] * 500, alone),
    ):
        steps.clear()
        assert [token.number for token in network.transcribe(sound, draft)] == numbers
        assert len(steps) <= most
    stopped = RunOptions()
    stopped.terminate = True
    with pytest.raises(Exception, match="[Tt]erminat"):
        network.transcribe(sound, (), stopped)


def tokens_of(*numbers: int) -> list[Token]:
    return [Token(number, 1.0) for number in numbers]


def test_loops_are_cut_to_one_round():
    repeats = moonshine_network._repeats
    assert repeats(tokens_of(5, 6, 7, 7, 7)) is None  # a word may be said three times
    assert repeats(tokens_of(5, 6, 7, 7, 7, 7)) == 3
    assert repeats(tokens_of(5, *[8, 9, 10] * 4)) == 4
    assert repeats(tokens_of(5, *[8, 9, 10] * 4, 11)) is None
    assert repeats([]) is None


def test_the_file_of_tokens():
    assert read_tokens(b"\x01a\x00\x03\xe2\x96\x81") == [b"a", b"", "▁".encode()]
    long = b"x" * 200
    assert read_tokens(bytes([200 - 128 + 128 - 128 + 128, 1]) + long) == [long]
    for cut in (b"\x05ab", b"\x01a\x02", bytes([200])):
        with pytest.raises(ModelError, match="cut"):
            read_tokens(cut)


@pytest.mark.slow
@needs_model
def test_damaged_and_missing_files_are_model_errors(tmp_path, monkeypatch):
    folder = tmp_path / models.MOONSHINE
    assert FOLDER is not None
    shutil.copytree(FOLDER, folder)
    monkeypatch.setenv("EMOSTREAM_MODELS", str(tmp_path))
    assert models.need(models.MOONSHINE) == folder and models.verify(models.MOONSHINE, folder)
    for name in ("tokenizer.bin", "decoder_model_merged.ort"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:1000] + b"!" + whole[1001:])
        with pytest.raises(ModelError, match=r"not that of moonshine-voice 0\.0\.48"):
            make_recognizer(Speech(recognizer="moonshine"))
        (folder / name).write_bytes(whole)
    (folder / "encoder_model.ort").write_bytes(b"not a network")
    monkeypatch.setattr(models, "verify", lambda name, path: True)
    with pytest.raises(ModelError, match="cannot load it"):
        make_recognizer(Speech(recognizer="moonshine"))
    monkeypatch.undo()
    with pytest.raises(ModelError, match="cannot be read"):
        moonshine.MoonshineRecognizer(tmp_path / "nowhere")


@pytest.mark.slow
def test_what_auto_takes(tmp_path, monkeypatch, caplog):
    there: dict[str, Path] = {}
    monkeypatch.setattr(models, "find", lambda name, configured="": there.get(name))
    with caplog.at_level("INFO"):
        recognizer = make_recognizer(Speech())
    assert recognizer is not None and recognizer.name == "pocketsphinx"
    assert f"in place of Moonshine, which errs far less: {models.how_to_get(models.MOONSHINE)}" in caplog.text
    with pytest.raises(ModelError, match=f"no {models.MOONSHINE} model found; run: "):
        make_recognizer(Speech(recognizer="moonshine"))
    with pytest.raises(ModelError, match="Moonshine only recognises English"):
        make_recognizer(Speech(recognizer="moonshine", language="fr"))
    there[models.MOONSHINE] = tmp_path
    with pytest.raises(ModelError, match="cannot be read"):  # damaged: an error, not another recogniser
        make_recognizer(Speech())
    assert make_recognizer(Speech(language="fr")) is None
    if FOLDER is not None:
        there[models.MOONSHINE] = FOLDER
        recognizer = make_recognizer(Speech())
        assert recognizer is not None and recognizer.name == "moonshine"


@needs_model
@pytest.mark.process
def test_words_of_a_run_are_as_written(tmp_path):
    path, out = media.audio_only(tmp_path / "talk.wav", 4.0), tmp_path / "labels.jsonl"
    with Pipeline("--stream", f"file:{path}", "--set", "speech.recognizer=moonshine", "--jsonl", out) as run:
        assert run.finish(60) == 0, run.output
    assert "speech recognition: moonshine" in run.output
    (label,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (
        tokens(label["text"]) == FIRST
        and label["text"].endswith("so happy.")
        and label["modalities"]["text"]["frames"] >= 12
    )
    starts = [word["start_s"] for word in label["words"]]
    assert starts == sorted(starts) and label["start_s"] - 0.3 < starts[0] and label["words"][-1]["end_s"] < 3.5
