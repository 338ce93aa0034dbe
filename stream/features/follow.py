"""Tracks a face from frame to frame by template matching, so that the detector need not search every frame."""

from __future__ import annotations

import cv2
import numpy as np

from emostream.stream.features.face import Detection, expanded_box

DETECT_MS = 250  # at 10 frames a second the detector runs on every third
SIZE = 32  # width of the face in the images that are compared, in pixels
MIN_MATCH = 0.8  # normalised correlation; 1 is the same image
_REACH = 0.25  # how far a face may move between detections, relative to its size

SETTINGS = {"detect_ms": DETECT_MS, "match_size": SIZE, "min_match": MIN_MATCH}


class Template:
    """The image of a detected face, used to find it again by normalised correlation (J. P. Lewis, "Fast Normalized
    Cross-Correlation", 1995). Matches do not update it, so errors do not accumulate."""

    def __init__(self, image: np.ndarray, face: Detection) -> None:
        self._face, self._scale = face, min(1.0, SIZE / face.width)
        self._left, self._top, right, bottom = expanded_box(face, 0, image)
        self._pixels = self._shrunk(image[self._top : bottom, self._left : right])

    def find(self, image: np.ndarray, near: Detection) -> Detection | None:
        """The face at its best match within a quarter of its size from ``near``; None without a match."""
        left, top, right, bottom = expanded_box(near, _REACH, image)
        part = self._shrunk(image[top:bottom, left:right])
        if not self._pixels.size or part.shape[0] < self._pixels.shape[0] or part.shape[1] < self._pixels.shape[1]:
            return None
        match = cv2.matchTemplate(part, self._pixels, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(match)
        if best < MIN_MATCH:
            return None
        dx = left + (x + _peak_offset(match[y], x)) / self._scale - self._left
        dy = top + (y + _peak_offset(match[:, x], y)) / self._scale - self._top
        return self._face.moved(dx, dy)

    def _shrunk(self, part: np.ndarray) -> np.ndarray:
        """A part of an image, scaled for comparison; (0, 0) pixels if it is too small for that."""
        if min(part.shape) * self._scale < SIZE / 4:
            return np.zeros((0, 0), np.uint8)
        return cv2.resize(part, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA)


def _peak_offset(match: np.ndarray, best: int) -> float:
    """Offset of the true peak of ``match`` (n,) from its greatest value, at index ``best``, by a parabola through
    three values."""
    if not 0 < best < len(match) - 1:
        return 0.0
    before, peak, after = (float(value) for value in match[best - 1 : best + 2])
    curvature = before - 2 * peak + after
    return 0.5 * (before - after) / curvature if curvature < -1e-9 else 0.0
