"""Subscribing to what a running pipeline publishes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import msgspec
import zmq

from emostream.errors import ConfigError
from emostream.stream.messages import Emotion, decode_emotion
from emostream.stream.status import Status, decode_status
from emostream.stream.topics import EMOTION, STATUS, UTTERANCE

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5556"

_M = TypeVar("_M")


def listen(
    endpoint: str = DEFAULT_ENDPOINT, *, estimates: bool = False, timeout_s: float | None = None
) -> Iterator[Emotion]:
    """Yield each label that is published at ``endpoint``, from now on.

    ``endpoint``: ZeroMQ address of a running ``stream-run`` (its setting ``bus.emotion``); the pipeline may be started
    later, or again. ``estimates``: yield the running estimates too (``kind == "window"``). ``timeout_s``: end after so
    many seconds without a message; by default never. Messages that are not emostream's are skipped with a warning.

    Raises ConfigError if the address is not valid.
    """
    for _, emotion in listen_raw(endpoint, estimates=estimates, timeout_s=timeout_s):
        yield emotion


def listen_raw(
    endpoint: str = DEFAULT_ENDPOINT, *, estimates: bool = False, timeout_s: float | None = None
) -> Iterator[tuple[bytes, Emotion]]:
    """As ``listen``, but yield each message's JSON as it came besides."""
    return _messages(endpoint, EMOTION if estimates else UTTERANCE, decode_emotion, timeout_s)


def listen_status(
    endpoint: str = DEFAULT_ENDPOINT, *, timeout_s: float | None = None
) -> Iterator[tuple[bytes, Status]]:
    """Yield each status of the run that publishes at ``endpoint``, once a second, and its JSON as it came. Parameters
    and errors as ``listen``."""
    return _messages(endpoint, STATUS, decode_status, timeout_s)


def _messages(
    endpoint: str, topic: str, decode: Callable[[bytes], _M], timeout_s: float | None
) -> Iterator[tuple[bytes, _M]]:
    if not (address := re.fullmatch(r"ipc://.+|tcp://[^:].*:(\d+)", endpoint)):
        raise ConfigError(f"{endpoint}: not a valid endpoint (it is tcp://HOST:PORT or ipc://PATH)")
    if address[1] and not 0 < int(address[1]) < 65536:
        raise ConfigError(f"{endpoint}: not a valid endpoint (ports are 1 to 65535)")
    with zmq.Context() as context, closing(context.socket(zmq.SUB)) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"{endpoint}: not a valid endpoint ({error.strerror})") from error
        while socket.poll(None if timeout_s is None else int(timeout_s * 1000)):
            payload = socket.recv_multipart()[-1]
            try:
                yield payload, decode(payload)
            except msgspec.DecodeError as error:
                log.warning("%s: skipped a message that is not emostream's (%s)", endpoint, error)
