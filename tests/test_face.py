"""stream/features/face.py"""

from __future__ import annotations

import cmath
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.stream.features.face import (
    CROP,
    EYE_LEFT,
    EYE_RIGHT,
    Detection,
    HaarCascade,
    crop_face,
    expanded_box,
    find_faces,
)
from tests import media

_SECOND = 1_000_000_000

boxes = st.builds(
    Detection,
    st.floats(-50, 300),
    st.floats(-50, 300),
    st.floats(1, 200),
    st.floats(1, 200),
    st.just(0.9),
)


# Cropping


def _with_eyes(left: complex, right: complex, width: int = 480, height: int = 360) -> np.ndarray:
    """A dark image with a red spot on the left eye and a blue one on the right, each as large as an eye."""
    y, x = np.mgrid[:height, :width]
    size = abs(right - left) / 12
    image = np.zeros((height, width, 3), np.float64)
    for channel, eye in ((2, left), (0, right)):
        image[..., channel] = 255 * np.exp(-((x - eye.real) ** 2 + (y - eye.imag) ** 2) / (2 * size**2))
    return np.rint(image).astype(np.uint8)


def _place(image: np.ndarray) -> tuple[float, float]:
    """Centre of mass, (x, y)."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((x * image).sum() / image.sum()), float((y * image).sum() / image.sum())


@pytest.mark.slow
@settings(max_examples=60)
@given(
    distance=st.floats(12, 180),
    degrees=st.floats(-60, 60),
    at=st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
)
def test_eyes_land_at_their_places(distance, degrees, at):
    middle = complex(at[0] * 480, at[1] * 360)
    half = cmath.rect(distance / 2, math.radians(degrees))
    left, right = middle - half, middle + half
    face = Detection(0, 0, 1, 1, 0.9, ((left.real, left.imag), (right.real, right.imag)))
    image = _with_eyes(left, right)
    for channel, place in ((2, EYE_LEFT), (0, EYE_RIGHT)):
        crop = crop_face(np.ascontiguousarray(image[..., channel]), face)
        assert crop.shape == (CROP, CROP)
        assert crop.dtype == np.uint8
        np.testing.assert_allclose(_place(crop.astype(float)), np.array(place) * CROP, atol=1.0)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-100, 900),
    y=st.floats(-100, 700),
    size=st.floats(100, 500),
    eyes=st.none() | st.tuples(st.floats(0.3, 0.6), st.floats(0.3, 0.6)),
)
def test_a_crop_does_not_depend_on_what_is_far_away(x, y, size, eyes):
    """Only the surroundings of a face are shrunk; shrinking the whole image gives the same crop except at its
    border."""
    places = eyes and ((x + 0.3 * size, y + eyes[0] * size), (x + 0.7 * size, y + eyes[1] * size))
    face = Detection(x, y, size, size, 0.9, places)
    down, across = np.mgrid[:720, :960]
    image = np.rint(127 + 60 * np.sin(across / 60) + 60 * np.cos(down / 70)).astype(np.uint8)
    larger = cv2.copyMakeBorder(image, 200, 200, 200, 200, cv2.BORDER_REPLICATE)
    crop = crop_face(image, face)
    # at the picture's edge the last pixels average another area; the error is below one crop pixel's step, which is 10
    assert np.abs(crop.astype(int) - crop_face(larger, face.moved(200, 200))).max() < 10


@given(x=st.integers(0, 300), y=st.integers(0, 200), size=st.integers(10, 40).map(lambda quarter: 4 * quarter))
def test_a_box_without_eyes_is_the_crop(x, y, size):
    """A square with a brighter one of half its size in its middle."""
    image = np.zeros((360, 480), np.uint8)
    image[y : y + size, x : x + size] = 60
    image[y + size // 4 : y + size * 3 // 4, x + size // 4 : x + size * 3 // 4] = 200
    crop = crop_face(image, Detection(x, y, size, size, 0.9)).astype(float)
    assert crop[24, 24] > 180
    np.testing.assert_allclose(crop[2:8, 2:46], 60, atol=25)  # inside the box, outside its middle
    bright = crop > 130
    edges = [np.flatnonzero(bright.any(axis=axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
    np.testing.assert_allclose(edges, [[12, 36], [12, 36]], atol=1.6)


@given(
    x=st.floats(-200, 500),
    y=st.floats(-200, 400),
    size=st.floats(1, 600),
    eyes=st.none() | st.tuples(st.floats(0.3, 0.45), st.floats(0.55, 0.7)),
)
def test_faces_beyond_the_border_are_cropped_too(x, y, size, eyes):
    places = eyes and ((x + eyes[0] * size, y + 0.4 * size), (x + eyes[1] * size, y + 0.4 * size))
    image = np.full((120, 160), 77, np.uint8)
    np.testing.assert_array_equal(crop_face(image, Detection(x, y, size, size, 0.9, places)), 77)


def test_eyes_at_one_point_are_refused():
    with pytest.raises(ValueError, match="coincide"):
        crop_face(np.zeros((10, 10), np.uint8), Detection(0, 0, 5, 5, 1, ((3, 3), (3, 3))))


# Overlap


@given(boxes, boxes)
def test_overlap_is_a_symmetric_ratio(a, b):
    assert 0 <= a.overlap(b) <= 1 + 1e-9
    assert a.overlap(b) == pytest.approx(b.overlap(a))
    assert a.overlap(a) == pytest.approx(1)


@given(boxes, boxes, st.floats(0.1, 10))
def test_overlap_does_not_depend_on_the_scale(a, b, scale):
    assert a.scaled(scale).overlap(b.scaled(scale)) == pytest.approx(a.overlap(b), abs=1e-6)


def test_overlap_of_known_boxes():
    box = Detection(0, 0, 10, 10, 1)
    assert box.overlap(Detection(10, 0, 10, 10, 1)) == 0
    assert box.overlap(Detection(50, 50, 10, 10, 1)) == 0
    assert box.overlap(Detection(5, 0, 10, 10, 1)) == pytest.approx(1 / 3)
    assert box.overlap(Detection(2, 2, 5, 5, 1)) == pytest.approx(0.25)


def test_moving_moves_the_eyes_too():
    face = Detection(1, 2, 3, 4, 0.5, ((1.5, 3), (2.5, 3))).moved(10, -1)
    assert face == Detection(11, 1, 3, 4, 0.5, ((11.5, 2), (12.5, 2)))
    assert Detection(1, 2, 3, 4, 0.5).moved(1, 1).eyes is None


@given(boxes, st.floats(0, 1))
def test_an_expanded_box_lies_within_the_image(face, margin):
    image = np.zeros((120, 160), np.uint8)
    left, top, right, bottom = expanded_box(face, margin, image)
    assert image[top:bottom, left:right].size >= 0
    assert 0 <= left <= 160 and 0 <= right <= 160 and 0 <= top <= 120 and 0 <= bottom <= 120
    if 0 <= face.x and face.x + face.width <= 160:  # the whole face is inside
        assert left <= face.x and face.x + face.width <= right


def test_scaling_moves_the_eyes_too():
    face = Detection(1, 2, 3, 4, 0.5, ((1.5, 3), (2.5, 3))).scaled(2)
    assert face == Detection(2, 4, 6, 8, 0.5, ((3, 6), (5, 6)))


# Detecting


def test_haar_finds_the_demos_face():
    detector = HaarCascade()
    for image in map(media.gray, media.face_frames(50)[::10]):
        faces = find_faces(detector, image)
        assert len(faces) == 1
        face = faces[0]
        assert 0 < face.score < 1
        assert 0 <= face.x <= face.x + face.width <= image.shape[1]
        assert 0 <= face.y <= face.y + face.height <= image.shape[0]
        assert face.width > image.shape[0] / 4
        crop = crop_face(image, face)
        assert crop.std() > 20  # a face has light and shade


def test_haar_finds_the_same_box_in_a_larger_image():
    image = media.gray(media.face_frames(1)[0])
    twice = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    small, large = (find_faces(HaarCascade(), picture)[0] for picture in (image, twice))
    assert small.scaled(2).overlap(large) > 0.8


def test_haar_searches_near_a_face_only_if_asked():
    first, later = (media.gray(image) for image in media.face_frames(6)[::5])
    pair = np.concatenate([first, later[::2, ::2].repeat(2, axis=0)[:, :240]], axis=1)
    detector = HaarCascade()
    (face,) = find_faces(detector, first)
    (near,) = find_faces(detector, later, face)
    assert near.overlap(find_faces(detector, later)[0]) > 0.8
    assert not find_faces(detector, first, face.moved(2 * face.width, 0))
    assert not find_faces(detector, first, face.scaled(0.4).moved(0.6 * face.x, 0.6 * face.y))
    assert find_faces(detector, pair, face)[0].overlap(face) > 0.6


@pytest.mark.slow
def test_haar_finds_nobody_in_an_empty_scene():
    detector = HaarCascade()
    assert all(not find_faces(detector, media.gray(image)) for image in media.faceless_frames(20))
    assert not find_faces(detector, np.zeros((240, 320), np.uint8))


@pytest.mark.parametrize("shape", [(16, 16), (4, 640), (480, 2)])
def test_haar_takes_images_of_odd_sizes(shape):
    assert find_faces(HaarCascade(), np.full(shape, 128, np.uint8)) == []
