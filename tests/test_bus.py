"""stream/bus.py"""

from __future__ import annotations

import socket as sockets
import threading
import time
from contextlib import closing

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.errors import BusError
from emostream.stream.bus import Inbox, Publisher, bind
from emostream.stream.clock import VirtualClock
from emostream.stream.messages import Codec, End, Message, Pcm, SpeechEvent
from emostream.stream.public import EmotionPublisher
from emostream.stream.run_folder import ipc
from tests.emotions import emotion_message

_SPAN = {"stream": "a", "media_start_ns": 0, "media_end_ns": 0, "captured_ns": 0}
TOPICS = ["pcm.a", "speech.a"]


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def _pcm(n: int = 0) -> Pcm:
    return Pcm(**_SPAN, samples=np.full(4, n, np.int16))


def _said(n: int = 0) -> SpeechEvent:
    return SpeechEvent(**_SPAN, event="words", utterance=n)


def _end() -> End:
    return End(stream="a", content="pcm", reason="over")


def _until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def _join(context, endpoint="inproc://node", *, queue=1000, capacity=1000, lossless=False, topics=TOPICS, clock=None):
    """A publisher and an inbox that has subscribed to it."""
    publisher = Publisher(context, endpoint, clock or VirtualClock(), queue, lossless)
    inbox = Inbox(context, capacity, lossless)
    inbox.connect(endpoint, topics)
    _until(lambda: publisher.has_subscribers(topics))
    return publisher, inbox


def _all(inbox: Inbox, timeout_ms: float = 50) -> list[Message]:
    """All messages that have arrived."""
    return list(iter(lambda: inbox.receive(timeout_ms), None))


# Sequence numbers and gaps


def test_each_topic_is_numbered_without_gaps_and_stamped(short_path, context):
    clock = VirtualClock(1000)
    publisher, inbox = _join(context, ipc(short_path, "audio.a"), clock=clock)
    for n in range(20):
        assert publisher.send(_pcm(n))
        if n % 3 == 0:
            assert publisher.send(_said(n))
        clock.advance_ns(1)
    received = _all(inbox)
    sounds = [message for message in received if isinstance(message, Pcm)]
    said = [message for message in received if isinstance(message, SpeechEvent)]
    assert [message.seq for message in sounds] == list(range(20))
    assert [message.seq for message in said] == list(range(7))
    assert [message.sent_ns for message in sounds] == list(range(1000, 1020))
    assert [message.samples.tolist() for message in sounds] == [[n] * 4 for n in range(20)]
    assert not inbox.missed and not inbox.dropped


def test_only_subscribed_topics_arrive(context):
    publisher, inbox = _join(context, topics=["speech.a"])
    publisher.send(_pcm())
    publisher.send(_said())
    assert [type(message) for message in _all(inbox)] == [SpeechEvent]


def _raw(context) -> tuple[zmq.Socket, Inbox]:
    """A socket to send anything on, and an inbox."""
    socket = context.socket(zmq.XPUB)
    socket.bind("inproc://raw")
    inbox = Inbox(context, 1000, False)
    inbox.connect("inproc://raw", TOPICS)
    for _ in TOPICS:
        assert socket.poll(5000)
        socket.recv()
    return socket, inbox


def _send_numbered(socket: zmq.Socket, seqs: list[int]) -> None:
    for seq in seqs:
        message = _pcm()
        message.seq = seq
        socket.send_multipart([b"pcm.a", *Codec().encode(message)])


@pytest.mark.parametrize(
    ("seqs", "missed"),
    [
        ([0, 1, 2, 3], 0),
        ([0, 1, 4, 5], 2),
        ([0, 2, 4, 10], 7),
        ([7, 8], 0),  # subscribed late: earlier messages are not missed
        ([5, 6, 0, 1], 0),  # the publisher was restarted
        ([5, 6, 0, 3], 2),
    ],
)
def test_gaps_are_counted_and_nothing_else_is_lost(context, seqs, missed):
    socket, inbox = _raw(context)
    _send_numbered(socket, seqs)
    assert [message.seq for message in _all(inbox)] == seqs
    assert inbox.missed["pcm.a"] == missed


def test_losses_of_a_full_queue_are_gaps(context):
    publisher, inbox = _join(context, queue=8, capacity=8)
    for n in range(100):
        assert publisher.send(_pcm(n))  # never waits
    received = _all(inbox)
    assert publisher.send(_pcm(100))
    received += _all(inbox)
    assert 8 <= len(received) < 100
    assert received[-1].seq == 100
    assert len(received) + inbox.missed["pcm.a"] + inbox.dropped["pcm.a"] == 101


@pytest.mark.parametrize(
    "parts",
    [
        [b"pcm.a", b"\xff\x00 not msgpack"],
        [b"pcm.a", b""],
        [b"pcm.a", bytes(Codec().encode(_pcm())[0])],  # its array is missing
        [b"pcm.a", *[bytes(part) for part in Codec().encode(_pcm())[:1]], b"odd"],
        [b"pcm.a"],
        [b"pcm.a\xff", b""],
        [b"pcm.a", b"\x81\xa4type\xa1\xff"],
    ],
)
def test_an_invalid_message_is_counted_and_skipped(context, parts):
    socket, inbox = _raw(context)
    _send_numbered(socket, [0])
    socket.send_multipart(parts)
    _send_numbered(socket, [1])
    assert [message.seq for message in _all(inbox)] == [0, 1]
    assert inbox.missed.total() == 1


# Real-time pace: a full queue drops the oldest


def test_a_full_queue_keeps_the_newest_sound_and_all_speech_events(context):
    publisher, inbox = _join(context, capacity=8)
    for n in range(4):
        publisher.send(_said(n))
        publisher.send(_pcm(n))
    assert inbox.receive(1000).utterance == 0  # reads all eight into the inbox
    for n in range(4, 8):
        publisher.send(_pcm(n))
    publisher.send(_end())
    received = _all(inbox)
    assert [message.utterance for message in received if isinstance(message, SpeechEvent)] == [1, 2, 3]
    assert [message.samples[0] for message in received if isinstance(message, Pcm)] == [4, 5, 6, 7]
    assert isinstance(received[-1], End)
    assert inbox.dropped == {"pcm.a": 4}
    assert not inbox.missed


@settings(max_examples=40)
@given(st.lists(st.tuples(st.lists(st.booleans(), max_size=20), st.integers(0, 6)), max_size=6))
def test_speech_events_and_order_are_kept_whenever_messages_come(rounds):
    """Rounds of sending (True: a speech event, False: sound) and of reading some."""
    with zmq.Context() as context:
        publisher, inbox = _join(context, capacity=8)
        sent, received = [], []
        for kinds, reads in rounds:
            for is_said in kinds:
                message = _said(len(sent)) if is_said else _pcm(len(sent))
                publisher.send(message)
                sent.append(message)
            received += [message for _ in range(reads) if (message := inbox.receive(0)) is not None]
            assert len(inbox) <= max(8, sum(isinstance(message, SpeechEvent) for message in sent))
        received += _all(inbox, 2)
        publisher.close()
        inbox.close()

    def number(message):
        return message.utterance if isinstance(message, SpeechEvent) else int(message.samples[0])

    numbers = [number(message) for message in received]
    assert numbers == sorted(set(numbers))
    assert [m.utterance for m in received if isinstance(m, SpeechEvent)] == [
        m.utterance for m in sent if isinstance(m, SpeechEvent)
    ]
    assert len(sent) - len(received) == inbox.dropped.total()
    assert not inbox.missed


# Fast pace: nothing is lost


@pytest.mark.slow
def test_a_publisher_waits_for_a_subscriber_that_does_not_read(context):
    publisher, inbox = _join(context, queue=8, capacity=8, lossless=True)
    accepted = 0
    while publisher.send(_pcm(accepted)):
        accepted += 1
        assert accepted < 100, "never waits"
    assert 8 <= accepted <= 32

    begun = time.monotonic()
    assert not publisher.send(_pcm(accepted))  # still full; it returns so that the node can check whether to stop
    assert 0.05 < time.monotonic() - begun < 1.0

    received = []
    for n in range(accepted, 80):
        while not publisher.send(_pcm(n)):
            received += [inbox.receive(1000) for _ in range(10)]
    received += _all(inbox)
    assert [message.seq for message in received] == list(range(80))
    assert [message.samples[0] for message in received] == list(range(80))
    assert not inbox.missed and not inbox.dropped


def test_one_full_subscriber_holds_up_all_and_none_gets_a_message_twice(context):
    publisher, slow = _join(context, queue=8, capacity=8, lossless=True)
    quick = Inbox(context, 8, lossless=True)
    quick.connect("inproc://node", ["pcm.a"])
    publisher.send(_said())  # once this is through, so is the subscription
    slow.receive(1000)
    got: list[Message] = []
    n = 0
    while publisher.send(_pcm(n)):
        n += 1
        got += _all(quick, 5)
    assert n < 100
    late = _all(slow)
    assert publisher.send(_pcm(n))
    got, late = got + _all(quick), late + _all(slow)
    assert [message.samples[0] for message in got] == [message.samples[0] for message in late] == list(range(n + 1))


def test_a_lossless_inbox_leaves_messages_in_the_sockets_until_asked(context):
    publisher, inbox = _join(context, lossless=True)
    for n in range(100):
        publisher.send(_pcm(n))
    inbox.receive(1000)
    assert len(inbox) <= 1


def test_a_held_publisher_is_not_read_and_loses_nothing(context):
    one, inbox = _join(context, "inproc://one", lossless=True)
    other = Publisher(context, "inproc://other", VirtualClock(), 1000, True)
    inbox.connect("inproc://other", ["speech.a"])
    _until(lambda: other.has_subscribers(["speech.a"]))
    inbox.hold("inproc://one", True)
    inbox.hold("inproc://one", True)
    for n in range(5):
        one.send(_pcm(n))
        other.send(_said(n))
    assert {type(message) for message in _all(inbox)} == {SpeechEvent}
    inbox.hold("inproc://one", False)
    inbox.hold("inproc://one", False)
    assert [message.seq for message in _all(inbox)] == [0, 1, 2, 3, 4]


# Observers


class Record:
    """A bus observer that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self) -> None:
        self.calls.append("begin")

    def end(self) -> None:
        self.calls.append("end")

    def counters(self) -> dict[str, int]:
        return {}


def test_an_observer_sees_the_beginning_and_end_of_every_use_of_a_socket(context):
    record = Record()
    publisher = Publisher(context, "inproc://node", VirtualClock(), 10, lossless=True, observer=record)
    inbox = Inbox(context, 10, lossless=True, observer=record)
    inbox.connect("inproc://node", ["pcm.a"])
    public = EmotionPublisher(context, "inproc://labels", record)
    steps = {
        "subscriptions": lambda: publisher.has_subscribers(["pcm.a"]),
        "send": lambda: publisher.send(_pcm()),
        "wait": lambda: inbox.wait(0),
        "wait for": lambda: inbox.wait_for(["inproc://node"], 0),
        "receive": lambda: inbox.receive(100),
        "nothing to receive": lambda: inbox.receive(0),
        "label": lambda: public.send(emotion_message(seq=0)),
    }
    for name, step in steps.items():
        record.calls.clear()
        step()
        assert record.calls == ["begin", "end"], name
    while publisher.send(_pcm()):
        record.calls.clear()
    assert record.calls == ["begin", "end"]  # of the attempt that a full subscriber refused


# Subscribers


def test_has_subscribers_asks_for_each_topic(context):
    publisher = Publisher(context, "inproc://node", VirtualClock(), 10, False)
    assert publisher.has_subscribers([])
    assert not publisher.has_subscribers(["pcm.a"])
    inbox = Inbox(context, 10, False)
    inbox.connect("inproc://node", ["pcm.a"])
    _until(lambda: publisher.has_subscribers(["pcm.a"]))
    assert not publisher.has_subscribers(["pcm.a", "speech.a"])
    inbox.close()
    _until(lambda: not publisher.has_subscribers(["pcm.a"]))


def test_a_publisher_knows_when_all_have_read_the_end(context):
    publisher, inbox = _join(context)
    publisher.send(_pcm())
    publisher.send(_end())
    publisher.send(_end())  # sending it twice does no harm
    assert not publisher.was_heard(["pcm.a"])
    assert [type(message) for message in _all(inbox)][:2] == [Pcm, End]
    _until(lambda: publisher.was_heard(["pcm.a"]))
    assert not publisher.was_heard(["speech.a"])
    publisher.send(_said())
    assert isinstance(inbox.receive(1000), SpeechEvent)


def test_an_inbox_can_wait_for_one_publisher_without_losing_messages_of_others(context):
    clock = VirtualClock()
    inbox = Inbox(context, 100, lossless=False)
    publishers = {}
    for name in ("inproc://sound", "inproc://speech"):
        publishers[name] = Publisher(context, name, clock, 100, lossless=False)
        inbox.connect(name, TOPICS)
        _until(lambda name=name: publishers[name].has_subscribers(TOPICS))
    publishers["inproc://sound"].send(_pcm())
    begun = time.monotonic()
    inbox.wait_for(["inproc://speech"], 100)
    assert time.monotonic() - begun >= 0.1
    publishers["inproc://speech"].send(_said())
    begun = time.monotonic()
    inbox.wait_for(["inproc://speech"], 5000)
    assert time.monotonic() - begun < 2
    assert {type(message) for message in _all(inbox)} == {Pcm, SpeechEvent}
    inbox.close()
    for publisher in publishers.values():
        publisher.close()


def test_an_inbox_wakes_for_a_foreign_socket_and_does_not_read_it(context):
    ours, other = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    ours.bind("inproc://other")
    other.connect("inproc://other")
    _, inbox = _join(context)
    inbox.wake_on(ours)
    other.send(b"a label")
    begun = time.monotonic()
    assert inbox.receive(5000) is None
    assert time.monotonic() - begun < 2
    assert ours.recv() == b"a label"
    for socket in (ours, other):
        socket.close()


def test_receive_returns_none_after_the_timeout(context):
    _, inbox = _join(context)
    begun = time.monotonic()
    assert inbox.receive(50) is None
    assert 0.04 < time.monotonic() - begun < 1.0


# Endpoints


def test_a_port_in_use_is_reported_with_a_remedy(context):
    taken = context.socket(zmq.PUB)
    port = taken.bind_to_random_port("tcp://127.0.0.1")
    with pytest.raises(BusError, match=r"another stream-run\?.*--set bus\.emotion") as caught:
        EmotionPublisher(context, f"tcp://127.0.0.1:{port}")
    assert f"tcp://127.0.0.1:{port}: cannot be bound" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["tcp://nowhere.invalid:5", "ipc:///no/such/folder/x", "nonsense"])
def test_an_endpoint_that_cannot_be_bound(context, endpoint):
    with pytest.raises(BusError, match="cannot be bound") as caught:
        bind(context.socket(zmq.PUB), endpoint)
    assert "another program" not in str(caught.value)


def test_a_unix_socket_is_taken_from_nobody(context, short_path):
    """ZeroMQ itself would remove whatever is at that path: another run's socket, or a file."""
    endpoint = f"ipc://{short_path}/labels"
    with closing(Publisher(context, endpoint, VirtualClock(), 8, lossless=False)) as first:
        with pytest.raises(BusError, match="another program"):
            Publisher(context, endpoint, VirtualClock(), 8, lossless=False)
        with context.socket(zmq.SUB) as subscriber:
            subscriber.subscribe(b"")
            subscriber.connect(endpoint)
            until = time.monotonic() + 5
            while not first.has_subscribers([""]):
                assert time.monotonic() < until
                time.sleep(0.01)
    (short_path / "mine.txt").write_text("mine")
    with pytest.raises(BusError, match="no socket"):
        Publisher(context, f"ipc://{short_path}/mine.txt", VirtualClock(), 8, lossless=False)
    assert (short_path / "mine.txt").read_text() == "mine"


def test_a_unix_socket_that_a_killed_process_left_is_taken(context, short_path):
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(short_path / "labels"))
    Publisher(context, f"ipc://{short_path}/labels", VirtualClock(), 8, lossless=False).close()


@pytest.mark.parametrize("lossless", [True, False])
def test_a_publisher_that_cannot_be_bound_leaves_no_socket_open(lossless):
    """An open socket would block the end of its context."""
    with zmq.Context() as context:
        for make in (
            lambda: Publisher(context, "nonsense", VirtualClock(), 10, lossless),
            lambda: EmotionPublisher(context, "nonsense"),
        ):
            with pytest.raises(BusError):
                make()
        ending = threading.Thread(target=context.term, daemon=True)
        ending.start()
        ending.join(5)
        assert not ending.is_alive()


def test_how_far_behind_is_the_age_of_the_oldest_message_that_waits(context):
    publisher, inbox = _join(context)
    assert inbox.behind_ns(9_000) == 0
    for captured_ns in (3_000, 5_000):
        publisher.send(msgspec.structs.replace(_pcm(), captured_ns=captured_ns))
    publisher.send(_pcm())
    assert inbox.receive(1000).captured_ns == 3_000
    _until(lambda: (inbox.wait(10), inbox._fill(0), len(inbox))[-1] == 2)
    assert inbox.behind_ns(9_000) == 4_000
    inbox.receive(0)
    assert inbox.behind_ns(9_000) == 0  # the last was not captured live
