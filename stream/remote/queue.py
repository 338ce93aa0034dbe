"""Decides which streams a replica takes, and which calls go into its next batch. No sockets, no clock, no networks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from emostream.stream.cores.classifier import Classify
from emostream.stream.cores.runs import Call

Stream = tuple[bytes, int]
"""A box's connection, and the stream's number on it."""

MOST_WAITING = 4  # calls per stream; a box sends one at a time
GONE_S = 10.0  # a stream's place is freed after this long without a message from its box
_ACTIVE_S = 1.0
_MOST_CALLS = 64  # per batch
_BATCH_S = 0.03  # approximate work per batch, which calls that come meanwhile have to wait for
_COSTS = (4.0, 4096.0)  # least and greatest cost of a batch, whatever was measured


@dataclass
class Waiting:
    """A waiting call. ``until_s``: when nobody waits for its answer any more."""

    stream: Stream
    number: int
    call: Call
    since_s: float
    until_s: float

    @property
    def cost(self) -> float:
        """Estimated work, in units of one face to encode."""
        if isinstance(self.call, Classify):
            return 0.1 * len(self.call.rows())
        sound, words = (sum(each.shape[1] for each in some) for some in (self.call.rows, self.call.pieces))
        return float(0.1 + len(self.call.crops) + sound / 200 + words / 20)


@dataclass
class _Place:
    used: float  # total cost of its calls; the stream with the least is next
    waiting: deque[Waiting] = field(default_factory=deque)
    asked_s: float = -1e9
    seen_s: float = 0.0


@dataclass
class Batch:
    """``expired``: calls for which nobody waits any more; ``wait_s``: if there is nothing to run, how long that stays
    so unless a call comes; None for ever."""

    calls: list[Waiting] = field(default_factory=list)
    expired: list[Waiting] = field(default_factory=list)
    wait_s: float | None = None


class Queue:
    """``most``: how many streams are admitted at a time. ``wait_s``: how long a call waits for calls of other streams,
    if any have called within the last second.

    A batch has at most one call of each stream; streams that have used least come first. A stream that sends too much
    waits in its own queue, and is refused when that is full.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self.most, self._wait_s = most, wait_s
        self._places: dict[Stream, _Place] = {}
        self._most_cost = 16.0  # of a batch
        self._used = 0.0  # ``used`` of the stream taken last, with which new streams begin

    def __len__(self) -> int:
        """How many streams are admitted."""
        return len(self._places)

    def admit(self, stream: Stream, now_s: float) -> bool:
        """Give a stream a place. Returns whether it has one now."""
        if stream not in self._places and len(self._places) >= self.most:
            return False
        self._places.setdefault(stream, _Place(self._used)).seen_s = now_s
        return True

    def leave(self, stream: Stream) -> None:
        """A stream no longer needs its place."""
        self._places.pop(stream, None)

    def seen(self, box: bytes, now_s: float) -> None:
        """A box gave a sign of life."""
        for (owner, _), place in self._places.items():
            if owner == box:
                place.seen_s = now_s

    def forget(self, now_s: float) -> None:
        """Free the places of boxes that are gone."""
        self._places = {stream: place for stream, place in self._places.items() if now_s - place.seen_s < GONE_S}

    def push(self, call: Waiting) -> str:
        """Queue a call. Returns why it was refused, or an empty text."""
        place = self._places.get(call.stream)
        if place is None:
            return "not joined"
        if len(place.waiting) >= MOST_WAITING:
            return f"{MOST_WAITING} calls of this stream wait already"
        if not place.waiting:
            place.used = max(place.used, self._used)  # idle streams save up no credit
        place.waiting.append(call)
        place.asked_s = place.seen_s = call.since_s
        return ""

    def learn(self, calls: list[Waiting], run_s: float) -> None:
        """Learn from how long a batch took, so that later ones have a size that suits this machine."""
        speed = sum(call.cost for call in calls) / max(run_s, 1e-4)
        least, most = _COSTS
        self._most_cost = min(max((self._most_cost + speed * _BATCH_S) / 2, least), most)

    def take(self, now_s: float) -> Batch:
        """The next batch, if it is time for one."""
        batch = Batch()
        for place in self._places.values():
            batch.expired += [call for call in place.waiting if call.until_s <= now_s]
            place.waiting = deque(call for call in place.waiting if call.until_s > now_s)
        waiting = [place for place in self._places.values() if place.waiting]
        waiting.sort(key=lambda place: (place.used, place.waiting[0].cost))
        if not waiting:
            return batch
        others = sum(now_s - place.asked_s < _ACTIVE_S for place in self._places.values())
        due_s = min(place.waiting[0].since_s for place in waiting) + self._wait_s
        if len(waiting) < min(others, _MOST_CALLS) and now_s < due_s:
            batch.wait_s = due_s - now_s
            return batch
        cost = 0.0
        for place in waiting[:_MOST_CALLS]:
            call = place.waiting[0]
            if batch.calls and cost + call.cost > self._most_cost:
                continue
            cost += call.cost
            self._used = place.used
            place.used += call.cost
            batch.calls.append(place.waiting.popleft())
        return batch
