"""Faces: detect, cut out an upright gray crop.

The crop is framed like the faces of FER2013, on which the face encoder is trained. The framing was measured with both
detectors on 600 of its images: YuNet finds the eyes at (0.31, 0.377) and (0.68, 0.377) of the width and height, and the
box of OpenCV's frontal Haar cascade covers the whole image (offset 0.005, size 0.974).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

CROP = 48  # pixels on a side, FER2013's size
EYE_LEFT, EYE_RIGHT = (0.31, 0.377), (0.68, 0.377)  # as fractions of the crop; left and right as the viewer sees them
DETECT_WIDTH = 320  # frames are shrunk to this width for detection; a face 1/10 as wide then has 32 pixels
_LEAST_SIDE = 12  # pixels; no face can be seen in a smaller picture
_REACH, _GROWTH = 0.25, 1.4  # how far a face may move and grow between detections, relative to its size

SETTINGS = {"crop": CROP, "eye_left": EYE_LEFT, "eye_right": EYE_RIGHT}


@dataclass(frozen=True)
class Detection:
    """One face: box in pixels of the frame, score in [0, 1], and the centres of the eyes if the detector finds them."""

    x: float
    y: float
    width: float
    height: float
    score: float
    eyes: tuple[tuple[float, float], tuple[float, float]] | None = None

    @property
    def area(self) -> float:
        return self.width * self.height

    def overlap(self, other: Detection) -> float:
        """Intersection over union of the two boxes."""
        w = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        h = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        if w <= 0 or h <= 0:
            return 0.0
        return w * h / (self.area + other.area - w * h)

    def moved(self, dx: float, dy: float) -> Detection:
        eyes = None
        if self.eyes is not None:
            (lx, ly), (rx, ry) = self.eyes
            eyes = ((lx + dx, ly + dy), (rx + dx, ry + dy))
        return replace(self, x=self.x + dx, y=self.y + dy, eyes=eyes)

    def scaled(self, by: float) -> Detection:
        eyes = None
        if self.eyes is not None:
            (lx, ly), (rx, ry) = self.eyes
            eyes = ((lx * by, ly * by), (rx * by, ry * by))
        return replace(self, x=self.x * by, y=self.y * by, width=self.width * by, height=self.height * by, eyes=eyes)


class Detector(Protocol):
    name: str

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        """Faces in a (height, width) gray uint8 image. With ``near``, only faces of about that place and size are
        needed; a detector that saves no time by it may return all."""
        ...


class YuNet:
    """YuNet (Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023) through OpenCV.

    It is made for colour and finds the same faces in gray. It always searches the whole image, since where it locates
    the eyes depends on how much of the surroundings it sees.
    """

    name = "yunet"

    def __init__(self, model: Path, min_score: float = 0.7) -> None:
        self._net = cv2.FaceDetectorYN.create(str(model), "", (DETECT_WIDTH, DETECT_WIDTH), min_score, 0.3, 50)

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        self._net.setInputSize((image.shape[1], image.shape[0]))
        _, rows = self._net.detect(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        if rows is None:
            return []
        faces = []
        for row in rows:
            x, y, w, h = (float(v) for v in row[:4])
            eyes = sorted(((float(row[4]), float(row[5])), (float(row[6]), float(row[7]))))
            faces.append(Detection(x, y, w, h, float(row[-1]), (eyes[0], eyes[1])))
        return faces


class HaarCascade:
    """OpenCV's frontal-face cascade (Viola and Jones, CVPR 2001), which comes with OpenCV's package. It finds upright
    faces only, without eyes."""

    name = "haar"

    def __init__(self) -> None:
        self._cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")  # type: ignore[attr-defined]

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        gray = cv2.equalizeHist(image)
        smallest, largest, left, top = max(24, min(gray.shape) // 8), max(gray.shape), 0, 0
        if near is not None:  # fewer places and sizes take an eighth of the time
            smallest, largest = int(near.width / _GROWTH), math.ceil(near.width * _GROWTH)
            left, top, right, bottom = expanded_box(near, _REACH, gray)
            gray = gray[top:bottom, left:right]
        boxes, _, weights = self._cascade.detectMultiScale3(
            gray, 1.1, 5, minSize=(smallest, smallest), maxSize=(largest, largest), outputRejectLevels=True
        )
        # the cascade's weight is not a probability: squash it into (0, 1), keeping the order
        return [
            Detection(float(left + x), float(top + y), float(w), float(h), float(1 / (1 + np.exp(-weight / 2))))
            for (x, y, w, h), weight in zip(boxes, np.ravel(weights), strict=True)
        ]


def expanded_box(face: Detection, margin: float, image: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a face's box, expanded by ``margin`` of its size on each side, clipped to the
    image."""
    height, width = image.shape[:2]
    left, top = face.x - margin * face.width, face.y - margin * face.height
    right, bottom = face.x + (1 + margin) * face.width, face.y + (1 + margin) * face.height
    return (
        min(max(0, math.floor(left)), width), min(max(0, math.floor(top)), height),
        max(min(width, math.ceil(right)), 0), max(min(height, math.ceil(bottom)), 0),
    )  # fmt: skip


def find_faces(detector: Detector, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
    """Detect faces in a copy of ``image`` (gray) shrunk to ``DETECT_WIDTH``; boxes are in pixels of ``image``."""
    scale = min(1.0, DETECT_WIDTH / max(1, image.shape[1]))
    if min(image.shape) * scale < _LEAST_SIDE:
        return []
    if scale < 1.0:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    else:
        small = np.ascontiguousarray(image)
    near = near.scaled(scale) if near is not None else None
    return [face.scaled(1 / scale) for face in detector.detect(small, near)]


def crop_face(image: np.ndarray, face: Detection) -> np.ndarray:
    """Upright gray crop in FER2013's framing.

    ``image``: (height, width) gray uint8. Returns (48, 48) uint8. A face with known eyes is rotated and scaled by them;
    otherwise the box (a Haar cascade's) is the crop. Pixels beyond the image repeat its edge.
    """
    return warp_face(image, face, CROP)


def warp_face(image: np.ndarray, face: Detection, size: int, around: float = 1.0) -> np.ndarray:
    """A crop as ``crop_face`` makes it, but with ``size`` pixels a side and showing ``around`` times as much."""
    if face.eyes is not None:
        (lx, ly), (rx, ry) = face.eyes
        from_points = np.array([[lx, ly], [rx, ry]], np.float64)
        to_points = np.array([EYE_LEFT, EYE_RIGHT])
    else:
        from_points = np.array([[face.x, face.y], [face.x + face.width, face.y]])
        to_points = np.array([[0.005, 0.005], [0.979, 0.005]])
    to_points = ((to_points - 0.5) / around + 0.5 if around != 1.0 else to_points) * size
    matrix, scale = _similarity(from_points, to_points)
    if scale < 0.5:  # shrink by area averaging first, or thin lines alias
        factor = 2 * scale
        image, origin = _around(image, matrix, math.ceil(1 / factor), size)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        matrix, _ = _similarity((from_points - origin) * factor, to_points)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _around(image: np.ndarray, matrix: np.ndarray, min_pixels: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of ``image`` that a crop needs, and (x, y) of its first pixel, so that only this part is shrunk.

    ``matrix`` (2, 3): image → crop. The part has a margin of two crop pixels, and at least ``min_pixels`` on a side.
    """
    corners = np.array([[x, y, 1] for x in (-2, size + 2) for y in (-2, size + 2)])
    corners = corners @ cv2.invertAffineTransform(matrix).T  # (4, 3) → (4, 2)
    limit = np.array(image.shape[::-1])
    first = np.clip(np.floor(corners.min(axis=0)), 0, np.maximum(limit - min_pixels, 0)).astype(int)
    last = np.clip(np.ceil(corners.max(axis=0)), first + min_pixels, limit).astype(int)
    return image[first[1] : last[1], first[0] : last[0]], first


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """The 2 × 3 matrix of rotation, scale and shift that maps two points to two others, and its scale."""
    a, b = complex(*source[0]), complex(*source[1])
    c, d = complex(*target[0]), complex(*target[1])
    if abs(b - a) < 1e-6:
        raise ValueError("the two points of a face coincide")
    rotation = (d - c) / (b - a)
    shift = c - rotation * a
    matrix = np.array([[rotation.real, -rotation.imag, shift.real], [rotation.imag, rotation.real, shift.imag]])
    return matrix, abs(rotation)
