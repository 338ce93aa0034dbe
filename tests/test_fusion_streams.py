"""stream/cores/fusion.py, jobs.py, report.py over time: latency, estimates, several streams, ends, faults, memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.messages import Message
from tests.fusion import (
    ALL,
    SECOND,
    SPOKEN,
    T0,
    Run,
    all_topics,
    end_message,
    face_message,
    late_video,
    ready_run,
    sound_message,
    speech_message,
)

# Latency


_span = st.integers(0, 300_000_000)


@pytest.mark.slow
@given(_span, _span, _span, _span, _span, _span)
def test_the_parts_of_the_latency_sum_to_the_total(endpoint, receive, recognition, send, encode, classify):
    run = Run(encode_ns=encode, classify_ns=classify)
    run.push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(31)))
    captured = T0 + 2 * SECOND + endpoint
    received = captured + receive
    sent = received + recognition
    run.clock.advance_ns(sent + send - run.clock.now_ns())
    run.push(
        speech_message(
            "ended", 2.0 + endpoint / SECOND, 1, 1.0, 2.0, "so good", captured_ns=captured, received_ns=received,
            recognition_ns=recognition, sent_ns=sent,
        )
    ).step()  # fmt: skip
    late = run.labels[0].latency_ms
    assert late is not None
    assert late.total == pytest.approx((endpoint + receive + recognition + send + encode + classify) / 1e6, abs=0.002)
    assert late.endpoint_wait == pytest.approx(endpoint / 1e6, abs=0.002)
    assert late.recognition == pytest.approx(recognition / 1e6, abs=0.002)
    assert late.queue == pytest.approx((receive + send) / 1e6, abs=0.002)
    assert late.encode == pytest.approx(encode / 1e6, abs=0.002)
    assert late.fusion == pytest.approx(classify / 1e6, abs=0.002)
    parts = late.endpoint_wait + late.recognition + late.queue + late.encode + late.fusion + late.other
    assert parts == pytest.approx(late.total, abs=0.0005)
    assert late.other == pytest.approx(0, abs=0.005)
    assert late.total == pytest.approx((run.labels[0].published_ns - run.labels[0].captured_ns) / 1e6, abs=0.001)


def test_running_estimates_have_no_latency():
    run = Run(estimates=True).live(all_topics(8, SPOKEN))
    assert run.windows
    assert {window.latency_ms for window in run.windows} == {None}
    assert all(label.latency_ms is not None for label in run.labels)


# Running estimates


@pytest.mark.parametrize("hop_ms", [100, 250, 1000])
def test_a_running_estimate_each_hop_while_someone_speaks(hop_ms):
    run = Run(estimates=True, realtime=False, window={"hop_ms": hop_ms, "length_s": 1.0}).live(all_topics(8, SPOKEN))
    for n, (start, end, _) in enumerate(SPOKEN, 1):
        ends = [e.end_s for e in run.windows if e.utterance == n]
        assert ends == [round(start + hop_ms / 1000 * (i + 1), 3) for i in range(len(ends))]
        assert (end - start - 0.25) / (hop_ms / 1000) - 1 <= len(ends) <= (end - start) / (hop_ms / 1000)
    for window in run.windows:
        so_far_ms = round((window.end_s - window.start_s) * 1000)
        before = max(0, so_far_ms - 1000) // 80  # vectors of the utterance before the last second
        assert window.modalities["audio"].frames == -(-(so_far_ms // 10 - 3) // 8) - before
    assert [window.seq for window in run.windows] == list(range(len(run.windows)))
    assert [label.seq for label in run.labels] == [0, 1, 2]


def test_an_estimate_overtaken_by_a_newer_one_is_dropped():
    run = Run(estimates=True).push(
        *(sound_message(i / 10) for i in range(60)), *(face_message(i / 10) for i in range(60))
    )
    run.push(speech_message("started", 1.2, 1, 1.0, 1.2))
    run.push(*(speech_message("words", 2.0 + i, 1, 1.0, 2.0 + i, "on and on") for i in range(4))).step()
    assert [window.end_s for window in run.windows] == [5.0]


def test_an_end_overtakes_estimates():
    run = Run(estimates=True).push(
        *(sound_message(i / 10) for i in range(60)), *(face_message(i / 10) for i in range(60))
    )
    run.push(speech_message("started", 1.2, 1, 1.0, 1.2), speech_message("words", 3.0, 1, 1.0, 3.0, "on"))
    run.push(speech_message("ended", 3.9, 1, 1.0, 3.5, "on")).step()
    assert [e.kind for e in run.published] == ["utterance"]


# Several streams


def test_streams_that_are_ready_together_are_one_batch():
    run = Run(streams={"a": ALL, "b": ALL})
    for name in ("a", "b"):
        run.push(
            *(sound_message(i / 10, stream=name) for i in range(30)),
            *(face_message(i / 10, stream=name) for i in range(31)),
        )
        run.push(speech_message("ended", 2.4, 1, 1.0, 2.0, f"i am {name}", stream=name))
    run.at(2.4).step()
    (batch,) = run.classifier.batches
    assert [item.video[:, 0].tolist() for item in batch] == [list(range(10, 20)), list(range(110, 120))]
    assert [(e.stream, e.text, e.seq) for e in run.labels] == [("a", "i am a", 0), ("b", "i am b", 0)]


def test_one_stream_does_not_wait_for_another():
    run = Run(streams={"a": ALL, "b": ALL}).at(2.4)
    run.push(
        speech_message("ended", 2.4, 1, 1.0, 2.0, "late", stream="a"),
        sound_message(1.0, stream="a"),
        face_message(1.0, stream="a"),
    )
    run.push(
        *(sound_message(i / 10, stream="b") for i in range(30)), *(face_message(i / 10, stream="b") for i in range(31))
    )
    run.push(speech_message("ended", 2.4, 1, 1.0, 2.0, "quick", stream="b")).step()
    assert [e.text for e in run.labels] == ["quick"]
    assert [e.text for e in run.at(2.6).step().labels] == ["quick", "late"]


# Missing modalities


def test_an_utterance_without_features_gets_no_label_and_is_counted():
    run = Run().at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0)).at(3).step()
    assert run.published == []
    assert run.core.counters["utterances_in"] == run.core.counters["utterances_without_features"] == 1
    assert run.core.counters["utterances_out"] == 0


def test_an_utterance_without_features_does_not_spoil_the_batch():
    run = ready_run(Run(streams={"a": ALL, "b": frozenset({"speech"})}))
    run.push(speech_message("ended", 2.4, 1, 1.0, 2.0, stream="b")).step()
    assert [e.stream for e in run.labels] == ["a"]


def test_words_alone_are_enough():
    run = Run(streams={"a": frozenset({"speech"})}).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels[0].modalities["audio"].frames == 0
    assert run.labels[0].modalities["audio"].coverage == 0


@pytest.mark.parametrize("realtime", [True, False])
def test_a_stream_without_sound_is_cut_by_its_faces(realtime):
    run = Run(streams={"a": frozenset({"video"})}, realtime=realtime)
    frames: list[Message] = [face_message(i / 10, seen=10 <= i < 40 or i >= 60) for i in range(90)]
    run.live({"face": [*frames, end_message("face")]})
    assert [(e.start_s, e.end_s, e.text) for e in run.labels] == [(1.0, 4.0, ""), (6.0, 9.0, "")]
    assert [e.modalities["video"].frames for e in run.labels] == [30, 30]
    assert run.core.done


def test_a_microphone_that_cannot_be_opened_leaves_the_faces():
    run = Run().push(end_message("audio"), end_message("speech"))
    for i in range(60):
        run.at(i / 10).push(face_message(i / 10, seen=10 <= i < 40)).step()
    assert [(e.start_s, e.end_s) for e in run.labels] == [(1.0, 4.0)]


# Ends


def test_done_when_every_modality_has_ended_and_every_label_is_out():
    run = late_video(Run(realtime=False), 1.5)
    for of in ("speech", "audio"):
        run.push(end_message(of)).step()
        assert not run.core.done
    run.push(end_message("pcm"))  # irrelevant to fusion
    run.push(end_message("face"))
    assert not run.core.done  # one label is still pending
    run.step()
    assert len(run.labels) == 1
    assert run.core.done


def test_done_only_when_all_streams_are_done():
    run = Run(streams={"a": frozenset({"audio", "speech"}), "b": frozenset({"video"})})
    run.push(end_message("audio"), end_message("speech"), end_message("speech"))
    assert not run.core.done
    assert run.push(end_message("face", "b")).core.done


def test_the_lead_of_video_over_speech():
    run = Run(realtime=False).push(face_message(3.0), speech_message("progress", 1.0))
    assert run.core.ahead_ns("a") == 2 * SECOND
    assert run.push(end_message("speech")).core.ahead_ns("a") == 0


# Faults


def test_repeated_rows_are_counted_and_change_nothing():
    run = Run().push(
        *(sound_message(i / 10) for i in range(15)), sound_message(0.5), face_message(0.2), face_message(0.2)
    )
    assert run.core.counters["rows_out_of_order"] == 11
    run.push(*(sound_message(i / 10) for i in range(15, 30)), *(face_message(i / 10) for i in range(3, 31)))
    run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels[0].probabilities == ready_run(Run()).step().labels[0].probabilities


# Memory


def _rows_held(run: Run) -> int:
    state = run.core._streams["a"]
    people = [
        window for person in state.people._people.values() for window in (person.crops, person.video, person.mouths)
    ]
    return max(len(window) for window in (state.audio, state.people._faces, *people))


def _minutes(run: Run, minutes: float, spoken_s: float, speech: bool = True) -> int:
    """A long live stream: silence (``spoken_s`` 0) or utterances of that length, one after the other. Returns the
    largest number of rows held at any time."""
    most, utterance, begun = 0, 0, 0.0
    for tenth in range(round(minutes * 600)):
        now = tenth / 10
        run.at(now).push(sound_message(now), face_message(now))
        if speech and spoken_s == 0 and tenth % 3 == 0:
            run.push(speech_message("progress", now))
        elif speech and spoken_s and tenth % 3 == 0:
            if utterance == 0 or now - begun >= spoken_s:
                if utterance:
                    run.push(speech_message("ended", now, utterance, begun, now, "and so on"))
                utterance, begun = utterance + 1, now
                run.push(speech_message("started", now + 0.05, utterance, begun, now + 0.05))
            else:
                run.push(speech_message("words", now, utterance, begun, now, "and so"))
        run.step()
        most = max(most, _rows_held(run))
    return most


@pytest.mark.slow
@pytest.mark.parametrize("estimates", [True, False])
def test_ten_minutes_of_silence_are_forgotten(estimates):
    run = Run(estimates=estimates)
    assert _minutes(run, 10, 0) < 100 * 5
    assert run.published == []


@pytest.mark.slow
def test_ten_minutes_of_speech_are_forgotten():
    run = Run(estimates=True, window={"hop_ms": 1000})
    assert _minutes(run, 10, 15) < 100 * (15 + 5)
    assert len(run.labels) >= 38
    assert run.core.patience_ms() > 10**9  # no job waits


def test_without_a_speech_node_features_are_forgotten():
    assert _minutes(Run(), 3, 0, speech=False) < 100 * 30


def test_memory_is_bounded_if_the_speech_node_dies_in_mid_utterance():
    run = Run().push(speech_message("started", 0.1, 1, 0.0, 0.1))
    assert _minutes(run, 3, 0, speech=False) < 100 * 30
