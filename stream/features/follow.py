"""One person's face through a video: detected a few times a second, and followed from frame to frame in between."""

from __future__ import annotations

import cv2
import numpy as np

from emostream.stream.features.face import Detection, Detector, FaceTracker, expanded_box, find_faces

DETECT_MS = 250  # at 10 frames a second a detector runs on every third
SIZE = 32  # pixels of the face's width in the pictures that are compared
MIN_MATCH = 0.8  # of normalised correlation, where 1 is the same picture
_REACH = 0.25  # how far a face moves until it is detected again, of its size

SETTINGS = {"detect_ms": DETECT_MS, "match_size": SIZE, "min_match": MIN_MATCH}


class FaceFollower:
    """Gives the face of the person that a ``FaceTracker`` keeps to, and runs the detector as seldom as that allows.

    Every ``DETECT_MS`` the detector looks near where the face was; in frames between, the face is where its picture
    fits best. Where it is at neither, the whole frame is searched; if that finds nothing, not again for ``DETECT_MS``,
    since an empty room would cost the most.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._tracker = FaceTracker()
        self._picture: _Picture | None = None
        self._detect_ns = self._search_ns = 0  # from when on to detect, to search the whole frame

    def push(self, media_ns: int, image: np.ndarray) -> Detection | None:
        """The followed face in ``image``, (height, width) gray uint8, or None if it is not there."""
        followed = self._tracker.followed(media_ns)
        if followed is not None and self._picture is not None and media_ns < self._detect_ns:
            moved = self._picture.find(image, followed)
            if moved is not None:
                return self._tracker.push(media_ns, [moved])
        found = None
        if followed is not None:
            found = self._tracker.push(media_ns, find_faces(self._detector, image, followed))
        if found is None and media_ns >= self._search_ns:
            found = self._tracker.push(media_ns, find_faces(self._detector, image))
            if found is None:
                self._search_ns = media_ns + DETECT_MS * 1_000_000
        self._picture = None if found is None else _Picture(image, found)
        self._detect_ns = media_ns + DETECT_MS * 1_000_000
        return found


class _Picture:
    """What a detected face looks like, to find it again by normalised correlation (J. P. Lewis, "Fast Normalized
    Cross-Correlation", 1995). It is not renewed from what was found by it, so errors do not add up."""

    def __init__(self, image: np.ndarray, face: Detection) -> None:
        self._face, self._scale = face, min(1.0, SIZE / face.width)
        self._left, self._top, right, bottom = expanded_box(face, 0, image)
        self._pixels = self._shrunk(image[self._top : bottom, self._left : right])

    def find(self, image: np.ndarray, near: Detection) -> Detection | None:
        """The face where it fits best, no farther from ``near`` than a quarter of its size; None if it does not fit."""
        left, top, right, bottom = expanded_box(near, _REACH, image)
        part = self._shrunk(image[top:bottom, left:right])
        if not self._pixels.size or part.shape[0] < self._pixels.shape[0] or part.shape[1] < self._pixels.shape[1]:
            return None
        fit = cv2.matchTemplate(part, self._pixels, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(fit)
        if best < MIN_MATCH:
            return None
        dx = left + (x + _between(fit[y], x)) / self._scale - self._left
        dy = top + (y + _between(fit[:, x], y)) / self._scale - self._top
        return self._face.moved(dx, dy)

    def _shrunk(self, part: np.ndarray) -> np.ndarray:
        """A part of an image in the size that is compared; (0, 0) where hardly anything is there."""
        if min(part.shape) * self._scale < SIZE / 4:
            return np.zeros((0, 0), np.uint8)
        return cv2.resize(part, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_AREA)


def _between(fit: np.ndarray, at: int) -> float:
    """How far the peak of ``fit`` (n,) lies from ``at``, its greatest value: that of a parabola through three."""
    if not 0 < at < len(fit) - 1:
        return 0.0
    before, peak, after = (float(value) for value in fit[at - 1 : at + 2])
    bend = before - 2 * peak + after
    return 0.5 * (before - after) / bend if bend < -1e-9 else 0.0
