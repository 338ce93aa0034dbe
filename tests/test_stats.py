"""The corrected t-test, against numbers worked out by hand and against SciPy's where they must agree."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from emostream.train.study.stats import compare, interval

A, B = np.array([0.50, 0.52, 0.55]), np.array([0.52, 0.56, 0.58])  # differences 0.02, 0.04, 0.03


def test_by_hand():
    c = compare(A, B, test_to_train=0.5)
    error = math.sqrt((1 / 3 + 0.5) * 1e-4)  # the differences' variance is 1e-4
    t = 0.03 / error
    assert c.difference == pytest.approx(0.03) and c.t == pytest.approx(t) and c.folds == 3
    assert c.p == pytest.approx(1 - t / math.sqrt(t * t + 2))  # the t distribution of 2 degrees has this closed form
    reach = 4.302653 * error  # its 97.5 % quantile
    assert (c.low, c.high) == (pytest.approx(0.03 - reach), pytest.approx(0.03 + reach))


def test_without_a_correction_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8))
    c, theirs = compare(a, b, 0.0), ttest_rel(b, a)
    assert c.t == pytest.approx(theirs.statistic) and c.p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert (c.low, c.high) == (pytest.approx(low), pytest.approx(high))


def test_the_correction_only_widens_and_seeds_are_no_evidence():
    plain, corrected = compare(A, B, 0.0), compare(A, B, 1 / 3)
    assert corrected.p > plain.p and corrected.low < plain.low and corrected.difference == plain.difference
    many = compare(np.repeat(A[:, None], 10, axis=1), np.repeat(B[:, None], 10, axis=1), 1 / 3)
    assert many.p == pytest.approx(corrected.p) and many.t == pytest.approx(corrected.t)


def test_opposite_order_gives_the_opposite():
    forth, back = compare(A, B, 0.2), compare(B, A, 0.2)
    assert back.difference == -forth.difference and back.p == pytest.approx(forth.p)
    assert back.low == pytest.approx(-forth.high)


def test_nothing_to_estimate():
    c = compare(A, A + 0.1, 0.3)
    assert c.difference == pytest.approx(0.1) and math.isnan(c.p) and math.isnan(c.t)
    with pytest.raises(ValueError, match="two"):
        compare(A[:1], B[:1], 0.3)
    with pytest.raises(ValueError, match="3 and 2 folds"):
        compare(A, B[:2], 0.3)


def test_95_percent_intervals_cover_the_mean_in_95_percent_of_cases():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        mean, low, high, _ = interval(rng.normal(0.5, 0.1, (5, 1)), 0.0)
        inside += low <= 0.5 <= high
        assert low < mean < high
    assert 0.93 < inside / 1000 < 0.97
