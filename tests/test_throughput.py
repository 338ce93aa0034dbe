"""benchmarks/throughput.py: the search for the largest number of streams, and what fails a step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import throughput
from benchmarks.script import RATE_HZ, demo_segments


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_search_finds_the_largest_that_holds_and_asks_no_number_twice(limit, most):
    asked = []

    def holds(n: int) -> bool:
        asked.append(n)
        return n <= limit

    assert throughput.search(holds, most) == min(limit, most)
    assert len(asked) == len(set(asked)) and all(1 <= n <= most for n in asked)
    assert len(asked) <= 2 * most.bit_length() + 1


def test_streams_do_not_speak_in_step():
    segments = demo_segments()
    made = [throughput.conversation(i, segments, 15.0) for i in range(8)]
    starts = [said[0].start / RATE_HZ for said, _ in made]
    assert len({round(start, 1) for start in starts}) == len(starts)
    assert len({said[0].name for said, _ in made}) == len(segments)
    assert len({round(pause_s, 3) for _, pause_s in made}) == len(made)
    for said, pause_s in made:
        assert pause_s >= 0.9
        assert sum(len(segment.samples) / RATE_HZ + pause_s for segment in said) >= 15.0


def test_a_segment_that_was_moved_still_tells_its_speech():
    segments = demo_segments()
    (first, *_), _ = throughput.conversation(1, segments, 5.0)
    original = segments[1]
    assert (first.samples[first.start : first.end] == original.samples[original.start : original.end]).all()
    assert not first.samples[: first.start - original.start].any()


def step(n: int, p99: float | None, *reasons: str) -> dict:
    cpu = {"audio": 0.02, "speech": 0.1, "fusion": 0.01}
    return {
        "streams": n, "utterances": 4 * n, "labels": 4 * n, "p50": p99, "p99": p99, "cpu": cpu, "busy": 0.5,
        "lost": {}, "reasons": list(reasons),
    }  # fmt: skip


def test_the_table_names_the_largest_and_why_the_next_did_not_hold():
    steps = [step(1, 20.0), step(2, 40.0), step(4, 180.0, "p99 180 ms"), step(3, 60.0)]
    text = throughput.tables({"audio": {"largest": 3, "steps": steps}}, 150.0, 32)
    (row,) = (
        line for line in text.splitlines() if line.startswith("| audio ") and "0.130" in line and "4: p99" in line
    )
    assert [cell.strip() for cell in row.split("|")][2:5] == ["3", "60.0", "60.0"]
    assert "4: p99 180 ms" in text and text.count("holds") >= 3
    assert throughput.tables({}, 150.0, 32) == "Nothing was measured."


def test_a_limit_that_was_not_found_is_said():
    text = throughput.tables({"audio": {"largest": 4, "steps": [step(4, 20.0)]}}, 150.0, 4)
    assert "--max 4: held" in text


def test_nothing_seen_does_not_hold():
    found, faults = throughput.judge({}, throughput.Watch(faults=["the pipeline never began"]), "audio", 150.0)
    assert not found.holds and "crashed" in found.reasons and "no label" in found.reasons
    assert faults == ["the pipeline never began"]


@pytest.mark.parametrize("wrong", [["--max", "0"], ["--settings", "smell"]])
def test_wrong_usage(wrong):
    with pytest.raises(SystemExit) as caught:
        throughput.main(wrong)
    assert caught.value.code == 2
