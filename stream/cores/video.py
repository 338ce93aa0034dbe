"""Video node's core: frames in, one followed face out."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from emostream.stream import models
from emostream.stream.config import Video
from emostream.stream.features.face import Detector, HaarCascade, YuNet, crop_face
from emostream.stream.features.follow import FaceFollower
from emostream.stream.messages import Face, Message
from emostream.stream.sources.base import VideoFrame

log = logging.getLogger(__name__)

_NO_CROP = np.zeros((0, 0), np.uint8)


def make_detector(config: Video) -> Detector:
    """The face detector that is configured; ``auto`` takes YuNet if its model is found, else the Haar cascade.

    Raises ModelError if the one asked for cannot be had.
    """
    cv2.setNumThreads(1)  # several processes share the cores
    if config.detector != "haar":
        find = models.need if config.detector == "yunet" else models.find
        path = find("yunet", config.yunet_model)
        if path is not None:
            log.info("face detection: yunet, %s", path)
            return YuNet(path)
        log.info("face detection: haar cascade (stands in for YuNet; to get that: %s)", models.how_to_get("yunet"))
    return HaarCascade()


class VideoCore:
    """One ``Face`` message a frame: the crop of the person that it follows, or none.

    ``t0_ns``: Unix time of media time 0, or None where capture time has no meaning.
    """

    def __init__(self, stream: str, detector: Detector, t0_ns: int | None) -> None:
        self._stream, self._t0_ns = stream, t0_ns
        self._follower = FaceFollower(detector)
        self._last_ns: int | None = None
        self.late_frames = 0
        self.faces = 0

    def push(self, frame: VideoFrame) -> list[Message]:
        """Take a frame; frames whose time does not come after the last one's are counted and left out."""
        if self._last_ns is not None and frame.media_ns <= self._last_ns:
            self.late_frames += 1
            return []
        self._last_ns = frame.media_ns
        height, width = frame.image.shape
        found = self._follower.push(frame.media_ns, frame.image)
        message = Face(
            stream=self._stream,
            media_start_ns=frame.media_ns,
            media_end_ns=frame.media_ns,
            captured_ns=0 if self._t0_ns is None else self._t0_ns + frame.media_ns,
            crop=_NO_CROP,
        )
        if found is not None:
            self.faces += 1
            message.crop = crop_face(frame.image, found)
            message.box = (found.x / width, found.y / height, found.width / width, found.height / height)
            message.score = found.score
        return [message]
