"""stream/features/voice.py, train/bundle/voice.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.engines.onnx import OnnxRuntime
from emostream.stream.features.logmel import DIM as MELS
from emostream.stream.features.logmel import logmel
from emostream.stream.features.voice import DIM, LEVEL, REACH, STRIDE, VoiceEncoder, level, normalise
from emostream.train.bundle.voice import VoiceNet, export
from tests import media

_ROWS = logmel(media.speech_samples(5.0))


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> OnnxRuntime:
    torch.manual_seed(0)
    path: Path = tmp_path_factory.mktemp("voice") / "voice.onnx"
    export(VoiceNet(7), path)
    return OnnxRuntime(path)


def _encoder(graph: OnnxRuntime) -> VoiceEncoder:
    return VoiceEncoder(lambda rows: graph.run({"rows": rows})["vectors"])


def _at_once(graph: OnnxRuntime, rows: np.ndarray) -> np.ndarray:
    return _encoder(graph).encode(rows)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, len(_ROWS)), before=st.lists(st.integers(0, len(_ROWS)), max_size=8))
def test_vectors_are_the_same_whatever_was_encoded_before(graph, n, before):
    """Rows come bit by bit; if an utterance ends before an estimate's end, there are fewer again."""
    encoder = _encoder(graph)
    for m in before:
        encoder.encode(_ROWS[:m])
    vectors = encoder.encode(_ROWS[:n])
    assert vectors.shape == (-(-n // STRIDE), DIM)
    np.testing.assert_allclose(vectors, _at_once(graph, _ROWS[:n]), atol=1e-5)


def test_only_the_last_vectors_are_computed():
    lengths = []

    def run(rows: np.ndarray) -> np.ndarray:
        lengths.append(rows.shape[1])
        return np.zeros((1, rows.shape[1] // STRIDE, DIM), np.float32)

    encoder = VoiceEncoder(run)
    for n in range(25, 525, 25):
        encoder.encode(np.full((n, MELS), 8, np.float32))
    assert max(lengths) <= 96


def test_a_vector_depends_on_as_many_rows_as_said(graph):
    rows = np.full((25 * STRIDE, MELS), LEVEL, np.float32)

    def run(changed: int) -> np.ndarray:
        other = rows.copy()
        other[changed] += 3
        return graph.run({"rows": other[None]})["vectors"][0, 12]

    first, last, plain = 12 * STRIDE - REACH, 13 * STRIDE - 1 + REACH, graph.run({"rows": rows[None]})["vectors"][0, 12]
    for outside in (first - 1, last + 1):
        np.testing.assert_array_equal(run(outside), plain)
    for inside in (first, last):
        assert np.abs(run(inside) - plain).max() > 0


def test_a_microphones_gain_makes_no_difference(graph):
    samples = media.speech_samples(3.0)
    loud, quiet = (_at_once(graph, logmel((samples * gain).astype(np.int16))) for gain in (0.8, 0.04))
    assert np.abs(loud - quiet).mean() < 0.1 * loud.std()


def test_level_is_that_of_the_mean_power():
    rows = np.array([[8.0] * MELS, [6.0] * MELS], np.float32)
    assert level(rows) == 8  # log10((10 ** 8 + 10 ** 6) / 2) is 7.70
    assert normalise(rows, 9.0).tolist() == [[9.0] * MELS, [7.0] * MELS]


def test_rows_far_below_the_level_are_raised():
    assert normalise(np.full((1, MELS), -8, np.float32), 8.0).max() == LEVEL - 5


def test_reset_forgets(graph):
    encoder = _encoder(graph)
    encoder.encode(_ROWS[:100])
    encoder.reset()
    assert encoder.encode(_ROWS[:0]).shape == (0, DIM)
    np.testing.assert_array_equal(encoder.encode(_ROWS[200:300]), _at_once(graph, _ROWS[200:300]))
