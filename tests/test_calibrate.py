"""Calibration: temperatures, the threshold below which an answer is uncertain, and how well both work."""

import numpy as np
import pytest
from scipy.special import softmax

from emostream.train.bundle.calibrate import LEFT_RISK, calibrate, floor, temperature_of, threshold
from emostream.train.metrics import calibration_error


def answers(n, sharpness, seed):
    """Logits whose probabilities would be right if divided by ``sharpness``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, 7))
    truth = np.array([rng.choice(7, p=p) for p in softmax(logits, axis=1)])
    return logits * sharpness, truth


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_factor(sharpness):
    assert temperature_of(*answers(4000, sharpness, 0)) == pytest.approx(sharpness, rel=0.1)


def test_threshold_halves_the_risk_and_keeps_as_many_as_it_can():
    rng = np.random.default_rng(0)
    confidence = rng.random(5000)
    right = rng.random(5000) < confidence
    least = threshold(confidence, right)
    risk = (~right).mean()
    kept = confidence >= least
    assert (~right[kept]).mean() <= LEFT_RISK * risk
    assert least == pytest.approx(0.5, abs=0.05)  # risk above c is (1 - c) / 2, and that of all is 1/2
    below = np.sort(confidence[~kept])[-50]
    assert (~right[confidence >= below]).mean() > LEFT_RISK * risk


@pytest.mark.slow
def test_floor_is_what_chance_alone_leaves():
    logits, truth = answers(300, 1.0, 1)
    few = floor(softmax(logits, axis=1), np.random.default_rng(0))
    many = floor(softmax(answers(20_000, 1.0, 1)[0], axis=1), np.random.default_rng(0), rounds=5)
    assert many < 0.012 < 0.03 < few
    assert calibration_error(softmax(logits, axis=1), truth) == pytest.approx(few, abs=0.03)


def test_each_set_has_a_temperature_and_is_judged_by_the_other_half():
    halves = tuple({"audio": answers(1500, 3.0, s), "audio+text": answers(900, 0.5, 10 + s)} for s in (0, 1))
    calibration = calibrate(halves)
    assert calibration.temperature["audio"] == pytest.approx(3, rel=0.15)
    assert calibration.temperature["audio+text"] == pytest.approx(0.5, rel=0.15)
    for figures in calibration.judged.values():
        assert figures["ece"] < 0.05 < figures["ece_before"]
        assert figures["risk"] < figures["risk_all"] and 0 < figures["coverage"] < 1
    assert 1 / 7 < calibration.uncertain_below < 1
    # each half is evaluated with what was fitted on the other, so halves of different sharpness give bad results
    mixed = ({"audio": answers(1500, 3.0, 0)}, {"audio": answers(1500, 0.5, 1)})
    assert calibrate(mixed).judged["audio"]["ece"] > 0.1
