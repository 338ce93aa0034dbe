"""ZeroMQ between the nodes: one publisher per node, and inboxes that count the messages they miss.

A publisher binds an XPUB socket, which shows who has subscribed; at fast pace it waits for a subscriber whose queue is
full instead of dropping messages (NODROP). An inbox drains its sockets into its own bounded queue; at real-time pace a
full queue drops its oldest samples and frames, but never speech events or ends.
"""

from __future__ import annotations

import errno
import logging
import os
import socket as sockets
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import zmq

from emostream.errors import BusError
from emostream.stream.clock import Clock
from emostream.stream.messages import AudioRows, Codec, End, Face, Media, Message, Pcm, Picture

log = logging.getLogger(__name__)

Context = zmq.Context[zmq.Socket[bytes]]

LINGER_MS = 500  # long enough for the last message at exit, short enough not to hang on a dead subscriber
SEND_TIMEOUT_MS = 100  # per attempt at fast pace; between two attempts a node checks whether it has to stop
_DROPPABLE = (Pcm, AudioRows, Face, Picture)


class BusObserver(Protocol):
    """Measures what messages cost a node. Calls come from the thread that owns the sockets and do not nest."""

    def begin(self) -> None:
        """A publisher or an inbox starts to use its sockets: to send, receive, wait or read subscriptions."""
        ...

    def end(self) -> None:
        """The publisher or inbox is done."""
        ...

    def counters(self) -> Mapping[str, int]:
        """What to add to the counters of each heartbeat."""
        ...


observer: BusObserver | None = None  # for sockets that nodes of this process open from now on; None costs nothing


def is_listened_at(path: str | Path) -> bool:
    """Whether a process listens at a Unix socket (a killed process leaves the file). Yes if that cannot be
    determined."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
    return True


def bind(socket: zmq.Socket[Any], endpoint: str, setting: str = "bus.emotion=tcp://…") -> None:
    """Bind a socket; ``setting``: how to choose another endpoint, for the error message. ZeroMQ would replace anything
    in a Unix socket's place; here only a socket at which nobody listens any more is replaced.

    Raises BusError, which says what is wrong with the endpoint."""
    try:
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        path = Path(endpoint.removeprefix("ipc://"))
        if endpoint.startswith("ipc://") and path.exists():
            if not path.is_socket():
                raise BusError(f"{endpoint}: is a file or folder, and no socket")
            if is_listened_at(path):
                raise zmq.ZMQError(errno.EADDRINUSE)
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        hint = ""
        if error.errno == zmq.EADDRINUSE:
            hint = "; another program (another stream-run?) has it"
            hint += f"; choose another with --set {setting}" if setting else ""
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BusError(f"{endpoint}: cannot be bound ({reason}){hint}") from error


def _update_subscriptions(socket: zmq.Socket[bytes], subscribed: set[str]) -> None:
    """Read an XPUB socket's subscription messages: topics subscribed to (1) and unsubscribed from (0)."""
    while socket.poll(0):
        request = socket.recv()
        topic = request[1:].decode(errors="replace")
        if request[:1] == b"\1":
            subscribed.add(topic)
        elif request[:1] == b"\0":
            subscribed.discard(topic)


class Publisher:
    """Publishes one node's messages at ``endpoint``.

    ``lossless``: wait for a subscriber whose queue is full; otherwise ZeroMQ drops messages for that subscriber, which
    sees a gap. Raises BusError if the endpoint cannot be bound.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        clock: Clock,
        queue: int,
        lossless: bool,
        observer: BusObserver | None = None,
    ) -> None:
        options = {zmq.SNDHWM: queue, zmq.XPUB_NODROP: int(lossless), zmq.SNDTIMEO: SEND_TIMEOUT_MS}
        self._socket = bind_xpub(context, endpoint, options)
        self._clock, self._codec = clock, Codec()
        self._observer = observer
        self._seq: Counter[str] = Counter()
        self._subscribed: set[str] = set()

    def has_subscribers(self, topics: Iterable[str]) -> bool:
        """Whether each topic has a subscriber by now."""
        if self._observer is not None:
            self._observer.begin()
        _update_subscriptions(self._socket, self._subscribed)
        if self._observer is not None:
            self._observer.end()
        return self._subscribed >= set(topics)

    def is_wanted(self, topic: str) -> bool:
        """Whether the topic had a subscriber when subscriptions were last read."""
        return topic in self._subscribed

    def was_heard(self, topics: Iterable[str]) -> bool:
        """Whether all subscribers have received the End of these topics: an inbox then unsubscribes from the topic."""
        _update_subscriptions(self._socket, self._subscribed)
        return not self._subscribed & set(topics)

    def send(self, message: Message) -> bool:
        """Number, time-stamp and send a message. False if a subscriber's queue was full for ``SEND_TIMEOUT_MS``; the
        message then keeps its number for the next attempt."""
        if self._observer is not None:
            self._observer.begin()
        topic = message.topic
        message.seq, message.sent_ns = self._seq[topic], self._clock.now_ns()
        sent = True
        try:
            self._socket.send_multipart([topic.encode(), *self._codec.encode(message)])
            self._seq[topic] += 1
        except zmq.Again:
            sent = False
        if self._observer is not None:
            self._observer.end()
        return sent

    def close(self) -> None:
        self._socket.close()


def bind_xpub(context: Context, endpoint: str, options: Mapping[zmq.SocketOption, Any]) -> zmq.Socket[bytes]:
    """A bound XPUB socket. It is closed if it cannot be bound, since an open one would block the context's end."""
    socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
    try:
        for option, value in {zmq.LINGER: LINGER_MS, **options}.items():
            socket.setsockopt(option, value)
        bind(socket, endpoint)
    except BaseException:
        socket.close()
        raise
    return socket


M = TypeVar("M", bound=Message)


class Inbox:
    """The receiving end of a node: one SUB socket per endpoint, one queue.

    ``capacity`` bounds the queue at real-time pace. ``lossless``: leave messages in the sockets until they are asked
    for, so that the publisher waits. Both count messages by topic: ``dropped`` those dropped here, ``missed`` gaps in
    ``seq``.
    """

    def __init__(self, context: Context, capacity: int, lossless: bool, observer: BusObserver | None = None) -> None:
        self._context, self._capacity, self._lossless = context, capacity, lossless
        self._observer = observer
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._poller = zmq.Poller()
        self._held: set[str] = set()
        self._queue: deque[tuple[str, Message]] = deque()
        self._codec = Codec()
        self._next_seq: dict[tuple[str, str], int] = {}
        self.dropped: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._dropped_spans: dict[str, tuple[int, int]] = {}

    def connect(self, endpoint: str, topics: Iterable[str]) -> None:
        """Subscribe to ``topics`` of the publisher at ``endpoint``, replacing any earlier connection to it."""
        if (before := self._sockets.get(endpoint)) is not None:
            self._poller.unregister(before)
            before.close()
            self._next_seq = {key: seq for key, seq in self._next_seq.items() if key[0] != endpoint}
        socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._sockets[endpoint] = socket  # from here on, close() closes it
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, self._capacity)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)

    def wake_on(self, socket: zmq.Socket[Any]) -> None:
        """Let ``receive`` return at once when another socket, which the inbox does not read, becomes readable."""
        self._poller.register(socket, zmq.POLLIN)

    def forget(self, socket: zmq.Socket[Any]) -> None:
        """Undo ``wake_on`` before that socket is closed."""
        self._poller.unregister(socket)

    def hold(self, endpoint: str, hold: bool) -> None:
        """Stop or resume reading one publisher; at fast pace, a publisher that is not read waits."""
        if hold and endpoint not in self._held:
            self._poller.unregister(self._sockets[endpoint])
            self._held.add(endpoint)
        elif not hold and endpoint in self._held:
            self._poller.register(self._sockets[endpoint], zmq.POLLIN)
            self._held.discard(endpoint)

    def __len__(self) -> int:
        return len(self._queue)

    def behind_ns(self, now_ns: int) -> int:
        """How long ago the oldest waiting message was captured; 0 if none waits or nothing is captured live."""
        oldest = next((message for _, message in self._queue if isinstance(message, Media)), None)
        return max(0, now_ns - oldest.captured_ns) if oldest is not None and oldest.captured_ns else 0

    def receive(self, timeout_ms: int) -> Message | None:
        """The next message, or None after ``timeout_ms``."""
        if not self._lossless or not self._queue:
            self._fill(0 if self._queue else timeout_ms)
        return self._queue.popleft()[1] if self._queue else None

    def more(self, kind: type[M], most: int) -> list[M]:
        """Take the messages of this kind that wait before any other one, ``most`` of them at most."""
        taken: list[M] = []
        while self._queue and len(taken) < most and isinstance(message := self._queue[0][1], kind):
            taken.append(message)
            self._queue.popleft()
        return taken

    def wait(self, timeout_ms: int) -> None:
        """Wait until a message comes or ``timeout_ms`` have passed; the message stays in its socket."""
        self._poll(self._poller, timeout_ms)

    def wait_for(self, endpoints: Iterable[str], timeout_ms: int) -> None:
        """Like ``wait``, but only for these publishers; messages of others stay in their sockets meanwhile."""
        poller = zmq.Poller()
        for endpoint in endpoints:
            poller.register(self._sockets[endpoint], zmq.POLLIN)
        self._poll(poller, timeout_ms)

    def _poll(self, poller: zmq.Poller, timeout_ms: int) -> None:
        if self._observer is not None:
            self._observer.begin()
        poller.poll(timeout_ms)
        if self._observer is not None:
            self._observer.end()

    def _fill(self, timeout_ms: int) -> None:
        if self._observer is not None:
            self._observer.begin()
        ready = {socket for socket, _ in self._poller.poll(timeout_ms)}
        for endpoint, socket in self._sockets.items():
            if socket not in ready:
                continue
            for _ in range(1 if self._lossless else self._capacity):
                try:
                    parts = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(endpoint, parts)
        self._bound()
        if self._observer is not None:
            self._observer.end()

    def _bound(self) -> None:
        while not self._lossless and len(self._queue) > self._capacity:
            self._drop_oldest()

    def _take(self, endpoint: str, parts: list[bytes]) -> None:
        topic = parts[0].decode(errors="replace")
        try:
            message = self._codec.decode(parts[1:])
        except msgspec.DecodeError as error:
            self.missed[topic] += 1
            log.warning("%s: a message on %s is not valid: %s", endpoint, topic, error)
            return
        expected = self._next_seq.get((endpoint, topic))
        if expected is not None and message.seq > expected:
            self.missed[topic] += message.seq - expected
            log.warning("%s: %d messages missed", topic, message.seq - expected)
        self._next_seq[endpoint, topic] = message.seq + 1
        self._queue.append((topic, message))
        if isinstance(message, End):
            self._sockets[endpoint].unsubscribe(topic)

    def _drop_oldest(self) -> None:
        for i, (topic, message) in enumerate(self._queue):
            if isinstance(message, _DROPPABLE):
                del self._queue[i]
                self.dropped[topic] += 1
                start_ns, end_ns = self._dropped_spans.get(topic, (message.media_start_ns, 0))
                self._dropped_spans[topic] = min(start_ns, message.media_start_ns), max(end_ns, message.media_end_ns)
                return
        self._capacity = len(self._queue)  # only speech events and ends, which are few: make room for them

    def take_dropped_spans(self) -> dict[str, tuple[int, int]]:
        """By topic, the span (media time) in which messages were dropped since the last call."""
        spans, self._dropped_spans = self._dropped_spans, {}
        return spans

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
