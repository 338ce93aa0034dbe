"""Features of the corpora, by the code that runs live, computed once and kept.

Each result lies in a folder named by a hash of everything it was made from, so that features of other settings or data
are never used in its place.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import soxr
from safetensors.numpy import load_file, save

from emostream.errors import CorpusError, Problems, SourceError
from emostream.files import sha256, write_atomically
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.features import loudness, mfcc
from emostream.stream.speech.vad import SileroVad
from emostream.train.corpora import Item
from emostream.train.progress import StepDone, ignore
from emostream.train.recordings import FOREVER_NS, Sound, read_sound, utterances

VERSION = 4  # raise this number when the code here changes the features
ENDPOINTING = {"threshold", "min_speech_ms", "pause_ms", "hangover_ms", "max_utterance_s", "min_hangover_ms"}
CODECS = (("WAV", "ULAW", 8000), ("WAV", "GSM610", 8000), ("OGG", "VORBIS", 16_000), ("MP3", "MPEG_LAYER_III", 16_000))
JITTER_NS = 100_000_000  # an augmented copy's bounds move by at most this: no two detectors cut at the same place


def fingerprint(items: Sequence[Item], labels: bool) -> str:
    """Hash of the items: names and sizes of files, contents of images and texts, and if ``labels`` their labels."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item.content, Path):
            content = f"{item.content.name} {item.content.stat().st_size}".encode()
        else:
            content = item.content.encode() if isinstance(item.content, str) else item.content
        digest.update(b"%d:%s|%s\n" % (len(content), content, item.label.encode() if labels else b""))
    return digest.hexdigest()


def code_of(*modules: ModuleType) -> str:
    """Hash of the modules' sources: what they train is not used after they have changed."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def cached(
    cache: Path, kind: str, settings: dict[str, Any], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that ``make`` returns, or those that it made from the same ``settings`` before."""
    text = json.dumps(settings, sort_keys=True, indent=1)
    folder = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = folder / "arrays.safetensors"
    if not path.is_file():
        arrays = make()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "settings.json", text + "\n")
        write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
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


def cut(sound: Sound, start_ns: int, end_ns: int) -> np.ndarray:
    """MFCC rows whose 25 ms lie within the bounds, as fusion cuts and raises them, or the next one if there are none: a
    training item needs a row. (m, 120) float32, m = 0 only if the sound has no row at all."""
    rows = sound.rows(start_ns, end_ns)
    if not len(rows):
        rows, times = sound.rows(), sound.row_times()
        nearest = min(int(np.searchsorted(times, start_ns)), len(rows) - 1)
        rows = rows[nearest : nearest + 1] if len(rows) else rows
    return loudness.raise_quiet(rows)


def through_codec(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """16 kHz samples in [-1, 1] as a telephone or a voice message carries them: (n,) → (n,)."""
    container, subtype, rate = CODECS[rng.integers(len(CODECS))]
    peak = np.abs(x).max() + 1e-9
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(x / peak, mfcc.RATE_HZ, rate), rate, format=container, subtype=subtype)
    file.seek(0)
    y, _ = soundfile.read(file)
    y = soxr.resample(y, rate, mfcc.RATE_HZ)[: len(x)] * peak
    return np.pad(y, (0, len(x) - len(y)))


def augment(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Another room, microphone and pace: (n,) int16 → (m,) int16, and the factor by which times grew.

    Speed within ±12 % (pitch with it), a room's decay, a microphone's colour, noise 5 to 35 dB below the speech, a
    lossy codec, gain.
    """
    x = samples / 32768.0
    speed = rng.uniform(0.88, 1.12)
    x = np.interp(np.arange(0, len(x) - 1, speed), np.arange(len(x)), x)
    n = len(x) + mfcc.RATE_HZ // 2  # room for the decay, which would otherwise wrap around to the start
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
    done: StepDone = ignore,
) -> Ragged:
    """MFCC of each recording, cut as a live run cuts it: (rows, 120) float16.

    Sequence ``i * (1 + copies)`` is recording i itself; the next ``copies`` are augmented. Raises Problems with
    all recordings that cannot be used, and ModelError if Silero VAD is missing.
    """
    model = models.need("silero-vad")
    config = Speech()

    def make() -> dict[str, np.ndarray]:
        vad = SileroVad(model)
        rng = np.random.default_rng(seed)
        sequences: list[np.ndarray] = []
        problems = []
        for i, item in enumerate(items):
            assert isinstance(item.content, Path)
            try:
                sequences += _variants(item.content, copies, vad, config, rng)
            except (SourceError, CorpusError) as error:
                problems.append(str(error))
                continue
            done(i + 1, len(items))
        if problems:
            raise Problems("recordings", problems)
        ragged = Ragged.of(sequences)
        return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

    settings = {
        "mfcc": mfcc.SETTINGS, "endpointing": config.model_dump(include=ENDPOINTING), "vad": sha256(model),
        "copies": copies, "seed": seed, "version": VERSION, "items": fingerprint(items, labels=False),
    }  # fmt: skip
    return Ragged(**cached(cache, "audio", settings, make))


def _variants(path: Path, copies: int, vad: SileroVad, config: Speech, rng: np.random.Generator) -> list[np.ndarray]:
    """MFCC rows of a recording as it is and of its augmented copies, from the first utterance's start to the last
    one's end; of the whole recording if it has no utterance. Raises SourceError or CorpusError."""
    sound = read_sound(path)
    if sound is None:
        raise CorpusError(f"{path}: has no sound")
    if not sound.blocks:
        raise CorpusError(f"{path}: shorter than one frame of voice activity, 32 ms")
    bounds = utterances(sound, vad, config)
    start_ns, end_ns = (bounds[0][0], bounds[-1][1]) if bounds else (-FOREVER_NS, FOREVER_NS)
    variants = [cut(sound, start_ns, end_ns)]
    if not bounds:
        start_ns, end_ns = sound.start_ns, sound.end_ns
    samples = sound.samples
    for _ in range(copies):
        changed, stretch = augment(samples, rng)
        early_ns, late_ns = (int(ns) for ns in rng.integers(-JITTER_NS, JITTER_NS, 2))
        start, end = (int((ns - sound.start_ns) * stretch) for ns in (start_ns, end_ns))
        variants.append(cut(Sound.from_samples(changed), start + early_ns, end + late_ns))
    return variants
