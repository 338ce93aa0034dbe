"""A box's link to the remote networks: finds a replica, calls it, and never blocks.

Only one thread uses it, that of the fusion node, whose loop calls ``tick``. The connection is plain ZeroMQ with keys,
not Ray: a box whose connection comes and goes should not be a member of a cluster, and then does not need Ray.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, Literal

import msgspec
import numpy as np
import zmq

from emostream.errors import ClusterError
from emostream.stream.cores.classifier import Classifier, Classify, Encoded, Head, Result
from emostream.stream.cores.runs import Call, GaveUp
from emostream.stream.keys import KeyPair
from emostream.stream.remote import wire
from emostream.stream.remote.wire import Answer, Failed, Join, Joined, Leave, Ping, Place, Places, Refused

log = logging.getLogger(__name__)

PATIENCE_S = 0.25  # how long to wait for an answer before the local networks do the work
GIVE_UP_S = 5.0  # the same without local networks: a label this late is still made, since features are kept for longer
_STRIKES = 3  # calls in a row without an answer in time
_PING_S, _SILENT_S = 1.0, 2.5
_SEEK_S = (0.5, 5.0)  # first and longest pause between two attempts
_ANSWER_S = 3.0  # for the directory to answer, and for all streams to join
_AGAIN_S = 30.0  # before a refused stream asks again
_TIMES = 2000  # round trips over which the median is reported

Socket = zmq.Socket[Any]


class Ticket:
    """A call, and its answer once there is one. See ``runs.Ticket``."""

    def __init__(self, stream: str, call: Call, at_s: float) -> None:
        self.stream, self.call, self.at_s = stream, call, at_s
        self.number: int | None = None  # the number under which it was sent
        self._answer: Callable[[], Encoded | list[Result]] | None = None

    @property
    def done(self) -> bool:
        return self._answer is not None

    def settle(self, answer: Callable[[], Encoded | list[Result]]) -> None:
        """``answer`` is called when the answer is needed, and may do the work or raise GaveUp."""
        self._answer = self._answer or answer

    def answer(self) -> Encoded | list[Result]:
        assert self._answer is not None
        return self._answer()


class Link:
    """See ``runs.Elsewhere``. ``directory``: where ``stream-fusion`` listens; ``pair``: this box's keys, with the
    directory's public key; ``head``: decodes the answers; if it is a ``Classifier``, it does the work itself when no
    answer comes in time. ``wake`` and ``forget``: called with sockets that the loop has to poll, and no longer.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        directory: str,
        pair: KeyPair,
        head: Head,
        wake: Callable[[Socket], None] = lambda socket: None,
        forget: Callable[[Socket], None] = lambda socket: None,
    ) -> None:
        self._context, self._directory, self._pair, self._head, self._dims = context, directory, pair, head, head.dims
        self._local = head if isinstance(head, Classifier) else None
        self._wake, self._forget = wake, forget
        self._streams: dict[str, int] = {}
        self._state: dict[str, Literal["asked", "there", "refused"]] = {}
        self._backend = ""
        self._seeker: Socket | None = None
        self._line: Socket | None = None
        self._monitor: Socket | None = None
        self._place: Place | None = None
        self._skipped: dict[str, float] = {}  # full replicas, and until when to skip them
        self._due_s = 0.0  # when to seek, to conclude that nobody answers, or to ask again
        self._pause_s = _SEEK_S[0]
        self._heard_s = self._pinged_s = 0.0
        self._open: list[Ticket] = []
        self._numbers: dict[int, tuple[Ticket, float]] = {}  # calls under way by number, and when they were sent
        self._number = 0
        self._strikes = 0
        self._told = ""  # the last warning about the link
        self._told_refused: set[str] = set()
        self.refusal: str | None = None  # why streams are refused, once that is certain
        self.counters: Counter[str] = Counter()
        self.times_ms: dict[str, deque[float]] = {name: deque(maxlen=_TIMES) for name in ("trip", "queue", "run")}

    # For the core

    def add(self, streams: Iterable[str]) -> None:
        """Let more streams ask for a place."""
        for name in streams:
            self._streams.setdefault(name, len(self._streams))
            if self._line is not None and name not in self._state:
                self._join(name)

    def leave(self, stream: str) -> None:
        """A stream has ended."""
        if self._line is not None and stream in self._state:
            self._post(wire.encode(Leave(self._streams[stream])))
        self._state.pop(stream, None)

    def submit(self, stream: str, call: Call) -> Ticket:
        """Submit a call."""
        ticket = Ticket(stream, call, time.monotonic())
        if not isinstance(call, Classify) and not (len(call.crops) or call.rows or call.pieces):
            nothing = Encoded(np.zeros((0, self._dims[1]), np.float32))
            ticket.settle(lambda: nothing)
        elif self._state.get(stream) == "there":
            self._open.append(ticket)
            self._send(ticket)
        elif self._local is not None:
            self._here(ticket)
        else:
            self._open.append(ticket)
        return ticket

    def hurry(self) -> None:
        """Answer all open calls locally, or give them up."""
        for ticket in self._open:
            self._fail(ticket, "the run ended before an answer came")
        self._open.clear()

    # For the loop

    def wait(self, tick: Callable[[], None], seconds: float) -> None:
        """At the start, wait until all streams have a place. Raises ClusterError if one is refused or nobody
        answers."""
        until_s = time.monotonic() + seconds
        while not self.settled or self.refusal is not None:
            if self.refusal is not None:
                raise ClusterError(self.refusal)
            if time.monotonic() > until_s:
                raise ClusterError(f"fusion.remote = {self._directory!r}: no networks answer there ({self._told})")
            tick()
            self.tick()
            time.sleep(0.01)

    @property
    def settled(self) -> bool:
        """Whether every stream has a place, or has been refused one."""
        return self._line is not None and all(self._state.get(name) in ("there", "refused") for name in self._streams)

    def patience_ms(self, most_ms: int) -> int:
        """How long a loop may wait before the next ``tick``."""
        if not self._open:
            return most_ms
        limit_s = GIVE_UP_S if self._local is None else PATIENCE_S
        left_s = min(ticket.at_s for ticket in self._open) + limit_s - time.monotonic()
        return max(0, min(most_ms, int(left_s * 1000) + 1))

    def tick(self) -> None:
        """Take what has arrived, and do what is due. Never waits."""
        self._read()
        now_s = time.monotonic()
        limit_s = GIVE_UP_S if self._local is None else PATIENCE_S
        for ticket in [each for each in self._open if not each.done and now_s - each.at_s >= limit_s]:
            if ticket.number is not None:
                self._strikes += 1
            self._fail(ticket, f"no answer from the networks at {self._directory} within {limit_s:g} s")
        self._open = [each for each in self._open if not each.done]
        if self._line is None:
            if now_s >= self._due_s:
                self._seek(now_s)
            return
        if self._strikes >= _STRIKES:
            self._lose(f"{_STRIKES} answers in a row did not come in time")
        elif now_s - self._heard_s > _SILENT_S:
            self._lose("it is silent")
        elif now_s >= self._due_s:
            if any(self._state.get(name) == "asked" for name in self._streams):
                self._lose("it does not let this box join")
            else:
                self._due_s = now_s + _AGAIN_S
                for name in [each for each, state in self._state.items() if state == "refused"]:
                    self._join(name)
        elif now_s - self._pinged_s > _PING_S:
            self._pinged_s = now_s
            self._post(wire.encode(Ping(0)))

    def close(self) -> None:
        """Leave, and log statistics."""
        for stream in list(self._state):
            self.leave(stream)
        self._close_line(100)
        self._close_seeker()
        there, here = self.counters["remote_calls"], self.counters["remote_here"]
        if there or here:
            trip, queue, run = (median(times) if times else 0.0 for times in self.times_ms.values())
            log.info(
                "networks at %s: %d calls answered there, %d done here; median round trip %.1f ms, of which %.1f in "
                "the queue and %.1f at work; %.1f kB sent, %.1f kB received",
                self._directory, there, here, trip, queue, run,
                self.counters["remote_bytes_sent"] / 1e3, self.counters["remote_bytes_received"] / 1e3,
            )  # fmt: skip

    # How

    def _here(self, ticket: Ticket) -> None:
        local = self._local
        assert local is not None
        self.counters["remote_here"] += 1
        ticket.settle(lambda: local.run(ticket.call))

    def _fail(self, ticket: Ticket, why: str) -> None:
        """An open call gets no remote answer."""
        if ticket.number is not None:
            self._numbers.pop(ticket.number, None)
        if ticket.done:
            return
        if self._local is not None:
            self._here(ticket)
            return
        self.counters["remote_given_up"] += 1

        def give_up() -> Encoded | list[Result]:
            raise GaveUp(why)

        ticket.settle(give_up)

    def _connect(self, endpoint: str, server: str) -> Socket:
        socket: Socket = self._context.socket(zmq.DEALER)
        for option, value in wire.CLIENT_OPTIONS.items():
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.curve_publickey, socket.curve_secretkey = self._pair.public.encode(), self._pair.secret.encode()
        socket.curve_serverkey = server.encode()
        socket.connect(endpoint)
        self._wake(socket)
        return socket

    def _seek(self, now_s: float) -> None:
        """Ask the directory. If this is called again, the directory has not answered in time."""
        if self._seeker is not None:
            self._close_seeker()
            self._tell(f"{self._directory} does not answer")
            self._due_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, _SEEK_S[1])
            return
        self._seeker = self._connect(self._directory, self._pair.server)
        self._seeker.send_multipart(wire.encode(wire.Where()), zmq.NOBLOCK)
        self._due_s = now_s + _ANSWER_S

    def _choose(self, places: list[Place]) -> None:
        """Join the replica with the most room."""
        self._close_seeker()
        now_s = time.monotonic()
        self._due_s, self._pause_s = now_s + self._pause_s, min(2 * self._pause_s, _SEEK_S[1])
        if not places:
            self._tell(f"{self._directory} has no replica at present")
            return
        free = [place for place in places if self._skipped.get(place.address, 0.0) <= now_s]
        if not free:  # all have refused: stay with one of them and ask again
            free = places
        place = max(free, key=lambda place: place.most - place.streams)
        try:
            self._line = self._connect(place.address, place.public)
        except (zmq.ZMQError, ValueError, UnicodeError):
            self._tell(f"{self._directory} names a replica that cannot be reached")
            return
        self._place = place
        self._monitor = self._line.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._wake(self._monitor)
        self._heard_s = now_s + _ANSWER_S  # it may be silent until then
        self._due_s = now_s + _ANSWER_S
        self._state.clear()
        self._strikes = 0
        for name in self._streams:
            self._join(name)

    def _join(self, name: str) -> None:
        self._state[name] = "asked"
        self._post(wire.encode(Join(self._streams[name], self._head.bundle_id)))

    def _send(self, ticket: Ticket) -> None:
        self._number += 1
        limit_s = GIVE_UP_S if self._local is None else PATIENCE_S
        budget_ms = max(0.0, (ticket.at_s + limit_s - time.monotonic()) * 1000)
        try:
            parts = wire.encode_call(ticket.call, self._streams[ticket.stream], self._number, budget_ms)
        except ValueError as error:
            self._fail(ticket, f"it is too large for the networks at {self._directory}: {error}")
            return
        ticket.number = self._number
        self._numbers[self._number] = ticket, time.monotonic()
        self._post(parts)

    def _post(self, parts: list[Any]) -> None:
        assert self._line is not None
        try:
            self._line.send_multipart(parts, zmq.NOBLOCK)
            self.counters["remote_bytes_sent"] += sum(memoryview(part).nbytes for part in parts)
        except zmq.Again:  # it does not read; waiting calls will time out
            self.counters["remote_not_sent"] += 1

    def _read(self) -> None:
        if self._seeker is not None and self._seeker.poll(0):
            message, _ = self._decode(self._seeker)
            if isinstance(message, Places):
                self._choose(message.places)
        while self._line is not None and self._line.poll(0):
            message, parts = self._decode(self._line)
            self._heard_s = max(self._heard_s, time.monotonic())
            if message is None:
                self._lose("it says what is no answer")
                return
            self._take(message, parts)
        if self._monitor is not None and self._monitor.poll(0):
            self._lose("the connection was closed")

    def _decode(self, socket: Socket) -> tuple[wire.ToBox | None, list[bytes]]:
        parts: list[bytes] = socket.recv_multipart()
        self.counters["remote_bytes_received"] += sum(map(len, parts))
        try:
            return wire.decode_to_box(parts[0]), parts[1:]
        except msgspec.DecodeError:
            return None, []

    def _take(self, message: wire.ToBox, parts: list[bytes]) -> None:
        names = {number: name for name, number in self._streams.items()}
        if isinstance(message, Answer):
            self._take_answer(message, parts)
        elif isinstance(message, Failed):
            ticket, _ = self._numbers.pop(message.number, (None, 0.0))
            if ticket is None or ticket.done:
                return
            self._tell(f"the networks at {self._directory} refuse a call: {wire.shortened(message.why)}")
            if message.rejoin:
                self._join(ticket.stream)
            if message.rejoin and self._local is None:
                ticket.number = None  # it will be sent again
            else:
                self._fail(ticket, wire.shortened(message.why))
        elif isinstance(message, Joined) and message.stream in names:
            self._joined(names[message.stream], wire.shortened(message.backend))
        elif isinstance(message, Refused) and message.stream in names:
            self._refused(names[message.stream], message)

    def _take_answer(self, message: Answer, parts: list[bytes]) -> None:
        ticket, sent_s = self._numbers.pop(message.number, (None, 0.0))
        if ticket is None or ticket.done:
            self.counters["remote_too_late"] += 1
            return
        head, call, backend = self._head, ticket.call, self._backend
        try:
            answer = wire.decode_answer(parts, call, self._dims, len(head.labels))
        except ValueError:
            self._lose("it says what is no answer")
            return
        self._strikes = 0
        self.counters["remote_calls"] += 1
        self.counters["remote_batched"] += message.batch > 1
        trip_ms = (time.monotonic() - sent_s) * 1000
        for name, value in (("trip", trip_ms), ("queue", message.queue_ms), ("run", message.run_ms)):
            self.times_ms[name].append(value)
        if isinstance(call, Classify) and isinstance(answer, np.ndarray):
            results = head.results(call, answer, backend)
            ticket.settle(lambda: results)
        elif isinstance(answer, Encoded):
            vectors = answer
            ticket.settle(lambda: vectors)

    def _joined(self, name: str, backend: str) -> None:
        self._state[name], self._backend = "there", backend
        self._told_refused.discard(name)
        self._pause_s = _SEEK_S[0]
        if self.settled:
            self._due_s = time.monotonic() + _AGAIN_S
            if self._told or not self.counters["remote_joined"]:
                log.info("the networks run at %s (%s)", self._directory, backend)
            self._told = ""
        self.counters["remote_joined"] += 1
        for ticket in self._open:
            if ticket.stream == name and ticket.number is None and not ticket.done:
                self._send(ticket)

    def _refused(self, name: str, refused: Refused) -> None:
        place, why = self._place, wire.shortened(refused.why)
        assert place is not None
        now_s = time.monotonic()
        self._state[name] = "refused"
        if refused.full and "there" not in self._state.values() and self._skipped.get(place.address, 0.0) <= now_s:
            self._skipped[place.address] = now_s + _AGAIN_S
            self._lose("", seek_in_s=0.0)  # another replica may have room
            return
        if self._local is None:
            self.refusal = f"{name}: refused by the networks at {self._directory}: {why}"
        elif name not in self._told_refused:
            log.warning("%s: refused by the networks at %s: %s; its labels are made here", name, self._directory, why)
            self._told_refused.add(name)
        if self.settled:
            self._due_s = now_s + _AGAIN_S

    def _lose(self, why: str, seek_in_s: float = 0.1) -> None:
        """The replica cannot be used any more. Its calls are done locally, or repeated with another replica."""
        self._close_line(0)
        self._state.clear()
        self._numbers.clear()
        self._strikes = 0
        if why:
            so = "labels are made here" if self._local is not None else "labels are late"
            self._tell(f"the networks at {self._directory} cannot be used: {why}; {so} until they can", about=why)
            self.counters["remote_lost"] += 1
        for ticket in self._open:
            if self._local is not None and not ticket.done:
                self._here(ticket)
            ticket.number = None
        self._open = [each for each in self._open if not each.done]
        self._due_s = time.monotonic() + seek_in_s

    def _close_line(self, linger_ms: int) -> None:
        if self._monitor is not None and self._line is not None:
            self._forget(self._monitor)
            self._line.disable_monitor()
            self._monitor.close(0)
        if self._line is not None:
            self._forget(self._line)
            self._line.close(linger_ms)
        self._line = self._monitor = None

    def _close_seeker(self) -> None:
        if self._seeker is not None:
            self._forget(self._seeker)
            self._seeker.close(0)
            self._seeker = None

    def _tell(self, text: str, about: str = "") -> None:
        """Warn, unless this was the last warning."""
        if self._told != (about or text):
            self._told = about or text
            log.warning(text)
