"""The public socket, open to anybody on this machine and, with an allowed key, to other machines."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter

import zmq

from emostream.errors import BusError, ConfigError
from emostream.stream.bus import BusObserver, Context, bind_xpub
from emostream.stream.emotion import Emotion, encode_emotion
from emostream.stream.gate import Gate
from emostream.stream.keys import Keys
from emostream.stream.status import decode_status, encode_status, of_stream
from emostream.stream.topics import STATUS, closed_topic, status_topic

log = logging.getLogger(__name__)

_REQUESTS_AT_ONCE = 2000
_MOST_REQUESTS = 20_000
_BIND_AGAIN_S = 0.05
_LOOK_S = 1.0  # between two checks of the list of allowed keys
_LONGEST_TOPIC = 1024  # bytes; longer than any topic
_OPTIONS = {
    zmq.SNDHWM: 200,  # messages for a subscriber that does not read
    zmq.RCVHWM: 50,
    zmq.MAXMSGSIZE: _LONGEST_TOPIC,
    zmq.HANDSHAKE_IVL: 3000,  # disconnect clients that send no handshake
}


class EmotionPublisher:
    """Publishes the public messages to all subscribers. It never waits for a client, and no client can exhaust its time
    or memory: messages are dropped for subscribers that do not keep up; requests are limited in size and taken a few at
    a time; and after very many subscriptions all connections are closed and may be made again (ZeroMQ keeps every topic
    that was ever asked for).

    With ``keys``, only clients with an allowed key get in. The list may change at any time: a client that is added gets
    in within seconds. If a connected client is removed, all connections are closed, since ZeroMQ cannot close a single
    one; the others reconnect by themselves.

    Raises BusError if the endpoint cannot be bound; unless ``required``, it keeps trying instead. Raises ConfigError if
    the keys cannot be used."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        observer: BusObserver | None = None,
        required: bool = True,
        keys: Keys | None = None,
    ) -> None:
        self._context, self._endpoint, self._observer = context, endpoint, observer
        self._access = None if keys is None else _Access(keys, endpoint)
        self._socket: zmq.Socket[bytes] | None = None
        self._gate: Gate | None = None
        self._again_s = 0.0
        self.requests = 0  # subscriptions and cancellations since the socket was bound
        self.counters: Counter[str] = Counter()
        try:
            self._bind()
        except BusError as error:
            if required:
                raise
            log.warning("%s; trying again until it is free, labels are not published meanwhile", error)

    def send(self, message: Emotion) -> bytes:
        """Send a message to those who subscribe to its topic; returns its JSON."""
        if self._observer is not None:
            self._observer.begin()
        self.tick()
        payload = encode_emotion(message)
        if not self.forward(message.topic, payload):
            self.counters["not_published"] += 1
        self.forward(closed_topic(message.kind, message.stream), payload)
        if self._observer is not None:
            self._observer.end()
        return payload

    def forward(self, topic: str, payload: bytes) -> bool:
        """Send a message that is already JSON. False if there is no socket at present."""
        if self._socket is None:
            return False
        self._socket.send_multipart([topic.encode(), payload])
        return True

    def send_status(self, payload: bytes) -> None:
        """Send the status of the run, and that of each stream to those who subscribe to it alone."""
        self.forward(STATUS, payload)
        status = decode_status(payload)
        for stream in status.streams:
            self.forward(status_topic(stream), encode_status(of_stream(status, stream)))

    def tick(self) -> None:
        """Take what subscribers have sent, and check who is allowed. Call it often, since requests pile up."""
        access, gate = self._access, self._gate
        if access is not None and access.changed() and gate is not None and gate.replace(access.allowed):
            log.warning("%s: a key was revoked; all subscribers were closed, those allowed come again", self._endpoint)
            self._unbind()
        if self._socket is None:
            self._bind_again()
            return
        for _ in range(_REQUESTS_AT_ONCE):
            if not self._socket.poll(0):
                break
            self._socket.recv()
            self.requests += 1
        if self.requests > _MOST_REQUESTS:
            self.counters["subscribers_closed"] += 1
            log.warning("%s: a flood of subscriptions; all subscribers were closed and may come again", self._endpoint)
            self._unbind()
            self._bind_again()

    def _bind_again(self) -> None:
        if time.monotonic() < self._again_s:
            return
        self._again_s = time.monotonic() + _BIND_AGAIN_S
        with contextlib.suppress(BusError):  # ZeroMQ still closes the old socket in a thread, or another program has it
            self._bind()
            self.requests = 0

    def _bind(self) -> None:
        if self._access is None:
            self._socket = bind_xpub(self._context, self._endpoint, _OPTIONS)
            return
        gate = Gate(self._access.server, self._access.allowed, self.counters)
        try:
            self._socket = bind_xpub(gate.context, self._endpoint, _OPTIONS | gate.options)
        except BaseException:
            gate.close()
            raise
        gate.watch(self._socket)
        self._gate = gate

    def _unbind(self, linger_ms: int | None = 0) -> None:
        """``linger_ms``: how long the last messages may take; None: the socket's default."""
        if self._socket is not None:
            self._socket.close(linger_ms)
            self._socket = None
        if self._gate is not None:
            self._gate.close()
            self._gate = None

    def close(self) -> None:
        self._unbind(linger_ms=None)


class _Access:
    """The pipeline's keys and the list of allowed clients, which is reloaded when it changes.

    Raises ConfigError if either cannot be used."""

    def __init__(self, keys: Keys, endpoint: str) -> None:
        self._keys = keys
        self.server = keys.need_server(endpoint)
        self._seen = self._look()
        self.allowed = frozenset(keys.allowed().values())
        self._next_s = 0.0

    def changed(self) -> bool:
        """Whether the set of allowed keys has changed. A list that cannot be used is ignored."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + _LOOK_S
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            allowed = frozenset(self._keys.allowed().values())
        except ConfigError as error:
            log.warning("%s; the keys allowed before still are", error)
            return False
        before, self.allowed = self.allowed, allowed
        return allowed != before

    def _look(self) -> tuple[int, ...]:
        """A fingerprint that differs when the file has changed; empty if there is no file."""
        try:
            status = os.stat(self._keys.allowed_file)
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_ino, status.st_size, status.st_mode, status.st_uid
