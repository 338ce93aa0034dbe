"""benchmarks/throughput.py: the search for the largest number of streams, and what fails a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import latency, throughput
from benchmarks.script import RATE_HZ, Script, Utterance, demo_segments
from emostream.stream.messages import Emotion, Evidence, Health, Latency


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


# Verdicts

T0_NS = 1_700_000_000_000_000_000
TALK = {
    name: Script(Path("talk.mkv"), [Utterance(f"{i}", i * 10**9, i * 10**9 + 5 * 10**8) for i in range(1, 4)], 5.0, "")
    for name in ("s1", "s2")
}


def label(stream: str, seq: int, late_ms: float = 10.0, coverage: float = 1.0) -> latency.Label:
    """Of the utterance ``seq``, received ``late_ms`` after its end was confirmed."""
    start_s, captured_ns = seq + 1.0, T0_NS + (seq + 1) * 10**9 + 5 * 10**8
    parts = {"endpoint_wait": 400.0, "recognition": 0.0, "queue": late_ms, "encode": 0.0, "fusion": 0.0, "other": 0.0}
    received_ns = captured_ns + round((400 + late_ms) * 1e6)
    emotion = Emotion(
        kind="utterance", stream=stream, seq=seq, utterance=seq + 1, start_s=start_s, end_s=start_s + 0.5, label="joy",
        confidence=1.0, uncertain=False, probabilities={"joy": 1.0}, text="", words=[],
        modalities={"video": Evidence(9, coverage, 0.0)}, latency_ms=Latency(total=400 + late_ms, **parts),
        captured_ns=captured_ns, published_ns=received_ns, bundle="b", backend="none",
    )  # fmt: skip
    return latency.Label(received_ns, emotion)


def beat(node: str, at_s: float, cpu_s: float, **more) -> Health:
    sent_ns = T0_NS + int(at_s * 1e9)
    return Health(node=node, sent_ns=sent_ns, cpu_s=cpu_s, **{"state": "running"} | more)


def good_watch() -> throughput.Watch:
    watch = throughput.Watch(t0_ns=T0_NS)
    for name in TALK:
        watch.labels[name] = [label(name, seq) for seq in range(3)]
        watch.beats[f"audio.{name}"] = [beat(f"audio.{name}", at_s, 1 + at_s / 10) for at_s in (0, 2, 4)]
    watch.beats["fusion"] = [beat("fusion", 0, 3.0, state="ready"), *(beat("fusion", t, 4 + t) for t in (1, 2))]
    watch.supervisor = [(T0_NS, 1.0), (T0_NS + 10**9, 1.2)]
    return watch


def test_a_good_step_holds_and_tells_what_a_stream_costs():
    found, faults = throughput.judge(TALK, good_watch(), "audio+video", 150.0)
    assert not faults and found.holds, found.reasons
    assert (found.streams, found.utterances, found.labels) == (2, 6, 6)
    assert found.p99 == pytest.approx(10, rel=1e-3)
    assert found.cpu == pytest.approx({"audio": 0.1, "fusion": 0.5, "supervisor": 0.1})  # start-up is not in it


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda watch: watch.labels["s2"].pop(), "1 missed"),
        (lambda watch: watch.labels["s1"].append(label("s1", 1)), "1 doubled"),
        (lambda watch: watch.labels["s1"].append(label("s1", 7)), "1 unexpected"),
        (lambda watch: watch.labels["s1"].pop(0), "1 lost on the way"),
        (lambda watch: watch.labels["s1"].__setitem__(1, label("s1", 1, coverage=0.4)), "1 without half its picture"),
        (lambda watch: watch.labels["s1"].__setitem__(1, label("s1", 1, late_ms=151)), "p99 151 ms"),
        (lambda watch: watch.beats["fusion"].append(beat("fusion", 3, 9.0, dropped=2)), "dropped: fusion 2"),
        (lambda watch: setattr(watch, "late", "it had not started in 90 s"), "it had not started in 90 s"),
    ],
)
def test_what_fails_a_step_is_told_and_is_no_fault(spoil, told):
    watch = good_watch()
    spoil(watch)
    found, faults = throughput.judge(TALK, watch, "audio+video", 150.0)
    assert not found.holds and told in found.reasons and not faults


def test_a_node_that_was_started_again_is_a_fault_but_not_one_that_was_slow_to_start():
    watch = good_watch()
    watch.beats["speech.s1"] = [beat("speech.s1", 0, 9.0, state="starting"), beat("speech.s1", 1, 2.0)]
    assert not throughput.judge(TALK, watch, "audio+video", 150.0)[1]
    watch.beats["speech.s1"].append(beat("speech.s1", 2, 1.0))
    found, faults = throughput.judge(TALK, watch, "audio+video", 150.0)
    assert "crashed" in found.reasons and "speech.s1 was started again" in faults[0]


@pytest.mark.process
def test_one_stream_of_the_real_pipeline(tmp_path, capsys):
    arguments = ["--quick", "--max", "1", "--settings", "audio", "--bound-ms", "60000", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 0, capsys.readouterr().err
    of = json.loads((tmp_path / "throughput.json").read_text())["figures"]["audio"]
    assert of["largest"] == 1, of["steps"]
    (step,) = of["steps"]
    assert step["labels"] == step["utterances"] > 0 and {"audio", "speech", "fusion"} <= step["cpu"].keys()
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")
