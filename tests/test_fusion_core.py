"""stream/nodes/fusion.py, on a virtual clock and with a classifier whose answer depends on all that it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.classifier import Features, Result
from stream.clock import VirtualClock
from stream.config import Config
from stream.messages import Control, Emotion, End, Face, Message, Mfcc, Speech, Word
from stream.nodes.fusion import FusionCore

_S = 1_000_000_000
_MS = 1_000_000
_T0 = 1_700_000_000 * _S
ALL = frozenset({"audio", "video", "speech"})


class FakeClassifier:
    """Probabilities that any change in any row changes. Its work takes time on the clock."""

    labels = ("anger", "joy", "neutral")
    bundle_id = "fake@0"
    backend = "fake"
    uncertain_below = 0.5

    def __init__(self, clock: VirtualClock, encode_ns: int = 0, classify_ns: int = 0) -> None:
        self._clock, self._encode_ns, self._classify_ns = clock, encode_ns, classify_ns
        self.batches: list[list[Features]] = []
        self.crops = 0

    def encode_faces(self, crops: np.ndarray) -> np.ndarray:
        self.crops += len(crops)
        if len(crops):
            self._clock.advance_ns(self._encode_ns)
        return crops[:, 0, :4].astype(np.float32)

    def encode_words(self, words: Sequence[str]) -> np.ndarray:
        return np.array([[len(word), ord(word[0])] for word in words], np.float32).reshape(-1, 2)

    def classify(self, batch: Sequence[Features], contributions: Sequence[bool]) -> list[Result]:
        self._clock.advance_ns(self._classify_ns)
        self.batches.append(list(batch))
        return [self._result(item, wanted) for item, wanted in zip(batch, contributions, strict=True)]

    def _result(self, item: Features, wanted: bool) -> Result:
        assert item.present()
        digest = hashlib.sha256(b"|".join(getattr(item, name).tobytes() for name in ("audio", "video", "text")))
        values = np.frombuffer(digest.digest()[:3], np.uint8) + 1.0
        share = 0.125 if wanted else 0.0
        return Result(values / values.sum(), {"audio": share, "video": 0.0, "text": 0.0})


# Messages


def _ns(seconds: float) -> int:
    return round(seconds * _S)


def _mfcc(at_s: float, rows: int = 10, stream: str = "a") -> Mfcc:
    """Rows whose values tell their time."""
    first = round(at_s * 100)
    values = np.arange(first, first + rows, dtype=np.float32)[:, None] * np.ones((1, 120), np.float32)
    end = first + rows
    return Mfcc(
        stream=stream, media_start_ns=first * 10 * _MS, media_end_ns=end * 10 * _MS,
        captured_ns=_T0 + end * 10 * _MS, rows=values,
    )  # fmt: skip


def _face(at_s: float, seen: bool = True, stream: str = "a") -> Face:
    number = round(at_s * 10)
    value = (number + (100 if stream == "b" else 0)) % 251
    crop = np.full((48, 48), value, np.uint8) if seen else np.zeros((0, 0), np.uint8)
    return Face(stream=stream, media_start_ns=_ns(at_s), media_end_ns=_ns(at_s), captured_ns=_T0 + _ns(at_s), crop=crop)


def _speech(event: str, now_s: float, utterance: int = 0, start_s=0.0, end_s=0.0, words: str = "", stream="a", **more):
    heard = words.split()
    length = (end_s - start_s) / max(1, len(heard))
    listed = [Word(word, start_s + i * length, start_s + (i + 1) * length, 0.9) for i, word in enumerate(heard)]
    fields = {
        "stream": stream, "media_start_ns": _ns(now_s) - 32 * _MS, "media_end_ns": _ns(now_s),
        "captured_ns": _T0 + _ns(now_s), "event": event, "utterance": utterance, "start_ns": _ns(start_s),
        "end_ns": _ns(end_s), "words": listed, "speech_captured_ns": _T0 + _ns(end_s),
        "received_ns": _T0 + _ns(now_s), "sent_ns": _T0 + _ns(now_s),
    }  # fmt: skip
    return Speech(**(fields | more))


def _end(of: str, stream: str = "a") -> End:
    return End(stream=stream, media_start_ns=0, media_end_ns=0, captured_ns=0, of=of, reason="end")  # type: ignore[arg-type]


def _topics(length_s: float, spoken: list[tuple[float, float, str]], stream: str = "a") -> dict[str, list[Message]]:
    """What the producers of a stream of this length send, by topic. ``spoken``: start, end and words."""
    mfcc: list[Message] = [_mfcc(i / 10, stream=stream) for i in range(round(length_s * 10))]
    face: list[Message] = [_face(i / 10, seen=i % 7 != 3, stream=stream) for i in range(round(length_s * 10))]
    speech: list[Message] = []
    now, utterance = 0.25, 0
    for start, end, words in spoken:
        while now < start:
            speech.append(_speech("progress", now, utterance, stream=stream))
            now += 0.25
        utterance += 1
        heard = words.split()
        speech.append(_speech("started", start + 0.1, utterance, start, start + 0.1, stream=stream))
        now = start + 0.35
        while now < end:
            so_far = " ".join(heard[: round(len(heard) * (now - start) / (end - start))])
            speech.append(_speech("words", now, utterance, start, now, so_far, stream=stream))
            now += 0.25
        speech.append(_speech("paused", end + 0.16, utterance, start, end, words, stream=stream))
        speech.append(_speech("ended", end + 0.4, utterance, start, end, words, stream=stream))
        now = end + 0.65
    while now < length_s:
        speech.append(_speech("progress", now, utterance, stream=stream))
        now += 0.25
    mfcc.append(_end("mfcc", stream))
    face.append(_end("face", stream))
    speech.append(_end("speech", stream))
    return {"mfcc": mfcc, "face": face, "speech": speech}


class Run:
    """A core with its clock and everything that it published."""

    def __init__(self, *, realtime=True, hops=False, streams=None, encode_ns=0, classify_ns=0, **sections) -> None:
        self.clock = VirtualClock(_T0)
        self.classifier = FakeClassifier(self.clock, encode_ns, classify_ns)
        self.core = FusionCore(
            streams or {"a": ALL}, self.classifier, Config(**sections), self.clock, realtime, hops  # type: ignore[arg-type]
        )  # fmt: skip
        self.published: list[Emotion] = []

    def push(self, *messages: Message) -> Run:
        for message in messages:
            self.core.push(message)
        return self

    def step(self, flush: bool = False) -> Run:
        self.published += self.core.step(flush)
        return self

    def at(self, media_s: float) -> Run:
        """Move the clock on to a media time."""
        self.clock.advance_ns(max(0, _T0 + _ns(media_s) - self.clock.now_ns()))
        return self

    def live(self, topics: dict[str, list[Message]]) -> Run:
        """Everything in the order of its capture, at its time, with a step after each message."""
        ends = [message for messages in topics.values() for message in messages if isinstance(message, End)]
        rest = [message for messages in topics.values() for message in messages if not isinstance(message, End)]
        for message in sorted(rest, key=lambda message: message.captured_ns):
            self.at((message.captured_ns - _T0) / _S).push(message).step()
        return self.push(*ends).step()

    @property
    def labels(self) -> list[Emotion]:
        return [emotion for emotion in self.published if emotion.kind == "utterance"]

    @property
    def windows(self) -> list[Emotion]:
        return [emotion for emotion in self.published if emotion.kind == "window"]


_SPOKEN = [(1.0, 2.5, "what a fine day"), (3.4, 4.0, "oh no"), (5.0, 7.2, "i never said that to you")]


def _ready(run: Run, words: str = "so good", end_s: float = 2.0) -> Run:
    """An utterance from 1.0 s has ended, and everything up to 3 s has come."""
    run.push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(31)))
    return run.at(end_s + 0.4).push(_speech("ended", end_s + 0.4, 1, 1.0, end_s, words))


# One label per utterance


@pytest.mark.parametrize("realtime", [True, False])
def test_each_utterance_gets_one_label(realtime):
    run = Run(realtime=realtime).live(_topics(8, _SPOKEN))
    assert [(e.start_s, e.end_s, e.text) for e in run.labels] == _SPOKEN
    assert [e.utterance for e in run.labels] == [1, 2, 3]
    assert [e.seq for e in run.labels] == [0, 1, 2]
    assert run.core.counters["utterances_in"] == run.core.counters["utterances_out"] == 3
    assert run.core.done
    assert not run.windows


def test_a_label_says_what_it_is_made_of():
    (emotion,) = _ready(Run()).step().labels
    assert emotion.stream == "a"
    assert emotion.topic == "emotion.utterance.a"
    assert set(emotion.probabilities) == {"anger", "joy", "neutral"}
    assert sum(emotion.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert emotion.confidence == max(emotion.probabilities.values()) == emotion.probabilities[emotion.label]
    assert emotion.uncertain == (emotion.confidence < 0.5)
    assert (emotion.bundle, emotion.backend) == ("fake@0", "fake")
    assert [word.word for word in emotion.words] == ["so", "good"]
    evidence = emotion.modalities
    assert evidence["audio"].frames == 98  # those that lie whole within the second
    assert evidence["audio"].coverage == pytest.approx(1, abs=0.03)
    assert (evidence["video"].frames, evidence["video"].coverage) == (10, 1.0)
    assert (evidence["text"].frames, evidence["text"].coverage) == (2, 1.0)
    assert evidence["audio"].contribution == 0.125
    assert emotion.captured_ns == _T0 + 2 * _S
    assert emotion.published_ns >= emotion.captured_ns


def test_the_features_are_those_of_the_utterance_and_no_others():
    run = _ready(Run()).step()
    ((item,),) = run.classifier.batches
    np.testing.assert_array_equal(item.audio[:, 0], np.arange(100, 198))  # 25 ms each: the last ends at 1.995 s
    np.testing.assert_array_equal(item.video[:, 0], np.arange(10, 20))
    assert len(item.text) == 2


def test_gaps_are_visible_in_the_coverage():
    run = Run().push(*(_mfcc(i / 10) for i in (*range(15), *range(18, 30))))
    run.push(*(_face(i / 10, seen=i % 2 == 0) for i in range(31)))
    (emotion,) = run.at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so")).step().labels
    assert emotion.modalities["audio"].coverage == pytest.approx(0.7, abs=0.03)
    assert emotion.modalities["video"].coverage == 0.5


def test_utterances_are_counted_on_when_the_speech_node_counts_from_1_again():
    run = _ready(Run()).step()
    run.push(_speech("started", 3.5, 1, 3.0, 3.2), *(_mfcc(i / 10) for i in range(30, 60)))
    run.at(5.5).push(_speech("ended", 5.5, 1, 3.0, 5.0, "again")).at(6).step()
    assert [e.utterance for e in run.labels] == [1, 2]
    assert [e.start_s for e in run.labels] == [1.0, 3.0]


@pytest.mark.parametrize("broken_off", [1, 4])
def test_an_utterance_that_a_crash_broke_off_does_not_lend_its_beginning_to_the_next(broken_off):
    run = Run().push(*(_mfcc(i / 10) for i in range(110)))
    run.push(_speech("started", 1.2, broken_off, 1.0, 1.2))  # then the speech node was started again
    run.push(_speech("progress", 8.0), _speech("started", 8.7, 1, 8.5, 8.7))
    run.push(_speech("ended", 10.4, 1, 8.5, 10.0, "here again")).at(11).step()
    assert [(e.start_s, e.end_s) for e in run.labels] == [(8.5, 10.0)]


def test_what_is_of_another_stream_or_no_concern_of_fusion_is_passed_over():
    run = _ready(Run())
    run.push(_mfcc(1.0, stream="b"), _speech("ended", 2.4, 5, 1.0, 2.0, "so good", stream="b"))
    run.push(Control(stream="a", media_start_ns=0, media_end_ns=0, captured_ns=0, command="go"))
    assert len(run.step().labels) == 1


# The same at any speed and in any order


def _merged(topics: dict[str, list[Message]], choices: list[int]) -> list[Message]:
    """One of the orders in which messages may arrive: each topic keeps its own."""
    queues = [list(messages) for messages in topics.values()]
    merged = []
    for choice in choices:
        waiting = [queue for queue in queues if queue]
        if waiting:
            merged.append(waiting[choice % len(waiting)].pop(0))
    return merged + [message for queue in queues for message in queue]


_TOPICS = _topics(8, _SPOKEN)
_ALL_TOPICS = [message for messages in _TOPICS.values() for message in messages]
# runs of one topic, so that one is often far ahead of another
_order = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), max_size=20).map(
    lambda runs: [choice for choice, n in runs for _ in range(n)]
)


@pytest.fixture(scope="module")
def in_order() -> list[Emotion]:
    return Run(realtime=False, hops=True).live(_TOPICS).published


@settings(max_examples=60)
@given(choices=_order, steps=st.randoms(use_true_random=False))
def test_at_fast_pace_labels_do_not_depend_on_the_order_of_arrival(in_order, choices, steps):
    run = Run(realtime=False, hops=True)
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
    run = Run(realtime=False).push(*(_mfcc(i / 10) for i in range(30)))
    run.push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good"), _face(0.5)).at(3600).step()
    assert run.labels == []
    assert run.core.waiting
    run.push(*(_face(i / 10) for i in range(6, 21))).step()
    assert len(run.labels) == 1
    assert run.labels[0].latency_ms is None
    assert not run.core.waiting


def test_at_fast_pace_a_modality_that_ended_is_not_waited_for():
    run = Run(realtime=False).push(*(_mfcc(i / 10) for i in range(30)))
    run.push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels == []
    assert len(run.push(_end("face")).step().labels) == 1


@pytest.mark.parametrize("when", ["first", "midway", "last"])
def test_a_sound_track_without_sound_gives_the_same_labels_in_any_order(when):
    faces: list[Message] = [_face(i / 10) for i in range(30)]
    at = {"first": 0, "midway": 15, "last": 30}[when]
    run = Run(realtime=False).push(*faces[:at], _end("speech"), _end("mfcc"), *faces[at:], _end("face")).step()
    assert [(e.start_s, e.end_s) for e in run.labels] == [(0.0, 3.0)]


# Provisional labels


def _paused(run: Run, words: str = "so good") -> Run:
    run.push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(31)))
    run.push(_speech("started", 1.2, 1, 1.0, 1.2))
    return run.at(2.2).push(_speech("paused", 2.2, 1, 1.0, 2.0, words)).step()


def test_the_label_of_the_pause_goes_out_at_the_end():
    run = _paused(Run())
    assert run.published == []
    assert len(run.classifier.batches) == 1
    run.at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert len(run.labels) == 1
    assert len(run.classifier.batches) == 1  # no second time
    assert run.core.counters["labels_ready_at_end"] == 1
    assert run.labels[0].probabilities == _ready(Run()).step().labels[0].probabilities
    assert run.labels[0].modalities["audio"].contribution == 0.125


@pytest.mark.parametrize("change", ["words", "end", "video"])
def test_what_is_new_since_the_pause_is_not_left_out(change):
    if change == "video":  # too late for the pause, in time for the end
        run = Run().push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(15)))
        run.at(2.2).push(_speech("paused", 2.2, 1, 1.0, 2.0, "so good")).at(2.4).step()
        run.push(*(_face(i / 10) for i in range(15, 31)))
    else:
        run = _paused(Run())
    end_s, words = (2.3 if change == "end" else 2.0), ("so very good" if change == "words" else "so good")
    run.at(2.8).push(_speech("ended", 2.8, 1, 1.0, end_s, words)).step()
    assert len(run.classifier.batches) == 2
    assert run.core.counters["labels_ready_at_end"] == 0
    assert run.labels[0].text == words
    assert run.labels[0].probabilities == _ready(Run(), words, end_s).step().labels[0].probabilities


def test_the_label_of_a_pause_is_never_another_utterances():
    run = _paused(Run())
    run.at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    run.push(*(_mfcc(i / 10) for i in range(30, 60)), *(_face(i / 10) for i in range(31, 61)))
    run.at(5.4).push(_speech("ended", 5.4, 2, 4.0, 5.0, "so good")).step()
    assert len(run.classifier.batches) == 2
    assert run.labels[0].probabilities != run.labels[1].probabilities


def test_a_pause_that_an_end_overtakes_costs_nothing():
    run = Run().push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(31)))
    run.push(_speech("paused", 2.2, 1, 1.0, 2.0, "so good"), _speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert len(run.classifier.batches) == 1
    assert len(run.labels) == 1


def test_faces_are_encoded_once():
    run = Run(hops=True).live(_topics(8, _SPOKEN))
    seen_and_spoken = [i for i in range(80) if i % 7 != 3 and any(s <= i / 10 < e for s, e, _ in _SPOKEN)]
    assert run.classifier.crops <= len(seen_and_spoken) + 3  # and one beside each hop's edge


# Waiting for what is late


def _late_video(run: Run, known_s: float) -> Run:
    run.push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(round(known_s * 10) + 1)))
    return run.at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good"))


@pytest.mark.parametrize("wait_ms", [0, 150, 1000])
def test_late_video_holds_a_label_up_no_longer_than_configured(wait_ms):
    run = _late_video(Run(fusion={"wait_ms": wait_ms}), 1.5)
    if wait_ms:
        run.clock.advance_ns(wait_ms * _MS - 1)
        assert run.step().labels == []
        run.clock.advance_ns(1)
    (emotion,) = run.step().labels
    assert emotion.modalities["video"].frames == 6
    assert emotion.latency_ms is not None
    assert emotion.latency_ms.total == pytest.approx(400 + wait_ms)
    assert emotion.latency_ms.queue == pytest.approx(wait_ms)


def test_video_that_comes_in_time_is_waited_for():
    run = _late_video(Run(), 1.5).at(2.5).step()
    assert run.labels == []
    (emotion,) = run.push(*(_face(i / 10) for i in range(16, 21))).step().labels
    assert emotion.modalities["video"].frames == 10
    assert emotion.published_ns == _T0 + _ns(2.5)


def test_video_that_is_hopelessly_late_is_not_waited_for():
    run = Run().push(*(_mfcc(i / 10) for i in range(60)), _face(0.1))
    run.at(5.4).push(_speech("ended", 5.4, 1, 3.0, 5.0, "so good"))
    assert len(run.step().labels) == 1


def test_jobs_of_a_stream_keep_their_order():
    run = Run(realtime=False).push(*(_mfcc(i / 10) for i in range(80)), *(_face(i / 10) for i in range(15)))
    run.push(*(_speech("ended", e + 0.4, n, s, e, words) for n, (s, e, words) in enumerate(_SPOKEN)))
    assert run.step().labels == []
    assert [e.text for e in run.step(flush=True).labels] == [words for _, _, words in _SPOKEN]


def test_flush_waits_for_nothing():
    run = _late_video(Run(), 1.5).step()
    assert run.labels == []
    assert len(run.step(flush=True).labels) == 1
    assert not run.core.waiting


# Latency


_span = st.integers(0, 300_000_000)


@given(_span, _span, _span, _span, _span, _span)
def test_the_parts_of_the_latency_sum_to_the_total(endpoint, receive, recognition, send, encode, classify):
    run = Run(encode_ns=encode, classify_ns=classify)
    run.push(*(_mfcc(i / 10) for i in range(30)), *(_face(i / 10) for i in range(31)))
    captured = _T0 + 2 * _S + endpoint
    received = captured + receive
    sent = received + recognition
    run.clock.advance_ns(sent + send - run.clock.now_ns())
    run.push(
        _speech(
            "ended", 2.0 + endpoint / _S, 1, 1.0, 2.0, "so good", captured_ns=captured, received_ns=received,
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
    run = Run(hops=True).live(_topics(8, _SPOKEN))
    assert run.windows
    assert {window.latency_ms for window in run.windows} == {None}
    assert all(label.latency_ms is not None for label in run.labels)


# Running estimates


@pytest.mark.parametrize("hop_ms", [100, 250, 1000])
def test_a_running_estimate_each_hop_while_someone_speaks(hop_ms):
    run = Run(hops=True, realtime=False, window={"hop_ms": hop_ms, "length_s": 1.0}).live(_topics(8, _SPOKEN))
    for n, (start, end, _) in enumerate(_SPOKEN, 1):
        ends = [e.end_s for e in run.windows if e.utterance == n]
        assert ends == [round(start + hop_ms / 1000 * (i + 1), 3) for i in range(len(ends))]
        assert (end - start - 0.25) / (hop_ms / 1000) - 1 <= len(ends) <= (end - start) / (hop_ms / 1000)
    for window in run.windows:
        assert window.modalities["audio"].frames == round(min(1.0, window.end_s - window.start_s) * 100) - 2
    assert [window.seq for window in run.windows] == list(range(len(run.windows)))
    assert [label.seq for label in run.labels] == [0, 1, 2]


def test_an_estimate_that_a_newer_one_overtakes_is_left_out():
    run = Run(hops=True).push(*(_mfcc(i / 10) for i in range(60)), *(_face(i / 10) for i in range(60)))
    run.push(_speech("started", 1.2, 1, 1.0, 1.2))
    run.push(*(_speech("words", 2.0 + i, 1, 1.0, 2.0 + i, "on and on") for i in range(4))).step()
    assert [window.end_s for window in run.windows] == [5.0]


def test_an_end_overtakes_estimates():
    run = Run(hops=True).push(*(_mfcc(i / 10) for i in range(60)), *(_face(i / 10) for i in range(60)))
    run.push(_speech("started", 1.2, 1, 1.0, 1.2), _speech("words", 3.0, 1, 1.0, 3.0, "on"))
    run.push(_speech("ended", 3.9, 1, 1.0, 3.5, "on")).step()
    assert [e.kind for e in run.published] == ["utterance"]


# Several streams


def test_streams_that_are_ready_together_are_one_batch():
    run = Run(streams={"a": ALL, "b": ALL})
    for name in ("a", "b"):
        run.push(*(_mfcc(i / 10, stream=name) for i in range(30)), *(_face(i / 10, stream=name) for i in range(31)))
        run.push(_speech("ended", 2.4, 1, 1.0, 2.0, f"i am {name}", stream=name))
    run.at(2.4).step()
    (batch,) = run.classifier.batches
    assert [item.video[:, 0].tolist() for item in batch] == [list(range(10, 20)), list(range(110, 120))]
    assert [(e.stream, e.text, e.seq) for e in run.labels] == [("a", "i am a", 0), ("b", "i am b", 0)]


def test_one_stream_does_not_wait_for_another():
    run = Run(streams={"a": ALL, "b": ALL}).at(2.4)
    run.push(_speech("ended", 2.4, 1, 1.0, 2.0, "late", stream="a"), _mfcc(1.0, stream="a"), _face(1.0, stream="a"))
    run.push(*(_mfcc(i / 10, stream="b") for i in range(30)), *(_face(i / 10, stream="b") for i in range(31)))
    run.push(_speech("ended", 2.4, 1, 1.0, 2.0, "quick", stream="b")).step()
    assert [e.text for e in run.labels] == ["quick"]
    assert [e.text for e in run.at(2.6).step().labels] == ["quick", "late"]


# Little or nothing to go by


def test_an_utterance_without_features_gets_no_label_and_is_counted():
    run = Run().at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0)).at(3).step()
    assert run.published == []
    assert not run.core.waiting
    assert run.core.counters["utterances_in"] == run.core.counters["utterances_without_features"] == 1
    assert run.core.counters["utterances_out"] == 0


def test_an_utterance_without_features_does_not_spoil_the_batch():
    run = _ready(Run(streams={"a": ALL, "b": frozenset({"speech"})}))
    run.push(_speech("ended", 2.4, 1, 1.0, 2.0, stream="b")).step()
    assert [e.stream for e in run.labels] == ["a"]


def test_words_alone_are_enough():
    run = Run(streams={"a": frozenset({"speech"})}).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels[0].modalities["audio"].frames == 0
    assert run.labels[0].modalities["audio"].coverage == 0


@pytest.mark.parametrize("realtime", [True, False])
def test_a_stream_of_pictures_alone_is_cut_by_its_faces(realtime):
    run = Run(streams={"a": frozenset({"video"})}, realtime=realtime)
    frames: list[Message] = [_face(i / 10, seen=10 <= i < 40 or i >= 60) for i in range(90)]
    run.live({"face": [*frames, _end("face")]})
    assert [(e.start_s, e.end_s, e.text) for e in run.labels] == [(1.0, 4.0, ""), (6.0, 9.0, "")]
    assert [e.modalities["video"].frames for e in run.labels] == [30, 30]
    assert run.core.done


def test_a_microphone_that_cannot_be_opened_leaves_the_faces():
    run = Run().push(_end("mfcc"), _end("speech"))
    for i in range(60):
        run.at(i / 10).push(_face(i / 10, seen=10 <= i < 40)).step()
    assert [(e.start_s, e.end_s) for e in run.labels] == [(1.0, 4.0)]


# Ends


def test_done_when_every_modality_has_ended_and_every_label_is_out():
    run = _late_video(Run(realtime=False), 1.5)
    for of in ("speech", "mfcc"):
        run.push(_end(of)).step()
        assert not run.core.done
    run.push(_end("pcm"))  # of no concern
    run.push(_end("face"))
    assert not run.core.done  # one label is still inside
    run.step()
    assert len(run.labels) == 1
    assert run.core.done


def test_done_only_when_all_streams_are():
    run = Run(streams={"a": frozenset({"audio", "speech"}), "b": frozenset({"video"})})
    run.push(_end("mfcc"), _end("speech"), _end("speech"))
    assert not run.core.done
    assert run.push(_end("face", "b")).core.done


def test_how_far_video_is_ahead_of_speech():
    run = Run(realtime=False).push(_face(3.0), _speech("progress", 1.0))
    assert run.core.ahead_ns("a") == 2 * _S
    assert run.push(_end("speech")).core.ahead_ns("a") == 0


# Faults


def test_rows_that_come_twice_are_counted_and_change_nothing():
    run = Run().push(*(_mfcc(i / 10) for i in range(15)), _mfcc(0.5), _face(0.2), _face(0.2))
    assert run.core.counters["rows_out_of_order"] == 11
    run.push(*(_mfcc(i / 10) for i in range(15, 30)), *(_face(i / 10) for i in range(3, 31)))
    run.at(2.4).push(_speech("ended", 2.4, 1, 1.0, 2.0, "so good")).step()
    assert run.labels[0].probabilities == _ready(Run()).step().labels[0].probabilities


# Memory


def _rows_held(run: Run) -> int:
    state = run.core._streams["a"]
    return max(len(window) for window in (state.audio, state.crops, state.video))


def _minutes(run: Run, minutes: float, spoken_s: float, speech: bool = True) -> int:
    """A long live stream: silence (``spoken_s`` 0) or utterances of that length, one after the other. Returns the
    most rows that were held at any time."""
    most, utterance, begun = 0, 0, 0.0
    for tenth in range(round(minutes * 600)):
        now = tenth / 10
        run.at(now).push(_mfcc(now), _face(now))
        if speech and spoken_s == 0 and tenth % 3 == 0:
            run.push(_speech("progress", now))
        elif speech and spoken_s and tenth % 3 == 0:
            if utterance == 0 or now - begun >= spoken_s:
                if utterance:
                    run.push(_speech("ended", now, utterance, begun, now, "and so on"))
                utterance, begun = utterance + 1, now
                run.push(_speech("started", now + 0.05, utterance, begun, now + 0.05))
            else:
                run.push(_speech("words", now, utterance, begun, now, "and so"))
        run.step()
        most = max(most, _rows_held(run))
    return most


@pytest.mark.parametrize("hops", [True, False])
def test_ten_minutes_of_silence_are_forgotten(hops):
    run = Run(hops=hops)
    assert _minutes(run, 10, 0) < 100 * 5
    assert run.published == []


def test_ten_minutes_of_speech_are_forgotten():
    run = Run(hops=True, window={"hop_ms": 1000})
    assert _minutes(run, 10, 15) < 100 * (15 + 5)
    assert len(run.labels) >= 38
    assert not run.core._streams["a"].jobs


def test_without_a_speech_node_sound_and_pictures_are_forgotten():
    assert _minutes(Run(), 3, 0, speech=False) < 100 * 30


def test_a_speech_node_that_dies_in_mid_utterance_does_not_fill_the_memory():
    run = Run().push(_speech("started", 0.1, 1, 0.0, 0.1))
    assert _minutes(run, 3, 0, speech=False) < 100 * 30
