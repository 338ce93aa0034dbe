"""Browsers that stop reading, on real sockets with the page's own server: what they cost."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from websockets.sync.client import connect

from emostream.stream.config import Page
from emostream.stream.emotion import encode_emotion
from emostream.stream.messages import Picture
from emostream.stream.nodes import page as node
from emostream.stream.page import server
from emostream.stream.page.state import PageState
from tests.emotions import emotion_message
from tests.processes import free_port, patience

TOKEN = "a-token-of-16-letters"
_JPEG = np.random.default_rng(0).integers(0, 255, 75_000, np.uint8)  # 100 kB as it is sent
_PERIOD_S = 0.01


class Feed:
    """A run that goes on: estimates with a number and a picture, a hundred times a second."""

    def __init__(self, state: PageState) -> None:
        self.state, self.number, self._stop = state, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self.number += 1
            self.state.add(encode_emotion(emotion_message(kind="window", seq=self.number)).decode())
            picture = Picture(
                stream="a", media_start_ns=0, media_end_ns=0, captured_ns=0, jpeg=_JPEG, width=64, height=48
            )
            self.state.show(picture)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def served(monkeypatch) -> Iterator[tuple[int, PageState]]:
    """The page's server on a free port, ten times as fast as usual, with 500 labels."""
    monkeypatch.setattr(server, "PERIOD_S", _PERIOD_S)
    state, port = PageState(), free_port()
    for number in range(500):
        state.add(encode_emotion(emotion_message(utterance=number)).decode())
    page = Page(port=port, token=TOKEN)
    with node._served(server.make_app(state, TOKEN, node._hosts(page, []), None), page, None):
        yield port, state


def stalled(port: int, path: str = "ws?format=page") -> socket.socket:
    """A browser that has opened the page's socket and reads no more than the handshake."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    client.settimeout(patience(10))
    client.connect(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        f"GET /{TOKEN}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert b" 101 " in answer.splitlines()[0]
    return client


def numbers(client: socket.socket, until: int) -> list[int]:
    """Read frames until an estimate of this number or a later one; the numbers of all estimates."""
    seen: list[int] = []
    with client.makefile("rb") as stream:
        while not seen or seen[-1] < until:
            kind, length = stream.read(2)
            if length >= 126:
                length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
            content = stream.read(length)
            if kind & 15 == 1:
                seen += [window["seq"] for window in json.loads(content)["windows"]]
    return seen


def watched(port: int, for_s: float) -> tuple[list[int], float]:
    """What a browser sees that reads: the numbers of the estimates, and the longest wait for a message in seconds."""
    seen, longest_s = [], 0.0
    with connect(f"ws://127.0.0.1:{port}/{TOKEN}/ws?format=page", max_size=None, compression=None) as client:
        begun = last = time.monotonic()
        while last < begun + for_s:
            seen += [window["seq"] for window in json.loads(client.recv(timeout=patience(10)))["windows"]]
            longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
    return seen, longest_s


@pytest.mark.process
def test_browsers_that_stop_reading_cost_nobody_anything_and_get_the_newest_afterwards(served):
    port, state = served
    with Feed(state) as feed:
        clients = [stalled(port) for _ in range(5)]
        watched(port, 0.3)  # buffers are full by then, and the allocator has what it wants
        before, begun = psutil.Process().memory_info().rss, feed.number
        seen, longest_s = watched(port, 2.0)
        grown = psutil.Process().memory_info().rss - before
        sent = feed.number - begun
        assert grown < 10e6 < 5 * sent * 100_000, (grown, sent)  # a queue for each would hold that
        assert len(seen) > sent / 4 and longest_s < patience(1.0), (len(seen), sent, longest_s)
        now = feed.number
        late = numbers(clients[0], now)  # goes on reading: what was in its buffer, then the newest
        assert len([number for number in late if number < now]) < sent / 2, late
        for client in clients:
            client.close()
    until = time.monotonic() + patience(5)
    while state.viewers:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.process
def test_a_browser_that_stays_away_is_let_go(monkeypatch):
    monkeypatch.setattr(node, "_PING_S", 0.2)
    state, port = PageState(), free_port()
    page = Page(port=port, token=TOKEN)
    app = server.make_app(state, TOKEN, node._hosts(page, []), None)
    with node._served(app, page, None), Feed(state), stalled(port):
        until = time.monotonic() + patience(5)
        while not state.viewers:
            assert time.monotonic() < until
        while state.viewers:
            assert time.monotonic() < until
            time.sleep(0.01)
