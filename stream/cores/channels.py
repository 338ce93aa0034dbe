"""Mixes several channels down to one: the channel that carries the speech, or the mean of all.

The mean is right for a voice that is on all channels, as in a camera's stereo sound. It is silent if two channels have
opposite phase (a half-inserted plug, a balanced cable), 6 dB down if only one of two is connected, 15.6 dB down if the
voice is in the centre of 5.1, and 18 dB down if one of eight microphones hears it.
"""

from __future__ import annotations

import logging

import numpy as np

log = logging.getLogger(__name__)

_BLOCK_S = 0.032
_FLOOR_S = 3.0  # seconds in which the noise floor rises tenfold at most, towards a level that has become louder
_FIRST_FLOOR_S, _FIRST_S = 0.5, 1.0  # … faster in the first second: what is steady from its start is no first word
_FLOOR_FALL = 0.7  # share of the difference by which the noise floor falls after a quieter block
_LEVEL_S = 0.1  # time constant at which a channel's level falls
_SWITCH_RATIO = 2.5  # energy ratio, 4 dB, by which a channel must beat the one heard now
_VOICE_TO_NOISE = 4.0  # energy ratio, 6 dB, below which there is no voice
_FIRST_TO_NOISE = 8.0  # energy ratio assumed for the first block, which may be somebody's first word
_MIN_ENERGY = 10 ** (-65 / 10)  # relative to full scale; anything quieter is silence
_RAMP_S = 0.008  # cross-fade from one channel to another, to avoid a click


class Channels:
    """(n, channels) float32 to (n,) float32.

    ``choice``: "auto", "mean", or the channels to take, counted from 1, such as "2" or "1,2". "auto" starts with the
    mean and switches to a channel, or back to the mean, when that has clearly more energy above its own noise than what
    is heard now. So two speakers with a channel each are both heard, and hum on another channel is not. The choice is
    made for each block of 32 ms from the block itself, so that it is never late.
    """

    def __init__(self, choice: str = "auto", name: str = "") -> None:
        self._wanted = None if choice in ("auto", "mean") else [int(part) - 1 for part in choice.split(",")]
        self._automatic, self._name = choice == "auto", name
        self._count = self._rate_hz = 0
        self._taken = 0  # index of the candidate heard now: 0 is the mean, then each channel
        self._last = np.zeros(0, np.float32)  # the last sample of each candidate
        self._noise = self._level = np.zeros(0)
        self._heard_s = 0.0
        self._missing_told = False

    def mono(self, samples: np.ndarray, rate_hz: int) -> np.ndarray:
        """Mix (n, channels) samples down to (n,)."""
        count = samples.shape[1]
        if count == 1:
            return np.ascontiguousarray(samples[:, 0], np.float32)
        if self._wanted is not None:
            return self._asked(samples)
        if not self._automatic:
            return _mean(samples)
        if (count, rate_hz) != (self._count, self._rate_hz):
            self._count, self._rate_hz, self._taken = count, rate_hz, 0
            self._last = np.zeros(count + 1, np.float32)
            self._noise, self._level = np.full(count + 1, -1.0), np.zeros(count + 1)
            self._heard_s = 0.0
        mean = _mean(samples)
        block = max(1, round(_BLOCK_S * rate_hz))
        parts = [self._block(mean[at : at + block], samples[at : at + block]) for at in range(0, len(mean), block)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _asked(self, samples: np.ndarray) -> np.ndarray:
        assert self._wanted is not None
        there = [index for index in self._wanted if index < samples.shape[1]]
        if len(there) < len(self._wanted) and not self._missing_told:
            self._missing_told = True
            log.warning("%s: has %d channels, not all that audio.channels names", self._name, samples.shape[1])
        return _mean(samples[:, there or slice(None)])

    def _block(self, mean: np.ndarray, samples: np.ndarray) -> np.ndarray:
        before = self._taken
        self._taken = self._choose(np.column_stack((mean, samples)))
        if self._taken == before:
            return mean if before == 0 else np.asarray(samples[:, before - 1], np.float32)
        old, new = (mean if taken == 0 else samples[:, taken - 1] for taken in (before, self._taken))
        ramp = np.minimum(1, np.arange(len(mean), dtype=np.float32) / (_RAMP_S * self._rate_hz))
        return np.asarray(old * (1 - ramp) + new * ramp, np.float32)

    def _choose(self, candidates: np.ndarray) -> int:
        """Which column of these (n, 1 + channels) samples to hear."""
        # differences of neighbouring samples, so that rumble and mains hum count for little
        steps = np.diff(candidates, axis=0, prepend=self._last[None])
        self._last = candidates[-1].copy()
        energy = np.square(steps, dtype=np.float64).mean(axis=0)
        self._noise = np.where(self._noise < 0, energy / _FIRST_TO_NOISE, self._noise)
        length_s = len(candidates) / self._rate_hz
        self._heard_s += length_s
        floor_s = _FLOOR_S if self._heard_s > _FIRST_S else _FIRST_FLOOR_S
        rising = np.minimum(energy, self._noise * 10 ** (length_s / floor_s))
        self._noise = np.where(energy < self._noise, energy + (self._noise - energy) * (1 - _FLOOR_FALL), rising)
        self._noise = np.maximum(self._noise, _MIN_ENERGY / _VOICE_TO_NOISE)
        share = min(1.0, length_s / _LEVEL_S)
        voice = np.maximum(0.0, energy - _VOICE_TO_NOISE * self._noise)
        self._level = np.maximum(voice, self._level + (voice - self._level) * share)
        best = int(self._level.argmax())
        if self._level[0] * _SWITCH_RATIO > self._level[best]:
            best = 0  # all channels carry the voice
        if best != self._taken and self._level[best] > _SWITCH_RATIO * self._level[self._taken]:
            return best
        return self._taken


def _mean(samples: np.ndarray) -> np.ndarray:
    mean: np.ndarray = samples.mean(axis=1, dtype=np.float32)
    return mean
