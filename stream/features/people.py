"""Follows every face in a video, each under its own id: detected a few times a second, tracked in between.

A face keeps its id when faces cross, and when it leaves and is back within ``KEEP_MS``. It is then recognised by its
look, a histogram of the edges of head and hair (N. Dalal and B. Triggs, "Histograms of Oriented Gradients for Human
Detection", CVPR 2005). Looks are kept in memory only, and for no longer than that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np

from emostream.stream.features.face import Detection, Detector, find_faces, warp_face
from emostream.stream.features.follow import DETECT_MS, Template

MOST = 8  # faces that are followed; more are only counted
PATIENCE_MS = 1000  # how long an unseen face is looked for near its last place
KEEP_MS = 120_000  # how long an id is kept for a face that left
SEARCH_MS = 2000  # how often the whole picture is searched for further faces
SURE_MS = 300  # how long a further face must be in view before it counts, since detectors err now and then
YOUNG_MS = 2000  # how long after coming into view a face may still be recognised
SAME_LOOK = 0.86  # six people of the GRID corpus: one person's looks agree by .91 or more, two people's by .80 or less
_MIN_OVERLAP = 0.2  # of a face's box with its previous box
_ONE_FACE = 0.4  # boxes that overlap by more show the same face
_NEAR = 0.05  # boxes that overlap by more hide parts of each other
_CLEARER = 0.03  # margin by which a look must agree better with one person than with another
_LOOKS = 6  # kept per person
_MOST_GONE = 32  # people who may come back
_NEW_LOOK = 0.95  # a look that agrees less than this with the known ones is worth keeping
_LOOK_PIXELS, _LOOK_AROUND = 48, 1.25  # side of the image a look is computed from; how much it shows, in crop sides


SETTINGS = {"patience_ms": PATIENCE_MS, "min_overlap": _MIN_OVERLAP}


@dataclass(frozen=True)
class Person:
    """A face in a frame and the id of its person."""

    id: int
    face: Detection


@dataclass(eq=False)
class _Track:
    """A person and the last place of their face."""

    face: Detection
    seen_ns: int
    since_ns: int  # when it came into view, or tracking began
    id: int = 0  # 0: none yet
    template: Template | None = None
    detect_ns: int = 0  # when to detect next
    looks: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=_LOOKS))
    mixed: list[_Track] = field(default_factory=list)  # whose faces it has met since it was last seen alone

    def agrees(self, look: np.ndarray) -> float:
        """How well a look agrees with the best of the known ones, at most 1."""
        return max((float(look @ known) for known in self.looks), default=0.0)


class PeopleFollower:
    """Finds the faces of all people in view.

    One of them is the main one: at first the largest, and it stays so until it has been gone for ``PATIENCE_MS``. Every
    ``DETECT_MS`` the detector searches near each face's last place; in the frames between, template matching finds it.
    If neither finds the main face, the whole frame is searched; if that finds nothing, it is not repeated for
    ``DETECT_MS``, since otherwise an empty room would cost the most. ``faces``: how many the last search of a whole
    frame found, followed or not. ``first``: one less than the first id.
    """

    def __init__(self, detector: Detector, first: int = 0) -> None:
        self._detector = detector
        self._hog = cv2.HOGDescriptor((_LOOK_PIXELS,) * 2, (16, 16), (8, 8), (8, 8), 9)
        self._tracks: list[_Track] = []  # the main one first
        self._main: _Track | None = None
        self._gone: list[_Track] = []
        self._search_ns = self._further_ns = 0  # when to search the whole picture: for the main face; for further ones
        self._shape: tuple[int, ...] = ()
        self._ids = first
        self.faces = 0

    def push(self, media_ns: int, image: np.ndarray) -> list[Person]:
        """The faces in ``image``, (height, width) gray uint8, the main one first."""
        if image.shape != self._shape:  # resized or rotated: places in the previous picture are void
            self._shape, self._search_ns = image.shape, 0
            self._leave(self._tracks)
        self._leave([track for track in self._tracks if media_ns - track.seen_ns > PATIENCE_MS * 1_000_000])
        self._gone = [track for track in self._gone if media_ns - track.seen_ns <= KEEP_MS * 1_000_000]
        found: list[_Track] = []
        for track in list(self._tracks):
            if track not in self._tracks:  # merged into another track meanwhile
                continue
            if self._find_again(track, found, media_ns, image):
                found.append(track)
            else:
                track.template = None
        searched = media_ns >= (self._further_ns if self._main in found else self._search_ns)
        if searched:
            self._search(found, media_ns, image)
        if self._main is None and found:
            self._main = max(found, key=lambda track: track.face.area)
        if searched and self._main not in found:
            self._search_ns = media_ns + DETECT_MS * 1_000_000
        self._tracks.sort(key=lambda track: track is not self._main)
        return self._people(found, media_ns)

    def _leave(self, tracks: list[_Track]) -> None:
        self._tracks, leaving = [t for t in self._tracks if t not in tracks], list(tracks)
        self._gone = [*self._gone, *(track for track in leaving if track.id and track.looks)][-_MOST_GONE:]
        if self._main in leaving:
            self._main = None

    def _people(self, found: list[_Track], media_ns: int) -> list[Person]:
        people = []
        for track in sorted(found, key=lambda track: track is not self._main):
            if not track.id and (track is self._main or media_ns - track.since_ns >= SURE_MS * 1_000_000):
                self._ids += 1
                track.id = self._ids
            if track.id:
                people.append(Person(track.id, track.face))
        self.faces = max(self.faces, len(people))
        return people

    def _find_again(self, track: _Track, found: list[_Track], media_ns: int, image: np.ndarray) -> bool:
        """Find a face near its last place, but not the face of somebody in front of it."""
        if track.template is not None and media_ns < track.detect_ns:
            moved = track.template.find(image, track.face)
            if moved is not None and not any(other.face.overlap(moved) > _ONE_FACE for other in found):
                track.face, track.seen_ns = moved, media_ns
                return True
        near = find_faces(self._detector, image, track.face)
        if not near:
            return False
        face = max(near, key=track.face.overlap)
        if track.face.overlap(face) < _MIN_OVERLAP or any(other.face.overlap(face) > _ONE_FACE for other in found):
            return False
        self._place(track, face, media_ns, image)
        return True

    def _search(self, found: list[_Track], media_ns: int, image: np.ndarray) -> None:
        """Search the whole picture for people who were not found near their last place, who are back, or who are new.
        Adds them to ``found``."""
        self._further_ns = media_ns + SEARCH_MS * 1_000_000
        faces = find_faces(self._detector, image)
        self.faces = len(faces)
        new = [face for face in faces if all(track.face.overlap(face) <= _ONE_FACE for track in found)]
        looks = [self._look(image, face) for face in new] if self._tracks or self._gone else []
        for i, face in enumerate(new):
            missing = [track for track in self._tracks if track not in found]
            track = self._who(face, looks[i] if looks else None, missing)
            if track is None:
                if found and len(self._tracks) >= MOST:
                    continue
                track = _Track(face, media_ns, media_ns)
            if track in self._gone:
                self._gone.remove(track)
                track.since_ns = media_ns
            if track not in self._tracks:
                self._tracks.append(track)
            self._place(track, face, media_ns, image)
            found.append(track)

    def _who(self, face: Detection, look: np.ndarray | None, missing: list[_Track]) -> _Track | None:
        """Which of the missing or gone people this face belongs to; None if none."""
        known = [*missing, *self._gone]
        if look is not None:
            best = max(known, key=lambda track: track.agrees(look), default=None)
            if best is not None and best.agrees(look) >= SAME_LOOK:
                return best
        near = max(missing, key=lambda track: track.face.overlap(face), default=None)
        return near if near is not None and near.face.overlap(face) >= _MIN_OVERLAP else None

    def _place(self, track: _Track, face: Detection, media_ns: int, image: np.ndarray) -> None:
        track.face, track.seen_ns = face, media_ns
        track.template = Template(image, face)
        track.detect_ns = media_ns + DETECT_MS * 1_000_000
        near = [other for other in self._tracks if other is not track and other.face.overlap(face) > _NEAR]
        if near:
            track.mixed += [other for other in near if other not in track.mixed]
            for other in near:
                other.mixed += [track] if track not in other.mixed else []
            return
        look = self._look(image, face)
        if track.mixed:
            self._untangle(track, look)
            return
        if media_ns - track.since_ns < YOUNG_MS * 1_000_000:
            self._recognise(track, look, media_ns)
        if track.agrees(look) < _NEW_LOOK:
            track.looks.append(look)

    def _recognise(self, track: _Track, look: np.ndarray, media_ns: int) -> None:
        """If a face that seemed new (perhaps turned away) belongs to somebody who is missing, merge the two."""
        missing = [other for other in self._tracks if media_ns - other.seen_ns > DETECT_MS * 1_000_000]
        known = [other for other in [*missing, *self._gone] if other.id and (not track.id or other.id < track.id)]
        other = max(known, key=lambda other: other.agrees(look), default=None)
        if other is None or other.agrees(look) < max(SAME_LOOK, track.agrees(look)):
            return
        track.id, track.looks = other.id, other.looks
        self._tracks = [each for each in self._tracks if each is not other]
        self._gone = [each for each in self._gone if each is not other]
        if self._main is other:
            self._main = track

    def _untangle(self, track: _Track, look: np.ndarray) -> None:
        """After two faces met and parted: if they swapped places, give each its own id back."""
        other = max(track.mixed, key=lambda other: other.agrees(look))
        if other.agrees(look) > track.agrees(look) + _CLEARER:
            track.id, other.id = other.id, track.id
            track.looks, other.looks = other.looks, track.looks
            track.since_ns, other.since_ns = other.since_ns, track.since_ns
            if self._main in (track, other):
                self._main = other if self._main is track else track
        track.mixed = []

    def _look(self, image: np.ndarray, face: Detection) -> np.ndarray:
        """Edge histogram of the upright, scaled head, with mean 0 and length 1, so that a product is a correlation."""
        crop = warp_face(image, face, _LOOK_PIXELS, _LOOK_AROUND)
        look: np.ndarray = np.asarray(self._hog.compute(crop)).ravel()
        look = look - look.mean()
        return look / max(float(np.linalg.norm(look)), 1e-6)
