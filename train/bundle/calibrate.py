"""Calibration: a temperature for each set of modalities, and the confidence below which an answer is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from emostream.train.metrics import calibration_error, risk_coverage

Answers = tuple[np.ndarray, np.ndarray]  # logits (N, labels), truth (N,) int64
LEFT_RISK = 0.5  # highest error rate of answers not marked uncertain, relative to the error rate of all answers


@dataclass(frozen=True)
class Calibration:
    """``temperature`` by set of modalities divides the logits; ``uncertain_below`` is a probability.

    ``judged``, by set of modalities: the expected calibration error before and after (``ece_before``, ``ece``), that of
    a perfectly calibrated model for as many answers of the same confidence (``ece_floor``; the estimate is never 0),
    the share of answers above the threshold (``coverage``), and how many of these (``risk``) and of all answers
    (``risk_all``) are wrong.
    """

    temperature: dict[str, float]
    uncertain_below: float
    judged: dict[str, dict[str, float]]


def temperature_of(logits: np.ndarray, truth: np.ndarray) -> float:
    """The divisor of the logits with the least log-loss (Guo et al., ICML 2017, section 4.2), between 0.2 and 5."""

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        top = z.max(1)
        return float((np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(z)), truth]).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.2), np.log(5.0)), method="bounded").x))


def threshold(confidence: np.ndarray, right: np.ndarray) -> float:
    """The lowest confidence above which answers are wrong at most ``LEFT_RISK`` times as often as all answers, read
    off the risk-coverage curve (Geifman and El-Yaniv, NIPS 2017).
    """
    _, risk = risk_coverage(confidence, right)
    kept = np.flatnonzero(risk <= LEFT_RISK * risk[-1])
    return float(np.sort(confidence)[::-1][kept[-1]]) if len(kept) else float(confidence.max())


def floor(probabilities: np.ndarray, rng: np.random.Generator, rounds: int = 100) -> float:
    """Expected calibration error that remains by chance if each answer is right as often as its confidence says."""
    confidence = probabilities.max(1)
    binary = np.stack([confidence, np.zeros_like(confidence)], axis=1)  # right is 0; the second column never leads
    return float(
        np.mean([calibration_error(binary, (rng.random(len(binary)) >= confidence) * 1) for _ in range(rounds)])
    )


def _equal_shares(sets: Mapping[str, Answers], temperature: Mapping[str, float], rng: np.random.Generator) -> Answers:
    """Confidence and correctness of answers, equally many for each set of modalities."""
    least = min(len(truth) for _, truth in sets.values())
    confidence, right = [], []
    for name, (logits, truth) in sets.items():
        chosen = rng.permutation(len(truth))[:least]
        probabilities = softmax(logits[chosen] / temperature[name], axis=1)
        confidence.append(probabilities.max(1))
        right.append(probabilities.argmax(1) == truth[chosen])
    return np.concatenate(confidence), np.concatenate(right)


def calibrate(halves: tuple[Mapping[str, Answers], Mapping[str, Answers]], seed: int = 0) -> Calibration:
    """Fit on both halves of the held-out answers; evaluate each half with what was fitted on the other.

    ``halves``: two halves without a common speaker or item, each by set of modalities ("audio+text").
    """
    rng = np.random.default_rng(seed)
    names = list(halves[0])
    fitted = [{name: temperature_of(*half[name]) for name in names} for half in halves]
    limits = [threshold(*_equal_shares(half, t, rng)) for half, t in zip(halves, fitted, strict=True)]

    judged: dict[str, dict[str, float]] = {}
    for name in names:
        before, after, truths, sure = [], [], [], []
        for half, t, limit in zip(halves, fitted[::-1], limits[::-1], strict=True):
            logits, truth = half[name]
            before.append(softmax(logits, axis=1))
            after.append(softmax(logits / t[name], axis=1))
            truths.append(truth)
            sure.append(after[-1].max(1) >= limit)
        probabilities, truth, keep = np.concatenate(after), np.concatenate(truths), np.concatenate(sure)
        wrong = probabilities.argmax(1) != truth
        values = {
            "ece_before": calibration_error(np.concatenate(before), truth),
            "ece": calibration_error(probabilities, truth),
            "ece_floor": floor(probabilities, rng),
            "coverage": keep.mean(),
            "risk": wrong[keep].mean() if keep.any() else 0.0,
            "risk_all": wrong.mean(),
        }
        judged[name] = {key: round(float(value), 4) for key, value in values.items()}

    whole = {
        name: (np.concatenate([half[name][0] for half in halves]), np.concatenate([half[name][1] for half in halves]))
        for name in names
    }
    temperature = {name: round(temperature_of(*answers), 4) for name, answers in whole.items()}
    return Calibration(temperature, round(threshold(*_equal_shares(whole, temperature, rng)), 3), judged)
