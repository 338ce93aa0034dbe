"""Figures of a classifier."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score


def accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    """Share of right answers. (The paper's table calls this one "UWA".)"""
    return float((truth == found).mean())


def recalls(truth: np.ndarray, found: np.ndarray, labels: int) -> np.ndarray:
    """Share of each label's items that were found: (labels,), NaN where a label does not occur."""
    occurring = np.bincount(truth, minlength=labels)
    right = np.bincount(truth[truth == found], minlength=labels)
    return np.divide(right, occurring, out=np.full(labels, np.nan), where=occurring > 0)


def balanced_accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean recall of the labels that occur; chance is one over their number. (The paper's table calls it "WA".)"""
    return float(np.nanmean(recalls(truth, found, int(truth.max()) + 1)))


def macro_f1(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean F1 of the labels that occur."""
    return float(f1_score(truth, found, labels=np.unique(truth), average="macro", zero_division=0))


def scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1, rounded."""
    return {
        "items": len(truth),
        "accuracy": round(accuracy(truth, found), 4),
        "balanced_accuracy": round(balanced_accuracy(truth, found), 4),
        "macro_f1": round(macro_f1(truth, found), 4),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, labels) → probabilities of the same shape."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a reliability diagram shows (Guo et al., ICML 2017, section 2): mean confidence, accuracy and share of the
    answers of each of ``bins`` equal bins of confidence in [0, 1] that is not empty.
    """
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    full = count > 0
    means = [np.bincount(where, x, bins)[full] / count[full] for x in (confidence, right)]
    return means[0], means[1], count[full] / len(where)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017, equation 3) over equal bins of confidence."""
    confidence, hit, share = reliability(probabilities.max(1), probabilities.argmax(1) == truth, bins)
    return float((share * abs(hit - confidence)).sum())


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the items of ``sum_k (p_k - y_k)²``, y the one-hot truth: from 0 to 2, a uniform guess over K labels
    gives 1 - 1/K (Brier, "Verification of forecasts expressed in terms of probability", 1950, equation 2).
    """
    off = probabilities.copy()
    off[np.arange(len(truth)), truth] -= 1
    return float((off**2).sum(1).mean())


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What answering only when sure costs and brings: coverage and risk, (N,) each.

    Point i is that of the threshold ``np.sort(confidence)[::-1][i]``: of the answers at least so confident, their
    share of all (coverage) and how many of them are wrong (risk). El-Yaniv and Wiener, "On the foundations of
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
    found = probabilities.argmax(1)
    return {
        "accuracy": accuracy(truth, found),
        "balanced_accuracy": balanced_accuracy(truth, found),
        "macro_f1": macro_f1(truth, found),
        "ece": calibration_error(probabilities, truth),
        "brier": brier(probabilities, truth),
    }
