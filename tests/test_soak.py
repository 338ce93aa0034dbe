"""benchmarks/soak.py: what counts as flat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import latency, soak
from benchmarks.script import Script, Utterance
from benchmarks.soak import HOUR_S, Series
from emostream.stream.messages import Health
from emostream.stream.sources.file import FileSource

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


# The loop


def test_sound_and_picture_loop_without_a_gap(tmp_path):
    """Each packet holds 32 ms and each frame 100, or counting them would not tell the time."""
    script, times = soak.make_loop(tmp_path, 2, 30.0)
    length_s = times * script.length_s
    assert times > 1 and length_s >= 30
    for name, medium, step_ns in (("sound", "audio", 32_000_000), ("picture", "video", 100_000_000)):
        source = FileSource(tmp_path / f"{name}.ffconcat", frozenset({medium}), 10)
        source.open()
        starts = np.array([item.media_ns for item in source.items()])  # type: ignore[union-attr]
        source.close()
        off_ns = starts - starts[0] - step_ns * np.arange(len(starts))
        assert np.abs(off_ns).max() < (1 if medium == "audio" else step_ns)  # the first frame of each 100 ms
        assert len(starts) * step_ns / 1e9 >= length_s - 0.1


# Faults

T0_NS = 1_700_000_000_000_000_000
SILENT = Script(None, [], 600.0, "made up")  # type: ignore[arg-type]


def beats(node: str, **more) -> list[Health]:
    """A heartbeat each second of ten minutes; ``more``: counters, as rates a second."""
    return [
        Health(
            node=node, state="running", sent_ns=T0_NS + t * 10**9, cpu_s=t / 10,
            counters={k: round(v * t) for k, v in more.items()},
        )
        for t in range(1, 601)
    ]  # fmt: skip


def good_watch() -> soak.Watch:
    watch = soak.Watch(t0_ns=T0_NS)
    rates = {"audio": {"chunks": 31.25}, "video": {"frames": 10}}
    watch.beats.update({node: beats(node, **rates.get(node.partition(".")[0], {})) for node in soak.NODES})
    watch.samples["fusion"] = [(float(t), 100.0, 30, 4) for t in range(0, 600, 5)]
    return watch


def judged(watch: soak.Watch, quick: bool = False) -> list[str]:
    """Its faults, but those of labels, of which there are none."""
    figures, faults = soak.judge(SILENT, 1, watch, 60.0, quick)
    assert "fusion" in soak.tables(figures)
    return [fault for fault in faults if "fewer than" not in fault]


def test_a_good_run_has_no_faults():
    assert judged(good_watch()) == [] == judged(good_watch(), quick=True)


def grow(at: int):
    def spoil(watch: soak.Watch) -> None:
        watch.samples["fusion"] = [
            (s[0], *(v + (i == at) * s[0] / 60 for i, v in enumerate(s[1:], 1))) for s in watch.samples["fusion"]
        ]  # type: ignore[misc]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told", "when_quick"),
    [
        (grow(1), "memory, fusion", False),
        (grow(2), "descriptors, fusion", True),
        (grow(3), "threads, fusion", False),
        (lambda watch: watch.beats.update({"video.soak": beats("video.soak", frames=9.99)}), "sound − picture", False),
        (lambda watch: watch.beats["audio.soak"].append(beats("audio.soak", late_chunks=1)[-1]), "lost: audio", True),
        (lambda watch: watch.beats.update({"fusion": watch.beats["fusion"][:300]}), "fusion was silent", True),
        (lambda watch: watch.beats["fusion"].append(watch.beats["fusion"][3]), "fusion was started again", True),
    ],
)
def test_what_grows_drifts_is_lost_or_dies_is_a_fault(spoil, told, when_quick):
    for quick in (False, True):
        watch = good_watch()
        spoil(watch)
        assert any(told in fault for fault in judged(watch, quick)) is (when_quick or not quick)
