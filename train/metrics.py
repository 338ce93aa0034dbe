"""Figures of a classifier: scikit-learn's where it has them."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Share of right answers. (The paper's table calls this one "UWA".)"""
    return float(accuracy_score(truth, predicted))


def recalls(truth: np.ndarray, predicted: np.ndarray, labels: int) -> np.ndarray:
    """Recall of each label: (labels,), NaN where a label does not occur."""
    recall: np.ndarray = recall_score(truth, predicted, labels=np.arange(labels), average=None, zero_division=np.nan)
    return recall


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the labels that occur; chance is one over their number. (The paper's table calls it "WA".)

    scikit-learn's ``balanced_accuracy_score`` is the same, but warns about predictions that are not among the true
    labels.
    """
    return float(recall_score(truth, predicted, labels=np.unique(truth), average="macro"))


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 of the labels that occur."""
    return float(f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0))


def scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1, rounded."""
    return {
        "items": len(truth),
        "accuracy": round(accuracy(truth, predicted), 4),
        "balanced_accuracy": round(balanced_accuracy(truth, predicted), 4),
        "macro_f1": round(macro_f1(truth, predicted), 4),
    }


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a reliability diagram (Guo et al., ICML 2017, section 2): mean confidence, accuracy and share of all
    answers of each non-empty bin, of ``bins`` bins of equal width over confidences in [0, 1].
    """
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    full = count > 0
    means = [np.bincount(where, x, bins)[full] / count[full] for x in (confidence, right)]
    return means[0], means[1], count[full] / len(where)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017, equation 3) over bins of equal width."""
    confidence, right, share = reliability(probabilities.max(1), probabilities.argmax(1) == truth, bins)
    return float((share * abs(right - confidence)).sum())


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the items of ``sum_k (p_k - y_k)²``, y the one-hot truth: from 0 to 2; a uniform guess over K labels
    gives 1 - 1/K (Brier, "Verification of forecasts expressed in terms of probability", 1950, equation 2).
    """
    off = probabilities.copy()
    off[np.arange(len(truth)), truth] -= 1
    return float((off**2).sum(1).mean())


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk, (N,) each, of answering only above a confidence.

    Point i belongs to the threshold ``np.sort(confidence)[::-1][i]``: coverage is the share of answers at least that
    confident, risk the share of wrong ones among these. El-Yaniv and Wiener, "On the foundations of
    noise-free selective classification", JMLR 2010; Geifman and El-Yaniv, "Selective classification for deep neural
    networks", NIPS 2017.
    """
    order = np.argsort(-confidence, kind="stable")
    falling = -confidence[order]
    kept = np.searchsorted(falling, falling, side="right")  # equal confidences are kept or left together
    wrong = np.cumsum(~right.astype(bool)[order])
    return kept / len(kept), wrong[kept - 1] / kept


def figures(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All single-number figures of (N, labels) probabilities against (N,) int labels, by name."""
    predicted = probabilities.argmax(1)
    return {
        "accuracy": accuracy(truth, predicted),
        "balanced_accuracy": balanced_accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted),
        "ece": calibration_error(probabilities, truth),
        "brier": brier(probabilities, truth),
    }


def resampled(
    truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, rounds: int = 1000
) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy and macro F1, (rounds,) each, of answers drawn with replacement by group: speakers,
    or single answers where there are fewer than three of them (Efron, "Bootstrap methods", Annals of Statistics 7(1),
    1979). The draws are always the same, so that two classifiers can be compared draw by draw."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 3:
        group = np.arange(len(truth))
    n, k = int(group.max()) + 1, int(max(truth.max(), predicted.max())) + 1
    counts = np.zeros((n, k, k))
    np.add.at(counts, (group, truth, predicted), 1)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=rounds)  # (rounds, n)
    total = (drawn @ counts.reshape(n, -1)).reshape(rounds, k, k)
    hits, are, said = np.diagonal(total, axis1=1, axis2=2), total.sum(2), total.sum(1)  # (rounds, k) each
    occurring = are > 0
    mean = {"axis": 1, "where": occurring}
    return {
        "accuracy": hits.sum(1) / are.sum(1),
        "balanced_accuracy": np.mean(hits / np.maximum(are, 1), **mean),
        "macro_f1": np.mean(2 * hits / np.maximum(are + said, 1), **mean),
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a figure from its ``resampled`` values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)
