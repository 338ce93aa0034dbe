"""Figures of a classifier."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, recall_score


def scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy (mean recall of the labels that occur; chance is 1/7) and macro F1."""
    occurring = np.unique(truth)
    return {
        "items": len(truth),
        "accuracy": round(float(accuracy_score(truth, found)), 4),
        "balanced_accuracy": round(
            float(recall_score(truth, found, labels=occurring, average="macro", zero_division=0)), 4
        ),
        "macro_f1": round(float(f1_score(truth, found, labels=occurring, average="macro", zero_division=0)), 4),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, labels) → probabilities of the same shape."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017, equation 3) over equal bins of confidence."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    where = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = [where == b for b in np.unique(where)]
    return float(sum(abs(right[i].mean() - confidence[i].mean()) * i.mean() for i in inside))
