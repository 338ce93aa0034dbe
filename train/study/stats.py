"""Comparison of two systems, paired by fold, corrected for the variance that shared training data hides.

The runs of a cross-validation are not independent: any two folds share most of their training data, and the seeds of
one fold share all of it and the test items too. So seeds are averaged within a fold, and the variance over folds is
increased by the test-to-train ratio (Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52,
2003, section 3.4: the factor 1/J + n2/n1 in place of 1/J).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Comparison:
    """The ``difference`` b - a, its 95 % interval, the corrected t and two-sided p, and the number of folds.

    If the difference is the same in every fold, its variance cannot be estimated: t and p are NaN.
    """

    difference: float
    low: float
    high: float
    t: float
    p: float
    folds: int


def by_fold(values: np.ndarray) -> np.ndarray:
    """(folds,) or (folds, seeds) → mean over the seeds (folds,). Raises ValueError for fewer than two folds."""
    folds: np.ndarray = np.asarray(values, float)
    if folds.ndim == 2:
        folds = folds.mean(1)
    if len(folds) < 2:
        raise ValueError(f"{len(folds)} fold: at least two are needed to estimate a deviation")
    return folds


def interval(values: np.ndarray, test_to_train: float, level: float = 0.95) -> tuple[float, float, float, float]:
    """Mean of (folds,) or (folds, seeds) values, the ends of its corrected interval, and its corrected standard error.

    ``test_to_train``: ratio of test to training items of a fold.
    """
    folds = by_fold(values)
    k = len(folds)
    error = float(np.sqrt((1 / k + test_to_train) * folds.var(ddof=1)))
    mean, reach = float(folds.mean()), float(stats.t.ppf((1 + level) / 2, k - 1)) * error
    return mean, mean - reach, mean + reach, error


def compare(a: np.ndarray, b: np.ndarray, test_to_train: float) -> Comparison:
    """Corrected resampled t-test of b against a, each (folds,) or (folds, seeds), over the same folds.

    Raises ValueError if they have different numbers of folds.
    """
    first, second = by_fold(a), by_fold(b)
    if len(first) != len(second):
        raise ValueError(f"systems of {len(first)} and {len(second)} folds cannot be paired")
    difference, low, high, error = interval(second - first, test_to_train)
    k = len(first)
    if error < 1e-12:
        return Comparison(difference, low, high, float("nan"), float("nan"), k)
    t = difference / error
    return Comparison(difference, low, high, t, float(2 * stats.t.sf(abs(t), k - 1)), k)
