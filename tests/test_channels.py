"""Which of several channels is heard."""

from __future__ import annotations

import numpy as np
import pytest

from emostream.stream.cores.channels import Channels

RATE = 16_000


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """(n,) two seconds like a voice: silence, then syllables of harmonics of 140 Hz."""
    t = np.arange(2 * RATE) / RATE
    tone = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
    syllables = (np.sin(2 * np.pi * 3 * t) > -0.3) & (t > 0.5)
    return (0.05 * tone * syllables).astype(np.float32)


def noise(level: float, channels: int, seconds: float = 2.0) -> np.ndarray:
    return (level * np.random.default_rng(1).standard_normal((int(seconds * RATE), channels))).astype(np.float32)


def heard(samples: np.ndarray, choice: str = "auto", chunk: int = 480, channels: Channels | None = None) -> np.ndarray:
    channels = channels or Channels(choice)
    return np.concatenate([channels.mono(samples[at : at + chunk], RATE) for at in range(0, len(samples), chunk)])


def level_db(ours: np.ndarray, wanted: np.ndarray) -> float:
    """How loud ``wanted`` is in ours, in dB."""
    scale = float(ours @ wanted / (wanted @ wanted))
    return 20 * np.log10(max(1e-9, abs(scale)))


CASES = {
    "left alone": lambda v: np.stack([v, 0 * v], axis=1),
    "right alone": lambda v: np.stack([0 * v, v], axis=1),
    "opposite phase": lambda v: np.stack([v, -v], axis=1),
    "nearly opposite phase": lambda v: np.stack([v, -0.9 * v], axis=1),
    "centre of 5.1": lambda v: np.stack([0 * v, 0 * v, v, 0 * v, 0 * v, 0 * v], axis=1),
    "one of eight": lambda v: np.stack([0 * v] * 5 + [v] + [0 * v] * 2, axis=1),
    "one of eight, two of them half": lambda v: np.stack([v / 2, v / 2] + [0 * v] * 3 + [v] + [0 * v] * 2, axis=1),
}


@pytest.mark.parametrize("chunk", [160, 512, 1024, 8000])
@pytest.mark.parametrize("form", CASES.values(), ids=CASES)
def test_a_voice_in_some_channels_is_as_loud_as_it_was_from_its_first_sound_on(voice, form, chunk):
    ours = heard(form(voice) + noise(0.0005, form(voice).shape[1]), chunk=chunk)
    assert level_db(ours, voice) > -1.2
    begin = slice(int(0.5 * RATE), int(0.6 * RATE))
    assert level_db(ours[begin], voice[begin]) > -2.5


def test_noise_on_another_channel_from_the_first_sample_on_is_no_first_word(voice):
    other = noise(0.02, 1)[:, 0]
    ours = heard(np.stack([voice, other], axis=1) + noise(0.0005, 2))
    begin = slice(int(0.55 * RATE), int(0.7 * RATE))
    assert level_db(ours[begin], voice[begin]) > -1.5 and level_db(ours[begin], other[begin]) < -20


def test_a_voice_that_both_channels_have_is_their_mean_to_the_bit(voice):
    samples = np.stack([voice, 0.8 * voice], axis=1) + noise(0.001, 2)
    assert np.array_equal(heard(samples), samples.mean(axis=1, dtype=np.float32))


def test_one_channel_stays_as_it_is(voice):
    assert np.array_equal(heard(voice[:, None]), voice)


def test_two_speakers_with_a_channel_each_are_both_heard(voice):
    nothing = np.zeros_like(voice)
    left, right = np.stack([voice, nothing], 1), np.stack([nothing, voice], 1)
    samples = np.concatenate([left, right, left])
    ours = heard(samples + noise(0.0005, 2, 6.0))
    for part in np.split(ours, 3):
        assert level_db(part, voice) > -1.2


def test_hum_or_noise_on_another_channel_is_not_taken_for_a_voice(voice):
    t = np.arange(len(voice)) / RATE
    hum = (0.3 * np.sign(np.sin(2 * np.pi * 50 * t))).astype(np.float32)
    samples = np.stack([voice, hum, *noise(0.1, 2).T], axis=1)
    ours = heard(np.concatenate([samples, samples]))[len(voice) :]
    assert level_db(ours, voice) > -1.5
    rest = ours - voice * float(ours @ voice / (voice @ voice))
    assert np.std(rest[: RATE // 2]) < 0.05


def test_changes_make_no_click(voice):
    t = np.arange(len(voice)) / RATE
    low = (0.1 * np.sin(2 * np.pi * 100 * t)).astype(np.float32)
    ours = heard(np.stack([low, -low], 1))
    assert np.abs(np.diff(ours)).max() < 0.02


@pytest.mark.parametrize(("choice", "wanted"), [("1", [1, 0, 0]), ("3", [0, 0, 1]), ("1,3", [0.5, 0, 0.5])])
def test_channels_that_were_asked_for(voice, choice, wanted):
    samples = noise(0.1, 3)
    np.testing.assert_allclose(heard(samples, choice), samples @ np.float32(wanted), atol=1e-6)


def test_mean_is_the_mean(voice):
    samples = np.stack([voice, -voice], 1)
    assert not heard(samples, "mean").any()


def test_channels_that_are_not_there_are_told_once(voice, caplog):
    samples = noise(0.1, 2)
    assert np.array_equal(heard(samples, "2,7"), samples[:, 1])
    assert len(caplog.records) == 1
    np.testing.assert_allclose(heard(samples, "5"), samples.mean(axis=1), atol=1e-6)


def test_another_number_of_channels_begins_anew(voice):
    channels = Channels()
    heard(np.stack([0 * voice, voice], 1), channels=channels)
    three = np.stack([voice] * 3, 1)
    assert np.array_equal(heard(three, channels=channels), heard(three))


@pytest.mark.parametrize("form", CASES.values(), ids=CASES)
def test_a_recording_that_begins_within_a_word_is_heard_from_there(voice, form):
    within = voice[int(0.55 * RATE) :]
    assert level_db(heard(form(within))[: RATE // 5], within[: RATE // 5]) > -2.5


@pytest.mark.parametrize("count", [2, 6, 32])
def test_silence_is_silence(count):
    assert not heard(np.zeros((RATE, count), np.float32)).any()
