"""How benchmarks/chaos.py counts, on runs whose outcome is known."""

from __future__ import annotations

import pytest

from benchmarks.chaos import FAULTS, Injected, Outcome, Seen, into_page, judge
from emostream.errors import ConfigError
from emostream.stream.emotion import Emotion, Evidence
from tests.emotions import emotion_message

TURN_S = 20.0
STARTS = (2.0, 8.0, 14.0)


def label(start_s: float, **changes) -> Emotion:
    number = round(start_s * 10)
    modalities = {m: Evidence(100, 1.0, 0.3) for m in ("audio", "video", "text")}
    return emotion_message(
        kind="utterance",
        utterance=number,
        start_s=start_s,
        end_s=start_s + 3,
        modalities=modalities,
        text="so",
        **changes,
    )


CLIP = [label(start_s) for start_s in STARTS]


def judged(missing=(), told=(), injected=(), extra=()) -> tuple[Outcome, list[str]]:
    starts = [start_s + turn * TURN_S for turn in range(3) for start_s in STARTS]
    labels = [label(start_s) for start_s in starts if start_s not in missing]
    return judge(Seen(labels=[*labels, *extra], told=list(told), injected=list(injected)), CLIP, TURN_S, 3 * TURN_S)


def test_an_undisturbed_run():
    outcome, faults = judged()
    assert outcome.counts == {"in": 9, "labelled": 9, "told": 0, "silent": 0, "doubled": 0, "wrong": 0}
    assert not faults and outcome.minutes == 1.0


def test_what_was_told_and_what_was_not():
    outcome, faults = judged(missing=(8.0, 28.0), told=[(7.0, 12.0)])
    assert (outcome.counts["told"], outcome.counts["silent"], outcome.counts["labelled"]) == (1, 1, 7)
    assert faults == ["the utterance at 28.0 s has no label, and nothing was said of it"]


def test_labels_that_came_twice_or_are_others():
    outcome, faults = judged(missing=(28.0,), extra=[label(2.1), label(28.0, label="fear")])
    assert (outcome.counts["doubled"], outcome.counts["wrong"]) == (1, 1)
    assert len(faults) == 2
    assert judged(extra=[label(2.0)])[0].counts["doubled"] == 2  # the same number, too


def test_recovery_is_counted_by_fault_and_only_where_no_other_fault_comes_in_between():
    outcome, _ = judged(
        missing=(8.0, 14.0, 48.0),
        told=[(5, 18), (47, 52)],
        injected=[
            Injected("kill", "fusion", 5.0),
            Injected("stop 5", "fusion", 27.0),
            Injected("kill", "fusion", 47.0),
        ],
    )
    kill, stop = outcome.after["kill"], outcome.after["stop 5"]
    assert (kill.injected, kill.asked, kill.whole) == (
        2,
        2,
        1,
    )  # 8 s is missing; 54 s, the first 2 s after 47, is whole
    assert kill.recovery_s == [9.0, 1.0]
    assert (stop.injected, stop.asked, stop.whole, stop.recovery_s) == (1, 1, 1, [0.0])
    soon = judged(injected=[Injected("kill", "fusion", 5.0), Injected("term", "fusion", 9.0)])[0].after
    assert (soon["kill"].injected, soon["kill"].asked) == (1, 0)
    assert soon["term"].asked == 1


def test_the_page_adds_up_all_runs():
    one, _ = judged(injected=[Injected("kill", "fusion", 5.0)])
    two, _ = judged(missing=(8.0,), told=[(7, 12)], injected=[Injected("kill", "fusion", 5.0)])
    page = into_page("a\n<!-- chaos: begin -->\nstale\n<!-- chaos: end -->\nb\n", [one, two], [])
    assert page.startswith("a\n") and page.endswith("b\n") and "stale" not in page
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert ["in", "18"] in cells and ["labelled", "17"] in cells and ["told", "1"] in cells
    assert ["kill", "2", "1 of 2"] in [row[:3] for row in cells] and ["all", "2", "1 of 2"] in [
        row[:3] for row in cells
    ]
    assert {row[0] for row in cells} >= set(FAULTS)
    with pytest.raises(ConfigError):
        into_page("no marks", [one], [])
