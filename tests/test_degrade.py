"""train/bundle/degrade.py"""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from emostream.train.bundle.degrade import (
    CONDITIONS,
    Surroundings,
    add,
    augment,
    clipped,
    degrade,
    in_room,
    surroundings,
    telephone,
)
from tests import media

_RNG = np.random.default_rng(0)
_SPEECH = media.speech_samples(2.0)
_AROUND = Surroundings(
    noises=[_RNG.normal(size=40_000).astype(np.float32)],
    voices=[media.speech_samples(4.0).astype(np.float32)],
    rooms=[np.concatenate([[1.0], 0.05 * _RNG.normal(size=3000)]).astype(np.float32)],
)


def _db(x: np.ndarray) -> float:
    return float(10 * np.log10((x.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_is_the_same_each_time_and_as_long_as_the_speech(condition):
    once, again = (degrade(_SPEECH, condition, _AROUND, seed=3) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.shape == _SPEECH.shape
    assert once.dtype == np.int16
    assert (condition == "clean") == np.array_equal(once, _SPEECH)


@pytest.mark.parametrize("condition", ["white 10 dB", "noise 10 dB", "babble 5 dB"])
def test_another_seed_is_another_noise(condition):
    assert not np.array_equal(degrade(_SPEECH, condition, _AROUND, 0), degrade(_SPEECH, condition, _AROUND, 1))


def test_quiet_is_34_db_lower():
    assert _db(degrade(_SPEECH, "quiet", _AROUND, 0)) == pytest.approx(_db(_SPEECH) - 34, abs=0.5)


def test_noise_has_the_ratio_asked_for_and_silence_makes_no_difference():
    rng = np.random.default_rng(1)
    speech = rng.normal(0, 1000, 16_000).astype(np.float32)
    half_silent = np.concatenate([speech, np.zeros(8000, np.float32)])
    for x in (speech, half_silent):
        noise = rng.normal(size=len(x)).astype(np.float32)
        assert _db(add(x, noise, 10) - x) == pytest.approx(_db(speech) - 10, abs=0.6)


def test_a_telephone_carries_300_to_3400_hz():
    noise = np.random.default_rng(0).normal(0, 3000, 32_000)
    before, after = (np.abs(np.fft.rfft(x)) ** 2 for x in (noise, telephone(noise)))
    hz = np.fft.rfftfreq(len(noise), 1 / 16_000)

    def change_db(low: float, high: float) -> float:
        band = (hz >= low) & (hz < high)
        return float(10 * np.log10(after[band].sum() / before[band].sum()))

    assert change_db(400, 3300) == pytest.approx(0, abs=1)
    assert change_db(0, 120) < -20
    assert change_db(4200, 8000) < -30


def test_a_room_without_echo_changes_nothing():
    x = _SPEECH.astype(np.float32)
    np.testing.assert_allclose(in_room(x, np.array([1.0], np.float32)), x, atol=0.1)


def test_clipping_flattens_peaks_and_keeps_the_peak():
    x = _SPEECH.astype(np.float32)
    y = clipped(x, 18)
    peak = np.abs(x).max()
    assert np.abs(y).max() == peak
    assert (np.abs(y) == peak).mean() > 0.01


def test_augmented_speech_is_stretched_as_it_says_and_at_any_level():
    rng = np.random.default_rng(0)
    peaks = []
    for _ in range(20):
        changed, stretch = augment(_SPEECH, _AROUND, rng)
        assert len(changed) == pytest.approx(len(_SPEECH) * stretch, abs=3)
        peaks.append(20 * np.log10(np.abs(changed.astype(float)).max() / 32768))
    assert min(peaks) < -35
    assert max(peaks) > -15


@pytest.mark.slow
def test_what_judges_is_not_trained_with(tmp_path):
    for folder in ("noise/esc10", "noise/other", "meetings", "rir"):
        (tmp_path / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, format: str = "FLAC", subtype: str = "PCM_16") -> None:
        x = rng.normal(0, 0.1, 8000)
        x[0] = 0.9
        soundfile.write(tmp_path / name, x, 16_000, format=format, subtype=subtype)

    for fold in range(1, 6):
        write(f"noise/esc10/rain_{fold}-17367-A.opus", "OGG", "OPUS")
    for i in range(8):
        write(f"noise/other/noise_{i}.flac")
        write(f"rir/room_{i}.flac")
    for name in ("trn01", "dev00", "tst00"):
        write(f"meetings/{name}.opus", "OGG", "OPUS")
    training, judging = surroundings(tmp_path, judging=False), surroundings(tmp_path, judging=True)
    assert [len(x) for x in (training.noises, training.voices, training.rooms)] == [4 + 6, 2, 6]
    assert [len(x) for x in (judging.noises, judging.voices, judging.rooms)] == [1 + 2, 1, 2]
    for kind in ("noises", "voices", "rooms"):
        kept = {x.tobytes() for x in getattr(judging, kind)}
        assert not kept & {x.tobytes() for x in getattr(training, kind)}
    assert all(room[0] == 1 for room in training.rooms)
