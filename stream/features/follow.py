"""Follows one person's face through a video: detected a few times a second, tracked from frame to frame in between."""

from __future__ import annotations

import cv2
import numpy as np

from emostream.stream.features.face import Detection, Detector, FaceTracker, expanded_box, find_faces

DETECT_MS = 250  # at 10 frames a second a detector runs on every third
SIZE = 32  # width of the face, in pixels, in the images that are compared
MIN_MATCH = 0.8  # normalised correlation; 1 is the same image
_REACH = 0.25  # how far a face moves until it is detected again, as a fraction of its size

SETTINGS = {"detect_ms": DETECT_MS, "match_size": SIZE, "min_match": MIN_MATCH}


class FaceFollower:
    """Finds the face of the person that a ``FaceTracker`` keeps to, and runs the detector as rarely as that allows.

    Every ``DETECT_MS`` the detector searches near the last place of the face; in the frames between, the face is where
    its template fits best. If neither finds it, the whole frame is searched; if that finds nothing, not again for
    ``DETECT_MS``, since otherwise an empty room would cost the most.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._tracker = FaceTracker()
        self._template: _Template | None = None
        self._detect_ns = self._search_ns = 0  # when to detect next, when to search the whole frame next
        self._shape: tuple[int, ...] = ()

    def push(self, media_ns: int, image: np.ndarray) -> Detection | None:
        """The followed face in ``image``, (height, width) gray uint8, or None if it is not there."""
        if image.shape != self._shape:  # places in a picture of another size, or turned, say nothing of this one
            self._shape, self._template, self._search_ns = image.shape, None, 0
            self._tracker.reset()
        followed = self._tracker.followed(media_ns)
        if followed is not None and self._template is not None and media_ns < self._detect_ns:
            moved = self._template.find(image, followed)
            if moved is not None:
                return self._tracker.push(media_ns, [moved])
        face = None
        if followed is not None:
            face = self._tracker.push(media_ns, find_faces(self._detector, image, followed))
        if face is None and media_ns >= self._search_ns:
            face = self._tracker.push(media_ns, find_faces(self._detector, image))
            if face is None:
                self._search_ns = media_ns + DETECT_MS * 1_000_000
        self._template = None if face is None else _Template(image, face)
        self._detect_ns = media_ns + DETECT_MS * 1_000_000
        return face


class _Template:
    """The image of a detected face, to find it again by normalised correlation (J. P. Lewis, "Fast Normalized
    Cross-Correlation", 1995). Matches do not update it, so errors do not add up."""

    def __init__(self, image: np.ndarray, face: Detection) -> None:
        self._face, self._scale = face, min(1.0, SIZE / face.width)
        self._left, self._top, right, bottom = expanded_box(face, 0, image)
        self._pixels = self._shrunk(image[self._top : bottom, self._left : right])

    def find(self, image: np.ndarray, near: Detection) -> Detection | None:
        """The face at its best match, not farther from ``near`` than a quarter of its size; None without a match."""
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
    """Distance of the true peak of ``match`` (n,) from its greatest value, at index ``best``, by a parabola through
    three values."""
    if not 0 < best < len(match) - 1:
        return 0.0
    before, peak, after = (float(value) for value in match[best - 1 : best + 2])
    curvature = before - 2 * peak + after
    return 0.5 * (before - after) / curvature if curvature < -1e-9 else 0.0
