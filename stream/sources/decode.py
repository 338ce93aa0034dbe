"""Demultiplexing and decoding with PyAV (FFmpeg), for files and live containers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from emostream.errors import SourceError, UnreadableError
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decoders import Decoders
from emostream.stream.sources.picture import upright
from emostream.stream.sources.timeline import Timeline
from emostream.stream.sources.tracks import Tracks, frame_rate, packets

log = logging.getLogger(__name__)

# PyAV before 19 fails on names and titles that are not UTF-8 unless asked to replace them; PyAV 19 always replaces them
# and no longer has the argument.
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_TIMED_BY_FIRST = ("aac", "ac3", "eac3")  # FFmpeg takes every packet to be as long as the first
_PAUSES = {"amrnb": range(8, 16), "amrwb": range(9, 16)}  # frame types without speech (3GPP TS 26.101, 26.201)
_MAX_BAD_PACKETS = 50  # at the start of a file, in a row, before decoding gives up


class Sampler:
    """Chooses at most ``fps`` frames a second: the first one in each slot of 1/fps s on the media timeline."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._slot: int | None = None

    def wants(self, media_ns: int) -> bool:
        """Whether to take the frame of this time. If so, its slot is used up."""
        if self.is_over(media_ns):
            return False
        self._slot = self._slot_of(media_ns)
        return True

    def is_over(self, media_ns: int) -> bool:
        """Whether the slot of this time, or a later one, is used up."""
        return self._slot is not None and self._slot_of(media_ns) <= self._slot

    def _slot_of(self, media_ns: int) -> int:
        return int((media_ns + 1_000_000) * self._fps // 1_000_000_000)  # time stamps are rounded, to 1 ms at worst


def decode(
    container: av.container.InputContainer,
    tracks: Tracks,
    fps: float,
    media_ns_of: Callable[[float | None], int],
    name: str,
    timeline: Timeline,
    live: bool = False,
) -> Iterator[AudioChunk | VideoFrame | NoTrack]:
    """Decode the chosen track of each medium, in the order of its packets, on one continuous timeline.

    ``media_ns_of`` maps a time stamp in seconds on the container's clock to media time, and None, of a ``live`` picture
    without one, to the present; ``name`` is for log lines. Damaged packets are skipped, and the log counts them. Raises
    FFmpegError if reading fails, UnreadableError if packets come and none can be decoded, and SourceError for a sample
    format that is not supported.
    """
    for medium, track in tracks.items():
        if track is None:
            yield NoTrack(medium)
        else:
            track.codec_context.thread_count = 1  # several processes share the cores
    chosen = [track for track in tracks.values() if track is not None]
    if not chosen:
        return
    sampler = Sampler(fps)
    next_s = {"audio": 0.0, "video": 0.0}  # start of the next chunk or picture, if it has no time stamp of its own
    first_hz, counted = 0, False
    rate = 0.0  # of pictures, once the first has told
    told_rate = False
    damaged = damaged_in_a_row = tried = 0
    decoded = False
    decoders = Decoders(container, name)
    for packet in packets(container, chosen, timeline, live):
        skippable_s = _skippable_s(packet)
        if skippable_s is not None and sampler.is_over(media_ns_of(skippable_s)):
            continue
        try:
            frames = decoders.decode(packet)
        except FFmpegError as error:
            if (pause := _pause(packet)) is not None:
                samples, rate_hz, seconds = pause
                yield AudioChunk(samples, rate_hz, media_ns_of(seconds))
                continue
            damaged += 1
            damaged_in_a_row += 1
            if damaged_in_a_row > _MAX_BAD_PACKETS and not decoded:
                raise
            if damaged == 1:
                log.warning("%s: damaged data skipped (%s)", name, error.strerror)
            continue
        damaged_in_a_row = 0
        if decoders.damaged and not tried:
            log.warning("%s: damaged data skipped", name)
        damaged, tried = damaged + decoders.damaged - tried, decoders.damaged
        for frame in frames:
            decoded = True
            damaged += frame.is_corrupt
            if isinstance(frame, av.AudioFrame):
                first_hz = first_hz or frame.sample_rate
                counted = counted or (frame.sample_rate != first_hz and container.format.name in _TIMED_BY_FIRST)
                seconds = frame.time if frame.time is not None and not counted else next_s["audio"]
                next_s["audio"] = seconds + frame.samples / frame.sample_rate
                yield AudioChunk(_samples(frame, name), frame.sample_rate, media_ns_of(seconds))
            elif isinstance(frame, av.VideoFrame):
                rate = rate or frame_rate(tracks["video"])
                if frame.time is None and not live and not told_rate:
                    log.info("%s: its pictures have no times; they are taken to be %g a second", name, rate)
                    told_rate = True
                seconds = frame.time if frame.time is not None else next_s["video"]
                next_s["video"] = seconds + 1 / rate
                media_ns = media_ns_of(None if live and frame.time is None else seconds)
                if sampler.wants(media_ns):
                    yield VideoFrame(upright(frame, tracks["video"]), media_ns)
    if damaged and not decoded:
        raise UnreadableError(f"{name}: nothing in it can be decoded (all {damaged} packets are damaged)")
    if damaged:
        log.warning("%s: %d packets or frames were damaged", name, damaged)


_AS_DOUBLE = ("s64", "s64p")  # PyAV has no arrays of these
_SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "flt": 1.0, "dbl": 1.0}


def _samples(frame: av.AudioFrame, name: str) -> np.ndarray:
    """(n, channels) float32 in [-1, 1]. Raises SourceError for a format that NumPy does not have."""
    try:
        if frame.format.name in _AS_DOUBLE:
            [frame] = av.AudioResampler("dbl").resample(frame)
        values = frame.to_ndarray()
    except ValueError as error:
        raise SourceError(f"{name}: sound in the format {frame.format.name} cannot be read ({error})") from error
    channels = len(frame.layout.channels)
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    kind = frame.format.name.removesuffix("p")
    if kind == "u8":
        values = values.astype(np.float32) - 128.0
    return values.astype(np.float32) / np.float32(_SCALE[kind])


def _pause(packet: av.Packet[Any]) -> tuple[np.ndarray, int, float] | None:
    """Silence, (n, 1) float32, its rate and its time in seconds, for a packet of AMR that only says that nobody speaks:
    telephones send these in pauses, and FFmpeg does not decode them. None for other packets."""
    context = packet.stream.codec_context
    if not isinstance(context, av.AudioCodecContext) or packet.pts is None or packet.time_base is None:
        return None
    head = bytes(packet)[:1]
    if not head or (head[0] >> 3 & 15) not in _PAUSES.get(context.name, ()):
        return None
    rate_hz = 16_000 if context.name == "amrwb" else 8000
    seconds = float(packet.duration * packet.time_base) if packet.duration else 0.02
    return np.zeros((round(seconds * rate_hz), 1), np.float32), rate_hz, float(packet.pts * packet.time_base)


def _skippable_s(packet: av.Packet[Any]) -> float | None:
    """Time in seconds of a frame that may be skipped undecoded, since no other frame depends on it: two thirds of a
    camera's MJPEG at 30 frames a second are. None if it has no time, or if others may depend on it."""
    context = packet.stream.codec_context
    if not isinstance(context, av.VideoCodecContext) or not context.codec.intra_only:
        return None
    return None if packet.pts is None or packet.time_base is None else float(packet.pts * packet.time_base)
