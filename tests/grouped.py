"""A small corpus in folds, whose labels can be learnt from each modality."""

from __future__ import annotations

import numpy as np

from emostream.train.bundle.features import Ragged
from emostream.train.study.dataset import GroupedFolds

LABELS = ("calm", "cross", "glad")
DIMS = {"audio": 6, "video": 5, "text": 4}
COUNT = {"audio": 24, "video": 33, "text": 27}


def tiny(aligned: bool = False, folds: int = 3, seed: int = 0, without: tuple[str, ...] = ()) -> GroupedFolds:
    """Items of 1 to 12 rows; each label's rows have a different mean. Audio has four speakers."""
    rng = np.random.default_rng(seed)
    features, labels, groups = {}, {}, {}
    for m, dim in DIMS.items():
        if m in without:
            continue
        n = COUNT["audio" if aligned else m]
        labels[m] = np.arange(n) % len(LABELS)
        centre = 1.5 * rng.normal(size=(len(LABELS), dim))
        features[m] = Ragged.of(
            [centre[k] + rng.normal(size=(rng.integers(1, 13), dim)).astype(np.float32) for k in labels[m]]
        )
        groups[m] = np.array([f"s{i // 3 % 4}" if m == "audio" or aligned else f"{i}" for i in range(n)])
    return GroupedFolds("tiny", LABELS, features, labels, groups, aligned, folds, {"seed": seed})
