"""benchmarks/soak.py: what counts as flat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import latency, soak
from benchmarks.script import Script, Utterance
from benchmarks.soak import HOUR_S, Series

TIMES = np.arange(0, HOUR_S, 5.0)


def series(per_hour: float, noise: float = 0.0, quantity: str = "memory", times: np.ndarray = TIMES) -> Series:
    values = 100 + per_hour * times / HOUR_S + np.random.default_rng(0).normal(0, noise, len(times))
    return Series(quantity, "fusion", times.tolist(), values.tolist())


def flat(of: Series, from_s: float = 60.0) -> bool:
    found = soak.slope(of, from_s)
    assert found is not None
    return found.flat


@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_what_stays_is_flat_and_what_grows_is_not(noise):
    assert flat(series(0.0, noise))
    assert not flat(series(20.0, noise))


@given(st.floats(-500, 500))
def test_the_slope_is_that_of_the_line(per_hour):
    found = soak.slope(series(per_hour), 0.0)
    assert found is not None and found.slope == pytest.approx(per_hour, abs=1e-6)
    assert found.low <= found.slope <= found.high


def test_slow_growth_below_the_bound_is_flat_and_above_it_is_not():
    assert flat(series(0.9)) and not flat(series(1.1))


def test_memory_that_is_given_back_is_no_fault_but_drift_either_way_is():
    assert flat(series(-50.0))
    assert not flat(series(-50.0, quantity="drift"))


def test_growth_in_the_warm_up_alone_does_not_count():
    values = np.minimum(TIMES, 300.0)
    assert flat(Series("memory", "fusion", TIMES.tolist(), values.tolist()), 300.0)
    assert not flat(Series("memory", "fusion", TIMES[:100].tolist(), values[:100].tolist()), 0.0)


def test_one_wild_value_does_not_count():
    values = np.full(len(TIMES), 100.0)
    values[-3:] = 10_000
    assert flat(Series("latency", "label", TIMES.tolist(), values.tolist()))


def test_too_few_values_are_no_slope():
    assert soak.slope(series(0.0, times=TIMES[:9]), 0.0) is None


def test_a_script_that_is_looped_finds_its_labels_in_each_time_round():
    class Said:
        def __init__(self, start_s: float, end_s: float) -> None:
            self.start_s, self.end_s, self.kind = start_s, end_s, "utterance"

    script = Script(None, [Utterance("a", 1_000_000_000, 2_000_000_000)], 5.0, "made up")  # type: ignore[arg-type]
    labels = [latency.Label(0, Said(1.0, 2.0)), latency.Label(0, Said(11.0, 12.0)), latency.Label(0, Said(16.0, 17.0))]  # type: ignore[arg-type]
    found = soak.match(script, labels, 3)
    assert [utterance.start_ns for utterance, _ in found.pairs] == [1_000_000_000, 11_000_000_000]
    assert [utterance.start_ns for utterance in found.missed] == [6_000_000_000]
    assert found.unexpected == [labels[2]]


def test_the_longest_silence_of_a_node():
    class Beat:
        def __init__(self, at_s: float) -> None:
            self.sent_ns = int(at_s * 1e9)

    beats = {soak.NODES[0]: [Beat(t) for t in (1, 2, 3, 8, 9)]}  # type: ignore[list-item]
    found = soak.alive(beats, 0, 10.0)
    assert found[soak.NODES[0]] == 5.0
    assert found[soak.NODES[1]] == 10.0


def test_nothing_seen_is_a_fault():
    script = Script(None, [], 5.0, "made up")  # type: ignore[arg-type]
    assert soak.judge(script, 1, soak.Watch(faults=["the pipeline never began"]), 0.0, True) == (
        {},
        ["the pipeline never began"],
    )
