"""Tells the service manager how a run is going, by systemd's notification protocol (sd_notify(3)).

Our own, since PyPI's ``sdnotify``, last released in 2017, has no watchdog, and ``systemd-python`` must be compiled.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping

_STATUS_NS = 1_000_000_000  # between two status lines


class Notifier:
    """Sends datagrams to the socket that ``NOTIFY_SOCKET`` names; without one it does nothing.

    It removes the service manager's variables from the environment, so that no child inherits them. A datagram that
    cannot be sent is dropped: notifications neither delay nor end a run.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        timeout_us = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid()))
        self._beat_ns = int(timeout_us) * 1000 // 2 if timeout_us.isdecimal() and ours else 0
        self._next_beat_ns = self._next_status_ns = 0
        self._status = ""
        self._said: set[str] = set()
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            self._address = "\0" + address[1:] if address[0] == "@" else address  # @: in the abstract namespace
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self) -> None:
        """All nodes run. May be called repeatedly; sent once."""
        self._say_once("READY=1")

    def stopping(self) -> None:
        """The run is ending. May be called repeatedly; sent once."""
        self._say_once("STOPPING=1")

    def tick(self, now_ns: int, status: str) -> None:
        """Send what is due: a keep-alive at half the watchdog's time, and the status if it has changed."""
        if self._socket is None:
            return
        if self._beat_ns and now_ns >= self._next_beat_ns:
            self._next_beat_ns = now_ns + self._beat_ns
            self._send("WATCHDOG=1")
        if status != self._status and now_ns >= self._next_status_ns:
            self._next_status_ns = now_ns + _STATUS_NS
            self._status = status
            self._send(f"STATUS={status}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say_once(self, state: str) -> None:
        if state not in self._said and self._send(state):
            self._said.add(state)

    def _send(self, state: str) -> bool:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # nobody reads, or its queue is full
                self._socket.sendto(state.encode(), self._address)
                return True
        return False
