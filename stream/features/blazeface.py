"""BlazeFace (Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs", 2019), as MediaPipe
publishes it, run by OpenCV.

The full-range network searches whole pictures. The short-range network then looks at a square around each face that was
found or followed: where it locates the eyes depends on their surroundings, so it always sees the same framing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from emostream.stream.features.face import Detection

AROUND = 2.2  # side of the square that the short-range network sees, in face widths
LIFT = 0.045  # of the eyes' distance: on 544 FER2013 images the network puts the eyes this much lower than YuNet does
MIN_OVERLAP = 0.3  # boxes that overlap by more are one face
_FACES = 24  # faces per picture that the short-range network looks at, the largest first


@dataclass(frozen=True)
class _Range:
    """A network: the side of its square input, and for each grid (stride, anchors per cell)."""

    file: str
    side: int
    anchors: tuple[tuple[int, int], ...]


SHORT = _Range("face_detection_short_range.tflite", 128, ((8, 2), (16, 6)))
FULL = _Range("face_detection_full_range.tflite", 192, ((4, 1),))


class BlazeFace:
    """Finds faces turned by up to about 45°, with eyes. ``folder`` holds the two networks' TFLite files."""

    name = "blazeface"

    def __init__(self, folder: Path, min_score: float = 0.6) -> None:
        self._full, self._short = _Network(folder, FULL, min_score), _Network(folder, SHORT, min_score)

    def detect(self, image: np.ndarray, near: Detection | None = None) -> list[Detection]:
        """Faces in a (height, width) gray uint8 image; with ``near``, only around its place."""
        if near is not None:
            return self._closely(image, near)
        faces: list[Detection] = []
        seen = self._full.find(image) or self._short.find(image)  # the first misses a face that fills the picture
        for rough in sorted(seen, key=lambda face: -face.area)[:_FACES]:
            faces += (face for face in self._closely(image, rough) if all(face.overlap(f) < MIN_OVERLAP for f in faces))
        return faces

    def _closely(self, image: np.ndarray, near: Detection) -> list[Detection]:
        """The face that the short-range network finds around ``near``, if any."""
        side = AROUND * max(near.width, near.height)
        left, top = (round(centre - side / 2) for centre in (near.x + near.width / 2, near.y + near.height / 2))
        seen = self._short.find(_square(image, left, top, math.ceil(side)))
        return [max((face.moved(left, top) for face in seen), key=near.overlap)] if seen else []


class _Network:
    def __init__(self, folder: Path, kind: _Range, min_score: float) -> None:
        self._net = cv2.dnn.readNetFromTFLite(str(folder / kind.file))
        self._outputs = sorted(self._net.getUnconnectedOutLayersNames())  # scores, then boxes, in both files
        self._side, self._min_score = kind.side, min_score
        centres = []
        for stride, anchors in kind.anchors:
            at = (np.arange(kind.side // stride) + 0.5) * stride
            y, x = np.meshgrid(at, at, indexing="ij")
            centres.append(np.repeat(np.stack([x, y], axis=2).reshape(-1, 2), anchors, axis=0))
        self._centres = np.concatenate(centres)  # (anchors, 2) of x and y, in pixels of the input

    def find(self, image: np.ndarray) -> list[Detection]:
        """Faces in an image, which is padded to a square and scaled to the network's size."""
        scale = self._side / max(image.shape)
        size = [max(1, round(n * scale)) for n in image.shape]
        small = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        padded = np.zeros((self._side, self._side), np.float32)
        padded[: size[0], : size[1]] = small / 127.5 - 1
        self._net.setInput(np.broadcast_to(padded, (1, 3, self._side, self._side)).copy())
        logits, boxes = (output[0] for output in self._net.forward(self._outputs))  # (anchors, 1), (anchors, 16)
        score = 1 / (1 + np.exp(-np.clip(logits[:, 0].astype(np.float64), -50, 50)))
        likely = np.flatnonzero(score >= self._min_score)
        return _merged(score[likely], boxes[likely], self._centres[likely], 1 / scale)


def _merged(score: np.ndarray, boxes: np.ndarray, centres: np.ndarray, scale: float) -> list[Detection]:
    """Faces from the anchors' boxes (n, 16): overlapping boxes are averaged, weighted by score, as in the paper.

    A box is its centre and size, then six points (x, y): the eye on the viewer's left, the one on the right, nose,
    mouth and ears. All but the size are relative to the anchor's centre, (n, 2).
    """
    points = boxes.reshape(-1, 8, 2).astype(np.float64)
    points[:, [0, *range(2, 8)]] += centres[:, None]
    points *= scale
    single = []
    for value, (centre, (width, height), left, right, *_) in zip(score, points, strict=True):
        x, y = centre - np.array([width, height]) / 2
        single.append(Detection(x, y, width, height, float(value), (tuple(left), tuple(right))))
    faces = []
    for best in np.argsort(-score):
        if score[best] <= 0:
            continue  # merged with a better one
        same = [i for i, face in enumerate(single) if score[i] > 0 and single[best].overlap(face) > MIN_OVERLAP]
        mean = np.average(points[same], axis=0, weights=score[same])
        (x, y), (width, height), left, right = mean[:4]
        lift = LIFT * np.array([right[1] - left[1], left[0] - right[0]])  # perpendicular to the line between the eyes
        left, right = left + lift, right + lift
        eyes = ((float(left[0]), float(left[1])), (float(right[0]), float(right[1])))
        box = (float(x - width / 2), float(y - height / 2), float(width), float(height))
        faces.append(Detection(*box, float(score[best]), eyes))
        score[same] = 0
    return faces


def _square(image: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square part of an image, black beyond its edges."""
    part = np.zeros((side, side), np.uint8)
    inside = image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    row, column = max(0, -top), max(0, -left)
    part[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return part
