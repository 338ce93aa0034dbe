"""benchmarks/throughput.py: the search for the largest number of streams, and what fails a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import throughput
from benchmarks.labels import Label
from benchmarks.live_run import Watch
from benchmarks.script import RATE_HZ, Script, Utterance, demo_segments
from emostream.stream.emotion import Evidence
from tests import benchmark_runs
from tests.benchmark_runs import T0_NS, beat


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
    conversations = [throughput.conversation(i, segments, 15.0) for i in range(8)]
    starts = [said[0].start / RATE_HZ for said, _ in conversations]
    assert len({round(start, 1) for start in starts}) == len(starts)
    assert len({said[0].name for said, _ in conversations}) == len(segments)
    assert len({round(pause_s, 3) for _, pause_s in conversations}) == len(conversations)
    for said, pause_s in conversations:
        assert pause_s >= 0.9
        assert sum(len(segment.samples) / RATE_HZ + pause_s for segment in said) >= 15.0


def test_a_delayed_segment_still_knows_where_its_speech_is():
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


def test_a_limit_that_was_not_reached():
    text = throughput.tables({"audio": {"largest": 4, "steps": [step(4, 20.0)]}}, 150.0, 4)
    assert "--max 4: held" in text


def test_nothing_seen_does_not_hold():
    watch = Watch(faults=["the pipeline never began"])
    step, faults = throughput.judge({}, watch, throughput.Load(), "audio", 150.0)
    assert not step.holds and "crashed" in step.reasons and "no label" in step.reasons
    assert faults == ["the pipeline never began"]


@pytest.mark.parametrize("wrong", [["--max", "0"], ["--settings", "smell"]])
def test_wrong_usage(wrong):
    with pytest.raises(SystemExit) as caught:
        throughput.main(wrong)
    assert caught.value.code == 2


# Verdicts

TALK = {
    name: Script(Path("talk.mkv"), [Utterance(f"{i}", i * 10**9, i * 10**9 + 5 * 10**8) for i in range(1, 4)], 5.0, "")
    for name in ("s1", "s2")
}


def label(stream: str, seq: int, late_ms: float = 10.0, coverage: float = 1.0) -> Label:
    """The label of the utterance ``seq``, received ``late_ms`` after its end was confirmed."""
    video = {"video": Evidence(9, coverage, 0.0)}
    return benchmark_runs.label(stream, seq, seq + 1.0, seq + 1.5, late_ms - 1, video)


def good_watch() -> Watch:
    watch = Watch(t0_ns=T0_NS, labels=[label(name, seq) for name in TALK for seq in range(3)])
    for name in TALK:
        node = f"audio.{name}"
        watch.beats[node] = [beat(node, t, cpu_s=1 + t / 10) for t in (0, 2, 4)]
    watch.beats["fusion"] = [
        beat("fusion", 0, cpu_s=3.0, state="ready"),
        *(beat("fusion", t, cpu_s=4 + t) for t in (1, 2)),
    ]
    return watch


LOAD = throughput.Load(supervisor=[(T0_NS, 1.0), (T0_NS + 10**9, 1.2)])


def judge(watch: Watch):
    return throughput.judge(TALK, watch, LOAD, "audio+video", 150.0)


def test_a_good_step_holds_and_has_the_cost_of_a_stream():
    step, faults = judge(good_watch())
    assert not faults and step.holds, step.reasons
    assert (step.streams, step.utterances, step.labels) == (2, 6, 6)
    assert step.p99 == pytest.approx(10, rel=1e-3)
    assert step.cpu == pytest.approx({"audio": 0.1, "fusion": 0.5, "supervisor": 0.1})  # without start-up


def without(*missing: tuple[str, int]):
    """Remove the labels with these streams and numbers."""

    def spoil(watch: Watch) -> None:
        watch.labels = [one for one in watch.labels if (one.emotion.stream, one.emotion.seq) not in missing]

    return spoil


def instead(replacement: Label):
    def spoil(watch: Watch) -> None:
        without((replacement.emotion.stream, replacement.emotion.seq))(watch)
        watch.labels.append(replacement)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without(("s2", 2)), "1 missed"),
        (lambda watch: watch.labels.append(label("s1", 1)), "1 doubled"),
        (lambda watch: watch.labels.append(label("s1", 7)), "1 unexpected"),
        (without(("s1", 0)), "1 lost on the way"),
        (instead(label("s1", 1, coverage=0.4)), "1 without half its picture"),
        (instead(label("s1", 1, late_ms=151)), "p99 151 ms"),
        (lambda watch: watch.beats["fusion"].append(beat("fusion", 3, cpu_s=9.0, dropped=2)), "dropped: fusion 2"),
        (lambda watch: watch.late.append("it had not started in 90 s"), "it had not started in 90 s"),
    ],
)
def test_what_fails_a_step_is_a_reason_and_no_fault(spoil, reason):
    watch = good_watch()
    spoil(watch)
    step, faults = judge(watch)
    assert not step.holds and reason in step.reasons and not faults


def test_a_node_that_was_started_again_is_a_fault_but_not_one_that_was_slow_to_start():
    watch = good_watch()
    watch.beats["speech.s1"] = [beat("speech.s1", 0, cpu_s=9.0, state="starting"), beat("speech.s1", 1, cpu_s=2.0)]
    assert not judge(watch)[1]
    watch.beats["speech.s1"].append(beat("speech.s1", 2, cpu_s=1.0))
    step, faults = judge(watch)
    assert "crashed" in step.reasons and "speech.s1 was started again" in faults[0]


@pytest.mark.long
@pytest.mark.process
@pytest.mark.alone
def test_one_stream_of_the_real_pipeline(tmp_path, capsys):
    arguments = ["--quick", "--max", "1", "--settings", "audio", "--bound-ms", "60000", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 0, capsys.readouterr().err
    figures = json.loads((tmp_path / "throughput.json").read_text())["figures"]["audio"]
    assert figures["largest"] == 1, figures["steps"]
    (step,) = figures["steps"]
    assert step["labels"] == step["utterances"] > 0 and {"audio", "speech", "fusion"} <= step["cpu"].keys()
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
