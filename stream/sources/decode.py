"""Demultiplexing and decoding with PyAV (FFmpeg), for files and for live containers alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.error import FFmpegError

from stream.sources.items import AudioChunk, NoTrack, SourceError, VideoFrame

log = logging.getLogger(__name__)

_MAX_BAD_PACKETS = 50  # in a row: after that a file is given up


class Sampler:
    """Chooses at most ``fps`` frames a second: the first one in each slot of 1/fps on the media timeline."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._slot: int | None = None

    def wants(self, media_ns: int) -> bool:
        slot = int((media_ns + 1_000_000) * self._fps // 1_000_000_000)  # 1 ms: time bases are rounded
        if self._slot is not None and slot <= self._slot:
            return False
        self._slot = slot
        return True


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


def _image(frame: av.VideoFrame) -> np.ndarray:
    """BGR image, turned upright if the file says that it was recorded turned (a phone's video)."""
    image = frame.to_ndarray(format="bgr24")
    turns = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
