"""stream/cores/adapt.py, and its use in fusion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.cores.adapt import ENOUGH, MOST, SURER, Adaptation, Baseline, VoiceBaseline
from emostream.stream.cores.classifier import Features, Result
from emostream.stream.messages import SpeechEvent
from tests.fusion import SPOKEN, FakeClassifier, Run, all_topics, face_message, sound_message, speech_message

SECOND = 1_000_000_000
EVERYONE = np.array([1.0, 2.0], np.float32)


def baseline() -> Baseline:
    return Baseline(EVERYONE, 60 * SECOND)


def test_nothing_is_known_of_a_stranger():
    new, vectors = baseline(), np.ones((3, 2), np.float32)
    assert new.known == 0
    assert new.correct(vectors) is vectors


def test_what_is_just_this_person_is_taken_away_little_by_little():
    person, own = baseline(), np.array([[3.0, 0.0]], np.float32)
    left = []
    for _ in range(12):
        left.append(np.abs(person.correct(own) - EVERYONE).max())
        person.update(own, 1.0)
    assert left[0] == 2 and left == sorted(left, reverse=True)
    assert left[2] == pytest.approx(2 * ENOUGH / (2 + ENOUGH))
    assert left[-1] < 0.35


def test_only_rest_counts():
    person = baseline()
    person.update(np.full((5, 2), 9.0), 0.0)
    person.update(np.zeros((0, 2)), 1.0)
    assert person.known == 0
    person.update(np.full((5, 2), 9.0), 0.1)
    assert 0 < person.known < 0.05


@pytest.mark.slow
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=200))
def test_it_follows_a_person_who_changes_and_its_memory_is_bounded(weights):
    person = baseline()
    for weight in weights:
        person.update(np.zeros((1, 2)), weight)
    assert person.known <= MOST / (MOST + ENOUGH) + 1e-6
    for _ in range(200):
        person.update(np.full((1, 2), 5.0), 1.0)
    assert np.abs(person.correct(np.full((1, 2), 5.0, np.float32)) - EVERYONE).max() < 0.5


def test_who_is_away_for_long_is_forgotten():
    person = baseline()
    person.seen(0)
    person.update(np.zeros((1, 2)), 1.0)
    person.seen(59 * SECOND)
    assert person.known > 0
    person.seen(120 * SECOND)
    assert person.known == 0


# In fusion


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier with a common resting face and voice."""
    rest = {"video": np.zeros(4, np.float32), "audio": np.zeros(4, np.float32)}
    monkeypatch.setattr(FakeClassifier, "rest", rest)


def faces_of(run: Run) -> list[np.ndarray]:
    return [item.video for batch in run.classifier.batches for item in batch]


def test_a_resting_face_is_told_from_a_speaking_one(knowing):
    """Faces of the two seconds before the utterance count as resting; those right before and after speech do not."""
    run = Run().push(*(sound_message(i / 10) for i in range(50)), *(face_message(i / 10) for i in range(51)))
    run.push(speech_message("started", 3.1, 1, 3.0, 3.1))
    run.at(4.4).push(speech_message("ended", 4.4, 1, 3.0, 4.0, "so good")).step()
    (faces,) = faces_of(run)
    rest = np.arange(10, 29)[np.unique(np.linspace(0, 18, 8).round().astype(int))]  # 1.0 to 2.85 s
    want = np.arange(30, 40) - rest.mean() * 1 / (1 + ENOUGH)
    np.testing.assert_allclose(faces[:, 0], want, rtol=1e-5)
    (label,) = run.labels
    assert label.adapted == pytest.approx(1 / (1 + ENOUGH), abs=1e-3)


def test_the_rest_of_who_comes_after_a_long_absence_counts(knowing):
    """Forgetting the last person must not take the new one's rest with it."""
    run = Run(fusion={"adapt_s": 1}).push(*(sound_message(i / 10) for i in range(50)))
    run.push(*(face_message(i / 10) for i in range(51)), speech_message("started", 3.1, 1, 3.0, 3.1))
    (label,) = run.at(4.4).push(speech_message("ended", 4.4, 1, 3.0, 4.0, "so good")).step().labels
    assert label.adapted == pytest.approx(1 / (1 + ENOUGH), abs=1e-3)


def test_without_adapt_or_without_a_bundles_rest_nothing_changes(knowing, monkeypatch):
    def faces(**fusion) -> np.ndarray:
        run = Run(fusion=fusion).live(all_topics(8, SPOKEN))
        assert len(run.labels) == 3 and all(label.adapted == 0 for label in run.labels)
        return np.concatenate(faces_of(run))

    off = faces(adapt=False)
    monkeypatch.setattr(FakeClassifier, "rest", {})
    np.testing.assert_array_equal(off, faces())


@pytest.mark.parametrize("estimates", [False, True])
def test_labels_do_not_depend_on_estimates_nor_on_the_order_of_arrival(knowing, estimates):
    def labels(realtime: bool, estimates: bool):
        run = Run(realtime=realtime, estimates=estimates).live(all_topics(8, SPOKEN))
        return [(label.utterance, label.probabilities, label.adapted) for label in run.labels]

    want = labels(False, False)
    assert want[-1][2] > want[0][2] > 0  # more is known at the third utterance than at the first
    assert labels(True, estimates) == want


# Voices


def heard(known: Adaptation, *spoken: tuple[str | None, float], start_s: float = 0) -> Adaptation:
    """``spoken``: whose utterance, and the value of all its vectors; each lasts a second and is surely neutral, and
    moving a voice makes answers surer."""
    for i, (speaker, value) in enumerate(spoken):
        start_ns, end_ns = round((start_s + 2 * i) * SECOND), round((start_s + 2 * i + 1) * SECOND)
        known.heard(speaker, start_ns, end_ns)
        vectors = np.full((4, 2), value)
        known.learn_voice(speaker, vectors, 1.0, end_ns, [0.5, 0.6] if known.trial(speaker, vectors) else [])
    return known


def adaptation(alone: bool = False) -> Adaptation:
    return Adaptation({"audio": EVERYONE}, 60 * SECOND, alone)


def rest(known: Adaptation, speaker: str | None) -> tuple[float, float]:
    """Value and weight."""
    baseline = known.voice(speaker)
    assert baseline is not None and baseline.rest is not None
    return float(baseline.rest[0][0]), baseline.rest[1]


def test_each_voice_has_what_was_learnt_of_it_and_who_is_not_told_apart_what_was_of_all():
    known = heard(adaptation(), ("s1", 2), ("s2", 6), ("s1", 4), (None, 8))
    assert [rest(known, who) for who in ("s1", "s2", None)] == [(3, 2), (6, 1), (5, 4)]
    assert known.voice("s3") is None
    assert known.known(["audio"], None, "s3") == 0 < known.known(["audio"], None, "s1")


def test_one_voice_has_the_streams_baseline_until_there_is_another():
    known = heard(adaptation(), (None, 1), ("s1", 2), (None, 3))
    assert known.voice("s1") is known.voice(None) and rest(known, "s1") == (2, 3)
    heard(known, ("s2", 6), ("s2", 6), start_s=10)
    assert [rest(known, who) for who in ("s1", "s2", None)] == [(2, 3), (6, 2), (3.6, 5)]


def test_a_profiles_stream_is_one_persons_whoever_is_heard():
    known = heard(adaptation(alone=True), ("s1", 2), ("s2", 6))
    assert known.voice("s1") is known.voice("s9") is known.first["audio"] and rest(known, "s2") == (4, 2)


def test_a_voice_that_was_away_is_forgotten_and_the_others_are_not():
    known = heard(adaptation(), ("s1", 2), ("s2", 6))
    for at_s in (30, 60, 90):
        heard(known, ("s2", 6), start_s=at_s)
    assert known.known(["audio"], None, "s2") > 0
    known.heard("s1", 90 * SECOND, 91 * SECOND)
    assert known.known(["audio"], None, "s1") == 0 and rest(known, "s2") == (6, 4)
    known.keep_voices({"s2"})
    assert known.voice("s1") is None and rest(known, "s2") == (6, 4)


def test_a_voice_is_moved_while_that_makes_answers_surer():
    known, own = VoiceBaseline(EVERYONE, 60 * SECOND), np.array([[3.0, 0.0]], np.float32)
    known.update(own, 1.0)
    assert known.correct(own) is own and known.known == 0  # it has not been tried
    known.judge(0.5, 0.5 + 2 * SURER)
    assert known.known == pytest.approx(1 / (1 + ENOUGH))
    np.testing.assert_array_equal(known.correct(own), known.moved(own))
    known.judge(0.5, 0.5)
    known.judge(0.5, float("nan"))  # tells nothing
    known.judge(0.5, 0.5 - SURER)
    assert known.correct(own) is own and known.known == 0
    for _ in range(100):
        known.judge(0.9, 0.8)
    for _ in range(40):
        known.judge(0.5, 0.6)
    assert known.known > 0  # older answers count less
    known.seen(100 * SECOND)
    assert known.tried == known.surer == known.known == 0


@pytest.mark.parametrize("realtime", [False, True])
def test_a_label_is_moved_by_its_own_speakers_voice(knowing, monkeypatch, realtime):
    """The vector that comes with the pause identifies the voice, so the label computed then stays."""
    anna, ben = np.eye(2, 256, dtype=np.float32)
    spoken = [(float(t), t + 1.5, "so good") for t in range(1, 19, 3)]
    corrected: list[float] = []

    def run(*voices: np.ndarray | None) -> Run:
        topics = all_topics(19, spoken)
        del topics["face"]
        for message in topics["speech"]:
            if isinstance(message, SpeechEvent) and message.event in ("paused", "ended"):
                message.voice, message.voice_s = voices[message.utterance - 1], 1.5
        result = Run(realtime=realtime, streams={"a": ["audio", "speech"]}).live(topics)
        corrected.append(float(result.classifier.batches[-1][0].audio[0, 0]))
        assert not realtime or result.core.counters["labels_ready_at_end"] == 6
        return result

    def answer(self: FakeClassifier, item: Features, wanted: bool) -> Result:
        """Neutral; by the sound alone the surer, the nearer it is to everyone's rest."""
        doubt = 0.0 if len(item.text) else 0.5 - 0.5 / (1 + np.abs(item.audio).mean())
        return Result(np.array([doubt, 0, 1 - doubt]), {"audio": 0.0, "video": 0.0, "text": 0.0})

    monkeypatch.setattr(FakeClassifier, "_result", answer)
    monkeypatch.setattr("emostream.stream.cores.adapt.SURER", 1e-9)  # the fake rows are so far off that all are doubted
    same = run(anna, anna, anna, anna, anna, anna)
    told = run(anna, ben, ben, anna, anna, ben)
    nobody = run(*[None] * 6)
    assert [label.speaker for label in told.labels] == ["s1", "s2", "s2", "s1", "s1", "s2"]
    assert [label.speaker for label in nobody.labels] == [None] * 6
    shares = [0, 0] + [n / (n + ENOUGH) for n in range(2, 6)]  # at the second it is tried, from the third on moved
    assert [label.adapted for label in same.labels] == pytest.approx(shares, abs=1e-3)
    assert [label.adapted for label in nobody.labels] == pytest.approx(shares, abs=1e-3)
    assert [label.adapted for label in told.labels] == pytest.approx([0, 0, 0, 0, shares[2], shares[2]], abs=1e-3)
    assert corrected[0] == corrected[2] != corrected[1]
