"""What rooms, microphones, other voices and lines do to speech: at random for training, by name for evaluation.

Noises, voices and impulse responses are recordings. Those used for evaluation are never used for training: ESC-10's
fold 5, AMI's test meetings and every fourth of the rest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from emostream.stream.features.mfcc import RATE_HZ, to_int16
from emostream.train.recordings import read_samples

VERSION = 1  # raise this number when what is done to the sound changes
CONDITIONS = (
    "clean", "white 10 dB", "noise 10 dB", "babble 10 dB", "babble 5 dB", "telephone", "room", "quiet", "clipped",
)  # fmt: skip
QUIET_DB = -34.0
CODECS = (("WAV", "ULAW", 8000), ("WAV", "GSM610", 8000), ("OGG", "VORBIS", 16_000), ("MP3", "MPEG_LAYER_III", 16_000))
TELEPHONE_HZ = (300.0, 3400.0)
JUDGES = 4  # one recording in this many is kept for evaluation
_FOLD = re.compile(r"[a-z-]+_(\d)-\d+-[A-Z]")  # ESC-10: class_fold-recording-take
_SPEECH = ("ASR_", "VAD_", "single-mic", "assets_clean", "assets_noisy")  # noise/other: recordings of people talking


@dataclass(frozen=True)
class Surroundings:
    """Recordings at 16 kHz, (n,) float32 each. Noises and voices have a mean power of 1; a room is an impulse response
    that begins with its direct sound, which has an amplitude of 1."""

    noises: Sequence[np.ndarray]
    voices: Sequence[np.ndarray]
    rooms: Sequence[np.ndarray]

    def lacking(self) -> list[str]:
        """The kinds for which there are no recordings."""
        return [kind for kind in ("noises", "voices", "rooms") if not getattr(self, kind)]


def surroundings(data: Path, judging: bool) -> Surroundings:
    """Recordings for evaluation or for training, from ``noise/``, ``meetings/`` and ``rir/`` below ``data``."""
    noises: list[np.ndarray] = []
    voices: list[np.ndarray] = []
    rooms: list[np.ndarray] = []
    others = sorted((data / "noise" / "other").glob("*.flac"))
    for path in sorted((data / "noise" / "esc10").glob("*.opus")):
        fold = _FOLD.match(path.stem)
        if fold is not None and (fold[1] == "5") == judging:
            noises.append(_loudness(read_samples(path)))
    for i, path in enumerate(others):
        if (i % JUDGES == JUDGES - 1) == judging:
            (voices if path.name.startswith(_SPEECH) else noises).append(_loudness(read_samples(path)))
    for path in sorted((data / "meetings").glob("*.opus")):
        if path.name.startswith("tst") == judging:
            voices.append(_loudness(read_samples(path)))
    for i, path in enumerate(sorted((data / "rir").glob("*.flac"))):
        if (i % JUDGES == JUDGES - 1) == judging:
            response = read_samples(path).astype(np.float32)
            response = response[np.abs(response).argmax() :][:RATE_HZ]
            rooms.append(response / response[0])
    return Surroundings([x for x in noises if x.any()], voices, rooms)


def _loudness(samples: np.ndarray) -> np.ndarray:
    x = samples.astype(np.float32)
    loud: np.ndarray = x / (np.sqrt((x * x).mean()) + 1e-6)
    return loud


def _any(recordings: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    return recordings[int(rng.integers(len(recordings)))]


def possible(around: Surroundings) -> list[str]:
    """Those of CONDITIONS for which there are recordings."""
    kinds = {"noise": "noises", "babble": "voices", "room": "rooms"}
    return [name for name in CONDITIONS if kinds.get(name.split()[0]) not in around.lacking()]


def _stretch_of(recording: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` samples of a recording from a random place on; the recording is repeated as needed."""
    return np.take(recording, np.arange(n) + rng.integers(len(recording)), mode="wrap")


def babble(voices: Sequence[np.ndarray], n: int, talkers: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` samples of people who talk at once."""
    chosen = rng.integers(len(voices), size=talkers)
    mixed: np.ndarray = np.sum([_loudness(_stretch_of(voices[i], n, rng)) for i in chosen], axis=0)
    return mixed


def add(x: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech with noise. ``snr_db`` refers to the speech where it is loud (the loudest tenth of its 20 ms sections is
    left out, the next four tenths are averaged), so that silence around it makes no difference."""
    parts = x[: len(x) // 320 * 320].reshape(-1, 320)
    power = np.sort((parts * parts).mean(axis=1))[::-1]
    tenth = max(1, len(power) // 10)
    loud = power[tenth : 5 * tenth].mean() if len(power) > tenth else (x * x).mean()
    gain = np.sqrt(loud / ((noise * noise).mean() + 1e-9)) * 10 ** (-snr_db / 20)
    mixed: np.ndarray = x + gain * noise
    return mixed


def in_room(x: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Speech as it arrives in a room: (n,) → (n,)."""
    n = 1 << (len(x) + len(response) - 1).bit_length()
    wet: np.ndarray = np.fft.irfft(np.fft.rfft(x, n) * np.fft.rfft(response, n), n)[: len(x)]
    return wet


def filtered(x: np.ndarray, hz: Sequence[float], gain_db: Sequence[float]) -> np.ndarray:
    """Speech through a filter whose gain is given at some frequencies: (n,) → (n,)."""
    n = 1 << (len(x) + 1024).bit_length()
    gain = 10 ** (np.interp(np.fft.rfftfreq(n, 1 / RATE_HZ), hz, gain_db) / 20)
    y: np.ndarray = np.fft.irfft(np.fft.rfft(x, n) * gain, n)[: len(x)]
    return y


def through_codec(x: np.ndarray, codec: tuple[str, str, int]) -> np.ndarray:
    """Speech as a telephone or a voice message would carry it: (n,) → (n,)."""
    container, subtype, rate = codec
    peak = np.abs(x).max() + 1e-9
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(x / peak, RATE_HZ, rate), rate, format=container, subtype=subtype)
    file.seek(0)
    y = soxr.resample(soundfile.read(file)[0], rate, RATE_HZ)[: len(x)] * peak
    return np.pad(y, (0, len(x) - len(y)))


def telephone(x: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz, 8 kHz, mu-law."""
    low, high = TELEPHONE_HZ
    return through_codec(filtered(x, [low / 2, low, high, high * 1.15], [-40, 0, 0, -40]), CODECS[0])


def clipped(x: np.ndarray, gain_db: float) -> np.ndarray:
    """Speech at a microphone that is overdriven by ``gain_db``."""
    peak = np.abs(x).max()
    limited: np.ndarray = np.clip(x * 10 ** (gain_db / 20), -peak, peak)
    return limited


def degrade(samples: np.ndarray, condition: str, around: Surroundings, seed: int) -> np.ndarray:
    """(n,) int16 → (n,) int16 under one of CONDITIONS, always the same for the same ``seed``."""
    rng, x = np.random.default_rng([seed, CONDITIONS.index(condition)]), samples.astype(np.float32)
    n = len(x)
    if condition == "white 10 dB":
        x = add(x, rng.normal(size=n), 10)
    elif condition == "noise 10 dB":
        x = add(x, _stretch_of(_any(around.noises, rng), n, rng), 10)
    elif condition.startswith("babble"):
        x = add(x, babble(around.voices, n, 4, rng), float(condition.split()[1]))
    elif condition == "telephone":
        x = telephone(x)
    elif condition == "room":
        x = in_room(x, _any(around.rooms, rng))
    elif condition == "quiet":
        x = x * 10 ** (QUIET_DB / 20)
    elif condition == "clipped":
        x = clipped(x, 18)
    return to_int16(x / max(32768.0, float(np.abs(x).max())))


def augment(samples: np.ndarray, around: Surroundings, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Another voice, room, microphone and line: (n,) int16 → (m,) int16 and the factor by which times grew.

    Speed ±12 % (pitch with it), a real or an artificial room, a microphone's colour, a real noise, babble or hiss,
    clipping, a codec or a telephone, and a peak from -50 to 0 dBFS.
    """
    x = samples.astype(np.float32)
    speed = rng.uniform(0.88, 1.12)
    x = np.interp(np.arange(0, len(x) - 1, speed), np.arange(len(x)), x).astype(np.float32)
    if rng.random() < 0.5:
        x = in_room(x, _room(around.rooms, rng))
    x = filtered(x, [0, 150, 500, 1500, 4000, 8000], rng.normal(0, 4, 6).tolist())
    kind = rng.random()
    if kind < 0.35 and around.noises:
        x = add(x, _stretch_of(_any(around.noises, rng), len(x), rng), rng.uniform(3, 30))
    elif 0.35 <= kind < 0.65 and around.voices:
        x = add(x, babble(around.voices, len(x), int(rng.integers(1, 7)), rng), rng.uniform(2, 25))
    elif kind < 0.85:
        hiss = np.fft.rfft(rng.normal(0, 1, len(x)))
        hiss[1:] /= np.arange(1, len(hiss)) ** rng.uniform(0, 0.6)  # white to nearly pink
        x = add(x, np.fft.irfft(hiss, len(x)), rng.uniform(3, 35))
    if rng.random() < 0.15:
        x = clipped(x, rng.uniform(3, 24))
    if (line := rng.random()) < 0.15:
        x = telephone(x)
    elif line < 0.35:
        x = through_codec(x, CODECS[int(rng.integers(len(CODECS)))])
    return to_int16(x / (np.abs(x).max() + 1e-9) * 10 ** (rng.uniform(-50, 0) / 20)), 1 / speed


def _room(rooms: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A recorded impulse response two times in three, else decaying noise; the direct sound is scaled as at another
    distance."""
    if rng.random() < 0.67 and rooms:
        response = _any(rooms, rng).copy()
        response[1:] *= 10 ** (rng.uniform(-10, 3) / 20)
        return response
    t = np.arange(RATE_HZ // 2) / RATE_HZ
    response = rng.normal(0, 1, len(t)) * np.exp(-6.9 * t / rng.uniform(0.1, 0.6))  # 6.9: ln of 60 dB
    response *= rng.uniform(0.1, 1.0) / np.sqrt((response**2).sum())
    response[0] = 1.0
    room: np.ndarray = response.astype(np.float32)
    return room
