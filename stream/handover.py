"""Hands messages from one node's thread to another node in the same process, without a socket.

A message through a socket wakes two of ZeroMQ's threads and is encoded and decoded. At 31 blocks of sound a second,
that is most of the cost of a stream at rest.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable

from emostream.stream.bus import BusObserver, Context, Inbox
from emostream.stream.messages import End, Message


class Handover:
    """``topics``: the topics to hand over. The receiver sets ``at_rest`` when it is in no hurry for the next message,
    so that several may come at once; ``thread`` and ``cpu_s``: the receiver's thread id, and its CPU time so far."""

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
        """Hand a message over; it must not be changed afterwards. If ``bundling``, messages at rest are held until
        ``flush``, so that the receiver wakes up once for several."""
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
        """Hand over the messages held back."""
        if self._bundle:
            self.queue.put(self._bundle)
            self._bundle = []


class HandoverInbox(Inbox):
    """The receiver's side: an inbox that drops and counts messages like one with sockets."""

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
