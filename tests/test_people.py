"""stream/features/people.py: several faces, each with an id of its own"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from emostream.stream.features.face import Detection
from emostream.stream.features.people import KEEP_MS, MOST, SEARCH_MS, SURE_MS, PeopleFollower

_MS = 1_000_000
_SIZE = 60


def _person(seed: int) -> np.ndarray:
    """The picture of somebody's face, (60, 60)."""
    blurred = cv2.GaussianBlur(np.random.default_rng(seed).random((_SIZE, _SIZE)), (0, 0), 5)
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


_ANNA, _BEN, _CARLA = (_person(seed) for seed in (1, 2, 3))


def face_at(x: float, y: float = 80) -> Detection:
    return Detection(x, y, _SIZE, _SIZE, 0.9, ((x + 20, y + 22), (x + 40, y + 22)))


class Room:
    """A room of 240 by 640 with people in it, and a detector that sees everybody who is at most half hidden."""

    name = "room"

    def __init__(self) -> None:
        self.follower = PeopleFollower(self)
        self.places: list[Detection] = []
        self.asked = 0

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        self.asked += 1
        scale = image.shape[1] / 640
        faces = [face.scaled(scale) for face in self.places]
        return faces if near is None else [face for face in faces if face.overlap(near) > 0.05]

    def at(self, t_ms: int, *people: tuple[np.ndarray, float]) -> list[int]:
        """Put people at places, the last one in front; returns the ids of those found, from left to right."""
        image = np.full((240, 640), 120, np.uint8)
        self.places = []
        for picture, x in people:
            self.places = [face for face in self.places if face.overlap(face_at(x)) < 0.3]
            image[80 : 80 + _SIZE, round(x) : round(x) + _SIZE] = picture
            self.places.append(face_at(round(x)))
        found = self.follower.push(t_ms * _MS, image)
        return [person.id for person in sorted(found, key=lambda person: person.face.x)]


def test_the_first_is_the_main_one_and_a_second_gets_an_id_once_it_stays():
    room = Room()
    assert room.at(0, (_ANNA, 100)) == [1]
    seen = [room.at(t, (_ANNA, 100), (_BEN, 400)) for t in range(100, 3500, 100)]
    assert seen[0] == [1] and seen[-1] == [1, 2]
    since = next(i for i, ids in enumerate(seen) if len(ids) == 2)
    assert since * 100 <= SEARCH_MS + SURE_MS
    assert all(ids == [1, 2] for ids in seen[since:])


def test_a_face_of_one_frame_is_nobody():
    room = Room()
    for t in range(0, 4000, 100):
        passer_by = [(_BEN, 400)] if t == 1000 else []
        assert room.at(t, (_ANNA, 100), *passer_by) == [1]


@pytest.mark.parametrize("away_ms", [500, 3000, 15_000])
@pytest.mark.parametrize("place", [400, 250])
def test_who_leaves_and_is_back_has_the_same_id(away_ms, place):
    room = Room()
    for t in range(0, 4000, 100):
        room.at(t, (_ANNA, 100), (_BEN, 400))
    for t in range(4000, 4000 + away_ms, 100):
        assert 1 in room.at(t, (_ANNA, 100))
    back = [room.at(t, (_ANNA, 100), (_BEN, place)) for t in range(4000 + away_ms, 8000 + away_ms, 100)]
    assert back[-1] == [1, 2]
    assert {id_ for ids in back for id_ in ids} == {1, 2}


def test_somebody_else_is_somebody_else():
    room = Room()
    for t in range(0, 4000, 100):
        room.at(t, (_ANNA, 100), (_BEN, 400))
    for t in range(4000, 8000, 100):
        last = room.at(t, (_ANNA, 100), (_CARLA, 400)) if t > 5500 else room.at(t, (_ANNA, 100))
    assert last == [1, 3]


def test_an_id_does_not_wait_for_ever():
    room = Room()
    for t in range(0, 2000, 100):
        room.at(t, (_ANNA, 100))
    for t in range(2000, 2000 + KEEP_MS + 1000, 500):
        assert room.at(t) == []
    assert room.at(2500 + KEEP_MS + 1000, (_ANNA, 100)) == [2]


@pytest.mark.parametrize("front", [_ANNA, _BEN])
def test_ids_stay_where_faces_cross(front):
    room = Room()
    for i in range(70):
        people = [(_ANNA, 60.0 + 6 * i), (_BEN, 480.0 - 6 * i)]
        people.sort(key=lambda person: person[0] is front)
        last = room.at(i * 100, *people)
        if i == 25:
            before = last
    assert sorted(before) == [1, 2]
    assert last == before[::-1]


def test_the_main_face_stays_the_main_one():
    room = Room()
    for t in range(0, 4000, 100):
        room.at(t, (_ANNA, 100), (_BEN, 400))
        assert room.follower._main is not None and room.follower._main.id == 1


def test_a_crowd_is_counted_and_the_first_are_followed():
    room = Room()
    people = [(_person(seed), 62.0 * seed) for seed in range(9)]
    for t in range(0, 4000, 100):
        ids = room.at(t, *people)
    assert len(ids) == MOST
    assert room.follower.faces == 9


def test_twins_of_pixels_are_two():
    room = Room()
    for t in range(0, 4000, 100):
        ids = room.at(t, (_ANNA, 100), (_ANNA, 400))
    assert sorted(ids) == [1, 2]


def test_a_picture_of_another_size_forgets_places_and_keeps_looks():
    room = Room()
    for t in range(0, 1000, 100):
        room.at(t, (_ANNA, 100))
    image = np.full((300, 640), 120, np.uint8)
    image[80:140, 400:460] = _ANNA
    room.places = [face_at(400)]
    assert [person.id for person in room.follower.push(1000 * _MS, image)] == [1]


def test_somebody_alone_is_searched_for_no_more_than_needed():
    room = Room()
    for t in range(0, 10_000, 100):
        room.at(t, (_ANNA, 100))
    assert room.asked <= 1 + 10_000 // 300 + 10_000 // SEARCH_MS  # near the face every third frame, and all over


def test_ids_go_on_after_another_start():
    room = Room()
    room.follower = PeopleFollower(room, first=1234)
    assert room.at(0, (_ANNA, 100)) == [1235]
