"""Word vectors: a hashed table of words and character n-grams, trained together with a reader that classifies lines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import jellyfish
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emostream.stream.features.words import WordVectors, rows_of, tokens
from emostream.train.bundle.features import Ragged
from emostream.train.corpora import LABELS
from emostream.train.model import build
from emostream.train.progress import StepDone, ignore
from emostream.train.schedule import one_cycle

MAX_WORDS = 64  # rows of the text window
VERSION = 2  # raise this number when the training changes, so that cached tables are not used


class Vocabulary:
    """Words as numbers, and the table rows of each."""

    def __init__(self, texts: Sequence[str], buckets: int) -> None:
        self.number: dict[str, int] = {}
        for text in texts:
            for token in tokens(text):
                self.number.setdefault(token, len(self.number))
        self.words = list(self.number)
        rows = Ragged.of([np.array(rows_of(word, buckets), np.int64) for word in self.words])
        self.rows, self.starts = rows.rows, rows.starts

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def alike(self) -> Ragged:
        """For each word the numbers of all words that sound like it, itself included: those with the same Metaphone key
        (Philips, "Hanging on the Metaphone", Computer Language 7(12), 1990)."""
        by_key: dict[str, list[int]] = {}
        for word, number in self.number.items():
            by_key.setdefault(jellyfish.metaphone(word) or word, []).append(number)
        return Ragged.of([np.array(by_key[jellyfish.metaphone(word) or word], np.int64) for word in self.words])

    def misheard(self, line: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A line as a recogniser might hear it: (n,) word numbers → (m,), at least one.

        One word in ten is missed and one in twelve taken for another, mostly for one that sounds like it.
        """
        kept = line[rng.random(len(line)) >= 0.1]
        line = kept if len(kept) else line[:1]
        wrong = np.flatnonzero(rng.random(len(line)) < 1 / 12)
        if len(wrong):
            line = line.copy()
            for i in wrong:
                others = self.alike[line[i]]
                line[i] = rng.choice(others) if len(others) > 1 else rng.integers(len(self.words))
        return line

    def lines(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Each text as word numbers, (n,) int64, at most ``MAX_WORDS``; a text without a word is empty."""
        return [np.array([self.number[t] for t in tokens(text)][:MAX_WORDS], np.int64) for text in texts]

    def bags(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Table rows of these words end to end, and where each word's rows begin, for ``nn.EmbeddingBag``."""
        counts = self.starts[numbers + 1] - self.starts[numbers]
        offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
        index = np.arange(counts.sum()) - np.repeat(offsets, counts) + np.repeat(self.starts[numbers], counts)
        return self.rows[index], offsets


class WordNet(nn.Module):
    """The table, read by the text branch of the fusion model."""

    def __init__(self, buckets: int, dim: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(buckets, dim, mode="mean")
        nn.init.normal_(self.table.weight, std=0.1)  # rows that training hardly meets stay near zero
        self.reader = build(attention="self", modalities=("text",), dims={"text": dim})

    def forward(self, rows: Tensor, offsets: Tensor, numbers: Tensor, length: Tensor) -> Tensor:
        """``rows``, ``offsets``: bags of the batch's distinct words; ``numbers`` (B, T): the word at each place."""
        vectors = self.table(rows, offsets)  # (distinct words, D)
        logits: Tensor = self.reader(text=vectors[numbers], text_len=length)  # (B, T, D) → (B, labels)
        return logits


def train(
    texts: Sequence[str],
    labels: np.ndarray,
    buckets: int,
    dim: int,
    epochs: int,
    seed: int,
    step_done: StepDone = ignore,
    batch: int = 128,
) -> WordVectors:
    """Train on texts, misheard differently in each epoch, and (N,) int64 labels; returns the table as float16."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vocabulary = Vocabulary(texts, buckets)
    lines = vocabulary.lines(texts)
    usable = np.array([i for i, line in enumerate(lines) if len(line)])
    net = WordNet(buckets, dim)
    count = np.bincount(labels, minlength=len(LABELS)).clip(1)
    weight = torch.tensor(count**-0.3 / (count**-0.3).mean(), dtype=torch.float32)
    optimiser = torch.optim.AdamW(
        [{"params": net.table.parameters(), "lr": 4e-3, "weight_decay": 0.0},
         {"params": net.reader.parameters(), "lr": 2e-3, "weight_decay": 1e-2}]
    )  # fmt: skip
    steps = max(1, len(usable) // batch)
    schedule = one_cycle(optimiser, [4e-3, 2e-3], epochs * steps, warm_up=0.15)
    net.train()
    for epoch in range(epochs):
        order = rng.permutation(usable)
        # lines of similar length in a batch, sorted a few batches at a time, for little padding
        groups = np.array_split(order, max(1, steps // 16))
        order = np.concatenate([sorted(group, key=lambda i: len(lines[i])) for group in groups])
        batches = np.array_split(order, steps)
        for step, number in enumerate(rng.permutation(steps)):
            chosen = batches[number]
            kept = [vocabulary.misheard(lines[i], rng) for i in chosen]
            distinct, inverse = np.unique(np.concatenate(kept), return_inverse=True)
            length = np.array([len(line) for line in kept])
            numbers = np.zeros((len(kept), length.max()), np.int64)
            numbers[np.arange(length.max()) < length[:, None]] = inverse
            rows, offsets = vocabulary.bags(distinct)
            logits = net(*map(torch.from_numpy, (rows, offsets, numbers, length)))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]), weight=weight, label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step_done(epoch * steps + step + 1, epochs * steps, loss.item())
    return WordVectors(net.table.weight.detach().numpy().astype(np.float16))
