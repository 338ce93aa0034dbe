"""stream/remote/queue.py and wire.py: who is admitted, what is in a batch, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.cores.classifier import Classify, Encode, Encoded, Features
from emostream.stream.remote import wire
from emostream.stream.remote.queue import GONE_S, MOST_WAITING, Batch, Queue, Waiting
from emostream.stream.remote.wire import Answer, Ask

DIMS = (168, 128, 128)


def encode_call(crops: int = 1) -> Encode:
    return Encode(np.zeros((crops, 48, 48), np.uint8))


def waiting(stream: int, number: int = 0, since_s: float = 0.0, crops: int = 1, until_s: float = 100.0) -> Waiting:
    return Waiting((b"box", stream), number, encode_call(crops), since_s, until_s)


def queue_of(streams: int, wait_s: float = 0.0) -> Queue:
    queue = Queue(streams, wait_s)
    assert all(queue.admit((b"box", n), 0.0) for n in range(streams))
    return queue


def test_streams_are_bounded_and_places_come_free():
    queue = queue_of(3)
    assert not queue.admit((b"other", 0), 1.0) and queue.admit((b"box", 2), 1.0) and len(queue) == 3
    queue.leave((b"box", 0))
    assert queue.admit((b"other", 0), 2.0)
    queue.seen(b"other", GONE_S + 1)
    queue.forget(GONE_S + 1.5)  # the box has not been heard of since
    assert len(queue) == 1
    assert queue.push(waiting(1)) == "not joined"


def streams(batch: Batch) -> list[int]:
    return [piece.waiting.stream[1] for piece in batch.pieces]


def numbers(batch: Batch) -> list[int]:
    return [piece.waiting.number for piece in batch.pieces]


def test_a_stream_that_floods_is_refused_and_delays_nobody():
    queue = queue_of(4)
    taken = [queue.push(waiting(0, n, crops=100)) for n in range(50)]
    assert taken[:MOST_WAITING] == [""] * MOST_WAITING and all(taken[MOST_WAITING:])
    for n in range(1, 4):
        assert queue.push(waiting(n)) == ""
    assert streams(queue.take(0.0)) == [1, 2, 3, 0]  # small ones first, together
    assert streams(queue.take(0.0)) == [0]
    assert queue.push(waiting(1, 1)) == ""
    assert streams(queue.take(0.0)) == [1, 0]  # who has used less is first
    assert streams(queue.take(0.0)) == [0]


def test_a_call_that_is_larger_than_a_batch_is_done_in_pieces_and_others_in_between():
    queue = queue_of(2)
    queue.push(waiting(0, 1, crops=64))
    faces = []
    for round_ in range(100):
        queue.push(waiting(1, 100 + round_))
        batch = queue.take(0.0)
        assert batch.pieces[0].waiting.number == 100 + round_ or round_ == 0
        assert sum(piece.cost for piece in batch.pieces) <= 16  # as large as a batch is before one was measured
        large = [piece for piece in batch.pieces if piece.waiting.number == 1]
        faces += [crop for piece in large for crop in range(64)[piece.part]]
        if any(piece.is_last for piece in large):
            break
    assert faces == list(range(64)) and round_ < 6


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90), st.integers(0, 250), st.booleans()), max_size=16))
def test_pieces_make_up_each_call(calls):
    """Each face or row once and in order, and the last piece once, whatever else waits."""
    queue, seen = queue_of(4), dict[int, list[int]]()
    units, complete = {}, []
    for number, (stream, size, sound, fuses) in enumerate(calls):
        call = Encode(np.zeros((size, 48, 48), np.uint8), [np.zeros((1, 8 * sound, 32), np.float32)])
        if fuses:
            call = Classify([features(1, 1, 1)] * (size // 3 + 1), [True] * (size // 3 + 1))
        if not queue.push(Waiting((b"box", stream), number, call, 0.0, 100.0)):
            units[number] = len(call.rows()) if fuses else size
    while pieces := queue.take(0.0).pieces:
        for piece in pieces:
            seen.setdefault(piece.waiting.number, []).extend(range(10_000)[piece.part])
            complete += [piece.waiting.number] if piece.is_last else []
    assert seen == {number: list(range(count)) for number, count in units.items()}
    assert sorted(complete) == sorted(units)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=60))
def test_whatever_others_ask_for_a_stream_that_comes_new_is_in_the_next_batch(extra):
    queue = queue_of(5)
    for number, (stream, crops) in enumerate(extra):
        queue.push(waiting(stream, number, crops=crops))
    queue.push(waiting(4, 999))
    assert 999 in numbers(queue.take(0.0))  # it has used least
    while queue.take(0.0).pieces:
        pass
    assert all(not place.waiting for place in queue._places.values())  # nobody waits for ever


def test_a_call_waits_for_the_others_that_have_called_lately_but_not_longer_than_said():
    queue = queue_of(3, wait_s=0.005)
    queue.push(waiting(0, since_s=10.0))
    assert streams(queue.take(10.0)) == [0]  # nobody else calls
    queue.push(waiting(1, since_s=10.1))
    batch = queue.take(10.1)
    assert not batch.pieces and batch.wait_s == pytest.approx(0.005)
    queue.push(waiting(0, since_s=10.103))
    assert len(queue.take(10.103).pieces) == 2  # all who call are there
    queue.push(waiting(1, since_s=10.2))
    assert not queue.take(10.204).pieces and len(queue.take(10.206).pieces) == 1


def test_calls_for_which_nobody_waits_are_not_run():
    queue = queue_of(1)
    queue.push(waiting(0, 1, until_s=1.0))
    queue.push(waiting(0, 2, until_s=2.0))
    batch = queue.take(1.5)
    assert [call.number for call in batch.expired] == [1] and numbers(batch) == [2]
    assert queue.take(1.5).wait_s is None


# What is sent


def features(*sizes: int) -> Features:
    return Features(*(np.full((n, dim), n, np.float32) for n, dim in zip(sizes, DIMS, strict=True)))


CALLS = [
    Encode(np.arange(2 * 48 * 48, dtype=np.uint8).reshape(2, 48, 48), [np.ones((1, 16, 32), np.float32)]),
    Encode(np.zeros((0, 48, 48), np.uint8), [], [np.arange(7, dtype=np.int64)[None]]),
    Classify([features(3, 0, 5), features(0, 2, 0)], [True, False]),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_arrives_as_it_was(call):
    head, *parts = map(bytes, wire.encode_call(call, 3, 17, 250.0))
    ask = wire.decode_to_replica(head)
    assert isinstance(ask, Ask) and (ask.stream, ask.number, ask.budget_ms) == (3, 17, 250.0)
    came = wire.decode_call(ask, parts, DIMS)
    assert msgspec.to_builtins(ask) and type(came) is type(call)
    if isinstance(call, Encode):
        pairs = zip([call.crops, *call.rows, *call.pieces], [came.crops, *came.rows, *came.pieces], strict=True)
    else:
        assert came.contributions == call.contributions
        names = ("audio", "video", "text")
        pairs = [(getattr(a, n), getattr(b, n)) for a, b in zip(call.items, came.items, strict=True) for n in names]
    for sent, got in pairs:
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def test_an_answer_arrives_as_it_was():
    call = CALLS[0]
    vectors = Encoded(np.ones((2, 128), np.float32), [np.ones((1, 2, 168), np.float32)])
    head, *parts = map(bytes, wire.encode_answer(Answer(17, 1.5, 2.5, 3), vectors))
    assert wire.decode_to_box(head) == Answer(17, 1.5, 2.5, 3)
    came = wire.decode_answer(parts, call, DIMS, 7)
    np.testing.assert_array_equal(came.voices[0], vectors.voices[0])
    logits = np.zeros((4, 7), np.float32)  # two items, and the first without each of its two modalities
    _, *parts = map(bytes, wire.encode_answer(Answer(17, 1.5, 2.5, 3), logits))
    assert wire.decode_answer(parts, CALLS[2], DIMS, 7).shape == (4, 7)
    with pytest.raises(ValueError, match="bytes in place of"):
        wire.decode_answer(parts, CALLS[2], DIMS, 6)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (Encode(np.zeros((65, 48, 48), np.uint8)), "up to 64"),
        (Encode(np.zeros((0, 48, 48), np.uint8), [np.zeros((1, 2008, 32), np.float32)]), "2000 rows"),
        (Encode(np.zeros((0, 48, 48), np.uint8), [], [np.zeros((1, 65), np.int64)]), "64 pieces"),
        (Classify([features(5000, 0, 0)], [False]), "4096 rows"),
        (Classify([features(1, 0, 0)] * 33, [False] * 33), "up to 32"),
    ],
)
def test_a_call_that_is_too_large_is_not_sent(call, why):
    with pytest.raises(ValueError, match=why):
        wire.encode_call(call, 0, 0, 100.0)


@pytest.mark.parametrize(
    ("ask", "parts"),
    [
        (Ask(0, 0, 1, crops=1), [b"x" * 100]),
        (Ask(0, 0, 1, crops=1), []),
        (Ask(0, 0, 1, crops=-1), [b""]),
        (Ask(0, 0, 1, rows=[7]), [b"", b"x" * 7 * 128]),
        (Ask(0, 0, float("nan")), [b""]),
        (Ask(0, 0, 1, items=[(0, 0, 0)], contributions=[True]), [b"", b"", b""]),
        (Ask(0, 0, 1, items=[(1, 0, 0)], contributions=[True]), [np.full(168, np.nan, "<f4").tobytes(), b"", b""]),
        (Ask(0, 0, 1, items=[(1, 0, 0)], contributions=[]), [b"x" * 672, b"", b""]),
        (Ask(0, 0, 1, crops=1, items=[(1, 0, 0)], contributions=[True]), [b"x" * 672, b"", b""]),
    ],
)
def test_arrays_that_are_not_as_announced_are_refused(ask, parts):
    with pytest.raises(ValueError):
        wire.decode_call(ask, parts, DIMS)


@given(st.binary(max_size=200))
def test_nonsense_is_told_from_messages(data):
    for decode in (wire.decode_to_replica, wire.decode_to_box):
        try:
            decode(data)
        except msgspec.DecodeError:
            continue
