"""Voice activity: Silero VAD on ONNX Runtime."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Self

import numpy as np

from emostream.stream import models

RATE_HZ = 16_000
FRAME_SAMPLES = 512  # 32 ms, the only frame length that the network takes at 16 kHz
FRAME_NS = 1_000_000_000 * FRAME_SAMPLES // RATE_HZ
_CONTEXT = 64  # samples of the previous frame that the network takes before each frame


class SileroVad:
    """Speech probability of each 32 ms frame (Silero Team, "Silero VAD", 2021). Stateful; ``reset`` forgets."""

    def __init__(self, model: Path) -> None:
        import onnxruntime  # here, since other nodes only need the constants above

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._rate = np.array(RATE_HZ, np.int64)
        self.reset()

    def reset(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + FRAME_SAMPLES), np.float32)

    def twin(self) -> Self:
        """Another instance that has heard nothing yet. The two share the network."""
        twin = copy(self)
        twin.reset()
        return twin

    def push(self, frame: np.ndarray) -> float:
        """Probability in [0, 1] that this (512,) int16 frame holds speech."""
        self._fill(frame)
        probability, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._rate}
        )
        return float(probability[0, 0])

    def push_both(self, frame: np.ndarray, twin: Self, frame_of_twin: np.ndarray) -> tuple[float, float]:
        """``push`` for this instance and its twin in one run of the network: two thirds of the time of two runs."""
        self._fill(frame)
        twin._fill(frame_of_twin)
        inputs, states = np.concatenate([self._input, twin._input]), np.concatenate([self._state, twin._state], axis=1)
        probabilities, states = self._session.run(None, {"input": inputs, "state": states, "sr": self._rate})
        self._state, twin._state = states[:, :1], states[:, 1:]
        return float(probabilities[0, 0]), float(probabilities[1, 0])

    def _fill(self, frame: np.ndarray) -> None:
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = frame
        self._input[0, _CONTEXT:] /= 32768.0


def load_vad(configured: str = "") -> SileroVad:
    """Silero VAD from the ``configured`` file; if empty, from where it is installed. Raises ModelError."""
    return SileroVad(models.need("silero-vad", configured))
