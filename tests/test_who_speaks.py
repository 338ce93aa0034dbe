"""stream/features/mouth.py, stream/cores/people.py: whose mouth moves with the sound"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from emostream.stream.config import load_config
from emostream.stream.cores.people import CameraLag, People
from emostream.stream.features.logmel import DIM, HOP_NS
from emostream.stream.features.mouth import LAGS_MS, USUAL_LAG_MS, agreement, match, mouth
from emostream.stream.label import Labeller
from emostream.stream.messages import Face, FaceInFrame
from emostream.stream.sources import DEMO_TWO

_S = 1_000_000_000
_BOX = (0.1, 0.1, 0.2, 0.2)


def syllables(seed: int, seconds: float = 4.0) -> np.ndarray:
    """How far a mouth is open, 0 to 1, at 100 a second: a few syllables a second, of different lengths."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 100)) / 100
    opened = np.zeros(len(t))
    at = 0.3
    while at < seconds - 0.4:
        width = rng.uniform(0.05, 0.12)
        opened += rng.uniform(0.4, 1.0) * np.exp(-(((t - at) / width) ** 2))
        at += rng.uniform(0.15, 0.45)
    return np.minimum(opened, 1.0)


def sound(opened: np.ndarray) -> np.ndarray:
    """Log-mel rows of a voice that gets louder as its mouth opens."""
    noise = np.random.default_rng(9).normal(0, 0.1, (len(opened), DIM))
    return (8 + 2 * opened[:, None] + noise).astype(np.float32)


def crop(opened: float) -> np.ndarray:
    """A gray face with a dark mouth."""
    picture = np.full((48, 48), 150, np.uint8)
    height = round(10 * opened)
    picture[40 - height // 2 : 40 + (height + 1) // 2, 16:32] = 30
    return picture


def frames(opened: np.ndarray, lag_s: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Times and measures of the mouth at ten frames a second, ``lag_s`` behind the sound."""
    times_s = np.arange(0, len(opened) / 100, 0.1)
    shown = np.interp(times_s - lag_s, np.arange(len(opened)) / 100, opened)
    return (times_s * _S).astype(np.int64), np.array([mouth(crop(value)) for value in shown])


def test_a_mouth_that_opens_is_darker_and_richer_in_contrast():
    measures = np.array([mouth(crop(value)) for value in (0.0, 0.3, 0.6, 1.0)])
    assert (np.diff(measures[:, 1:], axis=0) > 0).all() and (measures[1:, 0] > measures[0, 0] + 0.5).all()
    assert mouth(np.zeros((48, 48), np.uint8)) == (1.0, 0.0, 0.0)  # no division by 0


def test_measures_do_not_depend_on_the_light():
    bright = crop(0.5)
    dim = (bright * 0.5).astype(np.uint8)
    assert mouth(dim) == pytest.approx(mouth(bright), abs=0.02)


@pytest.mark.parametrize("lag_ms", [-100, 0, 120, 300])
def test_the_lag_at_which_a_mouth_fits_is_that_of_the_camera(lag_ms):
    opened = syllables(1)
    curve = agreement(*frames(opened, lag_ms / 1000), 0, sound(opened))
    assert abs(LAGS_MS[curve.argmax()] - lag_ms) <= 40
    assert curve.max() > 0.6


def test_ones_own_mouth_fits_better_than_anybody_elses():
    for seed in range(8):
        heard = sound(syllables(seed))
        own = match(agreement(*frames(syllables(seed)), 0, heard), USUAL_LAG_MS)
        others = [match(agreement(*frames(syllables(seed + n)), 0, heard), USUAL_LAG_MS) for n in range(10, 15)]
        assert own > 0.5 > max(others)


def test_too_little_tells_nothing():
    opened = syllables(1, 1.0)
    assert len(agreement(*frames(opened), 0, sound(opened))) == 0
    times, mouths = frames(syllables(1))
    assert len(agreement(times, mouths, 60 * _S, sound(syllables(1)))) == 0  # sound from another time
    assert len(agreement(times[:3], mouths[:3], 0, sound(syllables(1)))) == 0


def test_silence_and_stillness_are_no_numbers_but_zero():
    times, mouths = frames(np.zeros(400))
    for rows in (sound(syllables(1)), np.zeros((400, DIM), np.float32)):
        curve = agreement(times, mouths, 0, rows)
        assert np.isfinite(curve).all() and abs(curve).max() < 1e-3


# A stream's people


class Stream:
    """People who are seen for four seconds while the sound ``heard`` plays."""

    def __init__(self, who: str = "speaking") -> None:
        self.people = People(4, who)
        self.at_ns = 0

    def see(self, *opened: np.ndarray, faces: int = 0, mouths: bool = True) -> None:
        """Show everybody's mouth, from person 1 on."""
        shown = [frames(each) for each in opened]
        for i, at_ns in enumerate(shown[0][0]):
            each = [
                FaceInFrame(
                    person=n + 1, crop=crop(0.0), box=_BOX, mouth=tuple(measures[i].tolist()) if mouths else None
                )
                for n, (_, measures) in enumerate(shown)
            ]
            self.people.push(
                Face(
                    stream="a",
                    media_start_ns=self.at_ns + int(at_ns),
                    media_end_ns=self.at_ns + int(at_ns),
                    captured_ns=0,
                    crop=each[0].crop,
                    box=_BOX,
                    person=1,
                    mouth=each[0].mouth,
                    others=each[1:],
                    faces=faces or len(each),
                )
            )

    def choose(self, heard: np.ndarray | None):
        start_ns = self.at_ns + _S // 4
        rows = np.zeros((0, DIM), np.float32) if heard is None else sound(heard)
        return self.people.choose(start_ns, self.at_ns + 4 * _S - _S // 4, self.at_ns, rows)

    def next(self) -> None:
        self.at_ns += 10 * _S


def test_of_two_it_is_the_one_who_moves_with_the_sound():
    anna, ben = syllables(1), syllables(2)
    for heard, who in ((anna, 1), (ben, 2)):
        stream = Stream()
        stream.see(anna, ben)
        choice = stream.choose(heard)
        assert (choice.face, choice.speaking) == (who, who)
        assert [face.id for face in choice.seen] == [1, 2] and choice.faces == 2
        moves = {face.id: face.moves for face in choice.seen}
        assert moves[who] > 0.5 > moves[3 - who]


def test_a_voice_that_is_nobodys_in_view_takes_no_face():
    stream = Stream()
    stream.see(syllables(1), syllables(2))
    choice = stream.choose(syllables(3))
    assert choice.face is None and choice.speaking is None
    assert len(choice.seen) == 2


def test_a_listener_and_a_poster_do_not_speak():
    stream = Stream()
    still = np.zeros(400)
    stream.see(still, syllables(2), still)
    choice = stream.choose(syllables(2))
    assert choice.speaking == choice.face == 2
    assert {face.id: face.moves for face in choice.seen if face.id != 2} == {1: 0.0, 3: 0.0}


def test_twins_that_move_alike_are_not_guessed_at():
    stream = Stream()
    stream.see(syllables(1), syllables(1))
    choice = stream.choose(syllables(1))
    assert choice.face is None and choice.speaking is None


@pytest.mark.parametrize("seen", [syllables(1), np.zeros(400), syllables(5)])
def test_who_is_alone_is_taken_as_long_as_nothing_is_known_of_the_camera(seen):
    stream = Stream()
    stream.see(seen)
    assert stream.choose(syllables(1)).face == 1


def test_once_mouths_move_with_the_sound_another_voice_is_not_that_of_who_is_alone():
    stream = Stream()
    for seed in range(4):
        stream.see(syllables(seed))
        choice = stream.choose(syllables(seed))
        assert choice.speaking == 1
        stream.people.learn(choice)
        stream.next()
    stream.see(syllables(20))
    assert stream.choose(syllables(30)).face is None
    stream.next()
    stream.see(np.zeros(400))
    assert stream.choose(syllables(31)).face is None


def test_a_camera_that_is_behind_is_learnt():
    lag = CameraLag()
    assert lag.ms == USUAL_LAG_MS
    for seed in range(4):
        opened = syllables(seed)
        lag.learn(agreement(*frames(opened, 0.2), 0, sound(opened)), matched=False)
    assert abs(lag.ms - 200) <= 40


def test_the_largest_is_the_main_one_whoever_speaks():
    stream = Stream("largest")
    stream.see(syllables(1), syllables(2))
    choice = stream.choose(syllables(2))
    assert choice.face == 1 and choice.speaking is None
    assert [face.moves for face in choice.seen] == [None, None]


def test_without_sound_it_is_the_main_one():
    stream = Stream()
    stream.see(syllables(1), syllables(2))
    assert stream.choose(None).face == 1


def test_nobody_in_view_is_nobody():
    stream = Stream()
    choice = stream.choose(syllables(1))
    assert choice.face is None and choice.seen == [] and choice.faces == 0


def test_faces_without_measures_are_not_judged_by_them():
    """A user's program may send faces in any form."""
    stream = Stream()
    stream.see(syllables(1), mouths=False)
    assert stream.choose(syllables(1)).face == 1


def test_people_who_left_are_forgotten():
    stream = Stream()
    stream.see(syllables(1), syllables(2))
    stream.people.forget_before(3 * _S)
    assert 1 in stream.people and 2 in stream.people
    stream.people.forget_before(60 * _S)
    assert 1 not in stream.people and not list(stream.people.in_view(0, 100 * _S))


def test_rows_and_frames_share_a_timeline():
    """Sound that begins later than the pictures is placed by its time."""
    opened = syllables(4)
    heard = sound(opened)
    curve = agreement(*frames(opened), 100 * HOP_NS, heard[100:])
    assert match(curve, USUAL_LAG_MS) > 0.5


def test_an_estimate_of_who_is_alone_costs_no_look_at_the_mouth():
    stream = Stream()
    stream.see(syllables(1))
    rows = sound(syllables(1))
    estimate = stream.people.choose(_S // 4, 3 * _S, 0, rows, final=False)
    assert estimate.face == 1 and estimate.speaking is None and estimate.seen[0].moves is None
    assert stream.people.choose(_S // 4, 3 * _S, 0, rows).speaking == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "many"),
    [
        ("speaking", 2),
        *(pytest.param(who, n, marks=pytest.mark.long) for who, n in [("speaking", 4), ("largest", 2), ("all", 2)]),
    ],
)
def test_two_people_who_speak_in_turn(who, many):
    """The demo clip of two: each sentence is assigned to the face that speaks, with that face's mood."""
    sentences = json.loads(DEMO_TWO.with_suffix(".json").read_text())["sentences"]
    assert len(sentences) == 4
    sentences = sentences[:many]
    with Labeller(load_config(changes=[f"video.who={who}"])) as labeller:
        labels = list(itertools.islice(labeller.label(DEMO_TWO), None if many == 4 else many))
    assert [label.label for label in labels] == [sentence["mood"] for sentence in sentences]
    for label, sentence in zip(labels, sentences, strict=True):
        boxes = {face.id: face.box for face in label.faces}
        assert sorted(boxes) == [1, 2] and label.faces_seen == 2
        x, _, width, _ = boxes[label.face]
        if who == "largest":
            assert label.speaking is None and label.face == labels[0].face
        else:
            assert label.speaking == label.face
            assert (x + width / 2 > 0.5) == (sentence["who"] == 1)
        shown = {face.id: face.label for face in label.faces}
        assert shown[label.face] in ((sentence["mood"], "surprise") if who == "all" else (None,))
