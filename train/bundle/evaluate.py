"""How good a bundle's fusion model is on held-out items: answers by set of modalities, by group, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emostream.engines.bundle import SUBSETS
from emostream.train.bundle.calibrate import Calibration
from emostream.train.bundle.fit import Pool, logits_of, paired, report
from emostream.train.corpora import Item, ravdess
from emostream.train.model import Fusion

PAIRED_EACH = 100  # label-paired examples per label


def half_of(m: str, pool: Pool) -> np.ndarray:
    """The half, 0 or 1, of each held-out item: what is calibrated on one half is evaluated on the other.

    Clips are ordered by actor and cut in the middle, so that no voice is in both; of the other modalities every second
    item is in half 1.
    """
    i = np.arange(len(pool.labels))
    return (i >= len(i) / 2).astype(np.int64) if m == "audio" else i % 2


def answers(
    model: Fusion,
    pools: Mapping[str, Pool],
    halves: int,
    seed: int,
    subsets: Sequence[str] = SUBSETS,
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Logits and truth of the held-out items by set of modalities, in ``halves`` parts: all items of a single modality,
    ``PAIRED_EACH`` label-paired examples per label of several. The same seed draws the same pairs.
    """
    parts = []
    for half in range(halves):
        labels = {
            m: pool.labels if halves == 1 else np.where(half_of(m, pool) == half, pool.labels, -1)
            for m, pool in pools.items()
        }
        by_subset = {}
        for subset in subsets:
            first, *others = modalities = subset.split("+")
            if others:
                rng = np.random.default_rng((seed, half, len(modalities)))
                drawn = paired(labels, modalities, PAIRED_EACH // halves, rng)
            else:
                drawn = {first: np.flatnonzero(labels[first] >= 0)}
            by_subset[subset] = logits_of(model, pools, drawn), pools[first].labels[drawn[first]]
        parts.append(by_subset)
    return parts


def by_group(
    model: Fusion,
    sounds: Callable[[list[Item]], Pool],
    texts: Callable[[list[Item]], Pool],
    clips: list[Item],
    others: Mapping[str, list[Item]],
) -> dict[str, dict[str, Any]]:
    """Scores on held-out items: RAVDESS's ``clips`` by sex of the speaker, and ``others`` by modality and corpus
    ("audio, EmoDB")."""
    groups = {
        "audio, RAVDESS women": [item for item in clips if ravdess.sex(item.speaker) == "female"],
        "audio, RAVDESS men": [item for item in clips if ravdess.sex(item.speaker) == "male"],
        **others,
    }
    figures = {}
    for name, items in groups.items():
        m = name.partition(",")[0]
        pool = sounds(items) if m == "audio" else texts(items)
        if len(pool.labels):
            figures[name] = report(pool.labels, logits_of(model, {m: pool}, {m: np.arange(len(pool.labels))}))
    return figures


def calibration_report(calibration: Calibration) -> dict[str, Any]:
    """The manifest's entry on calibration."""
    return {
        "how": "Temperatures and threshold are fitted on all held-out items; each figure is of answers judged by what "
        "was fitted on the other half (RAVDESS actors 17, 18 | 19, 20; every other item of FER+ val and GoEmotions "
        "dev). The label given does not depend on them.",
        "ece_floor": "what the estimate would be if each answer were right just as often as its confidence says",
        "uncertain_below": "the least confidence at which answers are wrong half as often as all are, over as many "
        "answers of each set of modalities",
        "by_modalities": calibration.judged,
    }
