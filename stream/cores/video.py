"""Core of the video node: frames in, the faces of all people in view out."""

from __future__ import annotations

import logging

import cv2
import msgspec
import numpy as np

from emostream.errors import ModelError
from emostream.stream import models
from emostream.stream.config import Video
from emostream.stream.features.blazeface import BlazeFace
from emostream.stream.features.face import Detector, HaarCascade, YuNet, crop_face
from emostream.stream.features.mouth import mouth
from emostream.stream.features.people import PeopleFollower, Person
from emostream.stream.messages import Face, FaceInFrame, Message
from emostream.stream.sources.base import SeenFaces, VideoFrame

log = logging.getLogger(__name__)

_NO_CROP = np.zeros((0, 0), np.uint8)


def make_detector(config: Video) -> Detector:
    """The detector that ``models.face_detector`` chooses. Raises ModelError, also if OpenCV cannot read its model."""
    cv2.setNumThreads(1)  # several processes share the cores
    name, path = models.face_detector(config)
    if path is None:
        if config.detector == "auto":
            how = models.how_to_get("blazeface")
            log.info("face detection: haar cascade, upright faces only (for BlazeFace: %s)", how)
        return HaarCascade()
    log.info("face detection: %s, %s", name, path)
    try:
        return YuNet(path) if name == "yunet" else BlazeFace(path)
    except cv2.error as error:
        raise ModelError(f"{path}: OpenCV cannot read this model of {name} ({error.err})") from error


class VideoCore:
    """One ``Face`` message per frame: the crops of the people that it follows, the main one first, or none.

    ``t0_ns``: Unix time of media time 0, or None if nothing is captured live. ``first``: one less than the first face
    id.
    """

    def __init__(self, stream: str, detector: Detector, t0_ns: int | None, first: int = 0) -> None:
        self._stream, self._t0_ns = stream, t0_ns
        self._follower = PeopleFollower(detector, first)
        self._last_ns: int | None = None
        self.delay_ns = 0  # the source's delay, added to capture times
        self.late_frames = 0
        self.faces = 0

    def push(self, frame: VideoFrame) -> list[Message]:
        """Take a frame; a frame that is not later than the last one is counted and left out."""
        if self._last_ns is not None and frame.media_ns <= self._last_ns:
            self.late_frames += 1
            return []
        self._last_ns = frame.media_ns
        people = self._follower.push(frame.media_ns, frame.image)
        message = Face(
            stream=self._stream,
            media_start_ns=frame.media_ns,
            media_end_ns=frame.media_ns,
            captured_ns=self._captured_ns(frame.media_ns),
            crop=_NO_CROP,
            faces=self._follower.faces,
        )
        if people:
            self.faces += 1
            main, *message.others = (_in_frame(person, frame.image) for person in people)
            message.crop, message.box, message.score = main.crop, main.box, main.score
            message.person, message.mouth = main.person, main.mouth
        return [message]

    def repeat(self, seen: SeenFaces) -> list[Message]:
        """Take faces that were found when the recording was made."""
        self.faces += seen.face.found
        at_ns = seen.media_ns
        times = {"media_start_ns": at_ns, "media_end_ns": at_ns, "captured_ns": self._captured_ns(at_ns)}
        return [msgspec.structs.replace(seen.face, stream=self._stream, **times)]

    def _captured_ns(self, media_ns: int) -> int:
        return 0 if self._t0_ns is None else self._t0_ns + media_ns + self.delay_ns


def _in_frame(person: Person, image: np.ndarray) -> FaceInFrame:
    height, width = image.shape
    face, crop = person.face, crop_face(image, person.face)
    box = (face.x / width, face.y / height, face.width / width, face.height / height)
    return FaceInFrame(person=person.id, crop=crop, box=box, score=face.score, mouth=mouth(crop))
