"""Listens to boxes on a zenoh router, as ``listen`` does to one run."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from emostream.errors import BusError, ConfigError
from emostream.stream import boxes
from emostream.stream.boxes import Boxes, UplinkState, key, load_zenoh, site_and_box
from emostream.stream.emotion import Emotion, decode_public
from emostream.stream.status import Status

log = logging.getLogger(__name__)

_PART = rf"(?:{boxes.NAME}|\*)"
_ADDRESS = re.compile(
    rf"zenoh(?:\+(tcp|tls|quic|ws|wss))?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{{1,5}})"
    rf"(?:/({_PART})(?:/({_PART})(?:/({_PART}))?)?)?/?"
)
_WAITING = 10_000  # messages that wait to be read; beyond that, the oldest are dropped
_MOST_MARKS = 100_000
_ANSWER_S = 10.0  # how long a box may take to answer with its last values
_AGAIN_S = 2.0  # between two attempts to reach the router
_LOOK_S = 1.0


class BoxEmotion(Emotion, kw_only=True):
    """A label or running estimate from the box ``box`` at ``site``."""

    site: str
    box: str


class BoxStatus(Status, kw_only=True):
    """The status of a box's run."""

    site: str
    box: str


_M = TypeVar("_M", BoxEmotion, BoxStatus)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Address(NamedTuple):
    """``router``: in zenoh's notation; ``site``, ``box``, ``stream``: names, or ``*`` for all."""

    router: str
    site: str
    box: str
    stream: str


def is_router(endpoint: str) -> bool:
    """Whether an endpoint is meant to be a zenoh router's."""
    return endpoint.startswith(("zenoh:", "zenoh+"))


def parse_address(text: str) -> Address:
    """The parts of zenoh://HOST:PORT/SITE/BOX/STREAM; the last three are optional. Raises ConfigError."""
    match = _ADDRESS.fullmatch(text)
    if not match or not 0 < int(match[3]) < 65536:
        raise ConfigError(f"{text}: write it as zenoh+tls://HOST:PORT/SITE/BOX/STREAM or zenoh://…, names as you need")
    return Address(f"{match[1] or 'tcp'}/{match[2]}:{match[3]}", *(name or "*" for name in match.groups()[3:]))


def listen_labels(
    address: str, config: str | Path | None, estimates: bool, timeout_s: float | None
) -> Iterator[tuple[bytes, BoxEmotion]]:
    """Yield labels of the boxes at ``address``, and running estimates if asked for, each with its JSON plus ``site``
    and ``box``. The last label of each stream comes first; none comes twice, and those of a stream come in order. The
    log says which box appears, vanishes or has no run, and whether the router is there.

    ``config``: a zenoh configuration file; ``timeout_s``: end after this many seconds without a message. Raises
    ConfigError if the address or the file cannot be used, or the package is missing."""
    its = parse_address(address)
    kinds = ("utterance", "window") if estimates else ("utterance",)
    keys = [f"{its.stream}/{kind}" for kind in kinds]
    return _listen(address, its, keys, keys[:1], BoxEmotion, config, timeout_s)


def listen_statuses(
    address: str, config: str | Path | None, timeout_s: float | None
) -> Iterator[tuple[bytes, BoxStatus]]:
    """Yield each status of the boxes' runs; otherwise like ``listen_labels``."""
    return _listen(address, parse_address(address), ["status"], ["status"], BoxStatus, config, timeout_s)


def _listen(
    address: str, its: Address, keys: Sequence[str], lasting: Sequence[str], kind: type[_M],
    config: str | Path | None, timeout_s: float | None,
) -> Iterator[tuple[bytes, _M]]:  # fmt: skip
    session_config = boxes.make_session_config(None if config is None else Path(config), [its.router])
    end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    session = _open(address, session_config, end_s)
    if session is None:
        return
    decoder = msgspec.json.Decoder(kind)
    marks = _Marks()
    with session, contextlib.closing(_Inbox(address, session, its, keys, lasting)) as inbox:
        while (sample := inbox.receive(end_s)) is not None:
            name, content = sample
            try:
                site, box = site_and_box(name)
                message = _with_names(content, site, box)
                decoded = decode_public(decoder, message)
                if isinstance(decoded, Emotion) and not name.endswith(f"/{decoded.stream}/{decoded.kind}"):
                    raise ValueError("it is another stream's")
                is_new = marks.is_new(decoded)
            except (msgspec.DecodeError, ValueError, OverflowError) as error:
                log.warning("%s: skipped a message that is not emostream's (%s)", name, error)
                continue
            if is_new:
                yield message, decoded
                end_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s


def _open(address: str, config: Any, end_s: float) -> Any:
    """Open a session as soon as the router is there; None if ``end_s`` comes first."""
    told = False
    while True:
        try:
            return boxes.open_session(config)
        except BusError as error:
            if not told:
                log.warning("%s: cannot be reached, trying again (%s)", address, error)
            told = True
        if time.monotonic() >= end_s:
            return None
        time.sleep(max(0.0, min(_AGAIN_S, end_s - time.monotonic())))


def _with_names(content: bytes, site: str, box: str) -> bytes:
    """A message with its site and box added. Raises msgspec.DecodeError if it is not a JSON object."""
    return msgspec.json.encode(decode_public(_fields, content) | {"site": site, "box": box})


class _Marks:
    """The highest number received for each box, run and stream."""

    def __init__(self) -> None:
        self._marks: OrderedDict[tuple[str, ...], int] = OrderedDict()

    def is_new(self, message: BoxEmotion | BoxStatus) -> bool:
        if isinstance(message, BoxEmotion):
            mark: tuple[str, ...] = (message.site, message.box, message.run, message.stream, message.kind)
            number = message.seq
        else:
            mark, number = (message.site, message.box, message.run), message.published_ns
        if number <= self._marks.get(mark, -1):
            return False
        self._marks[mark] = number
        self._marks.move_to_end(mark)
        if len(self._marks) > _MOST_MARKS:
            self._marks.popitem(last=False)
        return True


class _Inbox:
    """Receives what boxes publish, and asks each box for its last values when it appears, even if it only reappears to
    this listener because the router was away. ``keys``: below a box's key; ``lasting``: those with a last value."""

    def __init__(
        self, address: str, session: Any, its: Address, keys: Sequence[str], lasting: Sequence[str]
    ) -> None:  # fmt: skip
        self._address, self._session, self._lasting = address, session, (*lasting, "uplink")
        self._boxes = Boxes()
        self._queue: queue.Queue[tuple[str, bytes]] = queue.Queue(_WAITING)
        self._dropped = self._told_dropped = 0
        self._is_there = True  # whether the router is
        self._next_look_s = 0.0
        alive = key(its.site, its.box, "alive")
        if not list(session.liveliness().get(alive, timeout=_ANSWER_S)):
            log.info("%s: no box is there yet; waiting", address)
        subscribers = [session.declare_subscriber(key(its.site, its.box, name), self._take) for name in keys]
        subscribers.append(session.declare_subscriber(key(its.site, its.box, "uplink"), self._take_state))
        subscribers.append(session.liveliness().declare_subscriber(alive, self._presence, history=True))
        self._subscribers = subscribers

    def receive(self, end_s: float) -> tuple[str, bytes] | None:
        """Key and content of the next message; None at ``end_s`` (monotonic time)."""
        while True:
            now_s = time.monotonic()
            if now_s >= self._next_look_s:
                self._look()
                self._next_look_s = now_s + _LOOK_S
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=max(0.0, min(end_s - now_s, _LOOK_S)))
            if time.monotonic() >= end_s:
                return None

    def close(self) -> None:
        for subscriber in self._subscribers:
            subscriber.undeclare()

    def _look(self) -> None:
        """Report if the router went away or messages were dropped."""
        is_there = bool(self._session.info.routers_zid() or self._session.info.peers_zid())
        if is_there != self._is_there:
            self._is_there = is_there
            log.warning("%s: %s", self._address, "is there again" if is_there else "went away; waiting")
        if (dropped := self._dropped) != self._told_dropped:
            log.warning("%d messages were dropped, the oldest: they come faster than they are read", dropped)
            self._told_dropped = dropped

    # called by zenoh's threads

    def _take(self, sample: Any) -> None:
        message = (str(sample.key_expr), sample.payload.to_bytes())
        while True:
            try:
                return self._queue.put_nowait(message)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
                    self._dropped += 1

    def _take_state(self, sample: Any) -> None:
        with contextlib.suppress(msgspec.DecodeError, ValueError):  # a box may send anything
            site, box = site_and_box(sample.key_expr)
            run_there = boxes.decode_state(sample.payload.to_bytes()).run_there
            self._tell(
                self._boxes.update(site, box, UplinkState(run_there=run_there))
            )  # the rest only concerns the box and its hub

    def _presence(self, sample: Any) -> None:
        """A box came or went."""
        is_there = sample.kind == load_zenoh().SampleKind.PUT
        with contextlib.suppress(ValueError):
            site, box = site_and_box(sample.key_expr)
            self._tell(self._boxes.presence(site, box, is_there))
            for name in self._lasting if is_there else ():
                # one query per box, since access control rejects queries wider than a box's keys
                self._session.get(key(site, box, name), self._take_reply, timeout=_ANSWER_S)

    def _take_reply(self, reply: Any) -> None:
        if reply.ok is not None:
            (self._take_state if str(reply.ok.key_expr).endswith("/uplink") else self._take)(reply.ok)

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            log.info("%s", line)
