"""Subscribes to what a running pipeline publishes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from emostream.errors import ConfigError
from emostream.stream import listen_boxes
from emostream.stream.emotion import Emotion, decode_emotion
from emostream.stream.keys import KeyPair, read_client
from emostream.stream.status import Status, decode_status
from emostream.stream.topics import EMOTION, STATUS, STREAM_NAME, UTTERANCE, closed_topic, status_topic

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5556"

_M = TypeVar("_M")

_AGAIN_S = 1.0  # from a refusal to the next attempt, which ZeroMQ does not make by itself
_RESTART = 1000  # numbers begin at a later thousand where fusion was started again
_FAILURES = 3  # handshakes that end without a reason, until the user is told: one may be the end of a pipeline
_EVENTS = (
    zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
)  # fmt: skip


def listen(
    endpoint: str = DEFAULT_ENDPOINT,
    *,
    key: str | Path | None = None,
    config: str | Path | None = None,
    stream: str | None = None,
    estimates: bool = False,
    timeout_s: float | None = None,
) -> Iterator[Emotion]:
    """Yield each label that is published at ``endpoint``, from now on.

    ``endpoint``: ZeroMQ address of a running ``stream-run`` (its setting ``bus.emotion``); the pipeline may be started
    later, or again. ``key``: the key file of a client (``stream-keys new client``), for a pipeline on another machine;
    where the pipeline does not accept it, a warning says what to do, and it is tried again. ``stream``: of this stream
    alone. ``estimates``: yield the running estimates too (``kind == "window"``). ``timeout_s``: end after so many
    seconds without a message; by default never. Messages that are not emostream's are skipped with a warning, and one
    says how many labels did not come.

    To listen to many boxes, each with its ``stream-uplink``, give the address of a zenoh router,
    ``zenoh://HOST:PORT/SITE/BOX/STREAM``, or ``zenoh+tls://…`` if encrypted; names may be omitted from the end, and
    ``*`` matches any. Each ``Emotion`` then has ``site`` and ``box``. The last label of each stream comes first; no
    label comes twice. ``config``: a zenoh configuration file, for certificates. Boxes and the router may come and go,
    which is logged.

    Raises ConfigError if the address is not valid, a file cannot be used or the zenoh package is missing.
    """
    for _, emotion in listen_raw(
        endpoint, key=key, config=config, stream=stream, estimates=estimates, timeout_s=timeout_s
    ):
        yield emotion


def listen_raw(
    endpoint: str = DEFAULT_ENDPOINT,
    *,
    key: str | Path | None = None,
    config: str | Path | None = None,
    stream: str | None = None,
    estimates: bool = False,
    timeout_s: float | None = None,
) -> Iterator[tuple[bytes, Emotion]]:
    """As ``listen``, but yield each message's JSON besides: as it came, of a box with ``site`` and ``box``."""
    if _is_router(endpoint, key, config, stream):
        return listen_boxes.listen_labels(endpoint, config, estimates, timeout_s)
    topics: tuple[str, ...] = (EMOTION if estimates else UTTERANCE,)
    if stream is not None:
        topics = (closed_topic("utterance", stream), *([closed_topic("window", stream)] if estimates else []))
    return _messages(endpoint, topics, decode_emotion, key, timeout_s)


def listen_status(
    endpoint: str = DEFAULT_ENDPOINT,
    *,
    key: str | Path | None = None,
    config: str | Path | None = None,
    stream: str | None = None,
    timeout_s: float | None = None,
) -> Iterator[tuple[bytes, Status]]:
    """Yield each status of the run that publishes at ``endpoint``, once a second, and its JSON as it came; of boxes,
    each 10 s and where a state changes. Parameters and errors as ``listen``; with ``stream``, each status has that
    stream and its nodes alone, and none comes while the run has no such stream."""
    if _is_router(endpoint, key, config, stream):
        return listen_boxes.listen_statuses(endpoint, config, timeout_s)
    topic = STATUS if stream is None else status_topic(stream)
    return _messages(endpoint, (topic,), decode_status, key, timeout_s)


def listen_run(
    endpoint: str, *, key: str | Path | None, estimates: bool, silent_s: float
) -> Iterator[Emotion | Status | None]:
    """Yield all that the run at ``endpoint`` publishes: labels, running estimates if asked for, its status; and None
    whenever nothing came for ``silent_s``: the run is not there. Never ends. Parameters and errors as ``listen``."""
    gaps = _Gaps(endpoint)
    with _subscribe(endpoint, (EMOTION if estimates else UTTERANCE, STATUS), key) as subscriber:
        while True:
            parts = subscriber.receive(silent_s)
            if parts is None:
                yield None
                continue
            try:
                is_status = parts[0] == STATUS.encode()
                yield decode_status(parts[-1]) if is_status else gaps.seen(decode_emotion(parts[-1]))
            except msgspec.DecodeError as error:
                _skipped(endpoint, error)


def _is_router(endpoint: str, key: str | Path | None, config: str | Path | None, stream: str | None) -> bool:
    """Whether it is a zenoh router's. Raises ConfigError if something is given that is for the other kind of endpoint,
    or the stream's name cannot be one."""
    if stream is not None and not re.fullmatch(STREAM_NAME, stream):
        raise ConfigError(f"{stream!r} is not the name of a stream")
    is_router = listen_boxes.is_router(endpoint)
    if is_router and key is not None:
        raise ConfigError(f"{endpoint}: a key file is for tcp://; certificates are in a configuration of zenoh's")
    if is_router and stream is not None:
        raise ConfigError(f"{endpoint}: the stream is a part of the address, zenoh://HOST:PORT/SITE/BOX/{stream}")
    if config is not None and not is_router:
        raise ConfigError(f"{endpoint}: a configuration of zenoh's is for zenoh://")
    return is_router


def _messages(
    endpoint: str,
    topics: tuple[str, ...],
    decode: Callable[[bytes], _M],
    key: str | Path | None,
    timeout_s: float | None,
) -> Iterator[tuple[bytes, _M]]:
    gaps = _Gaps(endpoint)
    with _subscribe(endpoint, topics, key) as subscriber:
        while (parts := subscriber.receive(timeout_s)) is not None:
            try:
                message = decode(parts[-1])
                if isinstance(message, Emotion):
                    gaps.seen(message)
                yield parts[-1], message
            except msgspec.DecodeError as error:
                _skipped(endpoint, error)


def _skipped(endpoint: str, error: msgspec.DecodeError) -> None:
    log.warning("%s: skipped a message that is not emostream's (%s)", endpoint, error)


@contextmanager
def _subscribe(endpoint: str, topics: tuple[str, ...], key: str | Path | None) -> Iterator[_Subscriber]:
    if not (address := re.fullmatch(r"ipc://.+|tcp://[^:].*:(\d+)", endpoint)):
        raise ConfigError(f"{endpoint}: not a valid endpoint (it is tcp://HOST:PORT or ipc://PATH)")
    if address[1] and not 0 < int(address[1]) < 65536:
        raise ConfigError(f"{endpoint}: not a valid endpoint (ports are 1 to 65535)")
    pair = None if key is None else read_client(key)
    with zmq.Context() as context, closing(_Subscriber(context, endpoint, topics, pair)) as subscriber:
        yield subscriber


class _Gaps:
    """Says when labels of a run did not come: while the connection was away, or this program did not read them."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._run = endpoint, ""
        self._next: dict[str, int] = {}  # ``seq``, by topic

    def seen(self, emotion: Emotion) -> Emotion:
        """Take note of the next message, which is returned."""
        if emotion.run != self._run:
            self._run = emotion.run
            self._next.clear()
        expected = self._next.get(emotion.topic)
        self._next[emotion.topic] = emotion.seq + 1
        if expected is None or emotion.seq <= expected:
            return emotion
        missing, least = emotion.seq - expected, ""
        if emotion.seq // _RESTART >= (expected - 1) // _RESTART + 2:  # fusion was started again, at a later thousand
            missing, least = emotion.seq % _RESTART, "at least "
        if missing:
            what = "labels" if emotion.kind == "utterance" else "running estimates"
            log.warning("%s: %s%d %s of %s did not come", self._endpoint, least, missing, what, emotion.stream)
        return emotion


class _Subscriber:
    """A SUB socket and its monitor, since ZeroMQ itself does not report failed handshakes.

    Raises ConfigError if the address is not valid."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, topics: tuple[str, ...], pair: KeyPair | None
    ) -> None:
        self._context, self._endpoint, self._topics, self._pair = context, endpoint, topics, pair
        self._opened = 0
        self._failures = 0  # consecutive ones
        self._told: set[str] = set()  # warnings since the last successful handshake
        self._again_s: float | None = None  # when to connect again, if ZeroMQ does not
        self._open()

    def _open(self) -> None:
        self._opened += 1
        self._again_s = None
        self._socket = self._context.socket(zmq.SUB)
        self._monitor = self._context.socket(zmq.PAIR)
        try:
            for socket in (self._socket, self._monitor):
                socket.setsockopt(zmq.LINGER, 0)
            for topic in self._topics:
                self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
            self._socket.setsockopt(zmq.IPV6, int("[" in self._endpoint))
            if self._pair is not None:
                self._socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public.encode())
                self._socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode())
                self._socket.setsockopt(zmq.CURVE_SERVERKEY, self._pair.server.encode())
            monitor = f"inproc://monitor-{self._opened}"
            self._socket.monitor(monitor, int(_EVENTS))
            self._monitor.connect(monitor)
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"{self._endpoint}: not a valid endpoint ({error.strerror})") from error
        self._poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            self._poller.register(socket, zmq.POLLIN)

    def receive(self, timeout_s: float | None) -> list[bytes] | None:
        """The parts of the next message; None after ``timeout_s`` without one."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._again_s is not None and time.monotonic() >= self._again_s:
                self.close()
                self._open()
            times = [at_s for at_s in (end_s, self._again_s) if at_s is not None]
            wait_ms = max(0, int((min(times) - time.monotonic()) * 1000)) if times else None
            ready = dict(self._poller.poll(wait_ms))
            if self._monitor in ready:
                self._take_event(*self._monitor_event())
            if self._socket in ready:
                return self._socket.recv_multipart()
            if end_s is not None and time.monotonic() >= end_s:
                return None

    def _monitor_event(self) -> tuple[int, int]:
        event = parse_monitor_message(self._monitor.recv_multipart())
        return event["event"], event["value"]

    def _take_event(self, event: int, value: int) -> None:
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._failures = 0
            self._told.clear()
            return
        self._failures += 1
        if event == zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
            if self._failures < _FAILURES:
                return
            why = "it may need a key" if self._pair is None else "most likely the key file holds another pipeline's key"
            told = f"ends the connection before labels come; {why}: see stream-keys show there"
        elif event == zmq.Event.HANDSHAKE_FAILED_AUTH and self._pair is not None:
            told = f"does not allow this key; type there: stream-keys allow '{self._pair.public}' NAME"
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH and self._pair is None:
            told = "needs a key: see stream-keys new client, then stream-listen --key FILE"
        elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            told = "uses no keys, so it is not the pipeline that the key file names; or leave out --key"
        else:
            told = "did not end the handshake as ZeroMQ does; is it a stream-run?"
        if event != zmq.Event.HANDSHAKE_FAILED_NO_DETAIL:
            self._again_s = time.monotonic() + _AGAIN_S
        if told not in self._told:
            self._told.add(told)
            log.warning("%s %s", self._endpoint, told)

    def close(self) -> None:
        self._socket.close()
        self._monitor.close()
