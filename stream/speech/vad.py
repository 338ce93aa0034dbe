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
    """Speech probability of each 32 ms frame (Silero Team, "Silero VAD", 2021). Stateful; ``reset`` forgets.

    ``model``: of Silero's files, which take one frame a run, or ours with the same weights, which takes several
    (``tools/vad_graph.py``): three frames in one run take half of the time of three runs."""

    def __init__(self, model: Path) -> None:
        import onnxruntime  # here, since other nodes only need the constants above

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._takes_several = self._session.get_inputs()[0].name == "frames"
        self._rate = np.array(RATE_HZ, np.int64)
        self.reset()

    def reset(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.int16)

    def twin(self) -> Self:
        """Another instance that has heard nothing yet. The two share the network."""
        twin = copy(self)
        twin.reset()
        return twin

    def push(self, frame: np.ndarray) -> float:
        """Probability in [0, 1] that this (512,) int16 frame holds speech."""
        return float(self.push_all(frame[None])[0])

    def push_all(self, frames: np.ndarray) -> np.ndarray:
        """``push`` for successive frames, (n, 512) int16: (n,) float32."""
        probabilities, self._state = self._run(self._sound(frames)[None], self._state)
        return probabilities[:, 0]

    def push_both(self, frames: np.ndarray, twin: Self, frames_of_twin: np.ndarray) -> np.ndarray:
        """``push_all`` for this one and for its twin, in one run of the network: (n, 2)."""
        sound = np.stack([self._sound(frames), twin._sound(frames_of_twin)])
        states = np.concatenate([self._state, twin._state], axis=1)
        probabilities, states = self._run(sound, states)
        self._state, twin._state = states[:, :1], states[:, 1:]
        return probabilities

    def _sound(self, frames: np.ndarray) -> np.ndarray:
        """What the network takes, (n, 576) float32: each frame, and before it the end of the one before."""
        sound = np.empty((len(frames), _CONTEXT + FRAME_SAMPLES), np.float32)
        sound[0, :_CONTEXT] = self._context
        sound[1:, :_CONTEXT] = frames[:-1, -_CONTEXT:]
        sound[:, _CONTEXT:] = frames
        sound /= 32768.0
        self._context = frames[-1, -_CONTEXT:]
        return sound

    def _run(self, sound: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(streams, n, 576), state → (n, streams), state."""
        if self._takes_several:
            probabilities, state = self._session.run(None, {"frames": sound, "state": state})
            return probabilities, state
        each = []
        for frame in sound.swapaxes(0, 1):
            probability, state = self._session.run(None, {"input": frame, "state": state, "sr": self._rate})
            each.append(probability[:, 0])
        return np.stack(each), state


def load_vad(configured: str = "") -> SileroVad:
    """Silero VAD from the ``configured`` file; if empty, ours. Raises ModelError."""
    return SileroVad(models.need("silero-vad", configured))
