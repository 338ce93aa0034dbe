"""stream/features/mfcc.py"""

from __future__ import annotations

import kaldi_native_fbank
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.features.mfcc import DIM, N_MFCC, RATE_HZ, Mfcc, cepstra, mfcc
from tests import media

_SPEECH = media.speech_samples(2.0)


def _pieces(samples: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(samples, sorted(cuts))


def _stream(pieces: list[np.ndarray]) -> np.ndarray:
    extractor = Mfcc()
    return np.concatenate([*(extractor.push(piece) for piece in pieces), extractor.flush()])


@given(st.integers(0, len(_SPEECH)), st.lists(st.integers(0, len(_SPEECH)), max_size=12))
def test_any_chunking_equals_the_whole(n, cuts):
    samples = _SPEECH[:n]
    rows = _stream(_pieces(samples, [min(cut, n) for cut in cuts]))
    assert rows.shape == (max(0, 1 + (n - 400) // 160), DIM)
    np.testing.assert_allclose(rows, mfcc(samples), atol=1e-3)


def test_one_sample_at_a_time_equals_the_whole():
    samples = _SPEECH[16_000:17_700]
    np.testing.assert_allclose(_stream(list(samples.reshape(-1, 1))), mfcc(samples), atol=1e-3)


@pytest.mark.parametrize("part", ["speech", "noise", "tone"])
def test_static_cepstra_equal_those_of_kaldi(part):
    rng = np.random.default_rng(0)
    samples = {
        "speech": _SPEECH,
        "noise": rng.integers(-3000, 3000, 8000).astype(np.int16),
        "tone": (8000 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE_HZ)).astype(np.int16) + np.int16(1),
    }[part]
    np.testing.assert_allclose(cepstra(samples), _kaldi(samples), atol=1e-3, rtol=1e-3)


def _kaldi(samples: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.MfccOptions()
    options.frame_opts.samp_freq = RATE_HZ
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 40
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 7600
    options.num_ceps = 40
    options.use_energy = False
    options.cepstral_lifter = 0
    reference = kaldi_native_fbank.OnlineMfcc(options)
    reference.accept_waveform(RATE_HZ, samples.astype(np.float32).tolist())  # Kaldi keeps int16's scale
    reference.input_finished()
    return np.array([reference.get_frame(i) for i in range(reference.num_frames_ready)])


@pytest.mark.parametrize("n", [400, 560, 720, 1200, 4000])
def test_derivatives_are_the_regression_formula(n):
    """The HTK Book, equation 5.16, with the first and last row repeated beyond the ends."""
    static = cepstra(_SPEECH[16_000 : 16_000 + n])

    def slope(rows):
        out = np.zeros_like(rows)
        for t in range(len(rows)):
            for theta in (1, 2):
                after, before = rows[min(t + theta, len(rows) - 1)], rows[max(t - theta, 0)]
                out[t] += theta * (after - before) / (2 * (1**2 + 2**2))
        return out

    rows = mfcc(_SPEECH[16_000 : 16_000 + n])
    np.testing.assert_allclose(rows[:, :N_MFCC], static, atol=1e-4)
    np.testing.assert_allclose(rows[:, N_MFCC : 2 * N_MFCC], slope(static), atol=1e-3)
    np.testing.assert_allclose(rows[:, 2 * N_MFCC :], slope(slope(static)), atol=1e-3)


def test_a_row_comes_40_ms_after_its_last_sample():
    extractor = Mfcc()
    assert len(extractor.push(_SPEECH[: 400 + 4 * 160 - 1])) == 0
    assert len(extractor.push(_SPEECH[400 + 4 * 160 - 1 : 400 + 4 * 160])) == 1


@pytest.mark.parametrize("n", [0, 1, 399])
def test_too_short_a_signal_has_no_rows(n):
    assert mfcc(_SPEECH[:n]).shape == (0, DIM)


def test_400_samples_are_one_row_without_change():
    row = mfcc(_SPEECH[16_000:16_400])
    assert row.shape == (1, DIM)
    assert np.abs(row[0, :N_MFCC]).max() > 1
    assert not row[0, N_MFCC:].any()


def test_digital_silence_is_finite():
    rows = mfcc(np.zeros(16_000, np.int16))
    assert len(rows) == 98
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("wrong", [np.zeros(800, np.float32), np.zeros((800, 1), np.int16), np.zeros(800, np.int32)])
def test_arrays_other_than_mono_int16_are_refused(wrong):
    with pytest.raises(TypeError, match="int16"):
        Mfcc().push(wrong)


@pytest.mark.parametrize("forget", ["flush", "reset"])
def test_no_trace_of_the_last_signal_is_left(forget):
    extractor = Mfcc()
    extractor.push(_SPEECH[:5000])
    getattr(extractor, forget)()
    again = np.concatenate([extractor.push(_SPEECH[16_000:20_000]), extractor.flush()])
    np.testing.assert_allclose(again, mfcc(_SPEECH[16_000:20_000]), atol=1e-3)
