"""ZeroMQ between the nodes: one publisher a node, subscribers that count what they miss.

A publisher binds an XPUB socket, so that it can wait for its subscribers and, at fast pace, wait for a full one
instead of dropping (NODROP). A subscriber empties its sockets into a bounded queue of its own; at real-time pace a
full queue drops its oldest samples and frames, never what was said.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path

import msgspec
import zmq

from emostream.errors import BusError
from emostream.stream.clock import Clock
from emostream.stream.messages import Codec, Emotion, End, Face, Message, MfccRows, Pcm, encode_emotion

log = logging.getLogger(__name__)

LINGER_MS = 500  # at exit: long enough for the last message, short enough not to hang on a dead subscriber
_LONGEST_DIR = 70  # a Unix socket's path has at most 107 bytes, 35 of which are ours
SEND_TIMEOUT_MS = 100  # of one try, at fast pace: between two a node looks whether it is to stop
_DROPPABLE = (Pcm, MfccRows, Face)


def make_run_dir(configured: str = "") -> Path:
    """A new folder of mode 0700 for this run's ipc sockets, in ``configured``, else in the user's runtime folder
    (``XDG_RUNTIME_DIR``), else where temporary files go. Raises BusError."""
    parent = Path(configured).expanduser() if configured else None
    try:
        if parent is not None:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
            usable = os.access(runtime, os.W_OK) and len(runtime) <= _LONGEST_DIR
            parent = Path(runtime) if usable else None
        if len(str(parent or tempfile.gettempdir())) > _LONGEST_DIR:
            raise BusError(
                f"{parent or tempfile.gettempdir()}: too long for sockets; set bus.run_dir to a shorter path"
            )
        return Path(tempfile.mkdtemp(prefix="emostream-", dir=parent))  # of mode 0700
    except OSError as error:
        raise BusError(f"bus.run_dir = {configured!r}: cannot be used ({error.strerror})") from error


def ipc(run_dir: Path, node: str) -> str:
    """Endpoint of a node's publisher. Its file's name is short whatever the node's is: a path has its limit."""
    return f"ipc://{run_dir}/{hashlib.sha256(node.encode()).hexdigest()[:12]}"


def bind(socket: zmq.Socket, endpoint: str) -> None:
    """Bind, or raise BusError that says what is wrong with the endpoint."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        hint = ""
        if error.errno == zmq.EADDRINUSE:
            hint = "; another program (another stream-run?) has it; choose another with --set bus.emotion=tcp://…"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise BusError(f"{endpoint}: cannot be bound ({reason}){hint}") from error


def _take_subscriptions(socket: zmq.Socket, subscribed: set[str]) -> None:
    """Read what an XPUB socket was told of who came (1) and who went (0). Anyone may write anything to it."""
    while socket.poll(0):
        request = socket.recv()
        topic = request[1:].decode(errors="replace")
        if request[:1] == b"\1":
            subscribed.add(topic)
        elif request[:1] == b"\0":
            subscribed.discard(topic)


class Publisher:
    """Publishes one node's messages at ``endpoint``.

    ``lossless``: wait for a subscriber whose queue is full; otherwise ZeroMQ drops for it, and it will see the gap.
    """

    def __init__(self, context: zmq.Context, endpoint: str, clock: Clock, queue: int, lossless: bool) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.XPUB_NODROP, int(lossless))
        self._socket.setsockopt(zmq.SNDTIMEO, SEND_TIMEOUT_MS)
        bind(self._socket, endpoint)
        self._clock, self._codec = clock, Codec()
        self._seq: Counter[str] = Counter()
        self._subscribed: set[str] = set()

    def has_subscribers(self, topics: Iterable[str]) -> bool:
        """Whether each topic has been subscribed to by now."""
        _take_subscriptions(self._socket, self._subscribed)
        return self._subscribed >= set(topics)

    def was_heard(self, topics: Iterable[str]) -> bool:
        """Whether nobody subscribes to these topics any more: an inbox leaves a topic when its End has come."""
        _take_subscriptions(self._socket, self._subscribed)
        return not self._subscribed & set(topics)

    def send(self, message: Message) -> bool:
        """Number, time-stamp and send a message. False if a subscriber had no room for ``SEND_TIMEOUT_MS``; the
        message then keeps its number for the next try."""
        topic = message.topic
        message.seq, message.sent_ns = self._seq[topic], self._clock.now_ns()
        try:
            self._socket.send_multipart([topic.encode(), *self._codec.encode(message)])
        except zmq.Again:
            return False
        self._seq[topic] += 1
        return True

    def close(self) -> None:
        self._socket.close()


class EmotionPublisher:
    """Publishes the public messages. It drops for a stranger who does not keep up: it must never wait for one."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._subscribed: set[str] = set()
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        bind(self._socket, endpoint)

    def has_subscribers(self, topics: Iterable[str]) -> bool:
        """Whether each topic has been subscribed to by now."""
        _take_subscriptions(self._socket, self._subscribed)
        return self._subscribed >= set(topics)

    def send(self, message: Emotion) -> None:
        _take_subscriptions(self._socket, self._subscribed)  # or they pile up, one for each who comes and goes
        self._socket.send_multipart([message.topic.encode(), encode_emotion(message)])

    def close(self) -> None:
        self._socket.close()


class Inbox:
    """The receiving end of a node: one SUB socket an endpoint, one queue.

    ``capacity`` bounds the queue at real-time pace; ``lossless`` leaves what is not yet wanted in the sockets, so
    that the publisher waits. ``dropped`` and ``missed`` count by topic: thrown away here, and gaps in ``seq``.
    """

    def __init__(self, context: zmq.Context, capacity: int, lossless: bool) -> None:
        self._context, self._capacity, self._lossless = context, capacity, lossless
        self._sockets: dict[str, zmq.Socket] = {}
        self._poller = zmq.Poller()
        self._held: set[str] = set()
        self._queue: deque[tuple[str, Message]] = deque()
        self._codec = Codec()
        self._next: dict[tuple[str, str], int] = {}
        self.dropped: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    def connect(self, endpoint: str, topics: Iterable[str]) -> None:
        """Subscribe to ``topics`` of the publisher at ``endpoint``."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, self._capacity)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(endpoint)
        self._sockets[endpoint] = socket
        self._poller.register(socket, zmq.POLLIN)

    def wake_on(self, socket: zmq.Socket) -> None:
        """Let ``receive`` return at once when there is something to read on a socket that is not this inbox's."""
        self._poller.register(socket, zmq.POLLIN)

    def hold(self, endpoint: str, yes: bool) -> None:
        """Stop or go on reading one publisher, so that at fast pace it waits for the others."""
        if yes and endpoint not in self._held:
            self._poller.unregister(self._sockets[endpoint])
            self._held.add(endpoint)
        elif not yes and endpoint in self._held:
            self._poller.register(self._sockets[endpoint], zmq.POLLIN)
            self._held.discard(endpoint)

    def __len__(self) -> int:
        return len(self._queue)

    def receive(self, timeout_ms: int) -> Message | None:
        """The next message, or None after ``timeout_ms``."""
        if not self._lossless or not self._queue:
            self._fill(0 if self._queue else timeout_ms)
        return self._queue.popleft()[1] if self._queue else None

    def wait(self, timeout_ms: int) -> None:
        """Wait until something came or ``timeout_ms`` have passed; leaves it where it is."""
        self._poller.poll(timeout_ms)

    def wait_for(self, endpoints: Iterable[str], timeout_ms: int) -> None:
        """As ``wait``, but for these publishers alone: what the others send stays in the sockets meanwhile."""
        poller = zmq.Poller()
        for endpoint in endpoints:
            poller.register(self._sockets[endpoint], zmq.POLLIN)
        poller.poll(timeout_ms)

    def _fill(self, timeout_ms: int) -> None:
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
        expected = self._next.get((endpoint, topic))
        if expected is not None and message.seq > expected:
            self.missed[topic] += message.seq - expected
            log.warning("%s: %d messages missed", topic, message.seq - expected)
        self._next[endpoint, topic] = message.seq + 1
        self._queue.append((topic, message))
        if isinstance(message, End):
            self._sockets[endpoint].unsubscribe(topic)

    def _drop_oldest(self) -> None:
        for i, (topic, message) in enumerate(self._queue):
            if isinstance(message, _DROPPABLE):
                del self._queue[i]
                self.dropped[topic] += 1
                return
        self._capacity = len(self._queue)  # nothing but words and ends, which are few: make room

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
