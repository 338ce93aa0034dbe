"""stream/cores/adapt.py, and what fusion makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.cores.adapt import ENOUGH, MOST, Baseline
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
    """A classifier that knows how everyone looks and sounds at rest."""
    rest = {"video": np.zeros(4, np.float32), "audio": np.zeros(4, np.float32)}
    monkeypatch.setattr(FakeClassifier, "rest", rest)


def faces_of(run: Run) -> list[np.ndarray]:
    return [item.video for batch in run.classifier.batches for item in batch]


def test_a_resting_face_is_told_from_a_speaking_one(knowing):
    """Faces of the two seconds before the utterance are the rest; those right before and after speech are not."""
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
    assert want[-1][2] > want[0][2] > 0  # more is known of the third utterance than of the first
    assert labels(True, estimates) == want
