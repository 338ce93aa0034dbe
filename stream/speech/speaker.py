"""What a voice is like, whatever it says: one vector for each utterance, by which people are told apart.

The network is that of L. Wan, Q. Wang, A. Papir, I. Lopez Moreno, "Generalized End-to-End Loss for Speaker
Verification" (ICASSP 2018), as the package ``resemblyzer`` trained and ships it: three LSTM layers of 256 on 40 mel
bands, read over 1.6 s at a time. It was trained on thousands of voices, none of which can be told from it.

Its weights come in a file that only torch reads, and that could hold code. It is not read as such: its hash is checked,
and the numbers are taken from where they lie in it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from emostream.errors import ModelError
from emostream.files import sha256
from emostream.stream import models
from emostream.stream.config import Speech

DIM = 256
LEAST_S = 0.6  # of a voice: less tells little
_RATE_HZ = 16_000
_WINDOW, _HOP = 400, 160  # samples: 25 and 10 ms
_MELS, _FRAMES = 40, 160
_PART = _FRAMES * _HOP  # samples that are read at a time: 1.6 s
_REST_S = 0.4  # of an utterance, after the last whole part, that are worth another
_LEVEL = 10 ** (-30 / 20)  # to which a voice is brought: the root mean square of the samples, of full scale
_LAYERS = 3
_FIRST, _HIDDEN = 269_883, 256  # byte of the first LSTM weight in the file; the others follow without a gap
_LINEAR, _LINEAR_BIAS = 7_731, 6_699


class SpeakerEncoder:
    """The network. Raises ModelError if the file is not the one that is expected."""

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
        mean = np.load(Path(__file__).with_name("speaker_mean.npy"), allow_pickle=False)
        self._mean = mean.astype(np.float32)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """(n,) float samples at 16 kHz, up to 1.6 s at one level → (256,) float32 of length 1."""
        rows = mels(samples)
        for inner, outer, bias in self._layers:
            rows = _lstm(rows @ inner + bias, outer)
        vector = np.maximum(rows[-1] @ self._linear + self._bias, 0)
        unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return unit

    def telling(self, mean: np.ndarray) -> np.ndarray:
        """A mean of vectors without what most voices have in common: (256,) float32 of length 1."""
        vector = mean / max(float(np.linalg.norm(mean)), 1e-6) - self._mean
        unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return unit.astype(np.float32)


def _lstm(gates: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """States (n, 256) from what the input adds to the gates, (n, 1024), in torch's order."""
    state, cell = np.zeros(_HIDDEN, np.float32), np.zeros(_HIDDEN, np.float32)
    states = np.empty((len(gates), _HIDDEN), np.float32)
    for t, added in enumerate(gates):
        gate = added + state @ outer
        gate[2 * _HIDDEN : 3 * _HIDDEN] *= 2  # tanh(x) = 2 / (1 + exp(-2 x)) - 1
        gate = 1 / (1 + np.exp(-np.clip(gate, -60, 60)))
        cell = gate[_HIDDEN : 2 * _HIDDEN] * cell + gate[:_HIDDEN] * (2 * gate[2 * _HIDDEN : 3 * _HIDDEN] - 1)
        state = states[t] = gate[3 * _HIDDEN :] * np.tanh(cell)
    return states


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Window (400,) and mel filters (201, 40) on Slaney's scale, up to 8 kHz."""
    linear_hz, log_step = 200 / 3, np.log(6.4) / 27
    top = 15 + np.log(8.0) / log_step
    mel = np.linspace(0, top, _MELS + 2)
    edges = np.where(mel < 15, linear_hz * mel, 1000 * np.exp(log_step * (mel - 15)))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = (np.arange(_WINDOW // 2 + 1) * _RATE_HZ / _WINDOW)[:, None]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    return window.astype(np.float32), (filters * 2 / (right - left)).astype(np.float32)


def mels(samples: np.ndarray) -> np.ndarray:
    """Power in mel bands, a row each 10 ms, in its middle: (n,) samples → (n // 160, 40) float32."""
    window, filters = _tables()
    padded = np.pad(samples.astype(np.float32), _WINDOW // 2)
    count = len(samples) // _HOP
    frames = np.ndarray((count, _WINDOW), padded.dtype, padded, strides=(_HOP * padded.itemsize, padded.itemsize))
    spectrum = np.fft.rfft(frames * window)
    power: np.ndarray = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ filters
    return power


def load_speaker(config: Speech) -> SpeakerEncoder | None:
    """The network, if it is installed and wanted. Raises ModelError if it is another file."""
    path = models.find("resemblyzer") if config.speakers == "auto" else None
    return None if path is None else SpeakerEncoder(path)


class SpeakerVector:
    """The vector of the utterance that is open, part by part as it is spoken, so that little is left at its end."""

    def __init__(self, encoder: SpeakerEncoder) -> None:
        self._encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Begin another utterance."""
        self._samples = np.zeros(0, np.float32)  # of this utterance, in [-1, 1]
        self._sum, self._parts = np.zeros(DIM, np.float32), 0
        self._read = 0  # samples that whole parts have read
        self._rest: tuple[int, np.ndarray | None] = (0, None)  # of so many samples

    @property
    def seconds(self) -> float:
        """How much was heard."""
        return len(self._samples) / _RATE_HZ

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz, and read a part that is complete."""
        self._samples = np.concatenate([self._samples, samples.astype(np.float32) / 32768])
        if len(self._samples) - self._read >= _PART:
            self._sum += self._encode(self._read)
            self._read += _PART
            self._parts += 1

    def _encode(self, start: int) -> np.ndarray:
        level = float(np.sqrt(np.mean(self._samples**2))) + 1e-7
        return self._encoder.encode(self._samples[start : start + _PART] * (_LEVEL / level))

    def value(self) -> np.ndarray | None:
        """The vector so far: (256,) float32 of length 1; None after less than 0.6 s."""
        if self.seconds < LEAST_S:
            return None
        if self._rest[0] != len(self._samples):
            total, parts = self._sum, self._parts
            if not parts or (len(self._samples) - self._read) / _RATE_HZ >= _REST_S:
                total, parts = total + self._encode(max(0, len(self._samples) - _PART)), parts + 1
            self._rest = len(self._samples), self._encoder.telling(total)
        return self._rest[1]
