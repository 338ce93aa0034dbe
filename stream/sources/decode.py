"""Demultiplexing and decoding with PyAV (FFmpeg), for files and for live containers alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange

from emostream.errors import SourceError
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame

log = logging.getLogger(__name__)

# PyAV before 19 fails on names and titles that are not UTF-8 unless told otherwise; since then it never does, and knows
# no such argument.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_MAX_BAD_PACKETS = 50  # in a row: after that a file is given up


class Sampler:
    """Chooses at most ``fps`` frames a second: the first one in each slot of 1/fps on the media timeline."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._slot: int | None = None

    def wants(self, media_ns: int) -> bool:
        """Whether the frame of this time is chosen; if it is, its slot is taken."""
        if self.is_over(media_ns):
            return False
        self._slot = self._slot_of(media_ns)
        return True

    def is_over(self, media_ns: int) -> bool:
        """Whether the slot of this time is taken, or a later one."""
        return self._slot is not None and self._slot_of(media_ns) <= self._slot

    def _slot_of(self, media_ns: int) -> int:
        return int((media_ns + 1_000_000) * self._fps // 1_000_000_000)  # 1 ms: time bases are rounded


def decode(
    container: av.container.InputContainer,
    media: frozenset[str],
    fps: float,
    media_ns_of: Callable[[float], int],
    name: str,
) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
    """Decode the first track of each medium, in the order in which packets come.

    ``media_ns_of`` maps a time stamp in seconds on the container's clock to media time. Damaged packets are skipped
    and counted in the log. Raises FFmpegError where reading itself fails, or nothing can be decoded.
    """
    tracks: list[av.AudioStream | av.VideoStream] = []
    for medium in sorted(media):
        found: tuple = container.streams.audio if medium == "audio" else container.streams.video
        if not found or found[0].codec_context is None:  # none, or of a codec that nobody knows
            yield NoTrack(medium)
            continue
        tracks.append(found[0])
    for track in tracks:
        track.codec_context.thread_count = 1  # several processes share the cores
    if not tracks:
        return
    sampler = Sampler(fps)
    next_audio_s = 0.0  # where the next chunk begins if it has no time stamp of its own
    damaged = in_row = 0
    good = False
    for packet in container.demux(tracks):
        alone_s = _alone_s(packet)
        if alone_s is not None and sampler.is_over(media_ns_of(alone_s)):
            continue
        try:
            frames = packet.decode()
        except FFmpegError as error:
            damaged += 1
            in_row += 1
            if in_row > _MAX_BAD_PACKETS and not good:
                raise
            if damaged == 1:
                log.warning("%s: damaged data skipped (%s)", name, error.strerror)
            continue
        in_row = 0
        for frame in frames:
            good = True
            if isinstance(frame, av.AudioFrame):
                seconds = frame.time if frame.time is not None else next_audio_s
                next_audio_s = seconds + frame.samples / frame.sample_rate
                damaged += frame.is_corrupt
                yield AudioChunk(_samples(frame, name), frame.sample_rate, media_ns_of(seconds))
            elif isinstance(frame, av.VideoFrame) and frame.time is not None:
                damaged += frame.is_corrupt
                media_ns = media_ns_of(frame.time)
                if sampler.wants(media_ns):
                    yield VideoFrame(_image(frame), media_ns)
    if damaged:
        log.warning("%s: %d packets or frames were damaged", name, damaged)


_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "flt": 1.0, "dbl": 1.0}


def _samples(frame: av.AudioFrame, name: str) -> np.ndarray:
    """(n, channels) float32 in [-1, 1]."""
    try:
        values = frame.to_ndarray()
    except ValueError as error:
        raise SourceError(f"{name}: sound in the format {frame.format.name} cannot be read ({error})") from error
    channels = len(frame.layout.channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    kind = frame.format.name.removesuffix("p")
    if kind == "u8":
        values = values.astype(np.float32) - 128.0
    return values.astype(np.float32) / np.float32(_SCALE[kind])


def _alone_s(packet: av.Packet) -> float | None:
    """Time in seconds of a picture that no other picture needs, so that it may be left out: two thirds of a camera's
    MJPEG at 30 frames a second are never decoded. None where it has no time, or others may need it."""
    context = packet.stream.codec_context
    if not isinstance(context, av.VideoCodecContext) or not context.codec.intra_only:
        return None
    return None if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)


# Video levels to 0 … 255: ITU-R BT.601 has luma from 16 (black) to 235 (white).
_FROM_VIDEO_LEVELS = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


def _image(frame: av.VideoFrame) -> np.ndarray:
    """Gray image, turned upright if the file says that it was recorded turned (a phone's video).

    Luma is the gray image, and lies ready in nearly all that cameras and files hold; FFmpeg converts the rest.
    """
    form = frame.format
    if form.is_planar and not form.is_rgb and form.components[0].bits == 8:
        plane = frame.planes[0]
        rows: np.ndarray = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        image = rows[: frame.height, : frame.width]
        if frame.color_range != ColorRange.JPEG and not form.name.startswith("yuvj"):
            image = cv2.LUT(image, _FROM_VIDEO_LEVELS)
    else:
        image = frame.to_ndarray(format="gray")
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns))
