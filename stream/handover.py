"""From one node to another of the same process: what one thread publishes and another takes, without a socket.

A message through a socket wakes two of ZeroMQ's threads, and is encoded and decoded. For 31 blocks of sound a second,
that is most of what a stream at rest costs.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable

from emostream.stream.bus import BusObserver, Context, Inbox
from emostream.stream.messages import End, Message


class Handover:
    """``topics``: those that are handed over. ``at_rest``: the taker says that it does not wait for the next message,
    so that several may come at once; ``thread`` and ``cpu_s``: its identity, and its processor time so far."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        self.queue: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        self._bundle: list[Message] = []
        self.at_rest = self.bundling = False
        self._flushed_ns = 0
        self.ended = False  # the last message was put
        self.thread = 0
        self.cpu_s = 0.0

    def put(self, message: Message) -> None:
        """Hand a message over, which must not be changed any more. If ``bundling``, those at rest stay until ``flush``,
        so that the taker wakes up once for several."""
        self.ended = self.ended or isinstance(message, End)
        self._bundle.append(message)
        if self.ended or not (self.bundling and self.at_rest):
            self.flush()

    def flush_seldom(self, now_ns: int, least_ns: int) -> None:
        """As ``flush``; at rest, not before ``least_ns`` after the last time."""
        if not self.at_rest or now_ns - self._flushed_ns >= least_ns:
            self._flushed_ns = now_ns
            self.flush()

    def flush(self) -> None:
        """Hand over what stayed."""
        if self._bundle:
            self.queue.put(self._bundle)
            self._bundle = []


class HandoverInbox(Inbox):
    """The taker's end: an inbox that drops and counts as one with sockets does."""

    def __init__(
        self, handover: Handover, context: Context, capacity: int, observer: BusObserver | None = None
    ) -> None:
        super().__init__(context, capacity, lossless=False, observer=observer)
        self._handover = handover

    def _fill(self, timeout_ms: int) -> None:
        if self._observer is not None:
            self._observer.begin()
        try:
            messages = self._handover.queue.get(timeout_ms > 0, timeout_ms / 1000)
            while True:
                self._queue.extend((message.topic, message) for message in messages)
                messages = self._handover.queue.get_nowait()
        except queue.Empty:
            self._bound()
        if self._observer is not None:
            self._observer.end()
