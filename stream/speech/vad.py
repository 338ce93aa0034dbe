"""Voice activity: Silero VAD on ONNX Runtime, and the cutting of its probabilities into utterances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from emostream.stream.config import Speech

RATE_HZ = 16_000
FRAME_SAMPLES = 512  # 32 ms, the only frame length that the network takes at 16 kHz
FRAME_NS = 1_000_000_000 * FRAME_SAMPLES // RATE_HZ
_CONTEXT = 64  # samples of the last frame that the network wants before each frame


class SileroVad:
    """Speech probability of each 32 ms frame (Silero Team, "Silero VAD", 2021). Stateful; ``reset`` forgets."""

    def __init__(self, model: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._rate = np.array(RATE_HZ, np.int64)
        self.reset()

    def reset(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, _CONTEXT + FRAME_SAMPLES), np.float32)

    def push(self, frame: np.ndarray) -> float:
        """Probability in [0, 1] that this (512,) int16 frame holds speech."""
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = frame
        self._input[0, _CONTEXT:] /= 32768.0
        probability, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._rate}
        )
        return float(probability[0, 0])


SURE = 0.05  # a probability of speech that is as good as none
SURE_FRAMES = 4  # of 32 ms


@dataclass(frozen=True)
class EndpointEvent:
    """A change in who speaks. ``start_ns`` and ``end_ns`` are media times of the utterance's first and last speech
    (``end_ns``: so far); ``forced`` marks an end that came from the longest allowed utterance, not from silence."""

    kind: Literal["started", "paused", "resumed", "ended"]
    start_ns: int
    end_ns: int
    forced: bool = False


class Endpointer:
    """Turns frame probabilities into utterance bounds.

    An utterance starts once ``min_speech_ms`` of frames in a row reach ``threshold`` (its start is the first of
    them), pauses after ``pause_ms`` of frames below ``threshold - 0.15`` (Silero's own hysteresis), ends after
    ``hangover_ms`` of them, and is cut at ``max_utterance_s``; what follows a cut is a new utterance.

    With ``min_hangover_ms`` it ends that early where the silence is sure: where the probabilities of its last 128 ms
    are all below 0.05. After a breath, a trailing sound or in noise they are not, and it waits on. Both numbers are
    chosen by ``benchmarks/endpoint.py`` on recordings of real speech.
    """

    def __init__(
        self,
        threshold: float,
        min_speech_ms: float,
        pause_ms: float,
        hangover_ms: float,
        max_utterance_s: float,
        min_hangover_ms: float | None,
    ) -> None:
        self._on, self._off = threshold, max(threshold - 0.15, 0.01)
        self._min_speech_ns = int(min_speech_ms * 1e6)
        self._pause_ns = int(pause_ms * 1e6)
        self._hangover_ns = int(hangover_ms * 1e6)
        self._sure_ns = self._hangover_ns if min_hangover_ms is None else int(min_hangover_ms * 1e6)
        self._longest_ns = int(max_utterance_s * 1e9)
        self.reset()

    @classmethod
    def from_config(cls, config: Speech) -> Endpointer:
        """The endpointer of a live stream with these settings."""
        return cls(
            config.threshold, config.min_speech_ms, config.pause_ms, config.hangover_ms, config.max_utterance_s,
            config.min_hangover_ms,
        )  # fmt: skip

    def reset(self) -> None:
        self.speaking = False
        self._paused = False
        self._start: int | None = None  # media time of the first frame above the threshold
        self._end = 0  # end of the last speech frame
        self._silent = 0  # frames in a row that surely hold no speech

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks, nor may just have begun to."""
        return self._start is None

    def push(self, probability: float, start_ns: int, length_ns: int = FRAME_NS) -> list[EndpointEvent]:
        """Take the probability of the frame that begins at media time ``start_ns``; returns what changed."""
        end_ns = start_ns + length_ns
        if not self.speaking:
            if probability < self._on:
                self._start = None
                return []
            if self._start is None:
                self._start = start_ns
            self._end = end_ns
            if end_ns - self._start < self._min_speech_ns:
                return []
            self.speaking, self._paused = True, False
            return [EndpointEvent("started", self._start, self._end)]
        assert self._start is not None
        self._silent = self._silent + 1 if probability < SURE else 0
        if probability >= (self._on if self._paused else self._off):
            self._end = end_ns
            bounds = [EndpointEvent("resumed", self._start, self._end)] if self._paused else []
            self._paused = False
            if end_ns - self._start >= self._longest_ns:
                bounds.append(self.end(forced=True))
            return bounds
        silence = end_ns - self._end
        if silence >= self._hangover_ns or (silence >= self._sure_ns and self._silent >= SURE_FRAMES):
            return [self.end()]
        if end_ns - self._start >= self._longest_ns:
            return [self.end(forced=True)]
        if silence >= self._pause_ns and not self._paused:
            self._paused = True
            return [EndpointEvent("paused", self._start, self._end)]
        return []

    def so_far(self) -> EndpointEvent | None:
        """Bounds of the utterance that is open, or None. Its kind is ``paused`` or ``resumed``."""
        if not self.speaking or self._start is None:
            return None
        return EndpointEvent("paused" if self._paused else "resumed", self._start, self._end)

    def end(self, forced: bool = False) -> EndpointEvent:
        """End the utterance that is open, now."""
        assert self.speaking and self._start is not None
        bound = EndpointEvent("ended", self._start, self._end, forced)
        self.speaking, self._start = False, None
        return bound


def utterances(samples: np.ndarray, vad: SileroVad, endpointer: Endpointer) -> Iterator[tuple[int, int]]:
    """(start_ns, end_ns) of each utterance in a whole (n,) int16 recording at 16 kHz; resets both objects."""
    vad.reset()
    endpointer.reset()
    for i in range(0, len(samples) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        start_ns = i * 1_000_000_000 // RATE_HZ
        for bound in endpointer.push(vad.push(samples[i : i + FRAME_SAMPLES]), start_ns):
            if bound.kind == "ended":
                yield bound.start_ns, bound.end_ns
    if endpointer.speaking:
        bound = endpointer.end()
        yield bound.start_ns, bound.end_ns
