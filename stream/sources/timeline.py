"""One timeline for what a container says of its times: continuous in the order of arrival.

Recordings that were glued together (MPEG-TS, chained Ogg, WebM), a camera that was started again and a single bad time
stamp all look alike at first: time jumps. What comes then goes on where its track was; if the old times come back, so
does the old clock, and if other tracks jump too, they follow the same clock, so that sound and picture stay together.

Forward, a jump of up to 10 s is taken for a gap (of a container whose clock is known to jump; of others, an hour), as
players take it, and so is one to where another track is.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

BACK_S = 0.5  # tracks of a container overlap, and packets come a little out of order
_GAP_S = {True: 10.0, False: 3600.0}  # by whether the container's format allows its clock to jump
_NEAR_S = 1.5
_CLOCKS = 4  # that are remembered
_PROVISIONAL_S = 1.0  # a clock this young gives way to that of another track
_TOLD = 3  # jumps that have a line of their own


@dataclass(eq=False)
class Clock:
    """``shift_s``: what to add to the container's times."""

    shift_s: float


@dataclass
class _Track:
    clock: Clock
    end_s: float | None = None  # where the next packet is expected, on the timeline
    since_s: float = -math.inf  # when it took its clock
    clocks: deque[Clock] = field(default_factory=lambda: deque(maxlen=_CLOCKS))


class Timeline:
    """``jumps``: whether the container's format allows its clock to jump (AVFMT_TS_DISCONT); ``start_s``: where the
    container begins, if that is known."""

    def __init__(self, name: str, jumps: bool, start_s: float | None = None) -> None:
        self._name, self._gap_s, self._start_s = name, _GAP_S[jumps], start_s
        self._clocks: deque[Clock] = deque([Clock(0.0)], maxlen=_CLOCKS)
        self._tracks: dict[int, _Track] = {}
        self.jumps = 0
        self.outliers = 0  # times that were passed over before they were believed

    def shift_s(self, track: int, time_s: float, length_s: float) -> float:
        """What to add to the times of a packet, which the container says begins at ``time_s``; in decoding order."""
        state = self._tracks.get(track)
        if state is None:
            state = self._tracks[track] = _Track(self._first_clock(time_s))
            state.clocks.append(state.clock)
        elif state.end_s is not None:
            self._follow(state, time_s, state.end_s)
        state.end_s = time_s + state.clock.shift_s + length_s
        return state.clock.shift_s

    def _first_clock(self, time_s: float) -> Clock:
        """That of a track which begins at ``time_s``, wherever that is, since tracks need not interleave: the newest
        one, unless by an earlier one it begins nearer to where the others are."""
        there_s = max((track.end_s for track in self._tracks.values() if track.end_s is not None), default=time_s)
        return min(reversed(self._clocks), key=lambda clock: abs(time_s + clock.shift_s - there_s))

    def last_shift_s(self, track: int) -> float:
        """What to add to the times of a packet of which nobody knows its place in decoding order."""
        state = self._tracks.get(track)
        return (self._clocks[-1] if state is None else state.clock).shift_s

    def is_gap(self, track: int, time_s: float, least_s: float) -> bool:
        """Whether a packet would leave a gap of at least ``least_s`` in its track, or before its track."""
        state = self._tracks.get(track)
        if state is None or state.end_s is None:
            return self._start_s is not None and time_s - self._start_s > least_s
        off_s = time_s + state.clock.shift_s - state.end_s
        return least_s < off_s and self._fits(off_s, time_s, state)

    def expected_s(self, track: int) -> float | None:
        """Where a track's next packet is expected, by the clock that it follows."""
        state = self._tracks.get(track)
        return None if state is None or state.end_s is None else state.end_s - state.clock.shift_s

    def _fits(self, off_s: float, time_s: float, state: _Track) -> bool:
        if -BACK_S <= off_s <= self._gap_s:
            return True
        there_s = time_s + state.clock.shift_s
        others = [track.end_s for track in self._tracks.values() if track is not state and track.end_s is not None]
        return off_s > 0 and any(abs(there_s - end_s) < _NEAR_S for end_s in others)

    def _follow(self, state: _Track, time_s: float, end_s: float) -> None:
        newest = self._clocks[-1]
        other_jumped = newest not in state.clocks and -BACK_S <= time_s + newest.shift_s - end_s <= self._gap_s
        if other_jumped and end_s - state.since_s < _PROVISIONAL_S:  # it has found out better what the jump was
            self._take(state, newest, end_s)
            return
        off_s = time_s + state.clock.shift_s - end_s
        if abs(off_s) <= BACK_S:
            return
        known = [*reversed(self._clocks), *reversed(state.clocks)]
        nearest = min(known, key=lambda clock: abs(time_s + clock.shift_s - end_s))
        if self._fits(off_s, time_s, state) and not abs(time_s + nearest.shift_s - end_s) <= BACK_S:
            return
        if -BACK_S <= time_s + nearest.shift_s - end_s <= _NEAR_S:  # the bad times are over, or another track jumped
            self._take(state, nearest, end_s)
        elif other_jumped:
            self._take(state, newest, end_s)
        else:
            self._jump(state, time_s, end_s)

    def _take(self, state: _Track, clock: Clock, end_s: float) -> None:
        state.clock, state.since_s = clock, end_s
        if clock not in state.clocks:
            state.clocks.append(clock)

    def _jump(self, state: _Track, time_s: float, end_s: float) -> None:
        self.jumps += 1
        if self.jumps <= _TOLD:
            log.warning(
                "%s: its times jump to %.2f s where %.2f s is due; closed up",
                self._name,
                time_s,
                end_s - state.clock.shift_s,
            )
        clock = Clock(end_s - time_s)
        self._clocks.append(clock)
        self._take(state, clock, end_s)
