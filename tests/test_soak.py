"""benchmarks/soak.py and trend.py: what counts as flat, and what is a fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import soak
from benchmarks.live_run import Watch
from benchmarks.script import Script, Utterance
from benchmarks.trend import HOUR_S, Series, slope
from emostream.stream.messages import Health
from emostream.stream.sources.file import FileSource
from tests.benchmark_runs import T0_NS, beat, label

pytestmark = pytest.mark.slow  # all of them together

TIMES = np.arange(0, HOUR_S, 5.0)


def series(per_hour: float, noise: float = 0.0, quantity: str = "memory", times: np.ndarray = TIMES) -> Series:
    values = 100 + per_hour * times / HOUR_S + np.random.default_rng(0).normal(0, noise, len(times))
    return Series(quantity, "fusion", times.tolist(), values.tolist())


def flat(values: Series, from_s: float = 60.0) -> bool:
    fit = slope(values, from_s)
    assert fit is not None
    return fit.flat


@pytest.mark.parametrize("noise", [0.0, 0.5, 5.0])
def test_constant_values_are_flat_and_growing_ones_are_not(noise):
    assert flat(series(0.0, noise))
    assert not flat(series(20.0, noise))


@settings(max_examples=25)
@given(st.floats(-500, 500))
def test_the_slope_is_that_of_the_line(per_hour):
    fit = slope(series(per_hour), 0.0)
    assert fit is not None and fit.slope == pytest.approx(per_hour, abs=1e-6)
    assert fit.low <= fit.slope <= fit.high


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
    assert slope(series(0.0, times=TIMES[:9]), 0.0) is None


def test_labels_of_a_looped_script_are_matched_round_by_round():
    script = Script(Path("talk.mkv"), [Utterance("a", 1_000_000_000, 2_000_000_000)], 5.0, "invented")
    labels = [label("soak", i, start_s, start_s + 1) for i, start_s in enumerate((1.0, 11.0, 16.0))]
    matching = soak.match(script, labels, 3)
    assert [utterance.start_ns for utterance, _ in matching.pairs] == [1_000_000_000, 11_000_000_000]
    assert [utterance.start_ns for utterance in matching.missed] == [6_000_000_000]
    assert matching.unexpected == [labels[2]]


def test_the_longest_silence_of_a_node():
    sent = {soak.NODES[0]: [beat(soak.NODES[0], t) for t in (1, 2, 3, 8, 9)]}
    silence_s = soak.longest_silence_s(sent, T0_NS, 10.0)
    assert silence_s[soak.NODES[0]] == 5.0
    assert silence_s[soak.NODES[1]] == 10.0


def test_nothing_seen_is_a_fault():
    assert soak.judge(SILENT, 1, Watch(faults=["the pipeline never began"]), {}, 0.0, True) == (
        {},
        ["the pipeline never began"],
    )


# The loop


def test_sound_and_picture_loop_without_a_gap(tmp_path):
    """Each packet has 32 ms and each frame 100, or their count could not serve as a clock."""
    script, times = soak.make_loop(tmp_path, 2, 30.0)
    length_s = times * script.length_s
    assert times > 1 and length_s >= 30
    for name, medium, step_ns in (("sound", "audio", 32_000_000), ("picture", "video", 100_000_000)):
        source = FileSource(tmp_path / f"{name}-loop.mkv", frozenset({medium}), 10)
        source.open()
        starts = np.array([item.media_ns for item in source.items()])  # type: ignore[union-attr]
        source.close()
        off_ns = starts - starts[0] - step_ns * np.arange(len(starts))
        assert np.abs(off_ns).max() < (1 if medium == "audio" else step_ns)  # the first frame of each 100 ms
        assert len(starts) * step_ns / 1e9 >= length_s - 0.1


# Faults

SILENT = Script(Path("silent.mkv"), [], 600.0, "invented")


@dataclass
class Run:
    watch: Watch
    samples: soak.Samples


def beats(node: str, **rates: float) -> list[Health]:
    """A heartbeat every second of ten minutes; ``rates``: of its counters, per second."""
    return [
        beat(node, t, cpu_s=t / 10, counters={name: round(rate * t) for name, rate in rates.items()})
        for t in range(1, 601)
    ]


def good_run() -> Run:
    watch = Watch(t0_ns=T0_NS)
    rates = {"audio": {"chunks": 31.25}, "video": {"frames": 10}}
    watch.beats.update({node: beats(node, **rates.get(node.partition(".")[0], {})) for node in soak.NODES})
    return Run(watch, {"fusion": [(float(t), 100.0, 30, 4) for t in range(0, 600, 5)]})


def judged(run: Run, quick: bool = False) -> list[str]:
    """The run's faults, without those about labels, of which it has none."""
    figures, faults = soak.judge(SILENT, 1, run.watch, run.samples, 60.0, quick)
    assert "fusion" in soak.tables(figures)
    return [fault for fault in faults if "fewer than" not in fault]


def test_a_good_run_has_no_faults():
    assert judged(good_run()) == [] == judged(good_run(), quick=True)


def grow(column: int):
    def spoil(run: Run) -> None:
        run.samples["fusion"] = [
            (s[0], *(v + (i == column) * s[0] / 60 for i, v in enumerate(s[1:], 1))) for s in run.samples["fusion"]
        ]  # type: ignore[misc]

    return spoil


def replay(node: str, number: int):
    return lambda run: run.watch.beats[node].append(run.watch.beats[node][number])


@pytest.mark.parametrize(
    ("spoil", "fault", "when_quick"),
    [
        (grow(1), "memory, fusion", False),
        (grow(2), "descriptors, fusion", True),
        (grow(3), "threads, fusion", False),
        (
            lambda run: run.watch.beats.update({"video.soak": beats("video.soak", frames=9.99)}),
            "sound − picture",
            False,
        ),
        (lambda run: run.watch.beats["audio.soak"].append(beats("audio.soak", late_chunks=1)[-1]), "lost: audio", True),
        (lambda run: run.watch.beats.update({"fusion": run.watch.beats["fusion"][:300]}), "fusion was silent", True),
        (replay("fusion", 3), "fusion was started again", True),
        (lambda run: run.watch.late.append("it had not ended"), "it had not ended", True),
    ],
)
def test_growth_drift_loss_and_death_are_faults(spoil, fault, when_quick):
    for quick in (False, True):
        run = good_run()
        spoil(run)
        assert any(fault in line for line in judged(run, quick)) is (when_quick or not quick)
