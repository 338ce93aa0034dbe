"""Remote networks, with real models, sockets and keys: a replica that is full, dies, stalls or is flooded; and
everything together on a real Ray cluster."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest
import zmq

from emostream.engines.bundle import open_bundle
from emostream.errors import ClusterError, ConfigError
from emostream.stream.config import Config
from emostream.stream.cores.classifier import Classifier, Classify, Encode, Features, Head
from emostream.stream.cores.runs import Call, GaveUp
from emostream.stream.keys import KeyPair
from emostream.stream.remote import link as links
from emostream.stream.remote import wire
from emostream.stream.remote.door import Door
from emostream.stream.remote.link import Link, Ticket
from emostream.stream.remote.queue import MOST_WAITING
from emostream.stream.remote.replica import Replica
from emostream.stream.remote.wire import Ask, Join, Place, Places
from tests.processes import BIN, environment, patience

pytestmark = [pytest.mark.process, pytest.mark.slow]


def new_pair(server: str = "") -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode(), server)


BOX = new_pair()
DIRECTORY = new_pair()


@pytest.fixture(scope="module")
def local() -> Iterator[Classifier]:
    with closing(Classifier(open_bundle("ekman7"))) as classifier:
        yield classifier


def make_replica(most: int = 4, wait_ms: float = 2) -> Replica:
    return Replica(Config().model_dump(exclude_none=True), most, wait_ms, "127.0.0.1", (0, 0), [BOX.public])


@pytest.fixture
def replica() -> Iterator[Replica]:
    with closing(make_replica()) as replica:
        yield replica


class Directory:
    """Tells boxes where the replicas are, as ``stream-fusion`` does."""

    def __init__(self) -> None:
        self.door = Door("tcp://127.0.0.1:*", DIRECTORY, frozenset([BOX.public]))
        self.places: list[Place] = []

    def tick(self) -> None:
        while (message := self.door.receive()) is not None:
            self.door.send(message[0], wire.encode(Places(self.places)))


class Box:
    """A link and its loop."""

    def __init__(
        self, directory: Directory, head: Head, pair: KeyPair = BOX, streams: tuple[str, ...] = ("a",)
    ) -> None:
        self.context, self._directory = zmq.Context(), directory
        server = KeyPair(pair.public, pair.secret, DIRECTORY.public)
        self.link = Link(self.context, directory.door.endpoint, server, head)
        self.link.add(streams)

    def until(self, condition: Callable[[], object], seconds: float = 8.0) -> None:
        end_s = time.monotonic() + patience(seconds)
        while not condition():
            assert time.monotonic() < end_s, "waited too long"
            self._directory.tick()
            self.link.tick()
            time.sleep(0.002)

    def call(self, call: Call, stream: str = "a") -> Ticket:
        ticket = self.link.submit(stream, call)
        self.until(lambda: ticket.done)
        return ticket

    def close(self) -> None:
        self.link.close()
        self.context.destroy(0)


@pytest.fixture
def directory() -> Iterator[Directory]:
    directory = Directory()
    yield directory
    directory.door.close()


@pytest.fixture
def boxes(directory) -> Iterator[Callable[..., Box]]:
    made: list[Box] = []

    def make(*arguments, **options) -> Box:
        made.append(Box(directory, *arguments, **options))
        return made[-1]

    yield make
    for box in made:
        box.close()


RNG = np.random.default_rng(0)
ENCODE = Encode(
    RNG.integers(0, 255, (5, 48, 48), dtype=np.uint8),
    [RNG.normal(8, 1, (1, 64, 32)).astype(np.float32)],
    [np.array([[2, 40, 50, 3]], np.int64)],
)
ITEM = Features(*(RNG.normal(size=(n, dim)).astype(np.float32) for n, dim in ((30, 168), (12, 128), (5, 128))))
CLASSIFY = Classify([ITEM, ITEM.only(["audio"])], [True, False])


def test_answers_are_those_of_the_networks_here(local, replica, directory, boxes):
    directory.places = [replica.look([BOX.public])[0]]
    box = boxes(Head(open_bundle("ekman7")))
    box.until(lambda: box.link.settled)
    here, there = local.run(ENCODE), box.call(ENCODE).answer()
    np.testing.assert_allclose(there.faces, here.faces, atol=1e-5)
    np.testing.assert_array_equal(there.voices[0], here.voices[0])
    np.testing.assert_array_equal(there.texts[0], here.texts[0])
    for a, b in zip(local.run(CLASSIFY), box.call(CLASSIFY).answer(), strict=True):
        np.testing.assert_allclose(b.probabilities, a.probabilities, atol=1e-6)
        assert b.contributions == pytest.approx(a.contributions, abs=1e-6)
        assert b.backend.startswith(local.backend + " at ") and a.backend == ""
    for trip, queue, run in zip(*box.link.times_ms.values(), strict=True):
        assert trip >= queue + run > 0


def test_when_a_replica_dies_the_call_is_done_here_at_once_and_the_next_replica_is_joined(
    local, directory, boxes, caplog
):
    first = make_replica()
    directory.places = [first.look([BOX.public])[0]]
    box = boxes(local)
    box.until(lambda: box.link.settled)
    box.call(ENCODE)
    first.close()
    begun_s, here = time.monotonic(), box.link.counters["remote_here"]  # the first call too, where it took too long
    box.call(ENCODE).answer()
    assert time.monotonic() - begun_s < patience(1.0) and box.link.counters["remote_here"] == here + 1
    box.until(lambda: box.link._line is None)
    assert "labels are made here until they can" in caplog.text
    with closing(make_replica()) as second:
        directory.places = [second.look([BOX.public])[0]]
        box.until(lambda: box.link.settled, 12)
        before = box.link.counters["remote_calls"]
        box.call(ENCODE)
        assert box.link.counters["remote_calls"] == before + 1


def test_without_networks_here_calls_wait_for_the_next_replica_and_are_given_up_in_the_end(
    directory, boxes, monkeypatch
):
    monkeypatch.setattr(links, "GIVE_UP_S", 1.5)
    first = make_replica()
    directory.places = [first.look([BOX.public])[0]]
    box = boxes(Head(open_bundle("ekman7")))
    box.until(lambda: box.link.settled)
    first.close()
    directory.places = []
    ticket = box.call(CLASSIFY)
    with pytest.raises(GaveUp, match=r"within 1\.5 s"):
        ticket.answer()
    monkeypatch.setattr(links, "GIVE_UP_S", 30)
    late = box.link.submit("a", CLASSIFY)
    with closing(make_replica()) as second:
        directory.places = [second.look([BOX.public])[0]]
        box.until(lambda: late.done, 15)
        assert len(late.answer()) == 2


def test_a_replica_that_stalls_costs_a_quarter_of_a_second(local, directory, boxes):
    """The replica takes calls without answering; after three of them the box leaves it."""
    stalled = Door("tcp://127.0.0.1:*", (pair := new_pair()), frozenset([BOX.public]))
    directory.places = [Place(stalled.endpoint, pair.public, 0, 4)]
    box = boxes(local)

    def admit() -> bool:
        while (message := stalled.receive()) is not None:
            if isinstance(join := wire.decode_to_replica(message[1]), Join):
                stalled.send(message[0], wire.encode(wire.Joined(join.stream, "none")))
        return box.link.settled

    box.until(admit)
    for _ in range(3):
        begun_s = time.monotonic()
        box.call(ENCODE).answer()
        assert links.PATIENCE_S <= time.monotonic() - begun_s < patience(links.PATIENCE_S + 0.5)
    box.until(lambda: box.link._line is None)
    begun_s = time.monotonic()
    box.call(ENCODE).answer()
    assert time.monotonic() - begun_s < links.PATIENCE_S
    stalled.close()


def test_who_is_refused_is_told_in_a_line_and_labelled_here_or_ends(local, directory, boxes, caplog):
    with closing(make_replica(most=1)) as replica:
        directory.places = [replica.look([BOX.public])[0]]
        box = boxes(local, streams=("a", "b"))
        box.until(lambda: box.link.settled)
        assert caplog.text.count("b: refused") == 1
        assert "1 of 1 streams are taken; its labels are made here" in caplog.text
        box.call(ENCODE, "b")
        assert (box.link.counters["remote_here"], box.link.counters["remote_calls"]) == (1, 0)
        other = boxes(Head(open_bundle("ekman7")))
        with pytest.raises(ClusterError, match=r"a: refused .* 1 of 1 streams are taken"):
            other.link.wait(directory.tick, patience(8))
        box.link.leave("a")
        other.link.refusal = None
        other.until(lambda: replica.look([BOX.public])[0].streams == 0)


def test_a_box_with_another_bundle_or_a_key_that_is_not_allowed_gets_nothing(local, replica, directory, boxes, caplog):
    directory.places = [replica.look([BOX.public])[0]]
    stranger = boxes(local, pair=new_pair())
    with pytest.raises(ClusterError, match="no networks answer there"):
        stranger.link.wait(directory.tick, 1.0)
    assert directory.door.counters["keys_refused"] > 0
    other = Head(open_bundle("ekman7"))
    other.bundle_id = "mine@1"
    box = boxes(other)
    with pytest.raises(ClusterError, match="it has the bundle ekman7@.*, not mine@1"):
        box.link.wait(directory.tick, patience(8))
    box = boxes(local)
    box.until(lambda: box.link.settled)
    replica.look([])  # its key is revoked
    box.until(lambda: box.link._line is None)
    assert box.call(ENCODE).done


def test_a_box_that_floods_does_not_delay_another_and_nonsense_harms_nobody(local, replica, directory, boxes):
    """A client sends calls of the largest size as fast as it can, without waiting for answers, on its own
    connection."""
    place = replica.look([BOX.public])[0]
    directory.places = [place]
    box = boxes(Head(open_bundle("ekman7")))  # it waits as long as necessary
    box.until(lambda: box.link.settled)
    for _ in range(20):
        box.call(CLASSIFY)
    with zmq.Context() as context, context.socket(zmq.DEALER) as flood:
        flood.linger = 0
        flood.curve_publickey, flood.curve_secretkey = BOX.public.encode(), BOX.secret.encode()
        flood.curve_serverkey = place.public.encode()
        flood.connect(place.address)
        flood.send_multipart(wire.encode(Join(0, local.bundle_id)))
        flood.send_multipart([b"nonsense", b"\0" * 1000])
        flood.send_multipart(wire.encode(Ask(0, 1, 100, crops=3)))  # its crops never come
        call = Encode(np.zeros((16, 48, 48), np.uint8))
        begun_s = time.monotonic()
        local.encode_faces(call.crops)
        face_ms = (time.monotonic() - begun_s) * 1000 / 16
        number = 0
        for _ in range(30):
            for _ in range(10):
                number += 1
                flood.send_multipart(wire.encode_call(call, 0, number, 5000), zmq.NOBLOCK, copy=True)
            box.call(CLASSIFY)
    counters = replica.look([BOX.public])[1]
    assert counters["calls_refused"] > 0 and counters["nonsense"] >= 2
    queue_ms = np.median([*box.link.times_ms["queue"]][-20:])
    all_of_it_ms = MOST_WAITING * 16 * face_ms
    assert box.link.counters["remote_calls"] >= 40 and queue_ms < all_of_it_ms / 2  # not behind what waits there


def test_a_large_call_is_done_in_pieces_and_another_stream_does_not_wait_for_all_of_it(
    local, replica, directory, boxes
):
    directory.places = [replica.look([BOX.public])[0]]
    box = boxes(Head(open_bundle("ekman7")), streams=("a", "b"))
    box.until(lambda: box.link.settled)
    crops = RNG.integers(0, 255, (64, 48, 48), dtype=np.uint8)
    large = box.link.submit("b", Encode(crops, ENCODE.rows))
    small = box.link.submit("a", ENCODE)
    box.until(lambda: small.done and large.done)
    first_ms, last_ms = box.link.times_ms["run"]  # in the order in which the answers came
    assert first_ms < last_ms and replica.look([BOX.public])[1]["calls_cut"] >= 2
    np.testing.assert_allclose(large.answer().faces, local.encode_faces(crops), atol=1e-5)
    np.testing.assert_array_equal(large.answer().voices[0], local.run(ENCODE).voices[0])


def test_keys_are_needed_before_anything_starts(tmp_path):
    done = subprocess.run(
        [BIN / "stream-run", "--set", "fusion.remote=tcp://127.0.0.1:9", "--set", f"bus.keys={tmp_path}"],
        capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "client.key" in done.stderr
    with pytest.raises(ConfigError, match="remote"):
        Config(fusion={"remote": "ray://there:10001"})
