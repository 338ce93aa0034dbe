"""Figures of a classifier, against numbers worked out by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score

from emostream.train.metrics import (
    accuracy,
    balanced_accuracy,
    brier,
    calibration_error,
    figures,
    macro_f1,
    recalls,
    reliability,
    risk_coverage,
    scores,
)

TRUTH, PREDICTED = np.array([0, 0, 0, 2]), np.array([0, 0, 2, 2])


def test_accuracy_recall_and_f1_by_hand():
    assert accuracy(TRUTH, PREDICTED) == 0.75
    recall = recalls(TRUTH, PREDICTED, 4)
    assert recall[0] == pytest.approx(2 / 3) and recall[2] == 1 and np.isnan(recall[[1, 3]]).all()
    assert balanced_accuracy(TRUTH, PREDICTED) == pytest.approx(5 / 6)
    assert macro_f1(TRUTH, PREDICTED) == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores(TRUTH, PREDICTED) == {"items": 4, "accuracy": 0.75, "balanced_accuracy": 0.8333, "macro_f1": 0.7333}


def test_balanced_accuracy_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 7, 300), rng.integers(0, 7, 300)
    assert balanced_accuracy(truth, predicted) == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_predicting_a_label_that_does_not_occur_counts_as_wrong():
    assert balanced_accuracy(np.array([0, 1]), np.array([0, 6])) == 0.5


def test_brier_by_hand():
    truth = np.array([0, 1])
    assert brier(np.eye(3)[[0, 1]], truth) == 0
    assert brier(np.eye(3)[[1, 2]], truth) == 2  # sure and wrong
    assert brier(np.full((2, 4), 0.25), truth) == pytest.approx(1 - 1 / 4)
    p = np.array([[0.7, 0.2, 0.1]])
    assert brier(p, np.array([0])) == pytest.approx(0.09 + 0.04 + 0.01)
    assert p[0].tolist() == [0.7, 0.2, 0.1]  # the argument is not changed


def test_calibration_error_by_hand():
    # bins of a tenth: two answers of 0.95, one right; one of 0.65, right
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65]])
    truth = np.array([0, 1, 1])
    assert calibration_error(p, truth, bins=10) == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.35)
    x, y, share = reliability(p.max(1), p.argmax(1) == truth, bins=10)
    assert np.allclose(x, [0.65, 0.95]) and np.allclose(y, [1, 0.5]) and np.allclose(share, [1 / 3, 2 / 3])
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0  # 1 is in the last bin


def test_risk_coverage_by_hand_and_with_ties():
    coverage, risk = risk_coverage(np.array([0.9, 0.6, 0.8, 0.7]), np.array([True, False, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert np.allclose(risk, [0, 0, 1 / 3, 0.5])
    coverage, risk = risk_coverage(np.array([0.5, 0.5, 0.9]), np.array([1, 0, 1]))
    assert np.allclose(coverage, [1 / 3, 1, 1]) and np.allclose(risk, [0, 1 / 3, 1 / 3])


def test_risk_and_coverage_are_those_of_their_thresholds():
    rng = np.random.default_rng(0)
    confidence, right = rng.integers(0, 20, 200) / 20, rng.random(200) < 0.6
    coverage, risk = risk_coverage(confidence, right)
    for threshold, c, r in zip(np.sort(confidence)[::-1], coverage, risk, strict=True):
        kept = confidence >= threshold
        assert c == pytest.approx(kept.mean()) and r == pytest.approx((~right[kept]).mean())


def test_figures_agree_with_their_functions():
    rng = np.random.default_rng(1)
    p, truth = softmax(rng.normal(size=(50, 4)), axis=1), rng.integers(0, 4, 50)
    predicted = p.argmax(1)
    assert figures(p, truth) == {
        "accuracy": accuracy(truth, predicted), "balanced_accuracy": balanced_accuracy(truth, predicted),
        "macro_f1": macro_f1(truth, predicted), "ece": calibration_error(p, truth), "brier": brier(p, truth),
    }  # fmt: skip
