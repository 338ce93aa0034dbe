"""Steering: how requests to a live run become orders for its nodes."""

from __future__ import annotations

import pytest

from emostream.errors import ConfigError
from emostream.stream.config import Config
from emostream.stream.messages import within
from emostream.stream.steering import OPEN_NS, Steering

S = 1_000_000_000


@pytest.fixture
def steering() -> Steering:
    streams = [{"name": "desk", "source": "demo"}, {"name": "door", "video": "camera:0"}]
    return Steering(Config(streams=streams))


def muted(steering: Steering, name: str, *seconds: float) -> list[bool]:
    return [steering.is_muted(name, int(at * S)) for at in seconds]


def test_muted_for_a_while(steering):
    assert steering.mute(["desk"], 10 * S, 2.0) == ["desk"]
    assert steering.orders.serial == 1
    assert muted(steering, "desk", 9.9, 10, 11.9, 12) == [False, True, True, False]
    assert muted(steering, "door", 11) == [False]


def test_muted_until_unmuted_and_again(steering):
    steering.mute([], 10 * S)
    assert muted(steering, "desk", 1e6) == [True]
    assert steering.unmute([], 15 * S) == ["desk", "door"]
    steering.mute(["desk"], 20 * S, 1)
    assert muted(steering, "desk", 12, 15, 19, 20.5, 21) == [True, False, False, True, False]
    assert steering.orders.serial == 3


def test_a_second_mute_takes_the_place_of_what_is_left_of_the_first(steering):
    steering.mute(["desk"], 10 * S, 5)
    steering.mute(["desk"], 12 * S, 1)
    assert muted(steering, "desk", 11, 12.5, 13, 14) == [True, True, False, False]
    steering.mute(["desk"], 12 * S, 4)
    assert muted(steering, "desk", 11, 12.5, 15, 16) == [True, True, True, False]


def test_spans_do_not_pile_up(steering):
    for second in range(100):
        steering.mute([], second * S, 0.5)
    assert all(len(spans) <= 10 for spans in steering.orders.muted.values())


def test_what_is_paused_is_muted_too(steering):
    steering.pause(["door"], 10 * S)
    assert steering.is_paused("door", 11 * S) and steering.is_muted("door", 11 * S)
    assert not steering.is_paused("desk", 11 * S)
    steering.mute(["desk"], 12 * S)
    steering.resume([], 13 * S)
    assert not steering.is_paused("door", 13 * S) and muted(steering, "desk", 14) == [True]


def test_settings(steering):
    steering.set("speech.hangover_ms=600")
    steering.set("fusion.prior=balanced")
    steering.set("speech.hangover_ms = 700")
    assert steering.orders.settings == ["fusion.prior=balanced", "speech.hangover_ms = 700"]
    assert (steering.config.speech.hangover_ms, steering.config.fusion.prior) == (700, "balanced")


def test_streams_come_and_go(steering):
    stream = steering.add("hall=rtsp://cam:secret@hall/1")
    assert [each.name for each in steering.config.streams] == ["desk", "door"]
    steering.joined(stream, ["audio.hall", "speech.hall"], {"speech", "audio"}, first=2000)
    assert [each.name for each in steering.config.streams] == ["desk", "door", "hall"]
    added = steering.orders.added["hall"]
    assert (added.inputs, added.modalities) == (["audio.hall", "speech.hall"], ["audio", "speech"])
    assert (added.first, added.serial, added.sources) == (2000, steering.orders.serial, "rtsp://cam:***@hall/1")
    steering.mute(["hall"], 1 * S)
    steering.remove("hall")
    assert steering.orders.removed == ["hall"]
    steering.joined(steering.add("hall=demo"), [], [], 4000)
    assert steering.orders.removed == [] and muted(steering, "hall", 2) == [False]
    assert steering.orders.added["hall"].serial > added.serial


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda it: it.mute(["hall"], 0), "there is no stream 'hall'; there is desk, door"),
        (lambda it: it.mute(["door"], 0), "door has no sound"),
        (lambda it: it.remove("hall"), "there is no stream 'hall'"),
        (lambda it: it.add("desk=demo"), "a stream desk already"),
        (lambda it: it.add("hall=nonsense"), "is no source"),
        (lambda it: it.set("speech.hangover_ms=1"), "hangover_ms"),
        (lambda it: it.set("speech.hangover_ms"), "section.key=value"),
        (lambda it: it.set("nonsense.key=1"), "nonsense"),
        (lambda it: it.set("bus.emotion=tcp://127.0.0.1:1"), "bus.emotion cannot be changed while a run goes on"),
        (lambda it: it.set("speech.threshold=" + "9" * 5000), "threshold|valid"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(steering, ask, answer):
    before = steering.orders, steering.config
    with pytest.raises(ConfigError, match=answer) as refused:
        ask(steering)
    assert len(str(refused.value).splitlines()) == 1
    assert (steering.orders, steering.config) == before


def test_the_last_stream_stays(steering):
    steering.remove("desk")
    with pytest.raises(ConfigError, match="door is the only stream"):
        steering.remove("door")


def test_times_within_spans():
    assert not within([], 5)
    assert [within([(1, 3), (5, OPEN_NS)], at) for at in (0, 1, 2, 3, 4, 5, 9)] == [0, 1, 1, 0, 0, 1, 1]
