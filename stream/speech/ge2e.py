"""Speaker vectors by an LSTM, as trained and shipped by the package ``resemblyzer``.

L. Wan, Q. Wang, A. Papir, I. Lopez Moreno, "Generalized End-to-End Loss for Speaker Verification" (ICASSP 2018): three
layers of 256 on 40 mel bands, read in windows of 1.6 s. It was trained on thousands of voices, none of which can be
recovered from it.

Its weights come in a pickle that only torch reads and that could hold code. We never unpickle it: we check its hash and
read the numbers at their known offsets.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from emostream.errors import ModelError
from emostream.files import sha256
from emostream.stream import models
from emostream.stream.speech.speaker_vector import LEAST_S, RATE_HZ, telling

DIM = 256
_WINDOW, _HOP = 400, 160  # samples: 25 and 10 ms
_MELS = 40
_ROWS = 160  # per window: 1.6 s
_REST_ROWS = 40  # a shorter rest at the end of an utterance does not count
_LEVEL = 10 ** (-30 / 20)  # target root mean square of a voice, relative to full scale
_LAYERS = 3
_FIRST, _HIDDEN = 269_883, 256  # offset of the first LSTM weight in the file (the others follow directly); layer width
_LINEAR, _LINEAR_BIAS = 7_731, 6_699


State = list[tuple[np.ndarray, np.ndarray]]  # hidden state and cell of each layer


class Ge2eEncoder:
    """The network. Raises ModelError if the file is not the expected one."""

    def __init__(self, path: Path) -> None:
        try:
            if sha256(path) != models.MODELS["resemblyzer"].sha256:
                raise ModelError(f"{path}: is not the network of resemblyzer 0.1.4")
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror})") from error

        def numbers(at: int, *shape: int) -> np.ndarray:
            return np.frombuffer(data, "<f4", int(np.prod(shape)), at).reshape(shape).astype(np.float32)

        gates, at = 4 * _HIDDEN, _FIRST
        weights = []
        for layer in range(_LAYERS):
            width = _MELS if layer == 0 else _HIDDEN
            inner = numbers(at, gates, width)
            at += 4 * gates * width
            outer = numbers(at, gates, _HIDDEN)
            at += 4 * gates * _HIDDEN
            weights.append((inner.T.copy(), outer.T.copy()))
        biases = numbers(at, _LAYERS, 2, gates).sum(axis=1)
        self._layers = [(inner, outer, bias) for (inner, outer), bias in zip(weights, biases, strict=True)]
        self._linear, self._bias = numbers(_LINEAR, DIM, _HIDDEN).T.copy(), numbers(_LINEAR_BIAS, DIM)
        mean = np.load(Path(__file__).with_name("ge2e_mean.npy"), allow_pickle=False)
        self.common = mean.astype(np.float32)

    def read(self, rows: np.ndarray, state: State) -> State:
        """Read (n, 40) level-normalised mel rows, starting from a state; returns the state after them."""
        after: State = []
        for (inner, outer, bias), (hidden, cell) in zip(self._layers, state, strict=True):
            rows, cell = _lstm(rows @ inner + bias, outer, hidden, cell)
            after.append((rows[-1] if len(rows) else hidden, cell))
        return after

    def vector(self, state: State) -> np.ndarray:
        """The vector of what was read: (256,) float32 of length 1."""
        vector = np.maximum(state[-1][0] @ self._linear + self._bias, 0)
        unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return unit

    def new_vector(self) -> Ge2eVector:
        """A new vector for the utterances of one stream."""
        return Ge2eVector(self)


def _nothing_read() -> State:
    return [(np.zeros(_HIDDEN, np.float32), np.zeros(_HIDDEN, np.float32)) for _ in range(_LAYERS)]


def _lstm(gates: np.ndarray, outer: np.ndarray, hidden: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states (n, 256) and the last cell from what the input adds to the gates, (n, 1024), in torch's order."""
    states = np.empty((len(gates), _HIDDEN), np.float32)
    for t, added in enumerate(gates):
        gate = added + hidden @ outer
        gate[2 * _HIDDEN : 3 * _HIDDEN] *= 2  # tanh(x) = 2 / (1 + exp(-2 x)) - 1
        gate = 1 / (1 + np.exp(-np.clip(gate, -60, 60)))
        cell = gate[_HIDDEN : 2 * _HIDDEN] * cell + gate[:_HIDDEN] * (2 * gate[2 * _HIDDEN : 3 * _HIDDEN] - 1)
        hidden = states[t] = gate[3 * _HIDDEN :] * np.tanh(cell)
    return states, cell


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Window (400,) and mel filters (201, 40) on Slaney's scale, up to 8 kHz."""
    linear_hz, log_step = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(8.0) / log_step
    mel = np.linspace(0, top, _MELS + 2)
    edges = np.where(mel < 15, linear_hz * mel, 1000 * np.exp(log_step * (mel - 15)))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = (np.arange(_WINDOW // 2 + 1) * RATE_HZ / _WINDOW)[:, None]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    return window.astype(np.float32), (filters * 2 / (right - left)).astype(np.float32)


def mels(samples: np.ndarray) -> np.ndarray:
    """Mel power of each complete 25 ms window, every 10 ms: (n,) samples → (rows, 40) float32."""
    if len(samples) < _WINDOW:
        return np.zeros((0, _MELS), np.float32)
    window, filters = _tables()
    samples = np.ascontiguousarray(samples, np.float32)
    count = 1 + (len(samples) - _WINDOW) // _HOP
    frames = np.ndarray((count, _WINDOW), samples.dtype, samples, strides=(_HOP * samples.itemsize, samples.itemsize))
    spectrum = np.fft.rfft(frames * window)
    power: np.ndarray = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ filters
    return power


class Ge2eVector:
    """Computes the vector of the open utterance while it is spoken, so that nothing is left to do at its end. The
    network starts anew every 1.6 s, as it was trained; the last window is weighted by its length.

    Samples are normalised by the level of the utterance so far.
    """

    def __init__(self, encoder: Ge2eEncoder) -> None:
        self._encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Begin another utterance."""
        self._left = np.zeros(0, np.float32)  # samples that later rows need
        self._count, self._energy = 0, 0.0  # of all samples so far
        self._state, self._rows = _nothing_read(), 0  # of the open window
        self._sum = np.zeros(DIM, np.float32)

    @property
    def seconds(self) -> float:
        """How much has been heard."""
        return self._count / RATE_HZ

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz."""
        new = samples.astype(np.float32) / 32768
        self._count += len(new)
        self._energy += float(new @ new)
        self._left = np.concatenate([self._left, new])
        rows = mels(self._left)
        self._left = self._left[_HOP * len(rows) :]
        gain = _LEVEL / (np.sqrt(self._energy / max(1, self._count)) + 1e-7)
        rows *= np.float32(gain * gain)
        while len(rows):
            part = rows[: _ROWS - self._rows]
            rows = rows[len(part) :]
            self._state, self._rows = self._encoder.read(part, self._state), self._rows + len(part)
            if self._rows == _ROWS:
                self._sum += self._encoder.vector(self._state)
                self._state, self._rows = _nothing_read(), 0

    def value(self) -> np.ndarray | None:
        """The vector so far: (256,) float32 of length 1; None after less than 0.6 s."""
        if self.seconds < LEAST_S:
            return None
        if self._rows < _REST_ROWS and self._sum.any():
            return telling(self._sum, self._encoder.common)
        return telling(self._sum + self._rows / _ROWS * self._encoder.vector(self._state), self._encoder.common)
