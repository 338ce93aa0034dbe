"""Demultiplexing and decoding with PyAV (FFmpeg), for files and live containers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange

from emostream.errors import SourceError
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)

# PyAV before 19 fails on names and titles that are not UTF-8 unless it is told to replace them; PyAV 19 always replaces
# them and no longer has the argument.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_MAX_BAD_PACKETS = 50  # at the start of a file, in a row, before decoding gives up


class Sampler:
    """Chooses at most ``fps`` frames a second: the first one in each slot of 1/fps s on the media timeline."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._slot: int | None = None

    def wants(self, media_ns: int) -> bool:
        """Whether to take the frame of this time, whose slot is then used up."""
        if self.is_over(media_ns):
            return False
        self._slot = self._slot_of(media_ns)
        return True

    def is_over(self, media_ns: int) -> bool:
        """Whether the slot of this time, or a later one, is used up."""
        return self._slot is not None and self._slot_of(media_ns) <= self._slot

    def _slot_of(self, media_ns: int) -> int:
        return int((media_ns + 1_000_000) * self._fps // 1_000_000_000)  # time bases are rounded, to 1 ms at worst


def first_track(container: av.container.InputContainer, medium: Medium) -> av.AudioStream | av.VideoStream | None:
    """The first track of a medium; None if there is none, or none of a codec that this FFmpeg knows."""
    tracks: Sequence[av.AudioStream | av.VideoStream]
    tracks = container.streams.audio if medium == "audio" else container.streams.video
    return tracks[0] if tracks and tracks[0].codec_context is not None else None


def decode(
    container: av.container.InputContainer,
    media: frozenset[Medium],
    fps: float,
    media_ns_of: Callable[[float], int],
    name: str,
) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
    """Decode the first track of each medium, in the order of its packets.

    ``media_ns_of`` maps a time stamp in seconds on the container's clock to media time; ``name`` is for log lines.
    Damaged packets are skipped, and the log counts them. Raises FFmpegError if reading fails or nothing can be decoded,
    and SourceError for a sample format that is not supported.
    """
    tracks: list[av.AudioStream | av.VideoStream] = []
    for medium in sorted(media):
        track = first_track(container, medium)
        if track is None:
            yield NoTrack(medium)
        else:
            tracks.append(track)
    for track in tracks:
        track.codec_context.thread_count = 1  # several processes share the cores
    if not tracks:
        return
    sampler = Sampler(fps)
    next_audio_s = 0.0  # start of the next chunk, if it has no time stamp of its own
    damaged = damaged_in_a_row = 0
    decoded = False
    for packet in container.demux(tracks):
        skippable_s = _skippable_s(packet)
        if skippable_s is not None and sampler.is_over(media_ns_of(skippable_s)):
            continue
        try:
            frames = packet.decode()
        except FFmpegError as error:
            damaged += 1
            damaged_in_a_row += 1
            if damaged_in_a_row > _MAX_BAD_PACKETS and not decoded:
                raise
            if damaged == 1:
                log.warning("%s: damaged data skipped (%s)", name, error.strerror)
            continue
        damaged_in_a_row = 0
        for frame in frames:
            decoded = True
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
    """(n, channels) float32 in [-1, 1]. Raises SourceError for a format that NumPy does not have."""
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


def _skippable_s(packet: av.Packet[Any]) -> float | None:
    """Time in seconds of a frame on which no other frame depends, so that it need not be decoded: two thirds of a
    camera's MJPEG at 30 frames a second never are. None if it has no time, or if others may depend on it."""
    context = packet.stream.codec_context
    if not isinstance(context, av.VideoCodecContext) or not context.codec.intra_only:
        return None
    return None if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)


# Video levels to 0 … 255: ITU-R BT.601 has luma from 16 (black) to 235 (white).
_FROM_VIDEO_LEVELS = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


def _image(frame: av.VideoFrame) -> np.ndarray:
    """Gray image, turned upright if the file says that it was recorded turned (as phones do).

    Luma is the gray image. In the pixel formats of nearly all cameras and files it is a plane of its own; FFmpeg
    converts the others.
    """
    pixels = frame.format
    if pixels.is_planar and not pixels.is_rgb and pixels.components[0].bits == 8:
        plane = frame.planes[0]
        rows: np.ndarray = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        image = rows[: frame.height, : frame.width]
        if frame.color_range != ColorRange.JPEG and not pixels.name.startswith("yuvj"):
            import cv2  # only by who decodes pictures: it takes much address space

            image = cv2.LUT(image, _FROM_VIDEO_LEVELS)
    else:
        image = frame.to_ndarray(format="gray")
    quarter_turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns))
