"""Core that makes the pictures for recordings and for the page: few, small and compressed."""

from __future__ import annotations

import cv2
import numpy as np

from emostream.stream.messages import Face, Picture

PER_S = 5
LONG_SIDE = 640  # pixels; larger pictures are made smaller
_QUALITY = 75  # of JPEG, 0 to 100


class PictureCore:
    """At most ``PER_S`` pictures a second of media time, the first of each fifth of a second, as gray JPEG."""

    def __init__(self) -> None:
        self._slot: int | None = None

    def push(self, image: np.ndarray, face: Face) -> Picture | None:
        """``image``: (height, width) gray uint8; ``face``: what was seen in it. Returns None for surplus pictures."""
        slot = face.media_start_ns * PER_S // 1_000_000_000
        if slot == self._slot:
            return None
        self._slot = slot
        shrink = min(1.0, LONG_SIDE / max(image.shape))
        if shrink < 1:
            height, width = (max(1, round(side * shrink)) for side in image.shape)
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        height, width = image.shape
        return Picture(
            stream=face.stream, media_start_ns=face.media_start_ns, media_end_ns=face.media_end_ns,
            captured_ns=face.captured_ns, jpeg=jpeg, width=width, height=height,
        )  # fmt: skip
