"""Training of the fusion model on label-paired items.

No corpus here has informative sound, face and words of the same moment. An example is therefore a clip, a face and a
text of equal label, drawn afresh each time, and some of its modalities are left out at random. This is synthetic: it
treats the modalities as independent given the label. They are not: much that is said in anger is neutral in its words,
and many faces show nothing. So some of the texts and faces beside other modalities are neutral ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from emostream.errors import CorpusError
from emostream.stream.features.padding import pad
from emostream.train.bundle.features import Ragged
from emostream.train.corpora import LABELS
from emostream.train.metrics import recalls, scores
from emostream.train.model import Encoder, Fusion, build
from emostream.train.progress import StepDone, ignore
from emostream.train.schedule import one_cycle

VERSION = 3  # raise this number when training changes: models kept from before are then not used
# Share of the batches with exactly these modalities. Sound learns slowest; a face vector already holds most of what it
# can contribute.
SHARE = {
    "audio": 0.19, "video": 0.07, "text": 0.20, "audio+video": 0.11, "audio+text": 0.13, "video+text": 0.11,
    "audio+video+text": 0.19,
}  # fmt: skip
# The labels of a batch are drawn by their share in the corpora to this power, by the number of modalities. A single
# modality keeps nearly its own corpus's mix; no corpus says how labels mix where there are several, so those are drawn
# more evenly.
PRIOR = {1: 0.7, 2: 0.35, 3: 0.35}
PLAIN_LABEL = LABELS.index("neutral")
PLAIN = {"video": 0.1, "text": 0.15}  # how often an item beside others is neutral, whatever the label
AS_IT_IS = 0.2  # how often the recording itself is taken, in addition to its turns among the copies
OTHER_VOICE = 0.3  # deviation of an offset of all of a clip's vectors, as another voice has; .1 and .6 were worse
LONGEST_TRAINED = 64  # voice vectors, 5 s; a stretch of longer clips is taken
MAX_ROWS = {"audio": 188, "video": 150, "text": 64}


class Pool(Protocol):
    """Items of one modality."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def weights(self) -> np.ndarray:
        """How often each item is drawn, relative to the others: (N,)."""
        ...

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Features of item i, (T, D) float32; with ``rng`` varied at random, as training wants them."""
        ...

    def parts(self) -> Sequence[np.ndarray]:
        """All arrays of the pool, for a hash."""
        ...


@dataclass(frozen=True)
class Sounds:
    """``copies``: voice vectors of each recording as it is, then of its augmented copies. ``items``: the recordings in
    the pool."""

    copies: Sequence[Ragged]
    items: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        if rng is None:
            return self.copies[0][self.items[i]].astype(np.float32)
        copy = 0 if rng.random() < AS_IT_IS else int(rng.integers(len(self.copies)))
        x = self.copies[copy][self.items[i]].astype(np.float32)
        n = min(len(x), LONGEST_TRAINED)
        if rng.random() < 0.3:  # a running estimate hears only part of an utterance
            n = int(rng.integers(-(-n // 2), n + 1))
        start = rng.integers(len(x) - n + 1)
        x = x[start : start + n]
        x += rng.normal(0, OTHER_VOICE, x.shape[1])
        return x

    def parts(self) -> Sequence[np.ndarray]:
        return (
            *(part for copy in self.copies for part in (copy.rows, copy.starts)),
            self.items,
            self.labels,
            self.weights,
        )


@dataclass(frozen=True)
class Faces:
    """``vectors`` (N, K, 128) float32: K jittered crops of each still, the second half of them mirrored."""

    vectors: np.ndarray
    labels: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        half = self.vectors.shape[1] // 2
        if rng is None:
            plain: np.ndarray = self.vectors[i, np.arange(20) % half]  # 2 s at 10 fps
            return plain
        side = half * rng.integers(2)
        frames = side + rng.integers(half, size=rng.integers(1, 51))
        noise = rng.normal(0, 0.15, (len(frames), self.vectors.shape[2])).astype(np.float32)
        varied: np.ndarray = self.vectors[i, frames] + noise
        return varied

    @property
    def weights(self) -> np.ndarray:
        return np.ones(len(self.labels))

    def parts(self) -> Sequence[np.ndarray]:
        return self.vectors, self.labels


@dataclass(frozen=True)
class Lines:
    """``copies``: text vectors of each line as it is, then misheard. ``items``: the lines in the pool."""

    copies: Sequence[Ragged]
    items: np.ndarray
    labels: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        copy = 0 if rng is None else int(rng.integers(len(self.copies)))
        rows: np.ndarray = self.copies[copy][self.items[i]].astype(np.float32)
        return rows

    @property
    def weights(self) -> np.ndarray:
        return np.ones(len(self.labels))

    def parts(self) -> Sequence[np.ndarray]:
        return [*(part for copy in self.copies for part in (copy.rows, copy.starts)), self.items, self.labels]


def batch_of(
    rows: Mapping[str, Sequence[np.ndarray]], max_rows: Mapping[str, int] = MAX_ROWS
) -> dict[str, torch.Tensor]:
    """Sequences of each modality, (T, D) with T = 0 where absent → the padded arguments of ``Fusion.forward``."""
    arguments: dict[str, torch.Tensor] = {}
    for m, sequences in rows.items():
        padded, lengths = pad(sequences, max_rows[m])
        arguments[m], arguments[f"{m}_len"] = torch.from_numpy(padded), torch.from_numpy(lengths)
    return arguments


def normalise(model: Fusion, pools: Mapping[str, Pool], rng: np.random.Generator, sample: int = 2000) -> None:
    """Set the model's means and deviations to those of the training features, as training varies them."""
    for m, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        chosen = rng.choice(len(pools[m].labels), sample, p=pools[m].weights / pools[m].weights.sum())
        rows = np.concatenate([pools[m].rows(i, rng) for i in chosen])
        encoder.mean.copy_(torch.from_numpy(rows.mean(0)))
        encoder.std.copy_(torch.from_numpy(rows.std(0).clip(1e-3)))


def label_shares(pools: Mapping[str, Pool], modalities: Sequence[str]) -> np.ndarray:
    """How often each label is drawn for a batch of these modalities: (labels,), sum 1; see ``PRIOR``."""
    counts = [np.bincount(pools[m].labels, pools[m].weights, len(LABELS)) / pools[m].weights.sum() for m in modalities]
    share: np.ndarray = np.mean(counts, axis=0) ** PRIOR[len(modalities)]
    share /= share.sum()
    return share


def fit(
    pools: Mapping[str, Pool],
    steps: int,
    seed: int,
    attention: str = "self",
    share: Mapping[str, float] = SHARE,
    batch: int = 64,
    step_done: StepDone = ignore,
) -> Fusion:
    """Train on the pools; returns the model after the last step.

    ``share``: of the batches, by set of modalities ("audio+text"). All of a batch has the same modalities, so that
    absent ones cost nothing. Raises CorpusError if a pool lacks a label.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    by_label = {}
    for m, pool in pools.items():
        by_label[m] = [np.flatnonzero(pool.labels == k) for k in range(len(LABELS))]
        if lacking := [label for label, items in zip(LABELS, by_label[m], strict=True) if not len(items)]:
            raise CorpusError(f"{m}: no training item is labelled {', '.join(lacking)}")
    totals = {m: [np.cumsum(pools[m].weights[items]) for items in by_label[m]] for m in pools}

    def draw(m: str, label: int) -> int:
        total = totals[m][label]
        return int(by_label[m][label][np.searchsorted(total, rng.random() * total[-1], side="right")])

    model = make_fusion(pools, attention)
    normalise(model, pools, rng)
    subsets = list(share)
    drawn = rng.choice(len(subsets), steps, p=list(share.values()))
    shares = {subset: label_shares(pools, subset.split("+")) for subset in subsets}
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=2e-2)
    schedule = one_cycle(optimiser, 2e-3, steps, warm_up=0.1)
    model.train()
    for step in range(steps):
        subset = subsets[drawn[step]]
        modalities = subset.split("+")
        labels = rng.choice(len(LABELS), batch, p=shares[subset])
        rows = {}
        for m in modalities:
            neutral = rng.random(batch) < (PLAIN.get(m, 0) if len(modalities) > 1 else 0)
            chosen = [draw(m, PLAIN_LABEL if n else k) for n, k in zip(neutral, labels, strict=True)]
            rows[m] = [pools[m].rows(i, rng) for i in chosen]
        loss = F.cross_entropy(model(**batch_of(rows)), torch.from_numpy(labels), label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        step_done(step + 1, steps, loss.item())
    return model.eval()


def make_fusion(pools: Mapping[str, Pool], attention: str) -> Fusion:
    """The shipped variant for the pools' modalities and features, with random weights."""
    dims = {m: pool.rows(0).shape[1] for m, pool in pools.items()}
    model = build(attention=attention, modalities=list(pools), dims=dims)
    assert isinstance(model, Fusion)
    return model


@torch.inference_mode()
def logits_of(
    model: Fusion, pools: Mapping[str, Pool], drawn: Mapping[str, Sequence[int] | np.ndarray], batch: int = 64
) -> np.ndarray:
    """Logits (N, labels) of examples whose modality m is item ``drawn[m][i]``; a modality not drawn is absent."""
    out = []
    for start in range(0, len(next(iter(drawn.values()))), batch):
        rows = {m: [pools[m].rows(i) for i in items[start : start + batch]] for m, items in drawn.items()}
        out.append(model(**batch_of(rows)).numpy())
    return np.concatenate(out)


def paired(
    labels: Mapping[str, np.ndarray], modalities: Sequence[str], each: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """``each`` label-paired examples of every label that all these modalities have: item numbers by modality.

    ``labels``: (N,) by modality, -1 for an item that must not be drawn.
    """
    shared = [k for k in range(len(LABELS)) if all((labels[m] == k).any() for m in modalities)]
    return {m: np.concatenate([rng.choice(np.flatnonzero(labels[m] == k), each) for k in shared]) for m in modalities}


def report(truth: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    """Scores, and the recall of each label that occurs."""
    predicted = logits.argmax(1)
    recall = recalls(truth, predicted, len(LABELS))
    by_label = {LABELS[k]: round(float(recall[k]), 3) for k in np.unique(truth)}
    return {**scores(truth, predicted), "recall": by_label}
