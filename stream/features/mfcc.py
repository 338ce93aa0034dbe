"""Mel-frequency cepstral coefficients with first and second time derivatives, computed as samples arrive.

The cepstra follow Kaldi's definition (``compute-mfcc-feats`` with Povey window, no dither, no energy term and no
liftering): frames lie entirely within the signal; each goes through mean removal, pre-emphasis, window, power
spectrum, mel filters, logarithm and an orthonormal DCT-II. The derivatives are the usual regression over ±2 frames
(Young et al., The HTK Book, 3.5, section 5.9).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

RATE_HZ = 16_000
FRAME_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
N_FFT = 512
N_MELS = 40
N_MFCC = 40
DIM = 3 * N_MFCC
LOW_HZ, HIGH_HZ = 20.0, 7600.0
PREEMPHASIS = 0.97
DELTA_REACH = 2  # frames on each side of the regression
FRAME_NS = 1_000_000_000 * FRAME_SAMPLES // RATE_HZ
HOP_NS = 1_000_000_000 * HOP_SAMPLES // RATE_HZ

SETTINGS = {
    "rate_hz": RATE_HZ, "frame_samples": FRAME_SAMPLES, "hop_samples": HOP_SAMPLES, "n_fft": N_FFT,
    "n_mels": N_MELS, "n_mfcc": N_MFCC, "low_hz": LOW_HZ, "high_hz": HIGH_HZ, "preemphasis": PREEMPHASIS,
    "window": "povey", "delta_reach": DELTA_REACH,
}  # fmt: skip


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Window (400,), mel filters (257, 40), DCT (40 mels, 40 cepstra); all float32."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1))
    window = hann**0.85

    def mel(hz: float | np.ndarray) -> Any:
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    edges = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), N_MELS + 2)
    bins = mel(np.arange(N_FFT // 2 + 1) * RATE_HZ / N_FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    filters[-1] = 0.0  # Kaldi leaves the Nyquist bin out

    k, n = np.arange(N_MFCC), np.arange(N_MELS)[:, None]
    dct = np.sqrt(2.0 / N_MELS) * np.cos(np.pi * k * (n + 0.5) / N_MELS)
    dct[:, 0] = np.sqrt(1.0 / N_MELS)
    return window.astype(np.float32), filters.astype(np.float32), dct.astype(np.float32)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] → int16, clipped as a sound card does."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def cepstra(samples: np.ndarray) -> np.ndarray:
    """Static cepstra of the frames that lie entirely within ``samples``.

    ``samples``: (n,) int16, 16 kHz. Returns (max(0, 1 + (n - 400) // 160), 40) float32.
    """
    if len(samples) < FRAME_SAMPLES:
        return np.zeros((0, N_MFCC), np.float32)
    window, filters, dct = _tables()
    samples = np.ascontiguousarray(samples)
    count, step = 1 + (len(samples) - FRAME_SAMPLES) // HOP_SAMPLES, samples.itemsize
    # not sliding_window_view: each call interns new strings, so that Python's table of them grows for ever
    shape, strides = (count, FRAME_SAMPLES), (HOP_SAMPLES * step, step)
    frames = np.ndarray(shape, samples.dtype, samples, strides=strides).astype(np.float32)
    frames = frames - frames.mean(axis=1, keepdims=True)  # (F, 400)
    shifted = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - PREEMPHASIS * shifted) * window, N_FFT)  # (F, 257)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    static: np.ndarray = np.log(np.maximum(power @ filters, np.finfo(np.float32).eps)) @ dct
    return static


def _regression(rows: np.ndarray) -> np.ndarray:
    """Regression slope over ±2 rows: (n + 4, d) → (n, d)."""
    n = len(rows) - 2 * DELTA_REACH
    weights = 2 * sum(i * i for i in range(1, DELTA_REACH + 1))
    slope: Any = sum(
        i * (rows[DELTA_REACH + i : DELTA_REACH + i + n] - rows[DELTA_REACH - i : DELTA_REACH - i + n])
        for i in range(1, DELTA_REACH + 1)
    )
    regression: np.ndarray = (slope / weights).astype(np.float32)
    return regression


class _Delta:
    """Streaming regression, with the first and last row repeated beyond the ends. The output lags by 2 rows."""

    def __init__(self) -> None:
        self._rows: np.ndarray | None = None

    def push(self, rows: np.ndarray, last: bool = False) -> np.ndarray:
        if self._rows is None:
            if not len(rows):
                return rows
            self._rows = np.repeat(rows[:1], DELTA_REACH, axis=0)
        buffer = np.concatenate([self._rows, rows])
        if last:
            buffer = np.concatenate([buffer, np.repeat(buffer[-1:], DELTA_REACH, axis=0)])
        if len(buffer) <= 2 * DELTA_REACH:
            self._rows = buffer
            return rows[:0]
        self._rows = buffer[-2 * DELTA_REACH :]
        return _regression(buffer)


class Mfcc:
    """Streaming MFCC + Δ + ΔΔ.

    ``push`` takes (n,) int16 samples at 16 kHz and returns the (frames, 120) float32 rows that they complete; a row
    comes 4 frames (40 ms) after its last sample, since ΔΔ looks that far ahead. Row i of a signal describes samples
    [160 i, 160 i + 400). ``flush`` returns the rows still held back, with the last frame repeated beyond the end.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._samples = np.zeros(0, np.int16)
        self._static = np.zeros((0, N_MFCC), np.float32)  # rows without ΔΔ yet
        self._slope = np.zeros((0, N_MFCC), np.float32)
        self._delta, self._delta2 = _Delta(), _Delta()

    def push(self, samples: np.ndarray) -> np.ndarray:
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise TypeError(f"MFCC takes (n,) int16 samples, not {samples.shape} {samples.dtype}")
        self._samples = np.concatenate([self._samples, samples])
        rows = cepstra(self._samples)
        self._samples = self._samples[len(rows) * HOP_SAMPLES :]
        return self._ready(rows, last=False)

    def flush(self) -> np.ndarray:
        rows = self._ready(np.zeros((0, N_MFCC), np.float32), last=True)
        self.reset()
        return rows

    def _ready(self, rows: np.ndarray, last: bool) -> np.ndarray:
        slope = self._delta.push(rows, last)
        curve = self._delta2.push(slope, last)
        self._static = np.concatenate([self._static, rows])
        self._slope = np.concatenate([self._slope, slope])
        n = len(curve)
        out = np.concatenate([self._static[:n], self._slope[:n], curve], axis=1)
        self._static, self._slope = self._static[n:], self._slope[n:]
        return out


def mfcc(samples: np.ndarray) -> np.ndarray:
    """MFCC + Δ + ΔΔ of a whole signal: (n,) int16 at 16 kHz → (frames, 120) float32."""
    extractor = Mfcc()
    return np.concatenate([extractor.push(samples), extractor.flush()])
