"""Chooses which tracks of a container to use, and yields their packets with times that do not jump."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import av

from emostream.stream.sources.languages import is_language
from emostream.stream.sources.timeline import Timeline
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)

Track = av.AudioStream | av.VideoStream
Tracks = Mapping[Medium, Any]  # an AudioStream, a VideoStream or None

_TS_DISCONT = 0x0200  # AVFMT_TS_DISCONT of libavformat
_HOLD_S = {"audio": 0.5, "video": 0.8}  # a longer gap is checked: it may be a single bad time stamp
_IMAGES = ("mjpeg", "png", "bmp", "gif", "tiff", "webp", "jpeg2000")
_SURE_S, _MOST_HELD = 0.5, 60


def choose(
    container: av.container.InputContainer, media: Iterable[Medium], wanted: str, name: str, tell: bool = True
) -> dict[Medium, Any]:
    """The track of each medium; None if there is none that this FFmpeg can decode.

    ``wanted``: numbers (from 1) or languages, such as "audio:2,video:1" or "audio:deu"; by default the track that the
    container marks as default, else the first. Attached pictures (covers) do not count. If there are several tracks and
    ``tell`` is set, a log line says which one was taken.
    """
    asked = dict(part.strip().split(":", 1) for part in wanted.split(",") if part.strip())
    return {medium: _choose(container, medium, asked.get(medium, ""), name, tell) for medium in sorted(media)}


def _choose(container: av.container.InputContainer, medium: Medium, asked: str, name: str, tell: bool) -> Any:
    streams: Sequence[Any] = container.streams.audio if medium == "audio" else container.streams.video
    tracks = [track for track in streams if not _is_cover(track)]
    usable = [track for track in tracks if track.codec_context is not None]
    if not usable:
        return None
    default = [track for track in usable if track.disposition & av.stream.Disposition.default]
    taken = (default or usable)[0]
    if asked:
        matching = [track for track in usable if _is(track, tracks.index(track) + 1, asked)]
        if matching:
            taken = matching[0]
        elif tell:
            log.warning("%s: has no %s track %s that can be decoded; taking another", name, medium, asked)
    if len(tracks) > 1 and tell:
        others = ", ".join(_words(track, i + 1) for i, track in enumerate(tracks))
        log.info("%s: %s track %d of %d is used (%s)", name, medium, tracks.index(taken) + 1, len(tracks), others)
    return taken


def _is_cover(track: Any) -> bool:
    """Whether a track is just a cover picture. Matroska does not mark covers; they are found by their duration."""
    if track.disposition & av.stream.Disposition.attached_pic:
        return True
    if track.codec_context is None or track.codec_context.name not in _IMAGES:
        return False
    return track.frames == 1 or (track.metadata.get("DURATION") or "1").startswith("00:00:00")


def _is(track: Any, number: int, asked: str) -> bool:
    if asked.isdigit():
        return number == int(asked)
    return is_language(asked, track.language or "")


def _words(track: Any, number: int) -> str:
    codec = track.codec_context.name if track.codec_context is not None else "cannot be decoded"
    return " ".join(filter(None, (str(number), codec, track.language)))


def frame_rate(track: Any) -> float:
    """Pictures a second according to the pictures or the container; 25 if neither says."""
    rate = track.codec_context.framerate or track.guessed_rate or track.average_rate  # FFmpeg assumes 25 for none
    return float(rate) if rate and 0.1 <= rate <= 1000 else 25.0


def packets(
    container: av.container.InputContainer, chosen: Sequence[Any], timeline: Timeline, live: bool
) -> Iterator[av.Packet[Any]]:
    """The packets of the chosen tracks, on the timeline. The other tracks are read too, so that the timeline does not
    depend on which tracks are decoded."""
    holds: dict[int, list[av.Packet[Any]]] = {}
    indices = {track.index for track in chosen}
    streams = [each for each in (*container.streams.audio, *container.streams.video) if each.codec_context is not None]
    units = {stream.index: _Units(stream) for stream in streams}
    last_pts: dict[int, int] = {}  # of tracks of pictures
    for packet in container.demux(streams):
        index = packet.stream.index
        unit = units[index]
        if packet.pts is not None and not unit.is_audio:
            if packet.pts == last_pts.get(index):  # a clock that stands still: the frame rate tells the time
                packet.pts = packet.dts = None
            else:
                last_pts[index] = packet.pts
        time_s = unit.time_s(packet)
        if time_s is None:
            if packet.pts is not None:  # in some files the first picture has no decoding time
                unit.shift(packet, timeline.last_shift_s(index))
            if packet.size == 0 and index in holds:  # the end: release held packets before the decoder is flushed
                yield from (each for each in _move(timeline, unit, holds.pop(index)) if index in indices)
            if index in indices:
                yield packet
            continue
        held = holds.get(index)
        if held is not None:
            goes_on = unit.goes_on(held, time_s)
            if goes_on and not unit.is_sure(held):
                held.append(packet)
                continue
            expected_s = timeline.expected_s(index)
            begin_s = None
            if not goes_on and expected_s is not None and unit.is_back(held, time_s, expected_s):
                begin_s = expected_s  # there was no gap, just a bad time stamp
            elif not goes_on and expected_s is None and time_s < (unit.time_s(held[0]) or time_s):
                begin_s = time_s - unit.total_s(held)  # the track's first times were bad
            if begin_s is not None:
                unit.restamp(held, begin_s)
                timeline.outliers += 1
            yield from (each for each in _move(timeline, unit, holds.pop(index)) if index in indices)
        if not live and timeline.is_gap(index, time_s, unit.hold_s):
            holds[index] = [packet]
            continue
        yield from (each for each in _move(timeline, unit, [packet]) if index in indices)


def timeline_of(
    container: av.container.InputContainer, name: str, live: bool = False, from_start: bool = True
) -> Timeline:
    """A new timeline for a container. ``from_start``: it is read from its start, if it is not ``live``."""
    start_s = None if live or not from_start or container.start_time is None else container.start_time / av.time_base
    return Timeline(name, jumps=bool(container.format.flags & _TS_DISCONT) or live, start_s=start_s)


class _Units:
    """The times of a track's packets in seconds. A track's attributes are read once, not for each packet, since each
    access creates a new Fraction."""

    def __init__(self, stream: Any) -> None:
        self.is_audio = stream.type == "audio"
        self._time_base = stream.time_base
        self._time_base_s = float(stream.time_base) if stream.time_base else None
        self._usual_s = 0.02 if self.is_audio else 1 / frame_rate(stream)
        self.hold_s = _HOLD_S[stream.type]

    def time_s(self, packet: av.Packet[Any]) -> float | None:
        """The decoding time, by which pictures are in order too; None if unknown."""
        stamp = packet.dts
        if stamp is None and self.is_audio:
            stamp = packet.pts
        return None if stamp is None or self._time_base_s is None else stamp * self._time_base_s

    def length_s(self, packet: av.Packet[Any]) -> float:
        duration = packet.duration
        return duration * self._time_base_s if duration and self._time_base_s else self._usual_s

    def goes_on(self, held: list[av.Packet[Any]], time_s: float) -> bool:
        """Whether a packet of this time follows the last packet held back."""
        last_s = self.time_s(held[-1])
        return last_s is not None and abs(time_s - last_s - self.length_s(held[-1])) < _SURE_S

    def total_s(self, held: list[av.Packet[Any]]) -> float:
        """Total length of these packets."""
        return sum(map(self.length_s, held))

    def is_sure(self, held: list[av.Packet[Any]]) -> bool:
        """Whether enough is held back to believe the times."""
        return len(held) >= _MOST_HELD or self.total_s(held) >= _SURE_S

    def is_back(self, held: list[av.Packet[Any]], time_s: float, expected_s: float) -> bool:
        """Whether this time is about where it would be if the held packets had no gap before them."""
        return min(abs(time_s - expected_s), abs(time_s - expected_s - self.total_s(held))) < _SURE_S

    def restamp(self, held: list[av.Packet[Any]], start_s: float) -> None:
        """Let packets follow one another from ``start_s`` on."""
        for packet in held:
            time_s = self.time_s(packet)
            if time_s is not None:
                self.shift(packet, start_s - time_s)
            start_s += self.length_s(packet)

    def shift(self, packet: av.Packet[Any], seconds: float) -> None:
        """Move a packet in time."""
        if not seconds:
            return
        ticks = round(seconds / self._time_base)
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + ticks)

    @staticmethod
    def copy(packet: av.Packet[Any]) -> av.Packet[Any]:
        """The same packet, without its flags."""
        new: av.Packet[Any] = av.Packet(bytes(packet))
        for name in ("pts", "dts", "time_base", "duration", "stream"):
            setattr(new, name, getattr(packet, name))
        return new


def _move(timeline: Timeline, unit: _Units, moved: Iterable[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    for packet in moved:
        time_s = unit.time_s(packet)
        if time_s is not None:
            shift_s = timeline.shift_s(packet.stream.index, time_s, unit.length_s(packet), unit.is_audio)
            unit.shift(packet, shift_s)
            if shift_s and packet.is_discard:  # FFmpeg would skip MP4 fragments whose times occurred before
                packet = unit.copy(packet)
        yield packet
