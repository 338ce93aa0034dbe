"""stream/dimensions.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.dimensions import COORDINATES, valence_and_arousal

LABELS = list(COORDINATES)


def test_every_label_of_the_shipped_bundle_has_coordinates(bundle):
    assert set(bundle.manifest.labels) == set(COORDINATES)
    assert all(-1 <= value <= 1 for point in COORDINATES.values() for value in point)


@pytest.mark.parametrize("label", LABELS)
def test_a_sure_label_lies_at_its_coordinates(label):
    assert valence_and_arousal(LABELS, np.array([float(name == label) for name in LABELS])) == COORDINATES[label]


def test_a_mixture_lies_between():
    assert valence_and_arousal(["joy", "neutral"], np.array([0.5, 0.5])) == pytest.approx((0.38, 0.24))


@given(st.lists(st.floats(0.01, 1), min_size=7, max_size=7), st.permutations(range(7)))
def test_the_mean_is_in_range_and_of_no_order(values, order):
    probabilities = np.array(values) / sum(values)
    mean = valence_and_arousal(LABELS, probabilities)
    assert mean is not None and all(-1 <= value <= 1 for value in mean)
    assert valence_and_arousal([LABELS[i] for i in order], probabilities[list(order)]) == pytest.approx(mean)


def test_a_label_without_coordinates_has_no_mean():
    assert valence_and_arousal(["joy", "boredom"], np.array([1.0, 0.0])) is None


def test_coordinates_of_a_bundle_come_first():
    learnt = {"joy": (0.2, 0.1), "boredom": (-0.4, -0.5)}
    assert valence_and_arousal(["joy", "boredom"], np.array([0.5, 0.5]), learnt) == pytest.approx((-0.1, -0.2))
    assert valence_and_arousal(["joy"], np.array([1.0]), {}) == COORDINATES["joy"]
