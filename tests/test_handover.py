"""stream/handover.py: sound from one node to another of the same process; and how the end of that process is
reported."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import zmq

from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.handover import Handover, HandoverInbox
from emostream.stream.messages import End, Pcm
from emostream.stream.nodes.process import CANNOT_RUN, GUEST, TERMINATED, code_of
from emostream.stream.plan import Plan, plan_stream
from tests.media import silent_audio


def block(number: int) -> Pcm:
    return Pcm(stream="a", media_start_ns=number, media_end_ns=number + 1, captured_ns=0, samples=np.zeros(4, np.int16))


@pytest.fixture
def handover():
    return Handover(["pcm.a"])


def inbox(handover: Handover, capacity: int = 100) -> HandoverInbox:
    return HandoverInbox(handover, zmq.Context.instance(), capacity)


def taken(inbox: HandoverInbox) -> list[int]:
    numbers = []
    while isinstance(message := inbox.receive(0), Pcm):
        numbers.append(message.media_start_ns)
    return numbers


def test_what_is_put_by_one_thread_is_taken_by_another_in_order(handover):
    thread = threading.Thread(target=lambda: [handover.put(block(number)) for number in range(50)])
    thread.start()
    first = inbox(handover)
    numbers = []
    while len(numbers) < 50:
        message = first.receive(5000)
        assert isinstance(message, Pcm)
        numbers.append(message.media_start_ns)
    thread.join()
    assert numbers == list(range(50)) and first.receive(1) is None


def test_a_full_inbox_drops_the_oldest_sound_and_counts_it_but_never_the_end(handover):
    for number in range(10):
        handover.put(block(number))
    handover.put(End(stream="a", content="pcm", reason="over"))
    full = inbox(handover, capacity=4)
    assert taken(full) == [7, 8, 9]
    assert full.dropped == {"pcm.a": 7} and full.take_dropped_spans() == {"pcm.a": (0, 7)}
    assert handover.ended


def test_at_rest_sound_stays_until_it_is_flushed_and_the_end_takes_it_along(handover):
    taker = inbox(handover)
    handover.bundling = handover.at_rest = True
    handover.put(block(0))
    handover.put(block(1))
    assert taken(taker) == []
    handover.flush()
    assert taken(taker) == [0, 1]
    handover.put(block(2))
    handover.at_rest = False  # somebody speaks
    handover.put(block(3))
    assert taken(taker) == [2, 3]
    handover.at_rest = True
    handover.put(block(4))
    handover.put(End(stream="a", content="pcm", reason="over"))
    assert taken(taker) == [4]


def test_of_a_live_source_several_blocks_are_handed_over_at_rest_and_each_at_once_while_somebody_speaks(handover):
    taker = inbox(handover)
    handover.bundling = handover.at_rest = True
    seen = []
    for number in range(12):
        if number == 8:
            handover.at_rest = False
        handover.put(block(number))
        handover.flush_seldom(now_ns=1000 + 32 * number, least_ns=160)
        seen.append(taken(taker))
    assert seen == [[0], [], [], [], [], [1, 2, 3, 4, 5], [], [], [6, 7, 8], [9], [10], [11]]


@pytest.mark.parametrize(
    ("code", "host", "guest"),
    [
        (0, 0, 0), (-9, -9, -9), (TERMINATED, TERMINATED, TERMINATED), (1, 1, 1), (GUEST + 1, 1, 1),
        (CANNOT_RUN, CANNOT_RUN, 0), (GUEST + CANNOT_RUN, 0, CANNOT_RUN), (127, 127, 127), (255, 255, 255),
    ],
)  # fmt: skip
def test_a_crash_is_that_of_both_nodes_but_only_one_cannot_run(code, host, guest):
    assert (code_of(code, is_guest=False), code_of(code, is_guest=True)) == (host, guest)


@pytest.mark.parametrize(
    ("source", "settings", "shares"),
    [
        ("FILE", {"speech": {"recognizer": "none"}}, True),
        ("FILE", {"speech": {"recognizer": "none"}, "pace": "fast"}, False),
        ("FILE", {"speech": {"recognizer": "none", "process": "own"}}, False),
        ("FILE", {}, True),
        ("microphone", {}, True),
        ("microphone", {"speech": {"recognizer": "external"}}, False),
        ("microphone", {"speech": {"recognizer": "none"}}, True),
        ("rtsp://127.0.0.1/x", {"speech": {"recognizer": "none"}}, False),
    ],
)
def test_where_speech_shares_the_process_of_its_sound(source, settings, shares, tmp_path):
    audio = source.replace("FILE", f"file:{silent_audio(tmp_path / 'a.wav', 0.2)}")
    config = Config.model_validate({"streams": [{"name": "a", "audio": audio}], **settings})
    plan = Plan()
    plan_stream(plan, config.streams[0], config, tmp_path, SystemClock(0))
    assert {spec.name: spec.host for spec in plan.specs} == {"audio.a": "", "speech.a": "audio.a" if shares else ""}
