"""Training and test examples of the study: drawn from a corpus's items, in batches, as arguments of the model.

In a label-paired corpus, an epoch takes each item of the first modality once and pairs it with items of equal label of
the others. All systems draw alike: a system that reads fewer modalities trains on equally many examples of the same
labels, and is tested on its modalities of the same examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from emostream.engines.bundle import MODALITIES
from emostream.errors import CorpusError
from emostream.train.bundle import fit
from emostream.train.bundle.fit import batch_of
from emostream.train.model import PAPER_ROWS
from emostream.train.study.dataset import Part, Sequences

MAX_ROWS = {**fit.MAX_ROWS, "audio": 1500}  # a study reads MFCC: 15 s
LONGEST_TRAINED = 256  # MFCC rows; longer clips are cut to a random section, which halves the time of a step
GROUP = 8  # batches cut from one group of examples sorted by length, for little padding


def draw(part: Part, draws: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Examples as item numbers by modality, (N,) each, and their labels (N,).

    Aligned items give one example each. Otherwise each item of the first modality is in ``draws`` examples, and items
    of equal label are drawn for it, all of a label equally often up to one. Raises CorpusError if a modality lacks a
    label that the first one has.
    """
    first = next(m for m in MODALITIES if m in part.features)
    numbers = np.arange(len(part.labels[first]))
    if part.aligned:
        return dict.fromkeys(part.features, numbers), part.labels[first]
    numbers = np.tile(numbers, draws)
    truth = part.labels[first][numbers]
    items = {first: numbers}
    for m in MODALITIES:
        if m == first or m not in part.features:
            continue
        items[m] = np.empty_like(numbers)
        for label in np.unique(truth):
            examples, pool = np.flatnonzero(truth == label), np.flatnonzero(part.labels[m] == label)
            if not len(pool):
                raise CorpusError(f"{m}: no item of a part is labelled {label}, which {first} has; use fewer folds")
            items[m][rng.permutation(examples)] = np.resize(rng.permutation(pool), len(examples))
    return items, truth


def lengths(part: Part, modalities: Iterable[str]) -> dict[str, np.ndarray]:
    """Rows of each item, by modality."""
    return {m: np.array([len(part.features[m][i]) for i in range(len(part.features[m]))]) for m in modalities}


def rows_of(length: Mapping[str, np.ndarray], items: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sum of the modalities' rows of each example, as many as the model reads: (N,)."""
    total: np.ndarray = np.sum([np.minimum(n, MAX_ROWS[m])[items[m]] for m, n in length.items()], axis=0)
    return total


def batches(length: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random batches of at most ``size`` examples of similar length."""
    order = rng.permutation(len(length))
    stretch = size * GROUP
    cut: list[np.ndarray] = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort(length[part], kind="stable")]
        cut += [part[i : i + size] for i in range(0, len(part), size)]
    return [cut[i] for i in rng.permutation(len(cut))]


def columns(sequences: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature over all rows: (D,) float32 each. Raises CorpusError if one is not finite."""
    width = sequences[0].shape[1]
    count, total, square = 0, np.zeros(width), np.zeros(width)
    for i in range(len(sequences)):
        x = np.asarray(sequences[i], np.float64)
        count, total, square = count + len(x), total + x.sum(0), square + (x**2).sum(0)
    mean = total / max(count, 1)
    std = np.sqrt(np.maximum(square / max(count, 1) - mean**2, 0)).clip(1e-3)
    if not np.isfinite(std).all():
        raise CorpusError("features of the training part are not finite; extract them again: python -m train features")
    return mean.astype(np.float32), std.astype(np.float32)


class Collator:
    """Turns batches into the model's arguments: padded, with lengths, for the default variant; for the paper's, which
    ignores lengths, cut or zero-padded to a fixed number of rows.

    That number is the paper's, or the longest training sequence's where that is shorter.
    """

    def __init__(
        self, part: Part, modalities: Sequence[str], fixed: bool, standardise: bool, modality_dropout: float
    ) -> None:
        """``part``: the training part, which sets all numbers. ``fixed``: for the paper's variant."""
        self.modality_dropout = modality_dropout
        self.dims = {m: part.features[m][0].shape[1] for m in modalities}
        self.columns = {m: columns(part.features[m]) for m in modalities} if standardise else {}
        self.rows: dict[str, int] = {}
        if fixed:
            self.rows = {m: min(PAPER_ROWS[m], int(n.max())) for m, n in lengths(part, modalities).items()}

    def __call__(
        self, part: Part, items: Mapping[str, np.ndarray], chosen: np.ndarray, rng: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """The examples ``chosen``; with ``rng`` as for training: sections of long recordings, modalities left out."""
        sequences = {m: [part.features[m][i] for i in items[m][chosen]] for m in self.dims}
        if self.rows:
            return {m: torch.from_numpy(self._fixed(m, xs)) for m, xs in sequences.items()}
        if rng is not None:
            if "audio" in sequences:
                sequences["audio"] = [_stretch(x, rng) for x in sequences["audio"]]
            if self.modality_dropout:
                self._leave_out(sequences, rng)
        return batch_of(sequences, MAX_ROWS)

    def _fixed(self, m: str, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """(T, D) each → (B, rows, D) float32: the first rows of each, then zeros."""
        fixed = np.zeros((len(sequences), self.rows[m], self.dims[m]), np.float32)
        mean, std = self.columns.get(m, (np.float32(0), np.float32(1)))
        for x, row in zip(sequences, fixed, strict=True):
            n = min(len(x), len(row))
            row[:n] = (x[:n] - mean) / std
        return fixed

    def _leave_out(self, sequences: dict[str, list[np.ndarray]], rng: np.random.Generator) -> None:
        """Empty sequences at random, but never the last one of an example."""
        for i in range(len(next(iter(sequences.values())))):
            present = [m for m, xs in sequences.items() if len(xs[i])]
            stays = rng.permutation(present)[:1]
            for m in present:
                if m not in stays and rng.random() < self.modality_dropout:
                    sequences[m][i] = sequences[m][i][:0]


def _stretch(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most ``LONGEST_TRAINED`` consecutive rows, from a random place."""
    start = int(rng.integers(max(0, len(x) - LONGEST_TRAINED) + 1))
    return x[start : start + LONGEST_TRAINED]
