"""Recordings are what a live run makes of the same file."""

import numpy as np
import pytest
import soundfile

from emostream.errors import SourceError
from emostream.stream import models
from emostream.stream.config import Config, Speech
from emostream.stream.features import logmel, mfcc
from emostream.stream.label import Labeller
from emostream.stream.sources.base import AudioChunk
from emostream.stream.speech.vad import SileroVad
from emostream.train.recordings import Recording, Sound, read_sound, utterances
from tests import media


@pytest.fixture(scope="module")
def vad():
    return SileroVad(models.need("silero-vad"))


@pytest.mark.slow
def test_utterances_are_those_of_a_live_run(bundle, vad):
    labels = list(Labeller(Config(speech=Speech(recognizer="none"))).label(media.DEMO))
    sound = read_sound(media.DEMO)
    bounds = utterances(sound, vad, Speech())
    assert [(start / 1e9, end / 1e9) for start, end in bounds] == [
        (pytest.approx(label.start_s, abs=1e-3), pytest.approx(label.end_s, abs=1e-3)) for label in labels
    ]
    assert len(bounds) == 5
    assert utterances(sound, vad, Speech()) == bounds  # nothing is left over from the run before
    assert len(utterances(sound, vad, Speech(max_utterance_s=1))) > 5


def test_samples_and_rows_of_a_file(tmp_path):
    samples = media.speech_samples(1.0)
    soundfile.write(tmp_path / "one.wav", samples, 16_000)
    sound = read_sound(tmp_path / "one.wav")
    whole = len(samples) // 512 * 512
    assert np.array_equal(sound.samples, samples[:whole]) and sound.samples.dtype == np.int16
    assert sound.start_ns == 0 and sound.end_ns == whole * 62_500
    assert np.allclose(sound.rows(), logmel.logmel(samples), atol=1e-5)  # BLAS may add in another order for fewer rows
    assert np.array_equal(sound.row_times(), np.arange(len(sound.rows())) * 10_000_000)
    assert np.array_equal(sound.rows(100_000_000, 200_000_000), sound.rows()[10:17])  # row 16 ends at 192 ms
    assert np.allclose(read_sound(tmp_path / "one.wav", "mfcc").rows(), mfcc.mfcc(samples), atol=1e-4)


def test_samples_give_the_rows_of_their_file(tmp_path):
    samples = media.speech_samples(1.0)
    soundfile.write(tmp_path / "one.wav", samples, 16_000)
    assert np.array_equal(Sound.from_samples(samples).rows(), read_sound(tmp_path / "one.wav").rows())


def test_a_gap_is_silence_on_an_even_timeline():
    sound = Sound()
    for start_ms in (0, 640):
        sound.push(AudioChunk(np.full((5120, 1), 0.5, np.float32), 16_000, start_ms * 1_000_000))
    sound.flush()
    blocks = sound.samples.reshape(-1, 5120)
    assert [int(block[0]) for block in blocks] == [16384, 0, 16384] and (blocks.std(axis=1) == 0).all()


def test_a_recording_without_sound_and_one_that_is_not_finite(tmp_path):
    assert read_sound(media.video_only(tmp_path / "mute.mp4", 5)) is None
    soundfile.write(tmp_path / "odd.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(SourceError, match="odd.wav: sound at 0.00 s is not finite"):
        read_sound(tmp_path / "odd.wav")


def test_frames_come_beside_the_sound(tmp_path):
    recording = Recording(media.talking_face(tmp_path / "face.mkv", 1.0), frozenset({"audio", "video"}), fps=10)
    assert 9 <= len(list(recording.frames())) <= 11
    assert len(recording.sound.rows()) > 80
