"""A decoded picture as people see it: gray, upright, not mirrored, with square pixels."""

from __future__ import annotations

import struct
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange

# Video levels to 0 … 255: ITU-R BT.601 has luma from 16 (black) to 235 (white).
_FROM_VIDEO_LEVELS = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
_MOST_SIDE = 4096
_LEAST_ASPECT, _MOST_ASPECT = 0.1, 10.0  # of a pixel; anything else comes from damaged data


def upright(frame: av.VideoFrame, track: av.VideoStream | None) -> np.ndarray:
    """(height, width) gray uint8, rotated and mirrored as the container's display matrix says (phones are held upright,
    front cameras mirror), and stretched to square pixels if the track's are not (HDV, DVD).

    The gray image is the luma. In the pixel formats of nearly all cameras and files it is a plane of its own; FFmpeg
    converts other formats.
    """
    return np.ascontiguousarray(_turned(_square(_gray(frame), track), _matrix(frame)))


def _gray(frame: av.VideoFrame) -> np.ndarray:
    pixels = frame.format
    if not (pixels.is_planar and not pixels.is_rgb and pixels.components[0].bits == 8):
        return frame.to_ndarray(format="gray")
    plane = frame.planes[0]
    rows: np.ndarray = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    image = rows[: frame.height, : frame.width]
    if frame.color_range != ColorRange.JPEG and not pixels.name.startswith("yuvj"):
        import cv2  # only in processes that decode pictures, since it takes much address space

        image = cv2.LUT(image, _FROM_VIDEO_LEVELS)
    return image


def _square(image: np.ndarray, track: av.VideoStream | None) -> np.ndarray:
    """Stretch along the pixel's longer side, so that no detail of the picture is lost."""
    ratio = track.sample_aspect_ratio if track is not None else None
    aspect = float(ratio) if ratio else 1.0
    if abs(aspect - 1) < 0.01 or not _LEAST_ASPECT <= aspect <= _MOST_ASPECT:
        return image
    import cv2

    height, width = image.shape
    wide, high = (width * aspect, height) if aspect > 1 else (width, height / aspect)
    shrink = min(1.0, max(_MOST_SIDE, width, height) / max(wide, high))
    size = max(1, round(wide * shrink)), max(1, round(high * shrink))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the display matrix, which maps (x, y) to (ax + cy, bx + dy), each -1, 0 or 1."""
    data = cast("Any", frame.side_data).get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = struct.unpack("<9i", bytes(data)[:36])  # 16.16 fixed point, little-endian
    turned = abs(a) + abs(d) < abs(b) + abs(c)
    a, b, c, d = ((value > 0) - (value < 0) for value in ((0, b, c, 0) if turned else (a, 0, 0, d)))
    whole = b and c if turned else a and d
    return (a, b, c, d) if whole else (1, 0, 0, 1)


def _turned(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if a or d:
        return image[:: d or 1, :: a or 1]
    image = image.T  # x becomes y
    return image[::b, ::c]
