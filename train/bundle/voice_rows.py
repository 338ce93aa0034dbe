"""Log-mel rows of recordings for the voice encoder: unchanged, augmented, and under the conditions of its
evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from emostream.errors import ModelError
from emostream.stream.config import Speech
from emostream.stream.features import logmel
from emostream.stream.models import find, how_to_get
from emostream.stream.speech.vad import SileroVad
from emostream.train.bundle.degrade import VERSION, Surroundings, augment, degrade
from emostream.train.bundle.features import Ragged, cached, fingerprint
from emostream.train.corpora import Item
from emostream.train.recordings import Sound, read_samples, utterances

AUGMENTATION = 2  # raise this number when the bounds of augmented copies change
JITTER_NS = 150_000_000  # largest shift of an augmented copy's bounds: no two detectors cut at the same place
WIDER_NS = 1_200_000_000  # largest error of a bound where a voice nearby is taken for speech
WIDER_SHARE = 0.3  # share of the bounds with such an error
SHORTEST = 8  # rows of an utterance, at least: one vector
Ready = Callable[[int, int], None]


def _quiet(done: int, total: int) -> None:
    pass


class Cutter:
    """Utterance bounds as the live pipeline finds them with its default settings, at a good level."""

    def __init__(self) -> None:
        model = find("silero-vad")
        if model is None:
            raise ModelError(f"Silero VAD cuts the utterances and is missing; get it with: {how_to_get('silero-vad')}")
        self._vad = SileroVad(model)

    def bounds(self, samples: np.ndarray) -> tuple[int, int] | None:
        """From the first utterance's start to the last one's end in ns, None if nothing is heard. (n,) int16."""
        peak = max(1, int(np.abs(samples.astype(np.int32)).max(initial=0)))
        gained = (samples * (16_384 / peak)).astype(np.int16)
        spans = utterances(Sound.from_samples(gained), self._vad, Speech())
        return (spans[0][0], spans[-1][1]) if spans else None


def cut(rows: np.ndarray, bounds: tuple[int, int] | None) -> np.ndarray:
    """Log-mel rows within bounds in ns, at least 8 if there are that many; all rows if there are no bounds."""
    if bounds is None:
        return rows
    first = min(max(0, -(-bounds[0] // logmel.HOP_NS)), max(0, len(rows) - SHORTEST))
    last = (bounds[1] - logmel.FRAME_SAMPLES * 1_000_000_000 // logmel.RATE_HZ) // logmel.HOP_NS + 1
    return rows[first : max(last, first + SHORTEST)]


def _samples(item: Item) -> np.ndarray:
    """A recording at 16 kHz, or the item's section of it: (n,) int16."""
    assert isinstance(item.content, Path)
    samples = read_samples(item.content)
    if item.span_s is not None:
        start, end = (round(at_s * logmel.RATE_HZ) for at_s in item.span_s)
        samples = samples[start:end]
    return samples


def _packed(sequences: Sequence[np.ndarray], heard: Sequence[bool]) -> dict[str, np.ndarray]:
    ragged = Ragged.of(sequences)
    return {
        "rows": ragged.rows.astype(np.float16),
        "starts": ragged.starts.astype(np.int64),
        "heard": np.array(heard, np.uint8),
    }


def _bounds(items: Sequence[Item], cache: Path) -> list[tuple[int, int] | None]:
    """Utterance bounds of each unchanged recording."""

    def make() -> dict[str, np.ndarray]:
        cutter = Cutter()
        bounds = [cutter.bounds(_samples(item)) for item in items]
        return {"bounds": np.array([(-1, -1) if b is None else b for b in bounds], np.int64)}

    arrays = cached(cache, "voice-bounds", _settings({"items": fingerprint(items, labels=False)}), make)
    return [None if start < 0 else (start, end) for start, end in arrays["bounds"].tolist()]


def copy_of(
    items: Sequence[Item], number: int, around: Surroundings, cache: Path, seed: int = 0, ready: Ready = _quiet
) -> Ragged:
    """Rows of each recording, (rows, 32) float16: copy 0 is unchanged, each other copy is augmented in its own way."""

    def make() -> dict[str, np.ndarray]:
        rng, sequences = np.random.default_rng([seed, number]), []
        for i, (item, bounds) in enumerate(zip(items, _bounds(items, cache), strict=True)):
            samples = _samples(item)
            if number:
                samples, stretch = augment(samples, around, rng)
                if bounds is not None:
                    out_ns = np.where(
                        rng.random(2) < WIDER_SHARE,
                        rng.integers(0, WIDER_NS, 2),
                        rng.integers(-JITTER_NS, JITTER_NS, 2),
                    )
                    bounds = int(bounds[0] * stretch - out_ns[0]), int(bounds[1] * stretch + out_ns[1])
            sequences.append(cut(logmel.logmel(samples), bounds))
            ready(i + 1, len(items))
        return _packed(sequences, [True] * len(sequences))

    settings = {"items": fingerprint(items, labels=False), "copy": number, "seed": seed, "augmentation": AUGMENTATION}
    if lacking := around.lacking():
        settings["without"] = lacking
    arrays = cached(cache, "voice", _settings(settings), make)
    return Ragged(arrays["rows"], arrays["starts"])


def judged(items: Sequence[Item], condition: str, around: Surroundings, cache: Path) -> tuple[Ragged, np.ndarray]:
    """Rows of each recording under a condition, cut where the utterance is detected under it, and whether it is
    detected: (rows, 32) float16, (N,) bool."""

    def make() -> dict[str, np.ndarray]:
        cutter, sequences, heard = Cutter(), [], []
        for i, item in enumerate(items):
            samples = degrade(_samples(item), condition, around, i)
            bounds = cutter.bounds(samples)
            heard.append(bounds is not None)
            sequences.append(cut(logmel.logmel(samples), bounds))
        return _packed(sequences, heard)

    arrays = cached(
        cache, "voice-judged", _settings({"items": fingerprint(items, labels=False), "condition": condition}), make
    )
    return Ragged(arrays["rows"], arrays["starts"]), arrays["heard"].astype(bool)


def _settings(settings: dict[str, object]) -> dict[str, object]:
    return settings | {"logmel": logmel.SETTINGS, "speech": Speech().model_dump(), "degrade": VERSION}
