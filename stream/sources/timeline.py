"""Maps a container's time stamps to one timeline that is continuous in order of arrival.

Concatenated recordings (MPEG-TS, chained Ogg, WebM), a restarted camera and a single bad time stamp all look alike at
first: time jumps. After a jump, a track continues where it was, by a new clock. If the old times return, so does the
old clock; if other tracks jump too, they follow the same clock, so that sound and picture stay together.

As in players, a forward jump counts as a gap if it is at most 10 s (one hour, if the format's clock is not known to
jump), or if it leads to where another track is.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

BACK_S = 0.5  # accepted backward step where another track's clock is taken over, since a container's tracks overlap
_STEP_S = 0.1  # the same of sound by its own clock; more would be lost. Of pictures only a few would
_GAP_S = {True: 10.0, False: 3600.0}  # by whether the container's format allows its clock to jump
_NEAR_S = 1.5
_CLOCKS = 4  # remembered
_PROVISIONAL_S = 1.0  # a clock younger than this gives way to another track's
_LOGGED_JUMPS = 3  # further jumps are only counted


@dataclass(eq=False)
class Clock:
    """``shift_s``: what to add to the container's times."""

    shift_s: float


@dataclass
class _Track:
    clock: Clock
    back_s: float  # accepted backward step by its own clock
    end_s: float | None = None  # where the next packet is expected, on the timeline
    since_s: float = -math.inf  # when it took its clock
    clocks: deque[Clock] = field(default_factory=lambda: deque(maxlen=_CLOCKS))


class Timeline:
    """``jumps``: whether the container's format allows its clock to jump (AVFMT_TS_DISCONT); ``start_s``: where the
    container begins, if that is known."""

    def __init__(self, name: str, jumps: bool, start_s: float | None = None) -> None:
        self._name, self._may_jump, self._gap_s, self._start_s = name, jumps, _GAP_S[jumps], start_s
        self._clocks: deque[Clock] = deque([Clock(0.0)], maxlen=_CLOCKS)
        self._tracks: dict[int, _Track] = {}
        self.jumps = 0
        self.outliers = 0  # bad time stamps that were replaced

    def shift_s(self, track: int, time_s: float, length_s: float, is_sound: bool = True) -> float:
        """What to add to the times of a packet that begins at ``time_s`` by the container. Call it in decoding
        order."""
        state = self._tracks.get(track)
        if state is None:
            state = self._tracks[track] = _Track(self._first_clock(time_s), _STEP_S if is_sound else BACK_S)
            state.clocks.append(state.clock)
        elif state.end_s is not None:
            self._follow(state, time_s, state.end_s)
        state.end_s = time_s + state.clock.shift_s + length_s
        return state.clock.shift_s

    def _first_clock(self, time_s: float) -> Clock:
        """The clock of a track that begins at ``time_s``: the one by which it begins nearest to where the other tracks
        are, the newest if several do. It may begin anywhere, since tracks need not interleave; but if the format's
        clock may jump, one that begins far ahead of the others, or an hour behind them, has a clock of its own."""
        start_s = self._start_s if self._start_s is not None and self._may_jump else time_s
        there_s = max((track.end_s for track in self._tracks.values() if track.end_s is not None), default=start_s)
        nearest = min(reversed(self._clocks), key=lambda clock: abs(time_s + clock.shift_s - there_s))
        if not self._may_jump or -_GAP_S[False] <= time_s + nearest.shift_s - there_s <= self._gap_s:
            return nearest
        return self._closed_up(nearest, time_s, there_s)

    def last_shift_s(self, track: int) -> float:
        """What to add to the times of a packet whose place in decoding order is unknown."""
        state = self._tracks.get(track)
        return (self._clocks[-1] if state is None else state.clock).shift_s

    def is_gap(self, track: int, time_s: float, least_s: float) -> bool:
        """Whether a packet would leave a gap of more than ``least_s`` in its track, or before it."""
        state = self._tracks.get(track)
        if state is None or state.end_s is None:
            return self._start_s is not None and time_s - self._start_s > least_s
        off_s = time_s + state.clock.shift_s - state.end_s
        return least_s < off_s and self._fits(off_s, time_s, state)

    def expected_s(self, track: int) -> float | None:
        """When a track's next packet is expected, by the track's clock."""
        state = self._tracks.get(track)
        return None if state is None or state.end_s is None else state.end_s - state.clock.shift_s

    def _fits(self, off_s: float, time_s: float, state: _Track) -> bool:
        if -state.back_s <= off_s <= self._gap_s:
            return True
        there_s = time_s + state.clock.shift_s
        others = [track.end_s for track in self._tracks.values() if track is not state and track.end_s is not None]
        return off_s > 0 and any(abs(there_s - end_s) < _NEAR_S for end_s in others)

    def _follow(self, state: _Track, time_s: float, end_s: float) -> None:
        newest = self._clocks[-1]
        other_jumped = newest not in state.clocks and -BACK_S <= time_s + newest.shift_s - end_s <= self._gap_s
        if other_jumped and end_s - state.since_s < _PROVISIONAL_S:  # the other track knows better how far it jumped
            self._take(state, newest, end_s)
            return
        off_s = time_s + state.clock.shift_s - end_s
        if -_STEP_S <= off_s <= _STEP_S:
            return
        stepped = [*state.clocks, newest]  # a small step that sound took, or that is over
        if abs(off_s) <= BACK_S:
            clock = min(stepped, key=lambda clock: abs(time_s + clock.shift_s - end_s))
            if abs(time_s + clock.shift_s - end_s) <= _STEP_S / 2:
                self._take(state, clock, end_s)
                return
        if -state.back_s <= off_s <= BACK_S:
            return
        known = [*reversed(self._clocks), *reversed(state.clocks)]
        nearest = min(known, key=lambda clock: abs(time_s + clock.shift_s - end_s))
        if self._fits(off_s, time_s, state) and not abs(time_s + nearest.shift_s - end_s) <= BACK_S:
            return
        back_s = state.back_s if nearest in state.clocks else BACK_S
        if -back_s <= time_s + nearest.shift_s - end_s <= _NEAR_S:  # the bad times are over, or another track jumped
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
        self._take(state, self._closed_up(state.clock, time_s, end_s), end_s)

    def _closed_up(self, clock: Clock, time_s: float, end_s: float) -> Clock:
        """A new clock by which ``time_s`` is at ``end_s``; ``clock`` is the one before."""
        self.jumps += 1
        if self.jumps <= _LOGGED_JUMPS:
            log.warning(
                "%s: its times jump to %.2f s where %.2f s is due; closed up",
                self._name,
                time_s,
                end_s - clock.shift_s,
            )
        self._clocks.append(Clock(end_s - time_s))
        return self._clocks[-1]
