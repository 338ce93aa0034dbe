"""The gate of a public socket that other machines can reach: only clients with an allowed key get in.

For a client whose handshake was valid, ZeroMQ asks a socket of its context, by the ZAP protocol, whether to let it in;
other failures are events of the socket's monitor. pyzmq's authenticators (``zmq.auth``) answer ZAP but do not say who
was refused, so a thread reads both here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as sockets
import threading
import time
from collections import Counter
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from emostream.stream.keys import KeyPair

log = logging.getLogger(__name__)

REFUSED = "keys_refused"  # counts clients that have the pipeline's public key, but whose own key is not allowed
FAILED = "handshakes_failed"  # counts clients without a key, with another pipeline's key, or that replay a recording

_ZAP = "inproc://zeromq.zap.01"
_MONITOR = "inproc://monitor"
_EVENTS = (
    zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)  # fmt: skip
_REASONS: dict[int, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it has no key",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has the public key of another pipeline, or sends what somebody recorded",
}
_NO_HANDSHAKE = "it did not end the handshake"
_QUIET_S = 60.0  # between two log lines about the same peer and kind of failure
_MOST_PEERS = 1000  # told apart in the log


def closed(server: KeyPair) -> dict[zmq.SocketOption, Any]:
    """Options of a socket that only lets in clients accepted by a gate. While there is no gate, clients keep trying."""
    return {
        zmq.CURVE_SERVER: 1,
        zmq.CURVE_SECRETKEY: server.secret.encode(),
        zmq.ZAP_DOMAIN: b"emotion",
        zmq.ZAP_ENFORCE_DOMAIN: 1,
    }


class Gate:
    """Has its own ZeroMQ context, so that what strangers send is decrypted by a thread that serves no other socket.
    ``allowed``: public keys; ``counters``: where to count clients that were not let in; ``what``: what it protects.
    """

    def __init__(
        self, server: KeyPair, allowed: frozenset[str], counters: Counter[str], what: str = "the labels"
    ) -> None:
        self._what = what
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._allowed, self._lock = allowed, threading.Lock()
        self._admitted: set[str] = set()  # keys of clients that got in
        self.options = closed(server)
        counters[REFUSED] += 0  # create the entries now, so that the thread does not while others iterate
        counters[FAILED] += 0
        self._counters = counters
        self._told: dict[tuple[str, str], float] = {}
        self._zap = self.context.socket(zmq.REP)
        self._monitor = self.context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.RCVHWM, 0)  # unlimited, since ZeroMQ's thread would block on a full queue
        for socket in (self._zap, self._monitor):
            socket.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP)
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def watch(self, socket: zmq.Socket[bytes]) -> None:
        """Begin to let clients in to this socket."""
        socket.monitor(_MONITOR, int(_EVENTS))
        self._monitor.connect(_MONITOR)
        self._thread.start()

    def replace(self, allowed: frozenset[str]) -> bool:
        """Let these keys in from now on. Returns whether a client is in whose key is no longer allowed."""
        with self._lock:
            self._allowed = allowed
            return not self._admitted <= allowed

    def close(self) -> None:
        """Call it after closing the socket. Waits for the socket's last messages, up to its LINGER."""
        if not self._thread.is_alive():
            self._close_own()
        self.context.term()  # which ends the thread
        if self._thread.is_alive():
            self._thread.join()

    def _close_own(self) -> None:
        self._zap.close()
        self._monitor.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        peers: dict[int, str] = {}  # by file descriptor
        failed = ""
        with contextlib.suppress(zmq.ContextTerminated):
            while True:
                ready = dict(poller.poll())
                if self._monitor in ready:
                    event = parse_monitor_message(self._monitor.recv_multipart())
                    what, value = event["event"], event["value"]
                    if what == zmq.Event.ACCEPTED:
                        peers[value] = _peer(value)
                    elif what == zmq.Event.DISCONNECTED:  # follows directly after a failure, if there was one
                        peer = peers.pop(value, "")
                        if failed:
                            self._refuse(FAILED, peer or "somebody who has left", failed)
                        failed = ""
                    elif what == zmq.Event.HANDSHAKE_FAILED_PROTOCOL:
                        failed = _REASONS.get(value, _NO_HANDSHAKE)
                    elif what == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
                        failed = _NO_HANDSHAKE
                if self._zap in ready:
                    self._answer(self._zap.recv_multipart())
        self._close_own()

    def _answer(self, request: list[bytes]) -> None:
        """Answer a ZAP request: version, number, domain, address, identity, mechanism, credentials."""
        address, mechanism, credentials = request[3].decode(errors="replace"), request[5], request[6:]
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
        with self._lock:
            good = key in self._allowed
            if good:
                self._admitted.add(key)
        if not good:
            self._refuse(REFUSED, address, f"its key is not allowed; to let it in: stream-keys allow '{key}' NAME")
        self._zap.send_multipart([b"1.0", request[1], b"200" if good else b"400", b"", b"", b""])

    def _refuse(self, counter: str, peer: str, reason: str) -> None:
        """Count a refusal, and log it at most once a minute."""
        self._counters[counter] += 1
        now_s = time.monotonic()
        if len(self._told) >= _MOST_PEERS:
            self._told = {said: at_s for said, at_s in self._told.items() if now_s - at_s < _QUIET_S}
        told_s = self._told.get((peer, counter))
        if len(self._told) < _MOST_PEERS and (told_s is None or now_s - told_s >= _QUIET_S):
            self._told[peer, counter] = now_s
            log.warning("%s was not let in to %s: %s", peer, self._what, reason)


def _peer(descriptor: int) -> str:
    """Address of the peer of one of ZeroMQ's file descriptors; empty if the connection is already closed."""
    try:
        with sockets.socket(fileno=os.dup(descriptor)) as socket:
            return str(socket.getpeername()[0])
    except (OSError, IndexError):
        return ""
