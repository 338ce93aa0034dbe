"""Features of the corpora, by the code that runs live, computed once and kept.

What is kept lies in a folder named by a hash of everything it was made from, so features of other settings or other
data are never taken for these.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from safetensors.numpy import load_file, save_file

from emostream.errors import CorpusError, ModelError, Problems
from emostream.stream.config import Speech
from emostream.stream.features import mfcc
from emostream.stream.models import find, how_to_get
from emostream.stream.speech.endpoint import Endpointer, utterances
from emostream.stream.speech.vad import SileroVad
from emostream.train.corpora import Item

AUGMENTATION = 2  # raise this number when ``augment`` or ``cut`` changes
CODECS = (("WAV", "ULAW", 8000), ("WAV", "GSM610", 8000), ("OGG", "VORBIS", 16_000), ("MP3", "MPEG_LAYER_III", 16_000))
JITTER_NS = 100_000_000  # what an augmented copy's bounds move by, at most: no two detectors cut at the same place


def fingerprint(items: Sequence[Item], labels: bool) -> str:
    """Hash of the items: names and sizes of files, contents of the rest, and with ``labels`` their labels."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item.content, Path):
            content = f"{item.content.name} {item.content.stat().st_size}".encode()
        else:
            content = item.content.encode() if isinstance(item.content, str) else item.content
        digest.update(b"%d:%s|%s\n" % (len(content), content, item.label.encode() if labels else b""))
    return digest.hexdigest()


def cached(cache: Path, kind: str, settings: dict, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays made by ``make``, or those it made from the same ``settings`` before."""
    text = json.dumps(settings, sort_keys=True, indent=1)
    folder = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = folder / "arrays.safetensors"
    if not path.is_file():
        arrays = make()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(text + "\n")
        part = folder / f"part-{os.getpid()}"
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
        part.replace(path)
    return load_file(path)


@dataclass(frozen=True)
class Ragged:
    """Sequences of unequal length, end to end: sequence i is ``rows[starts[i] : starts[i + 1]]``."""

    rows: np.ndarray
    starts: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[self.starts[i] : self.starts[i + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Ragged:
        return cls(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))


def read(path: Path) -> np.ndarray:
    """A recording as (n,) int16, mono, 16 kHz. Raises CorpusError if it cannot be read or holds what is no number."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from error
    if not np.isfinite(samples).all():
        raise CorpusError(f"{path}: holds samples that are NaN or infinite")
    mono = samples.mean(axis=1)
    if rate != mfcc.RATE_HZ:
        mono = soxr.resample(mono, rate, mfcc.RATE_HZ)
    return mfcc.to_int16(mono)


def bounds(samples: np.ndarray, vad: SileroVad, endpointer: Endpointer) -> tuple[int, int]:
    """From the first utterance's start to the last one's end, in ns; the whole recording if there is no utterance."""
    found = list(utterances(samples, vad, endpointer))
    if not found:
        return 0, len(samples) * 1_000_000_000 // mfcc.RATE_HZ
    return found[0][0], found[-1][1]


def cut(rows: np.ndarray, start_ns: int, end_ns: int) -> np.ndarray:
    """MFCC rows whose 25 ms lie within the bounds, at least one if there is any. Row i begins at i × 10 ms."""
    first = max(0, -(-start_ns // mfcc.HOP_NS))
    last = (end_ns - mfcc.FRAME_SAMPLES * 1_000_000_000 // mfcc.RATE_HZ) // mfcc.HOP_NS
    first = min(first, max(0, len(rows) - 1))
    return rows[first : max(last, first) + 1]


def through_codec(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Floats in [-1, 1], 16 kHz, as a telephone or a voice message would carry them: (n,) → (n,)."""
    container, subtype, rate = CODECS[rng.integers(len(CODECS))]
    peak = np.abs(x).max() + 1e-9
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(x / peak, mfcc.RATE_HZ, rate), rate, format=container, subtype=subtype)
    file.seek(0)
    y, _ = soundfile.read(file)
    y = soxr.resample(y, rate, mfcc.RATE_HZ)[: len(x)] * peak
    return np.pad(y, (0, len(x) - len(y)))


def augment(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Another room, microphone and pace: (n,) int16 → (m,) int16 and the factor by which times grew.

    Speed ±12 % (pitch with it), a room's decay, a microphone's colour, noise at 5 to 35 dB below the speech, a lossy
    codec, gain.
    """
    x = samples / 32768.0
    speed = rng.uniform(0.88, 1.12)
    x = np.interp(np.arange(0, len(x) - 1, speed), np.arange(len(x)), x)
    n = len(x) + mfcc.RATE_HZ // 2  # room for the decay, so that it does not come round to the start
    spectrum = np.fft.rfft(x, n)
    if rng.random() < 0.5:
        t = np.arange(mfcc.RATE_HZ // 2) / mfcc.RATE_HZ
        room = rng.normal(0, 1, len(t)) * np.exp(-6.9 * t / rng.uniform(0.1, 0.5))  # 6.9: ln of 60 dB
        room *= rng.uniform(0.1, 0.5) / np.sqrt((room**2).sum())
        room[0] += 1.0  # the direct sound
        spectrum = spectrum * np.fft.rfft(room, n)
    hz = np.fft.rfftfreq(n, 1 / mfcc.RATE_HZ)
    colour_db = np.interp(hz, [0, 150, 500, 1500, 4000, 8000], rng.normal(0, 4, 6))
    x = np.fft.irfft(spectrum * 10 ** (colour_db / 20), n)[: len(x)]
    hiss = np.fft.rfft(rng.normal(0, 1, len(x)))
    hiss[1:] /= np.arange(1, len(hiss)) ** rng.uniform(0, 0.6)  # white to nearly pink
    noise = np.fft.irfft(hiss, len(x))
    loud = np.sqrt((x**2).mean()) + 1e-9
    x = x + noise * loud / np.sqrt((noise**2).mean()) * 10 ** (-rng.uniform(5, 35) / 20)
    if rng.random() < 0.3:
        x = through_codec(x, rng)
    peak_db = rng.uniform(-30, 0)
    return mfcc.to_int16(x / (np.abs(x).max() + 1e-9) * 10 ** (peak_db / 20)), 1 / speed


def audio(
    items: Sequence[Item],
    copies: int,
    cache: Path,
    seed: int = 0,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> Ragged:
    """MFCC of each recording, cut as the live pipeline cuts it: (rows, 120) float16.

    Sequence ``i * (1 + copies)`` is recording i as it is; the next ``copies`` are augmented. Raises Problems with
    all recordings that cannot be used, and ModelError if Silero VAD is not installed.
    """
    model = find("silero-vad")
    if model is None:
        raise ModelError(f"utterances are cut by Silero VAD, which is missing; get it with: {how_to_get('silero-vad')}")
    endpointing = {name: getattr(Speech(), name) for name in inspect.signature(Endpointer).parameters}

    def make() -> dict[str, np.ndarray]:
        vad, endpointer = SileroVad(model), Endpointer.from_config(Speech())
        rng = np.random.default_rng(seed)
        sequences: list[np.ndarray] = []
        problems = []
        for i, item in enumerate(items):
            assert isinstance(item.content, Path)
            try:
                samples = read(item.content)
            except CorpusError as error:
                problems.append(str(error))
                continue
            start, end = bounds(samples, vad, endpointer)
            versions = [cut(mfcc.mfcc(samples), start, end)]
            for _ in range(copies):
                changed, stretch = augment(samples, rng)
                early, late = rng.integers(-JITTER_NS, JITTER_NS, 2)
                versions.append(cut(mfcc.mfcc(changed), int(start * stretch) + early, int(end * stretch) + late))
            if any(len(version) == 0 for version in versions):
                problems.append(f"{item.content}: shorter than one frame of 25 ms")
            sequences += versions
            done(i + 1, len(items))
        if problems:
            raise Problems("recordings", problems)
        ragged = Ragged.of(sequences)
        return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

    settings = {
        "mfcc": mfcc.SETTINGS, "endpointing": endpointing, "copies": copies, "seed": seed, "augmentation": AUGMENTATION,
        "items": fingerprint(items, labels=False),
    }  # fmt: skip
    return Ragged(**cached(cache, "audio", settings, make))
