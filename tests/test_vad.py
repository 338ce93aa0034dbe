"""stream/speech/vad.py"""

from __future__ import annotations

import numpy as np
import onnxruntime

from emostream.stream import models
from emostream.stream.speech.vad import FRAME_SAMPLES, load_vad


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
    """As the network expects it: 64 samples of context, then the frame; its state is passed on."""
    session = onnxruntime.InferenceSession(str(models.find("silero-vad")), providers=["CPUExecutionProvider"])
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
