"""stream/cores/fusion.py and jobs.py, labels: one per utterance, in time, the same for any order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.stream.dimensions import COORDINATES
from emostream.stream.emotion import Emotion
from emostream.stream.messages import Control, Message
from tests.fusion import (
    MILLISECOND,
    SECOND,
    SPOKEN,
    T0,
    Run,
    all_topics,
    end_message,
    face_message,
    late_video,
    nanoseconds,
    ready_run,
    sound_message,
    speech_message,
)

# One label per utterance


@pytest.mark.parametrize("realtime", [True, False])
def test_each_utterance_gets_one_label(realtime):
    run = Run(realtime=realtime).live(all_topics(8, SPOKEN))
    assert [(e.start_s, e.end_s, e.text) for e in run.labels] == SPOKEN
    assert [e.utterance for e in run.labels] == [1, 2, 3]
    assert [e.seq for e in run.labels] == [0, 1, 2]
    assert run.core.counters["utterances_in"] == run.core.counters["utterances_out"] == 3
    assert run.core.done
    assert not run.windows


def test_a_label_carries_its_evidence():
    (emotion,) = ready_run(Run()).step().labels
    assert emotion.stream == "a"
    assert emotion.topic == "emotion.utterance.a"
    assert set(emotion.probabilities) == {"anger", "joy", "neutral"}
    assert sum(emotion.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert emotion.confidence == max(emotion.probabilities.values()) == emotion.probabilities[emotion.label]
    assert emotion.uncertain == (emotion.confidence < 0.5)
    assert (emotion.bundle, emotion.backend) == ("fake@0", "fake")
    assert [word.word for word in emotion.words] == ["so", "good"]
    evidence = emotion.modalities
    assert evidence["audio"].frames == 13  # vectors of 80 ms, of the 97 rows that lie whole within the second
    assert evidence["audio"].coverage == pytest.approx(1, abs=0.03)
    assert (evidence["video"].frames, evidence["video"].coverage) == (10, 1.0)
    assert (evidence["text"].frames, evidence["text"].coverage) == (2, 1.0)
    assert evidence["audio"].contribution == 0.125
    assert emotion.captured_ns == T0 + 2 * SECOND
    assert emotion.published_ns >= emotion.captured_ns


def test_valence_and_arousal_are_the_mean_of_the_labels(monkeypatch):
    (label,) = ready_run(Run()).step().labels
    points = [COORDINATES[name] for name in label.probabilities]
    for value, axis in ((label.valence, 0), (label.arousal, 1)):
        mean = sum(p * point[axis] for p, point in zip(label.probabilities.values(), points, strict=True))
        assert value == pytest.approx(mean, abs=6e-4)
    run = Run()
    monkeypatch.setattr(run.classifier, "labels", ("anger", "boredom", "neutral"))
    (unknown,) = ready_run(run).step().labels
    assert unknown.valence is None and unknown.arousal is None


def test_the_features_are_exactly_those_of_the_utterance():
    run = ready_run(Run()).step()
    ((item,),) = run.classifier.batches
    rows = np.arange(100, 197)  # 32 ms each: the last ends at 1.992 s
    np.testing.assert_array_equal(item.audio[:, 0], [rows[i : i + 8].sum() for i in range(0, len(rows), 8)])
    np.testing.assert_array_equal(item.video[:, 0], np.arange(10, 20))
    assert len(item.text) == 2


def test_gaps_are_visible_in_the_coverage():
    run = Run().push(*(sound_message(i / 10) for i in (*range(15), *range(18, 30))))
    run.push(*(face_message(i / 10, seen=i % 2 == 0) for i in range(31)))
    (emotion,) = run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so")).step().labels
    assert emotion.modalities["audio"].coverage == pytest.approx(0.7, abs=0.03)
    assert emotion.modalities["video"].coverage == 0.5


def test_utterance_numbers_go_on_when_the_speech_node_restarts():
    run = ready_run(Run()).step()
    run.push(speech_message("started", 3.5, 1, 3.0, 3.2), *(sound_message(i / 10) for i in range(30, 60)))
    run.at(5.5).push(speech_message("ended", 5.5, 1, 3.0, 5.0, "again")).at(6).step()
    assert [e.utterance for e in run.labels] == [1, 2]
    assert [e.start_s for e in run.labels] == [1.0, 3.0]


@pytest.mark.parametrize("broken_off", [1, 4])
def test_an_utterance_cut_off_by_a_crash_does_not_extend_the_next_one(broken_off):
    run = Run().push(*(sound_message(i / 10) for i in range(110)))
    run.push(speech_message("started", 1.2, broken_off, 1.0, 1.2))  # then the speech node was restarted
    run.push(speech_message("progress", 8.0), speech_message("started", 8.7, 1, 8.5, 8.7))
    run.push(speech_message("ended", 10.4, 1, 8.5, 10.0, "here again")).at(11).step()
    assert [(e.start_s, e.end_s) for e in run.labels] == [(8.5, 10.0)]


def test_messages_of_other_streams_and_other_kinds_are_ignored():
    run = ready_run(Run())
    run.push(sound_message(1.0, stream="b"), speech_message("ended", 2.4, 5, 1.0, 2.0, "so good", stream="b"))
    run.push(Control(stream="a", command="go"))
    assert len(run.step().labels) == 1


# The same at any speed and in any order


def _merged(topics: dict[str, list[Message]], choices: list[int]) -> list[Message]:
    """One of the orders in which messages may arrive: the order within a topic is kept."""
    queues = [list(messages) for messages in topics.values()]
    merged = []
    for choice in choices:
        waiting = [queue for queue in queues if queue]
        if waiting:
            merged.append(waiting[choice % len(waiting)].pop(0))
    return merged + [message for queue in queues for message in queue]


_TOPICS = all_topics(8, SPOKEN)
_ALL_TOPICS = [message for messages in _TOPICS.values() for message in messages]
# runs of messages of one topic, so that one topic is often far ahead of another
_order = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), max_size=20).map(
    lambda runs: [choice for choice, n in runs for _ in range(n)]
)


@pytest.fixture(scope="module")
def in_order() -> list[Emotion]:
    return Run(realtime=False, estimates=True).live(_TOPICS).published


@pytest.mark.slow
@settings(max_examples=25)
@given(choices=_order, steps=st.randoms(use_true_random=False))
def test_at_fast_pace_labels_do_not_depend_on_the_order_of_arrival(in_order, choices, steps):
    run = Run(realtime=False, estimates=True)
    for message in _merged(_TOPICS, choices):
        run.push(message)
        if steps.random() < 0.3:
            run.step()
    run.step()
    assert run.core.done

    def what(emotions):
        return [(e.kind, e.seq, e.start_s, e.end_s, e.text, e.probabilities, e.modalities) for e in emotions]

    assert what(run.published) == what(in_order)


def test_at_fast_pace_a_label_waits_as_long_as_it_takes():
    run = Run(realtime=False).push(*(sound_message(i / 10) for i in range(30)))
    run.push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good"), face_message(0.5)).at(3600).step()
    assert run.labels == []
    run.push(*(face_message(i / 10) for i in range(6, 21))).step()
    assert len(run.labels) == 1
    assert run.labels[0].latency_ms is None


def test_at_fast_pace_a_modality_that_ended_is_not_waited_for():
    run = Run(realtime=False).push(*(sound_message(i / 10) for i in range(30)))
    run.push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels == []
    assert len(run.push(end_message("face")).step().labels) == 1


@pytest.mark.parametrize("when", ["first", "midway", "last"])
def test_a_sound_track_without_sound_gives_the_same_labels_in_any_order(when):
    faces: list[Message] = [face_message(i / 10) for i in range(30)]
    position = {"first": 0, "midway": 15, "last": 30}[when]
    run = (
        Run(realtime=False)
        .push(*faces[:position], end_message("speech"), end_message("audio"), *faces[position:], end_message("face"))
        .step()
    )
    assert [(e.start_s, e.end_s) for e in run.labels] == [(0.0, 3.0)]


# Provisional labels


def _paused(run: Run, words: str = "so good") -> Run:
    run.push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(31)))
    run.push(speech_message("started", 1.2, 1, 1.0, 1.2))
    return run.at(2.2).push(speech_message("paused", 2.2, 1, 1.0, 2.0, words)).step()


def test_the_label_of_the_pause_goes_out_at_the_end():
    run = _paused(Run())
    assert run.published == []
    assert len(run.classifier.batches) == 1
    run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert len(run.labels) == 1
    assert len(run.classifier.batches) == 1  # it is not computed twice
    assert run.core.counters["labels_ready_at_end"] == 1
    assert run.labels[0].probabilities == ready_run(Run()).step().labels[0].probabilities
    assert run.labels[0].modalities["audio"].contribution == 0.125


def test_whoever_cannot_wait_gets_the_label_of_the_pause():
    run = _paused(Run(fusion={"early": True}))
    run.at(2.3).push(speech_message("words", 2.3, 1, 1.0, 2.3, "so good")).step()
    run.at(2.8).push(speech_message("paused", 2.8, 1, 1.0, 2.6, "so good too")).step()
    run.at(3.0).push(speech_message("ended", 3.0, 1, 1.0, 2.6, "so good too")).step()
    assert [(label.final, label.text, label.end_s) for label in run.labels] == [
        (False, "so good", 2.0), (False, "so good too", 2.6), (True, "so good too", 2.6),
    ]  # fmt: skip
    first, second, last = run.labels
    assert first.probabilities != second.probabilities == last.probabilities
    assert [label.seq for label in run.labels] == [0, 1, 2] and {label.utterance for label in run.labels} == {1}
    assert first.latency_ms is not None and first.latency_ms.total == pytest.approx(200, abs=1)
    assert len(run.classifier.batches) == 2  # the final label is the one computed at the pause
    assert (run.core.counters["early_out"], run.core.counters["utterances_out"]) == (2, 1)


@pytest.mark.parametrize("change", ["words", "end", "video"])
def test_news_since_the_pause_make_a_new_label(change):
    if change == "video":  # too late for the pause, in time for the end
        run = Run().push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(15)))
        run.at(2.2).push(speech_message("paused", 2.2, 1, 1.0, 2.0, "so good")).at(2.4).step()
        run.push(*(face_message(i / 10) for i in range(15, 31)))
    else:
        run = _paused(Run())
    end_s, words = (2.3 if change == "end" else 2.0), ("so very good" if change == "words" else "so good")
    run.at(2.8).push(speech_message("ended", 2.8, 1, 1.0, end_s, words)).step()
    assert len(run.classifier.batches) == 2
    assert run.core.counters["labels_ready_at_end"] == 0
    assert run.labels[0].text == words
    assert run.labels[0].probabilities == ready_run(Run(), words, end_s).step().labels[0].probabilities


def test_the_label_of_a_pause_never_serves_another_utterance():
    run = _paused(Run())
    run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    run.push(*(sound_message(i / 10) for i in range(30, 60)), *(face_message(i / 10) for i in range(31, 61)))
    run.at(5.4).push(speech_message("ended", 5.4, 2, 4.0, 5.0, "so good")).step()
    assert len(run.classifier.batches) == 2
    assert run.labels[0].probabilities != run.labels[1].probabilities


def test_a_pause_overtaken_by_the_end_costs_nothing():
    run = Run().push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(31)))
    run.push(
        speech_message("paused", 2.2, 1, 1.0, 2.0, "so good"), speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")
    ).step()
    assert len(run.classifier.batches) == 1
    assert len(run.labels) == 1


def test_faces_are_encoded_once():
    run = Run(estimates=True).live(all_topics(8, SPOKEN))
    seen_and_spoken = [i for i in range(80) if i % 7 != 3 and any(s <= i / 10 < e for s, e, _ in SPOKEN)]
    assert run.classifier.crops <= len(seen_and_spoken) + 3  # plus one at each hop's edge


# Waiting for late modalities


@pytest.mark.parametrize("wait_ms", [0, 150, 1000])
def test_late_video_delays_a_label_no_longer_than_configured(wait_ms):
    run = late_video(Run(fusion={"wait_ms": wait_ms}), 1.5)
    if wait_ms:
        run.clock.advance_ns(wait_ms * MILLISECOND - 1)
        assert run.step().labels == []
        run.clock.advance_ns(1)
    (emotion,) = run.step().labels
    assert run.core.by_stream()["a"]["late_video"] == 1
    assert emotion.modalities["video"].frames == 6
    assert emotion.latency_ms is not None
    assert emotion.latency_ms.total == pytest.approx(400 + wait_ms)
    assert emotion.latency_ms.queue == pytest.approx(wait_ms)


def test_video_that_comes_in_time_is_waited_for():
    run = late_video(Run(), 1.5).at(2.5).step()
    assert run.labels == []
    (emotion,) = run.push(*(face_message(i / 10) for i in range(16, 21))).step().labels
    assert emotion.modalities["video"].frames == 10
    assert emotion.published_ns == T0 + nanoseconds(2.5)
    assert run.core.by_stream()["a"]["late_video"] == 0


def test_an_utterance_that_was_dropped_gets_no_label():
    run = Run().push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(31)))
    run.push(speech_message("paused", 2.2, 1, 1.0, 2.0, "so"), speech_message("dropped", 2.4, 1, 1.0, 2.0, "so"))
    assert run.at(4).step().labels == []
    assert run.core.at_rest
    assert run.push(speech_message("ended", 3.0, 2, 2.5, 2.9, "good")).at(5).step().labels[0].text == "good"


def test_sound_that_went_missing_shows_in_the_coverage():
    times = [i / 10 for i in range(30) if not 12 <= i < 17]
    run = Run().push(*(sound_message(t) for t in times), *(face_message(i / 10) for i in range(31)))
    (emotion,) = run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).step().labels
    assert emotion.modalities["audio"].coverage == pytest.approx(0.5, abs=0.1)
    assert emotion.modalities["video"].coverage == 1.0


def test_video_that_is_hopelessly_late_is_not_waited_for():
    run = Run().push(*(sound_message(i / 10) for i in range(60)), face_message(0.1))
    run.at(5.4).push(speech_message("ended", 5.4, 1, 3.0, 5.0, "so good"))
    assert len(run.step().labels) == 1


def test_jobs_of_a_stream_keep_their_order():
    run = Run(realtime=False).push(
        *(sound_message(i / 10) for i in range(80)), *(face_message(i / 10) for i in range(15))
    )
    run.push(*(speech_message("ended", e + 0.4, n, s, e, words) for n, (s, e, words) in enumerate(SPOKEN)))
    assert run.step().labels == []
    assert [e.text for e in run.step(flush=True).labels] == [words for _, _, words in SPOKEN]


def test_fusion_is_at_rest_until_someone_speaks_and_after_the_label():
    run = Run().push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(10)))
    assert run.core.at_rest
    assert not run.at(1.3).push(speech_message("started", 1.3, 1, 1.0, 1.3)).core.at_rest
    assert not run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")).core.at_rest
    assert len(run.at(2.6).step().labels) == 1
    assert run.core.at_rest


def test_flush_does_not_wait():
    run = late_video(Run(), 1.5).step()
    assert run.labels == []
    assert len(run.step(flush=True).labels) == 1


def test_patience_lasts_until_the_next_deadline():
    run = late_video(Run(), 1.5)
    assert run.core.patience_ms() == 150  # fusion.wait_ms
    assert run.at(2.5004).core.patience_ms() == 50
    assert run.at(2.6).core.patience_ms() == 0
    assert len(run.step().labels) == 1
    assert run.core.patience_ms() > 10**9
