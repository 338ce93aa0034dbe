"""The socket that boxes connect to: encrypted, and only for boxes with an allowed key."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import zmq

from emostream.errors import BusError
from emostream.stream.bus import bind
from emostream.stream.gate import Gate
from emostream.stream.keys import KeyPair
from emostream.stream.remote.wire import SERVER_OPTIONS

_REBIND_S = 5.0


class Door:
    """``endpoint``: where to listen; its port may be 0. ``allowed``: public keys. Raises BusError if it cannot be
    bound."""

    def __init__(self, endpoint: str, pair: KeyPair, allowed: frozenset[str]) -> None:
        self._pair = pair
        self.counters: Counter[str] = Counter()
        self._open(endpoint, allowed)
        self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _open(self, endpoint: str, allowed: frozenset[str]) -> None:
        self._gate = Gate(self._pair, allowed, self.counters, "the networks")
        self.socket: zmq.Socket[bytes] = self._gate.context.socket(zmq.ROUTER)
        try:
            for option, value in (SERVER_OPTIONS | self._gate.options).items():
                self.socket.setsockopt(option, value)
            bind(self.socket, endpoint)
        except BaseException:
            self.close()
            raise
        self._gate.watch(self.socket)

    def allow(self, allowed: frozenset[str]) -> bool:
        """Let these keys in from now on. If a connected box is no longer allowed, all connections are closed, and the
        others may reconnect; returns whether that happened."""
        if not self._gate.replace(allowed):
            return False
        self.close()
        until_s = time.monotonic() + _REBIND_S
        while True:
            try:
                self._open(self.endpoint, allowed)
                return True
            except BusError:  # ZeroMQ still closes the old socket in its own thread
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.02)

    def receive(self) -> list[bytes] | None:
        """The next message, its sender first; None if there is none."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def send(self, box: bytes, parts: list[Any]) -> None:
        """Send to a box; dropped if the box is gone or does not read."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart([box, *parts], zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close(0)
        self._gate.close()
