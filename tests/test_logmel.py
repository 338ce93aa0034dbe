"""stream/features/logmel.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.features.logmel import DIM, LogMel, logmel
from tests import media

_SPEECH = media.speech_samples(2.0)


def _stream(pieces: list[np.ndarray]) -> np.ndarray:
    extractor = LogMel()
    return np.concatenate([*(extractor.push(piece) for piece in pieces), extractor.flush()])


def _reference(samples: np.ndarray) -> np.ndarray:
    """The definition, by a discrete Fourier transform written out in double precision."""
    n = np.arange(512)
    window = np.where((n >= 56) & (n < 456), 0.5 - 0.5 * np.cos(2 * np.pi * (n - 56) / 400), 0.0)
    transform = np.exp(-2j * np.pi * np.outer(n, np.arange(257)) / 512)

    def slaney(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)

    edges = slaney(60) + (slaney(3800) - slaney(60)) * np.arange(34) / 33
    edges_hz = [mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27) for mel in edges]
    filters = np.zeros((257, 32))
    for band, (low, middle, high) in enumerate(zip(edges_hz, edges_hz[1:], edges_hz[2:], strict=False)):
        for k in range(257):
            hz = k * 31.25
            if low < hz < high:
                slope = (hz - low) / (middle - low) if hz <= middle else (high - hz) / (high - middle)
                filters[k, band] = slope * 2 / (high - low)
    rows = []
    for start in range(0, len(samples) - 511, 160):
        power = np.abs((samples[start : start + 512] * window) @ transform) ** 2
        rows.append(np.log10(np.maximum(power @ filters, 1e-10)) + 2)
    return np.array(rows)


@given(st.integers(0, len(_SPEECH)), st.lists(st.integers(0, len(_SPEECH)), max_size=12))
def test_any_chunking_equals_the_whole(n, cuts):
    samples = _SPEECH[:n]
    rows = _stream(np.split(samples, sorted(min(cut, n) for cut in cuts)))
    assert rows.shape == (max(0, 1 + (n - 512) // 160), DIM)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, logmel(samples), atol=1e-4)


def test_rows_follow_the_definition():
    samples = _SPEECH[8000:12_000]
    np.testing.assert_allclose(logmel(samples), _reference(samples), atol=1e-3)


def test_ten_times_the_amplitude_is_two_more():
    noise = np.random.default_rng(0).integers(-300, 300, 4000).astype(np.int16)
    np.testing.assert_allclose(logmel(noise * np.int16(10)), logmel(noise) + 2, atol=1e-3)


def test_digital_silence_is_the_smallest_value():
    np.testing.assert_allclose(logmel(np.zeros(16_000, np.int16)), np.full((97, DIM), -8.0), rtol=1e-6)


def test_a_row_comes_with_its_last_sample():
    extractor = LogMel()
    assert len(extractor.push(_SPEECH[:511])) == 0
    assert len(extractor.push(_SPEECH[511:512])) == 1
    assert len(extractor.push(_SPEECH[512:671])) == 0
    assert len(extractor.push(_SPEECH[671:672])) == 1


@pytest.mark.parametrize("wrong", [np.zeros(800, np.float32), np.zeros((800, 1), np.int16), np.zeros(800, np.int32)])
def test_other_arrays_than_mono_int16_are_refused(wrong):
    with pytest.raises(TypeError, match="int16"):
        LogMel().push(wrong)


@pytest.mark.parametrize("forget", ["flush", "reset"])
def test_nothing_of_the_last_signal_is_left(forget):
    extractor = LogMel()
    extractor.push(_SPEECH[:5000])
    getattr(extractor, forget)()
    np.testing.assert_allclose(extractor.push(_SPEECH[16_000:20_000]), logmel(_SPEECH[16_000:20_000]), atol=1e-4)
