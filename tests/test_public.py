"""stream/public.py and stream/gate.py: the public socket, open on this machine and with keys."""

from __future__ import annotations

import json
import logging
import socket as sockets
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import zmq

from emostream.errors import ConfigError
from emostream.stream.gate import FAILED, REFUSED, Gate
from emostream.stream.keys import KeyPair, Keys
from emostream.stream.listen import listen
from emostream.stream.public import EmotionPublisher
from tests.emotions import emotion_message
from tests.processes import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def _until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


class Place:
    """Where labels are published, and the sockets of its clients."""

    def __init__(self, context: zmq.Context, endpoint: str, keys: Keys | None = None) -> None:
        self.context, self.endpoint, self.keys = context, endpoint, keys

    def publisher(self, **options: Any) -> EmotionPublisher:
        return EmotionPublisher(self.context, self.endpoint, keys=self.keys, **options)

    def connect(self, kind: int, pair: KeyPair | None = None, **options: int) -> zmq.Socket:
        socket = self.context.socket(kind)
        socket.linger, socket.reconnect_ivl = 0, 20
        for name, value in options.items():
            setattr(socket, name, value)
        if self.keys is not None:
            pair = pair or self.keys.new_client(self.keys.need_server("").public)
            socket.curve_publickey, socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
            socket.curve_serverkey = pair.server.encode()
        socket.connect(self.endpoint)
        return socket


@pytest.fixture
def keyed(context, tmp_path) -> Place:
    """With keys, although on loopback, which does not require them."""
    keys = Keys(str(tmp_path / "keys"))
    server = keys.new_server()
    keys.allow(keys.new_client(server.public).public, "friend")
    return Place(context, f"tcp://127.0.0.1:{free_port()}", keys)


@pytest.fixture(params=["open", "keys"])
def place(request, context) -> Place:
    if request.param == "keys":
        return request.getfixturevalue("keyed")
    return Place(context, f"tcp://127.0.0.1:{free_port()}")


# What holds with and without keys


def test_any_program_can_read_the_labels(place):
    with closing(place.publisher()) as publisher:
        stranger = place.connect(zmq.SUB)
        stranger.subscribe(b"emotion.")
        _until(lambda: publisher.tick() or publisher.requests)
        publisher.send(emotion_message(seq=5))
        assert publisher.forward("emotion.other", b"{}")
        topic, data = stranger.recv_multipart()
        assert topic == b"emotion.utterance.a"
        assert json.loads(data)["seq"] == 5
        assert stranger.recv_multipart() == [b"emotion.other", b"{}"]


@pytest.mark.parametrize("request_", [b"", b"\1\xff\xfe", b"\0\xff", b"\7what", b"hello", b"x" * 2000])
def test_a_stranger_who_writes_nonsense_harms_nobody(place, request_):
    with closing(place.publisher()) as publisher:
        place.connect(zmq.XSUB).send(request_)
        reader = place.connect(zmq.SUB)
        reader.subscribe(b"emotion.")
        _until(lambda: publisher.tick() or publisher.requests >= 1)
        _until(lambda: publisher.send(emotion_message(seq=0)) and reader.poll(10))


def test_a_stranger_who_does_not_read_delays_nobody(place):
    with closing(place.publisher()) as publisher:
        stranger = place.connect(zmq.SUB, rcvhwm=10)
        stranger.subscribe(b"emotion.")
        _until(lambda: publisher.tick() or publisher.requests)
        begun = time.monotonic()
        for n in range(10_000):  # more than the kernel's buffers hold
            publisher.send(emotion_message(seq=n))
        assert time.monotonic() - begun < 5
        received = 0
        while stranger.poll(10):
            stranger.recv_multipart()
            received += 1
        assert 10 <= received < 10_000


def test_after_very_many_subscriptions_all_are_closed_and_come_again(place, monkeypatch):
    monkeypatch.setattr("emostream.stream.public._MOST_REQUESTS", 5)
    with closing(place.publisher()) as publisher:
        reader, stranger = place.connect(zmq.SUB), place.connect(zmq.XSUB)
        reader.subscribe(b"emotion.")
        for n in range(20):
            stranger.send(b"\1x%d" % n)
        _until(lambda: publisher.tick() or publisher.counters["subscribers_closed"])
        stranger.close(linger=0)
        _until(lambda: publisher.send(emotion_message(seq=1)) and reader.poll(20))


def test_labels_that_nobody_can_get_are_counted_until_the_port_is_free(place):
    with zmq.Context() as other, other.socket(zmq.PUB) as taken:
        taken.bind(place.endpoint)
        publisher = place.publisher(required=False)
        publisher.send(emotion_message(seq=0))
        assert publisher.counters["not_published"] == 1

    def published() -> bool:
        before = publisher.counters["not_published"]
        publisher.send(emotion_message(seq=1))
        return publisher.counters["not_published"] == before

    _until(published)
    publisher.close()


def test_the_last_label_arrives_though_the_publisher_ends(place):
    publisher = place.publisher()
    reader = place.connect(zmq.SUB)
    reader.subscribe(b"emotion.")
    _until(lambda: publisher.tick() or publisher.requests)
    for n in range(50):
        publisher.send(emotion_message(seq=n))
    publisher.close()
    numbers = [json.loads(reader.recv_multipart()[1])["seq"] for _ in range(50) if reader.poll(1000)]
    assert numbers == list(range(50))


# Who is let in


def _published(publisher: EmotionPublisher) -> threading.Event:
    """Publish in a thread, until the event is set."""
    stop = threading.Event()

    def publish() -> None:
        n = 0
        while not stop.wait(0.01):
            publisher.send(emotion_message(seq=(n := n + 1)))

    threading.Thread(target=publish, daemon=True).start()
    return stop


@pytest.fixture
def labels(keyed) -> Iterator[EmotionPublisher]:
    """Labels come every 10 ms."""
    publisher = keyed.publisher()
    stop = _published(publisher)
    yield publisher
    stop.set()
    time.sleep(0.05)
    publisher.close()


def _hear(place: Place, key=None, timeout_s: float = 0.7) -> int | None:
    """Number of the first label that a listener hears, if it hears one."""
    emotion = next(listen(place.endpoint, key=key, timeout_s=timeout_s), None)
    return emotion and emotion.seq


def _client(folder, server: str) -> Keys:
    keys = Keys(str(folder))
    keys.new_client(server)
    return keys


def test_only_who_is_allowed_hears_and_everybody_else_is_told_why(keyed, labels, tmp_path, caplog):
    server = keyed.keys.need_server("").public
    stranger = _client(tmp_path / "stranger", server)
    misled = _client(tmp_path / "misled", stranger.new_server().public)
    assert _hear(keyed, keyed.keys.client_file, 5) is not None

    caplog.clear()
    assert _hear(keyed, stranger.client_file) is None
    key = stranger.new_client(server).public
    assert f"stream-keys allow '{key}' NAME" in caplog.text
    assert f"{keyed.endpoint} does not allow this key" in caplog.text and "127.0.0.1 was not let in" in caplog.text
    assert labels.counters[REFUSED] == 1 and labels.counters[FAILED] == 0

    caplog.clear()
    assert _hear(keyed, misled.client_file) is None
    assert "most likely the key file holds another pipeline's key" in caplog.text
    assert "was not let in to the labels: it has the public key of another pipeline" in caplog.text
    failed = labels.counters[FAILED]
    assert failed >= 3 and labels.counters[REFUSED] == 1

    caplog.clear()
    assert _hear(keyed) is None
    assert "needs a key" in caplog.text or "may need a key" in caplog.text
    assert labels.counters[FAILED] > failed
    assert keyed.keys.need_server("").secret not in caplog.text

    assert _hear(keyed, keyed.keys.client_file, 5) is not None


def test_a_key_is_of_no_use_for_an_open_pipeline(context, tmp_path, caplog):
    place = Place(context, f"tcp://127.0.0.1:{free_port()}")
    client = _client(tmp_path, Keys(str(tmp_path / "server")).new_server().public)
    with closing(place.publisher()) as publisher:
        stop = _published(publisher)
        assert _hear(place, client.client_file) is None
        stop.set()
        time.sleep(0.05)
    assert "uses no keys" in caplog.text or "another pipeline's key" in caplog.text


def test_who_is_allowed_later_hears_and_who_is_revoked_does_not(keyed, labels, tmp_path, caplog):
    late = _client(tmp_path / "late", keyed.keys.need_server("").public)
    heard = listen(keyed.endpoint, key=late.client_file, timeout_s=5)
    friend = listen(keyed.endpoint, key=keyed.keys.client_file, timeout_s=5)
    next(friend)
    threading.Timer(0.3, keyed.keys.allow, (late.new_client(keyed.keys.need_server("").public).public, "late")).start()
    assert next(heard).label  # in less than 5 s
    assert "does not allow this key" in caplog.text and "was revoked" not in caplog.text

    keyed.keys.revoke("late")
    _until(lambda: "a key was revoked" in caplog.text)
    revoked = time.monotonic()
    last = labels.requests
    _until(lambda: labels.requests > last or labels.requests == 1)  # the friend is back
    assert time.monotonic() - revoked < 2
    now = next(emotion.seq for emotion in friend if time.monotonic() > revoked + 0.3)
    left = [emotion.seq for emotion in listen_on(heard, 1.0)]
    assert all(seq < now for seq in left)  # only what had arrived before


def listen_on(labels: Iterator[Any], seconds: float) -> list[Any]:
    """The labels that come within this many seconds."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(labels), daemon=True)
    thread.start()
    time.sleep(seconds)
    return list(got)


def test_a_change_of_the_list_that_concerns_nobody_disconnects_nobody(keyed, labels, caplog, monkeypatch):
    monkeypatch.setattr("emostream.stream.public._LOOK_S", 0.05)
    reader = keyed.connect(zmq.SUB)
    reader.subscribe(b"emotion.")
    assert reader.poll(5000)
    other = zmq.curve_keypair()[0].decode()
    keyed.keys.allow(other, "other")
    time.sleep(0.15)
    keyed.keys.revoke("other")
    time.sleep(0.15)
    numbers = [json.loads(reader.recv_multipart()[1])["seq"] for _ in range(20)]
    assert numbers == list(range(numbers[0], numbers[0] + 20))
    assert "revoked" not in caplog.text


def test_a_list_that_cannot_be_used_leaves_those_allowed_before(keyed, labels, caplog, monkeypatch):
    monkeypatch.setattr("emostream.stream.public._LOOK_S", 0.05)
    keyed.keys.allowed_file.write_text("nonsense")
    _until(lambda: "the keys allowed before still are" in caplog.text)
    assert _hear(keyed, keyed.keys.client_file, 5) is not None
    keyed.keys.allowed_file.unlink()
    _until(lambda: "a key was revoked" in caplog.text)
    assert _hear(keyed, keyed.keys.client_file) is None


def test_one_peer_is_told_of_once_a_minute_and_counted_each_time(keyed, labels, tmp_path, caplog):
    """Several peers with one address, for each kind of failure."""
    for n in range(3):
        stranger = _client(tmp_path / str(n), keyed.keys.need_server("").public)
        pair = stranger.new_client(keyed.keys.need_server("").public)
        before = labels.counters[REFUSED]
        socket = keyed.connect(zmq.SUB, pair)
        _until(lambda before=before: labels.counters[REFUSED] > before)
        socket.close()
    said = [record for record in caplog.records if "its key is not allowed" in record.message]
    assert len(said) == 1 and said[0].levelno == logging.WARNING
    assert labels.counters[REFUSED] >= 3  # a client that is closed late has tried again


def test_the_peers_that_are_told_of_are_limited(keyed, caplog, monkeypatch):
    monkeypatch.setattr("emostream.stream.gate._MOST_PEERS", 3)
    with closing(keyed.publisher()) as publisher:
        for n in range(10):
            publisher._gate._refuse(FAILED, f"10.0.0.{n}", "x")
        assert caplog.text.count("was not let in") == 3 and publisher.counters[FAILED] == 10
        monkeypatch.setattr("emostream.stream.gate._QUIET_S", 0.0)
        publisher._gate._refuse(FAILED, "10.0.0.1", "x")
        assert caplog.text.count("was not let in") == 4


class Recorder:
    """Forwards one connection and keeps what the client sends."""

    def __init__(self, to: int) -> None:
        self.sent = b""
        self._listener = sockets.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._to = to
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = sockets.create_connection(("127.0.0.1", self._to))

        def forward() -> None:
            while data := server.recv(65536):
                client.sendall(data)

        threading.Thread(target=forward, daemon=True).start()
        while data := client.recv(65536):
            self.sent += data
            server.sendall(data)
        server.shutdown(sockets.SHUT_RDWR)


def test_recorded_bytes_are_of_no_use_and_hold_no_label(keyed, labels, caplog):
    port = int(keyed.endpoint.rpartition(":")[2])
    recorder = Recorder(port)
    place = Place(keyed.context, f"tcp://127.0.0.1:{recorder.port}", keyed.keys)
    reader = place.connect(zmq.SUB)
    reader.subscribe(b"emotion.")
    assert reader.poll(5000)
    reader.close()
    assert len(recorder.sent) > 500 and b"emotion" not in recorder.sent
    before, got = labels.counters[FAILED], b""
    with sockets.create_connection(("127.0.0.1", port)) as replay:
        replay.sendall(recorder.sent)
        replay.settimeout(3)
        try:
            while data := replay.recv(65536):
                got += data
        except ConnectionResetError:
            pass
    assert len(got) < 500 and b"joy" not in got  # greeting and the answer to the first command
    _until(lambda: labels.counters[FAILED] > before)


def test_labels_travel_encrypted(keyed, labels):
    """A man in the middle can read nothing of a label."""
    port = int(keyed.endpoint.rpartition(":")[2])
    passed = bytearray()

    class Spy(Recorder):
        def _serve(self) -> None:
            client, _ = self._listener.accept()
            server = sockets.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=lambda: [server.sendall(d) for d in iter(lambda: client.recv(9999), b"")]).start()
            for data in iter(lambda: server.recv(65536), b""):
                passed.extend(data)
                client.sendall(data)

    place = Place(keyed.context, f"tcp://127.0.0.1:{Spy(port).port}", keyed.keys)
    reader = place.connect(zmq.SUB)
    reader.subscribe(b"emotion.")
    assert reader.poll(5000)
    _, body = reader.recv_multipart()
    reader.close()
    assert b"probabilities" in body and len(passed) > len(body)
    assert b"probabilities" not in passed and b"emotion" not in passed


@pytest.mark.parametrize("bytes_", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\0" * 8 + b"\x7f\3", b"\0" * 5000])
def test_who_speaks_no_zeromq_harms_nobody(keyed, labels, bytes_):
    with sockets.create_connection(("127.0.0.1", int(keyed.endpoint.rpartition(":")[2]))) as stranger:
        stranger.sendall(bytes_)
        time.sleep(0.02)
    assert _hear(keyed, keyed.keys.client_file, 5) is not None


def test_without_the_gates_thread_nobody_gets_in(keyed, monkeypatch):
    monkeypatch.setattr(Gate, "_run", lambda gate: gate._zap.close())
    with closing(keyed.publisher()) as publisher:
        stop = _published(publisher)
        assert _hear(keyed, keyed.keys.client_file) is None
        stop.set()
        time.sleep(0.05)


def test_keys_that_cannot_be_used_are_an_error(keyed):
    keyed.keys.server_file.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read it"):
        keyed.publisher()
    keyed.keys.server_file.unlink()
    with pytest.raises(ConfigError, match="needs keys"):
        keyed.publisher()


def test_a_gated_publisher_that_cannot_be_bound_leaves_no_thread(keyed):
    before = threading.active_count()
    with zmq.Context() as other, other.socket(zmq.PUB) as taken:
        taken.bind(keyed.endpoint)
        publisher = keyed.publisher(required=False)
        for _ in range(3):
            time.sleep(0.06)
            publisher.tick()
        assert threading.active_count() == before
        publisher.close()
