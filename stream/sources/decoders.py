"""Decodes packets, also of a track that changes its codec on the way, as MPEG-TS may (joined recordings, a camera that
was set up anew): the container says so, but PyAV keeps the decoder with which a track began."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import av
from av.error import FFmpegError

log = logging.getLogger(__name__)

_CODECS = {"audio": ("aac", "mp2", "ac3", "eac3", "aac_latm"), "video": ("h264", "hevc", "mpeg2video")}
_ENOUGH = {"audio": 3, "video": 1}  # packets that a decoder must make something of to be believed
_MOST_PACKETS = 300  # that are tried with other decoders: pictures go on from the next that needs no other
_MOST_RECENT = 32  # packets without a frame; more than any order of pictures delays them


@dataclass
class _Trial:
    """Packets that a track's decoder does not take, and what others make of them."""

    contexts: dict[str, Any]
    frames: dict[str, list[Any]] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)  # packets
    packets: int = 0


class Decoders:
    """Those of one container's tracks. ``damaged``: packets that no decoder took, though others were tried."""

    def __init__(self, container: av.container.InputContainer, name: str) -> None:
        self._name, self._may_change = name, container.format.name == "mpegts"
        self._own: dict[int, Any] = {}  # by track: the decoder in place of the one with which it began
        self._has_begun: set[int] = set()  # tracks
        self._recent: dict[int, deque[av.Packet[Any]]] = {}  # of each track of pictures
        self._silent: Counter[int] = Counter()  # by track: packets since the last that gave a frame
        self._trials: dict[int, _Trial] = {}
        self.damaged = 0

    def decode(self, packet: av.Packet[Any]) -> list[Any]:
        """The frames of a packet. Raises FFmpegError."""
        index, size = packet.stream.index, packet.size
        if not self._may_change:
            return list(packet.decode())
        own = self._own.get(index)
        recent = self._recent.setdefault(index, deque(maxlen=_MOST_RECENT))
        try:
            frames = list(packet.decode()) if own is None else _decoded(own, packet if size else None, packet)
        except FFmpegError:
            if index not in self._has_begun or not size:
                raise
            return self._try([*recent, packet] if index not in self._trials else [packet])
        if packet.stream.type == "video":
            recent.append(packet)  # a decoder's last pictures may come with packets that it does not know
        self._silent[index] = 0 if frames else self._silent[index] + 1
        if frames:
            self._has_begun.add(index)
            if (trial := self._trials.pop(index, None)) is not None:
                self.damaged += trial.packets
        elif size and index in self._trials:
            return self._try([packet])
        elif size and self._silent[index] == _MOST_RECENT and index in self._has_begun:
            return self._try([*recent])
        return frames

    def _try(self, packets: list[av.Packet[Any]]) -> list[Any]:
        """The frames of all packets so far by another decoder, once it is sure."""
        stream = packets[0].stream
        index, kind = stream.index, stream.type
        trial = self._trials.get(index)
        if trial is None:
            known = (self._own.get(index) or stream.codec_context).codec.name
            others = [codec for codec in _CODECS[kind] if codec != known]
            contexts: dict[str, Any] = {codec: av.CodecContext.create(codec, "r") for codec in others}
            for context in contexts.values():
                context.thread_count = 1  # as of the decoders that PyAV made
            trial = self._trials[index] = _Trial(contexts)
        for packet in packets:
            trial.packets += 1
            if trial.packets > _MOST_PACKETS:  # it is just damaged
                self.damaged += 1
                trial.packets -= 1
                continue
            for codec, context in trial.contexts.items():
                try:
                    frames = _decoded(context, packet, packet)
                except FFmpegError:
                    trial.taken[codec], trial.frames[codec] = 0, []
                    continue
                trial.taken[codec] = trial.taken.get(codec, 0) + bool(frames)
                trial.frames.setdefault(codec, []).extend(frames)
        for codec, count in trial.taken.items():
            if count >= _ENOUGH[kind]:
                before = self._own.get(index)
                last = _decoded(stream.codec_context if before is None else before, None, packets[0])
                self._own[index] = trial.contexts[codec]
                self._recent[index].clear()
                del self._trials[index]
                log.info("%s: its %s goes on as %s", self._name, kind, codec)
                return [*last, *trial.frames[codec]]
        return []


def _decoded(context: Any, packet: av.Packet[Any] | None, times: av.Packet[Any]) -> list[Any]:
    """Frames with the times of the track to which ``times`` belongs. ``packet``: None flushes the decoder."""
    frames = list(context.decode(packet))
    for frame in frames:
        frame.time_base = times.time_base
    return frames
