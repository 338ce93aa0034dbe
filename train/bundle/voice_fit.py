"""Fine-tuning of the voice encoder on the corpora's log-mel rows, and its own scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from emostream.stream.features import logmel
from emostream.stream.features.voice import LEVEL, STRIDE, level, normalise, whole
from emostream.train.bundle.degrade import CONDITIONS, Surroundings
from emostream.train.bundle.features import Ragged
from emostream.train.bundle.voice import VoiceNet, pretrained
from emostream.train.bundle.voice_rows import judged
from emostream.train.corpora import LABELS, Item, label_numbers
from emostream.train.metrics import scores
from emostream.train.mixed import mixed_precision
from emostream.train.schedule import one_cycle

BATCH = 32
LONGEST = 320  # rows of a training cut, at most
SHORTEST = 64
LEVEL_JITTER = 0.6  # decibels / 10: what a running level is off by
AS_IT_IS = 0.2  # share of examples that are not augmented, besides those drawn by chance
SMOOTHING = 0.1
ABSENT = 1.0  # what the logit of a label that the example's corpus lacks is lowered by: see loss_of
PEAK_RATE = 5e-4  # of the pretrained convolutions
PROBE = 4096  # examples that the classifier is first fitted to
PROBE_STEPS = 300
AVERAGE = 0.99  # decay of the average of the weights
StepDone = Callable[[int, float, VoiceNet], None]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, labels, corpora


@dataclass(frozen=True)
class VoiceCorpus:
    """A corpus: copies of its recordings' rows, the first as they are, the others augmented; their labels as numbers;
    and its share of the training examples."""

    copies: Sequence[Ragged]
    labels: np.ndarray
    share: float


def draw(corpora: Sequence[VoiceCorpus], n: int, rng: np.random.Generator) -> list[tuple[int, int, np.ndarray]]:
    """(corpus, label, normalised rows) of ``n`` random examples: by share, then each label alike, then a copy."""
    share = np.array([corpus.share for corpus in corpora])
    examples = []
    for c in rng.choice(len(corpora), n, p=share / share.sum()):
        corpus = corpora[c]
        label = rng.choice(np.unique(corpus.labels))
        i = rng.choice(np.flatnonzero(corpus.labels == label))
        number = 0 if rng.random() < AS_IT_IS else int(rng.integers(len(corpus.copies)))
        rows = corpus.copies[number][int(i)].astype(np.float32)
        rows = normalise(rows, level(rows) + rng.uniform(-LEVEL_JITTER, LEVEL_JITTER))
        examples.append((int(c), int(label), warp(rows, rng)))
    return examples


def batches(corpora: Sequence[VoiceCorpus], rng: np.random.Generator) -> list[Batch]:
    """Four batches of examples of about the same length: (32, T, 32) rows, (32,) labels, (32,) corpora."""
    examples = sorted(draw(corpora, 4 * BATCH, rng), key=lambda example: len(example[2]))
    four = []
    for b in rng.permutation(4):
        chosen = examples[b * BATCH : (b + 1) * BATCH]
        length = int(np.clip(len(chosen[BATCH // 4][2]), SHORTEST, LONGEST)) // STRIDE * STRIDE
        rows = np.stack([hide(_cut(rows, length, rng), rng) for _, _, rows in chosen])
        four.append((rows, np.array([y for _, y, _ in chosen]), np.array([c for c, _, _ in chosen])))
    return four


def _cut(rows: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """``length`` rows from a random place on; of a shorter recording, some come twice."""
    if len(rows) < length:
        return np.take(rows, np.arange(length), axis=0, mode="wrap")
    start = rng.integers(len(rows) - length + 1)
    return rows[start : start + length].copy()


@cache
def _warp_matrix(percent: int) -> np.ndarray:
    """(32, 32): band j of the result lies where the frequencies are higher by ``percent``; beyond the last band, that
    is repeated."""
    centres = logmel.centres_hz()
    place = np.interp(centres * (1 + percent / 100), centres, np.arange(len(centres)))
    matrix: np.ndarray = np.maximum(0, 1 - np.abs(np.arange(len(centres))[:, None] - place)).astype(np.float32)
    return matrix


def warp(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another vocal tract, formants ±12 % (Jaitly and Hinton, "Vocal tract length perturbation", ICML 2013), and
    another pace, ±15 %, half the time each. (n, 32) → (m, 32)."""
    if rng.random() < 0.5:
        rows = rows @ _warp_matrix(int(rng.integers(-12, 13)))
    if rng.random() < 0.5:
        place = np.arange(0, len(rows) - 1, rng.uniform(0.85, 1.15))
        before = place.astype(int)
        part = (place - before).astype(np.float32)[:, None]
        rows = rows[before] * (1 - part) + rows[before + 1] * part
    return rows


def hide(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hide some bands or a moment, half the time each (Park et al., "SpecAugment", Interspeech 2019). In place."""
    if rng.random() < 0.5:
        width = int(rng.integers(1, 7))
        start = rng.integers(rows.shape[1] - width)
        rows[:, start : start + width] = LEVEL - 2
    if rng.random() < 0.5:
        width = int(rng.integers(1, 25))
        start = rng.integers(len(rows) - width)
        rows[start : start + width] = LEVEL - 2
    return rows


def loss_of(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy with smoothed targets among the labels that the example's corpus has. Other labels' logits are
    lowered before: that a corpus never shows surprise says little of its language, yet leaving them free costs what
    the corpus does show. (N, L), (N,) int64, (N, L) bool."""
    logits = logits - ABSENT * (~present).float()
    target = SMOOTHING * present / present.sum(dim=1, keepdim=True)
    target = target.scatter_add(1, labels[:, None], torch.full_like(labels[:, None], 1 - SMOOTHING, dtype=target.dtype))
    loss: Tensor = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return loss


def train(
    corpora: Sequence[VoiceCorpus],
    steps: int,
    seed: int,
    step_done: StepDone = lambda step, loss, net: None,
    base: VoiceNet | None = None,
    peak: float = PEAK_RATE,
) -> VoiceNet:
    """Fine-tune the pretrained network, or ``base``; returns the running average of its weights.

    ``peak``: highest learning rate of the convolutions; what is new has twice that. Raises ModelError.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = pretrained(len(LABELS)) if base is None else copy.deepcopy(base)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    present = torch.zeros(len(corpora), len(LABELS), dtype=torch.bool)
    for c, corpus in enumerate(corpora):
        present[c, torch.from_numpy(np.unique(corpus.labels))] = True
    if base is None:
        start(net, corpora, present, rng)
    old = list(net.stages.parameters())
    new = [*net.attention.parameters(), *net.classifier.parameters()]
    optimiser = torch.optim.AdamW([{"params": old}, {"params": new}], lr=peak, weight_decay=1e-2)
    schedule = one_cycle(optimiser, [peak, 2 * peak], steps, warm_up=0.1)
    average = copy.deepcopy(net).eval()
    ready: list[Batch] = []
    for step in range(steps):
        ready = ready or batches(corpora, rng)
        rows, labels, corpus_of = ready.pop()
        net.train()
        with mixed_precision():
            vectors = net(torch.from_numpy(rows))
        loss = loss_of(net.logits(vectors.float()), torch.from_numpy(labels), present[torch.from_numpy(corpus_of)])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        decay = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
            for buffer, current in zip(average.buffers(), net.buffers(), strict=True):
                buffer.copy_(current)
        step_done(step + 1, loss.item(), average)
    return average


def start(net: VoiceNet, corpora: Sequence[VoiceCorpus], present: Tensor, rng: np.random.Generator) -> None:
    """Fit what is new to the pretrained convolutions, which stay as they are: the scale of the vectors and the
    classifier. Without this its first gradients spoil them (Kumar et al., "Fine-tuning can distort pretrained features
    and underperform out-of-distribution", ICLR 2022)."""
    sample = [batch for _ in range(PROBE // (4 * BATCH)) for batch in batches(corpora, rng)]
    with torch.no_grad():
        taps = [net.taps(torch.from_numpy(rows)) for rows, _, _ in sample]
        flat = torch.cat([tap.flatten(0, 1) for tap in taps])
        net.mean.copy_(flat.mean(dim=0))
        net.scale.copy_(1 / (flat.std(dim=0) + 0.05))
        statistics = torch.cat([net.statistics((tap - net.mean) * net.scale) for tap in taps])
        net.scaler.running_mean = statistics.mean(dim=0)
        net.scaler.running_var = statistics.var(dim=0)
        x = (statistics - statistics.mean(dim=0)) / (statistics.var(dim=0) + net.scaler.eps).sqrt()
    labels = torch.from_numpy(np.concatenate([y for _, y, _ in sample]))
    lacking = present[torch.from_numpy(np.concatenate([c for _, _, c in sample]))]
    optimiser = torch.optim.AdamW(net.classifier.parameters(), lr=2 * PEAK_RATE, weight_decay=0.1)
    for _ in range(PROBE_STEPS):
        chosen = torch.from_numpy(rng.integers(len(x), size=4 * BATCH))
        optimiser.zero_grad(set_to_none=True)
        loss_of(net.classifier(x[chosen]), labels[chosen], lacking[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@torch.inference_mode()
def predict(net: VoiceNet, sequences: Ragged, off: float = 0.0) -> np.ndarray:
    """Logits of whole utterances, each at its own level plus ``off`` (decibels / 10): (N, L) float32."""
    net.eval()
    logits = []
    for i in range(len(sequences)):
        rows = sequences[i].astype(np.float32)
        rows = whole(normalise(rows, level(rows) - off))
        logits.append(net.logits(net(torch.from_numpy(rows[None])))[0].numpy())
    return np.stack(logits)


def judge(
    net: VoiceNet, items: Sequence[Item], around: Surroundings, cache: Path, conditions: Sequence[str] = CONDITIONS
) -> dict[str, dict[str, float]]:
    """The network's own scores on recordings under each condition, and the share in which speech is heard; where none
    is, the whole recording is judged."""
    truth, report = label_numbers(list(items)), {}
    for condition in conditions:
        sequences, heard = judged(items, condition, around, cache)
        report[condition] = scores(truth, predict(net, sequences).argmax(axis=1)) | {"heard": float(heard.mean())}
    return report
