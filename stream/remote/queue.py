"""Decides which streams a replica takes, and which calls go into its next batch. No sockets, no clock, no networks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from emostream.stream.cores.classifier import Classify
from emostream.stream.cores.runs import Call

Stream = tuple[bytes, int]
"""A box's connection, and the stream's number on it."""

MOST_WAITING = 4  # calls per stream; a box sends one at a time
GONE_S = 10.0  # a stream's place is freed after this long without a message from its box
_ACTIVE_S = 1.0
_MOST_CALLS = 64  # of a batch
_BATCH_S = 0.03  # of work in a batch, about: what a call that comes meanwhile waits for
_COSTS = (4.0, 4096.0)  # of a batch, whatever was measured
_FACE, _ROW = 1.0, 0.1  # what one takes to compute: a face's vector, and what fusion says of one row
_LEAST = 4.0  # of a piece that fills a batch up: smaller ones cost more than they bring


@dataclass(eq=False)
class Waiting:
    """A call that waits. ``until_s``: when nobody waits for its answer any more. It may be done in pieces: of its
    ``units``, faces or rows of fusion, ``taken`` are in batches so far, ``done`` has what came of them, and ``run_s``
    is how long they took."""

    stream: Stream
    number: int
    call: Call
    since_s: float
    until_s: float
    taken: int = 0
    done: list[np.ndarray] = field(default_factory=list)
    run_s: float = 0.0

    def __post_init__(self) -> None:
        call = self.call
        if isinstance(call, Classify):
            self.units, self._each, self._rest = len(call.rows()), _ROW, 0.0
            return
        sound, words = (sum(each.shape[1] for each in some) for some in (call.rows, call.pieces))
        self.units, self._each, self._rest = len(call.crops), _FACE, 0.1 + sound / 200 + words / 20

    @property
    def cost(self) -> float:
        """About how long what is left takes, in faces to encode."""
        return self._each * (self.units - self.taken) + self._rest

    def cut(self, room: float, first: bool) -> Piece | None:
        """The next piece, of this cost at most, if that is worth it; ``first``: it always is."""
        cost, left = self.cost, self.units - self.taken
        if cost <= room or (first and not left):
            return self._take(left, cost, is_last=True)
        count = min(left, max(int(first), int(room / self._each)))
        if not count or (not first and count * self._each < _LEAST):
            return None
        return self._take(count, count * self._each, is_last=count == left and not self._rest)

    def _take(self, count: int, cost: float, is_last: bool) -> Piece:
        start, self.taken = self.taken, self.taken + count
        return Piece(self, slice(start, self.taken), is_last, cost)


@dataclass(frozen=True)
class Piece:
    """What of a call is in one batch: those of its faces or of its rows of fusion; the last one has its sound and its
    words too."""

    waiting: Waiting
    part: slice
    is_last: bool
    cost: float


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

    pieces: list[Piece] = field(default_factory=list)
    expired: list[Waiting] = field(default_factory=list)
    wait_s: float | None = None


class Queue:
    """``most``: how many streams are admitted at a time. ``wait_s``: how long a call waits for calls of other streams,
    if any have called within the last second.

    A batch has one call of each stream at most, those first whose streams have used least: what one stream sends too
    much of waits in its own queue, and is refused where that is full. A call that is larger than a batch is done in
    pieces, and calls of other streams in between.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self.most, self._wait_s = most, wait_s
        self._places: dict[Stream, _Place] = {}
        self._most_cost = 16.0  # of a batch
        self._used = 0.0  # by the stream that was taken first: where one begins that comes now

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

    def drop(self, call: Waiting) -> None:
        """A call has failed: what is left of it is not done."""
        place = self._places.get(call.stream)
        if place is not None and call in place.waiting:
            place.waiting.remove(call)

    def learn(self, pieces: list[Piece], run_s: float) -> None:
        """A batch took so long: later ones are as large as fits this machine."""
        speed = sum(piece.cost for piece in pieces) / max(run_s, 1e-4)
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
        room = self._most_cost
        self._used = max(self._used, waiting[0].used)
        for place in waiting[:_MOST_CALLS]:
            piece = place.waiting[0].cut(room, first=not batch.pieces)
            if piece is None:
                continue
            room -= piece.cost
            place.used += piece.cost
            batch.pieces.append(piece)
            if piece.is_last:
                place.waiting.popleft()
        return batch
