"""stream/features/people.py and follow.py: the main face, from frame to frame"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from emostream.stream.features.face import Detection, HaarCascade, find_faces
from emostream.stream.features.follow import DETECT_MS
from emostream.stream.features.people import PeopleFollower
from tests import media

_MS = 1_000_000


class FaceFollower:
    """The main face alone."""

    def __init__(self, detector) -> None:
        self._people = PeopleFollower(detector)

    def push(self, media_ns: int, image: np.ndarray) -> Detection | None:
        people = self._people.push(media_ns, image)
        return people[0].face if people else None


class Scripted:
    """A detector that always finds the given faces; ``asked``: the ``near`` of each call."""

    name = "scripted"

    def __init__(self) -> None:
        self.faces: list[Detection] = []
        self.asked: list[Detection | None] = []

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        self.asked.append(near)
        return self.faces


_BLURRED = cv2.GaussianBlur(np.random.default_rng(1).random((60, 60)), (0, 0), 6)
_TEXTURE = cv2.normalize(_BLURRED, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def scene(*places: tuple[float, float]) -> np.ndarray:
    """A face of 60 by 60 pixels at each place, in a gray room of 320 by 240."""
    image = np.full((240, 320), 120, np.uint8)
    for x, y in places:
        shift = np.array([[1, 0, x], [0, 1, y]], np.float64)
        person = cv2.warpAffine(_TEXTURE, shift, (320, 240))
        there = cv2.warpAffine(np.full_like(_TEXTURE, 255), shift, (320, 240)) > 127
        image[there] = person[there]
    return image


def face_at(x: float, y: float) -> Detection:
    return Detection(x, y, 60, 60, 0.9, ((x + 20, y + 22), (x + 40, y + 22)))


def test_between_detections_a_face_is_followed_with_its_eyes():
    detector = Scripted()
    follower = FaceFollower(detector)
    detector.faces = [face_at(100, 80)]
    assert follower.push(0, scene((100, 80))) == face_at(100, 80)
    for i, (x, y) in enumerate([(103.0, 80.0), (109.5, 84.25)]):
        face = follower.push((i + 1) * 100 * _MS, scene((x, y)))
        assert face is not None and face.eyes is not None
        assert (face.x, face.y) == pytest.approx((x, y), abs=0.6)
        assert face.eyes[0] == pytest.approx((x + 20, y + 22), abs=0.6)
    assert detector.asked == [None]


def test_a_face_is_detected_again_near_its_last_place():
    detector = Scripted()
    follower = FaceFollower(detector)
    for t in range(0, 1000, 100):
        detector.faces = [face_at(100 + t / 50, 80)]
        follower.push(t * _MS, scene((100 + t / 50, 80)))
    assert detector.asked[0] is None
    assert [near and round(near.x) for near in detector.asked[1:]] == [104, 110, 116]  # at 300, 600, 900, where it was


def test_a_covered_face_is_lost_at_once():
    detector = Scripted()
    follower = FaceFollower(detector)
    detector.faces = [face_at(100, 80)]
    follower.push(0, scene((100, 80)))
    detector.faces = []
    assert follower.push(100 * _MS, scene()) is None
    detector.faces = [face_at(100, 80)]
    assert follower.push(200 * _MS, scene((100, 80))) == face_at(100, 80)


def test_a_face_that_jumps_is_found_and_told_by_its_look():
    detector = Scripted()
    follower = PeopleFollower(detector)
    detector.faces = [face_at(20, 20)]
    follower.push(0, scene((20, 20)))
    detector.faces = [face_at(200, 150)]
    seen = [follower.push(t * _MS, scene((200, 150))) for t in range(100, 1600, 100)]
    assert [person.id for people in seen for person in people] == [1] * 15
    assert seen[0][0].face == face_at(200, 150)


def test_a_larger_face_does_not_take_over():
    detector = Scripted()
    follower = FaceFollower(detector)
    detector.faces = [face_at(20, 20)]
    follower.push(0, scene((20, 20)))
    detector.faces = [Detection(150, 60, 120, 120, 0.99), face_at(20, 20)]
    for t in range(100, 2000, 100):
        face = follower.push(t * _MS, scene((20, 20), (180, 90)))
        assert face is not None and face.overlap(face_at(20, 20)) > 0.8


def test_an_empty_room_is_searched_a_few_times_a_second():
    detector = Scripted()
    follower = FaceFollower(detector)
    for t in range(0, 3000, 100):
        assert follower.push(t * _MS, scene()) is None
    assert detector.asked == [None] * 10
    detector.faces = [face_at(100, 80)]
    seen = [follower.push(t * _MS, scene((100, 80))) is not None for t in range(3000, 3500, 100)]
    assert seen.index(True) * 100 <= DETECT_MS


def test_slow_frames_are_all_detected():
    detector = Scripted()
    follower = FaceFollower(detector)
    detector.faces = [face_at(100, 80)]
    for t in range(0, 3000, DETECT_MS):
        follower.push(t * _MS, scene((100, 80)))
    assert sum(near is not None for near in detector.asked) == 3000 // DETECT_MS - 1
    assert sum(near is None for near in detector.asked) == 2  # at first, and after two seconds for others


@pytest.mark.parametrize(("x", "y"), [(-59, 100), (319, 100), (100, -59.5), (290, 220), (-30, -30), (330, 100)])
def test_faces_at_the_border(x, y):
    detector = Scripted()
    follower = FaceFollower(detector)
    detector.faces = [face_at(x, y)]
    for t in range(0, 600, 100):
        face = follower.push(t * _MS, scene((x, y)))
        assert face is not None
        assert face.overlap(face_at(x, y)) > 0.9


@pytest.mark.long
@pytest.mark.slow
def test_the_demos_face_is_where_a_search_of_each_frame_finds_it():
    detector = HaarCascade()
    follower = FaceFollower(detector)
    overlaps = []
    for i, image in enumerate(map(media.gray, media.face_frames(150)[::3])):
        face = follower.push(i * 120 * _MS, image)
        assert face is not None
        overlaps.append(face.overlap(find_faces(detector, image)[0]))
    assert np.mean(overlaps) > 0.9
    assert min(overlaps) > 0.7
