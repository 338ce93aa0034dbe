"""What ``people.py`` compares ``overlap`` with: two recordings mixed, and turns of a meeting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from emostream.stream.emotion import Emotion

MUCH = 0.1  # of an utterance: what the page mentions
_RATE_HZ, _FRAME = 16_000, 512
_QUIET = 0.02  # of the peak: where speech in a recording of silence around it begins and ends
Span = tuple[float, float]  # seconds


def trimmed(sound: np.ndarray) -> np.ndarray:
    """A recording without the silence around its speech, with a peak of .3: (n,) → (m,) float32."""
    peak = max(float(np.abs(sound).max()), 1e-6)
    frames = np.pad(sound, (0, -len(sound) % _FRAME)).reshape(-1, _FRAME)
    loud = np.flatnonzero(np.sqrt((frames**2).mean(axis=1)) > _QUIET * peak)
    return (0.3 / peak * sound[loud[0] * _FRAME : (loud[-1] + 1) * _FRAME]).astype(np.float32)


def mixed(one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[Span]]:
    """Two trimmed recordings, of which the second begins while the first goes on, in quiet noise: the sound, and from
    when to when each speaks."""
    first = _RATE_HZ
    second = first + int(rng.uniform(0, 0.9) * len(one))
    spans = [(begin / _RATE_HZ, (begin + len(part)) / _RATE_HZ) for begin, part in ((first, one), (second, other))]
    sound = rng.normal(0, 3e-4, max(first + len(one), second + len(other)) + _RATE_HZ)
    sound[first : first + len(one)] += one
    sound[second : second + len(other)] += other
    return sound.astype(np.float32), spans


def share_of_two(label: Emotion, spans: Sequence[Span]) -> float:
    """Of a label's time, in which at least two of the spans are open."""
    times = np.linspace(label.start_s, label.end_s, 1000, endpoint=False)
    open_spans = np.zeros(len(times), int)
    for start_s, end_s in spans:
        open_spans += (times >= start_s) & (times < end_s)
    return float((open_spans > 1).mean())


def compared(pairs: Iterable[tuple[float, float | None]]) -> dict[str, float | None]:
    """Figures of (true, told) of each label; those of which nothing was told are only counted."""
    pairs = list(pairs)
    known = [(true, told) for true, told in pairs if told is not None]
    true, told = np.array(known).reshape(-1, 2).T
    much, little = told[true > MUCH], told[true <= MUCH]
    ahead = np.sign(much[:, None] - little)  # a tie counts half
    varied = len(known) > 1 and true.std() > 0 and told.std() > 0
    return {
        "labels": len(known), "null": len(pairs) - len(known),
        "true": round(float(true.mean()), 3) if known else None,
        "told": round(float(told.mean()), 3) if known else None,
        "correlation": round(float(np.corrcoef(true, told)[0, 1]), 3) if varied else None,
        "auc": round(float((ahead + 1).mean() / 2), 3) if len(much) and len(little) else None,
        "much": len(much), "much_told": round(float((much > MUCH).mean()), 3) if len(much) else None,
        "false_alarms": round(float((little > MUCH).mean()), 3) if len(little) else None,
    }  # fmt: skip
