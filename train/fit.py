"""Training of the fusion model on label-paired items.

No corpus here has informative sound, face and words of the same moment. An example is therefore made of a clip, a
face and a text of equal label, drawn anew each time, and some of its modalities are left out at random. This is
synthetic: it treats the modalities as independent given the label.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from stream.features.mfcc import N_MFCC
from train.corpora import LABELS, CorpusError
from train.features import Ragged
from train.metrics import calibration_error, scores, softmax
from train.model import MODALITIES, Encoder, Fusion, build

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]
# How often a batch has just these. Sound learns slowest; a face's vector already holds most of what it will give.
SHARE = {
    ("audio",): 0.28, ("video",): 0.12, ("text",): 0.18, ("audio", "video"): 0.08, ("audio", "text"): 0.08,
    ("video", "text"): 0.08, ("audio", "video", "text"): 0.18,
}  # fmt: skip
LONGEST_TRAINED = 256  # audio rows: a longer clip gives a part of it, which halves the time of a step
MAX_ROWS = {"audio": 1500, "video": 150, "text": 64}


class Pool(Protocol):
    """Items of one modality. ``rows(i, rng)``: features (T, D) of item i, varied at random if ``rng`` is given."""

    @property
    def labels(self) -> np.ndarray: ...

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class Sounds:
    """``features``: 1 + ``copies`` sequences an item, the plain one first. ``items``: which of them are in the pool."""

    features: Ragged
    copies: int
    items: np.ndarray
    labels: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        first = self.items[i] * (1 + self.copies)
        if rng is None:
            return self.features[first].astype(np.float32)
        x = self.features[first + rng.integers(1 + self.copies)].astype(np.float32)
        n = min(len(x), LONGEST_TRAINED)
        if rng.random() < 0.3:  # the running estimate hears only part of an utterance
            n = int(rng.integers(-(-n // 2), n + 1))
        start = rng.integers(len(x) - n + 1)
        x = x[start : start + n]
        x[:, :N_MFCC] += rng.normal(0, 1, N_MFCC) * (4 / (1 + np.arange(N_MFCC) / 4))  # yet another microphone
        return x


@dataclass(frozen=True)
class Faces:
    """``vectors`` (N, K, 128) float32: K jittered crops of each still, the second half of them mirrored."""

    vectors: np.ndarray
    labels: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        half = self.vectors.shape[1] // 2
        if rng is None:
            return self.vectors[i, np.arange(20) % half]  # 2 s at 10 fps
        side = half * rng.integers(2)
        frames = side + rng.integers(half, size=rng.integers(1, 51))
        return self.vectors[i, frames] + rng.normal(0, 0.15, (len(frames), self.vectors.shape[2])).astype(np.float32)


@dataclass(frozen=True)
class Lines:
    """``words``: each text as numbers; ``vectors`` (vocabulary, D): their vectors."""

    words: Sequence[np.ndarray]
    vectors: np.ndarray
    labels: np.ndarray

    def rows(self, i: int, rng: np.random.Generator | None = None) -> np.ndarray:
        words = self.words[i]
        if rng is not None:  # a recogniser misses words and mistakes others
            if len(kept := words[rng.random(len(words)) >= 0.1]):
                words = kept
            words = np.where(rng.random(len(words)) < 0.05, rng.integers(len(self.vectors), size=len(words)), words)
        return self.vectors[words]


def batch_of(rows: Mapping[str, Sequence[np.ndarray]]) -> dict[str, torch.Tensor]:
    """Sequences of each modality, (T, D) with T = 0 where absent → the padded arguments of ``Fusion.forward``."""
    out: dict[str, torch.Tensor] = {}
    for m, sequences in rows.items():
        length = [min(len(x), MAX_ROWS[m]) for x in sequences]
        padded = np.zeros((len(sequences), max(1, *length), sequences[0].shape[1]), np.float32)
        for i, (x, n) in enumerate(zip(sequences, length, strict=True)):
            padded[i, :n] = x[-n:] if n else 0  # the newest rows, as a window keeps
        out[m], out[f"{m}_len"] = torch.from_numpy(padded), torch.tensor(length)
    return out


def normalise(model: Fusion, pools: Mapping[str, Pool], rng: np.random.Generator, sample: int = 2000) -> None:
    """Put mean and deviation of the training features, as training varies them, into the model."""
    for m, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        chosen = rng.integers(len(pools[m].labels), size=sample)
        rows = np.concatenate([pools[m].rows(i, rng) for i in chosen])
        encoder.mean.copy_(torch.from_numpy(rows.mean(0)))
        encoder.std.copy_(torch.from_numpy(rows.std(0).clip(1e-3)))


def fit(
    pools: Mapping[str, Pool],
    steps: int,
    seed: int,
    attention: str = "self",
    batch: int = 64,
    step_done: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Fusion:
    """Train on the three pools; returns the model after the last step.

    Labels and, within them, items are drawn evenly. The modalities of a batch are drawn by ``SHARE``; one subset for
    the whole of it, so that what is absent costs nothing. Raises CorpusError if a pool lacks a label.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    by_label = {}
    for m, pool in pools.items():
        by_label[m] = [np.flatnonzero(pool.labels == k) for k in range(len(LABELS))]
        if lacking := [label for label, at in zip(LABELS, by_label[m], strict=True) if not len(at)]:
            raise CorpusError(f"{m}: no training item is labelled {', '.join(lacking)}")
    dims = {m: pool.rows(0).shape[1] for m, pool in pools.items()}
    model = build(attention=attention, dims=dims)
    normalise(model, pools, rng)
    subsets = rng.choice(len(SUBSETS), steps, p=[SHARE[subset] for subset in SUBSETS])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.1)
    model.train()
    for step in range(steps):
        labels = rng.integers(len(LABELS), size=batch)
        rows = {
            m: [pools[m].rows(rng.choice(by_label[m][label]), rng) for label in labels] for m in SUBSETS[subsets[step]]
        }
        loss = F.cross_entropy(model(**batch_of(rows)), torch.from_numpy(labels), label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        step_done(step + 1, steps, loss.item())
    return model.eval()


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
    pools: Mapping[str, Pool], subset: Sequence[str], each: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """``each`` label-paired examples of every label that all pools of the subset hold: item numbers by modality."""
    labels = [k for k in range(len(LABELS)) if all((pools[m].labels == k).any() for m in subset)]
    return {m: np.concatenate([rng.choice(np.flatnonzero(pools[m].labels == k), each) for k in labels]) for m in subset}


@dataclass(frozen=True)
class Calibration:
    """``temperature`` divides the logits; ``uncertain_below`` is a probability."""

    temperature: float
    uncertain_below: float
    error_before: float
    error_after: float


def calibrate(
    fitted: Sequence[tuple[np.ndarray, np.ndarray]], judged: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Calibration:
    """Temperature of least mean log-loss over several (logits, truth), each of equal weight (Guo et al., ICML 2017,
    section 4.2), and the probability that a fifth of these answers stay below. The calibration errors are means
    over the sets of ``judged``.
    """
    grid = np.exp(np.linspace(np.log(0.3), np.log(5), 281))

    def loss(t: float) -> float:
        each = [-np.log(softmax(z / t)[np.arange(len(y)), y] + 1e-12).mean() for z, y in fitted]
        return float(np.mean(each))

    best = float(min(grid, key=loss))
    confidence = [softmax(z / best).max(1) for z, _ in fitted]
    weight = np.concatenate([np.full(len(c), 1 / len(c)) for c in confidence])
    order = np.argsort(np.concatenate(confidence))
    below = np.searchsorted(np.cumsum(weight[order]) / weight.sum(), 0.2)
    return Calibration(
        round(best, 4),
        round(float(np.concatenate(confidence)[order][below]), 3),
        round(float(np.mean([calibration_error(softmax(z), y) for z, y in judged])), 4),
        round(float(np.mean([calibration_error(softmax(z / best), y) for z, y in judged])), 4),
    )


def report(truth: np.ndarray, logits: np.ndarray) -> dict:
    """Scores, and the recall of each label."""
    found = logits.argmax(1)
    recall = {LABELS[k]: round(float((found[truth == k] == k).mean()), 3) for k in np.unique(truth)}
    return {**scores(truth, found), "recall": recall}
