"""stream/status.py: the state of streams and nodes, and that each loss is counted once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from emostream.stream.messages import Health
from emostream.stream.status import Status, StatusBoard, decode_status, encode_status, stream_line
from tests.emotions import emotion_message

_S = 1_000_000_000
_NODES = ["audio.desk", "video.desk", "speech.desk", "fusion"]


class Board:
    """A board on which every node of one stream runs, and its clock in seconds."""

    def __init__(self, nodes: list[str] = _NODES) -> None:
        self.board = StatusBoard("r", nodes)
        self.now_s = 0.0
        for node in nodes:
            self.board.started(node)
            self.beat(node)
        self.board.begun(0)

    def beat(self, node: str, **fields: Any) -> Board:
        state = fields.pop("state", "running")
        self.board.add_health(Health(node=node, state=state, **fields), self.ns)
        return self

    def at(self, now_s: float) -> Board:
        self.now_s = now_s
        return self

    def label(self, stream: str = "desk") -> Board:
        self.board.add_label(emotion_message(stream=stream))
        return self

    @property
    def ns(self) -> int:
        return int(self.now_s * _S)

    def status(self, **options: bool) -> Status:
        return self.board.status(self.ns, self.ns + 5, **options)


def test_a_run_in_which_all_is_well():
    status = Board().at(3.5).status()
    assert (status.run, status.state, status.uptime_s, status.published_ns) == ("r", "running", 3.5, int(3.5 * _S) + 5)
    assert status.streams["desk"].state == "running"
    assert {node.state for node in status.nodes.values()} == {"running"}
    assert decode_status(encode_status(status)) == status


def test_before_the_run_begins_and_when_it_ends():
    board = StatusBoard("r", _NODES)
    assert board.status(0, 0).state == board.status(0, 0).streams["desk"].state == "starting"
    assert Board().status(stopping=True).state == "stopping"
    assert Board().status(over=True).state == "ended"


@pytest.mark.parametrize(
    ("node", "stream"),
    [("video.desk", "degraded"), ("audio.desk", "degraded"), ("speech.desk", "away"), ("fusion", "away")],
)
def test_a_node_that_is_away(node, stream):
    board = Board()
    board.board.away(node, 1 * _S)
    status = board.at(3).status()
    assert status.nodes[node].state == "away"
    assert status.nodes[node].away_s == 2.0
    assert (status.streams["desk"].state, status.state) == (stream, "degraded")
    assert status.streams["desk"].can_label == (stream == "degraded")
    board.board.started(node)
    board.beat(node, state="starting")
    assert board.at(4).status().nodes[node].state == "away"  # until it runs
    board.beat(node)
    status = board.at(9).status()
    assert (status.state, status.nodes[node].away_s, status.nodes[node].starts) == ("running", 3.0, 2)


def test_without_any_capture_no_label_can_come():
    board = Board()
    for node in ("audio.desk", "video.desk"):
        board.board.away(node, 0)
    assert board.status().streams["desk"].state == "away"


def test_a_stream_whose_sound_has_ended_goes_on_with_faces():
    board = Board()
    for node in ("audio.desk", "speech.desk"):
        board.board.ended(node)
    assert board.status().streams["desk"].state == "running"
    board.board.ended("video.desk")
    assert board.status().streams["desk"].state == "ended"


def test_one_of_two_streams_that_is_away():
    board = Board([*_NODES, "audio.door", "speech.door"])
    board.board.away("audio.door", 0)
    status = board.status()
    assert {name: stream.state for name, stream in status.streams.items()} == {"desk": "running", "door": "away"}


@pytest.mark.parametrize(("node", "state"), [("video.desk", "degraded"), ("audio.desk", "degraded")])
def test_a_live_source_that_gives_nothing_is_away(node, state):
    board = Board().beat(node, silent_s=2.9)
    assert board.status().state == "running"
    status = board.beat(node, silent_s=3.1).status()
    assert (status.streams["desk"].state, status.state) == (state, "degraded")
    for other in ("audio.desk", "video.desk"):
        board.beat(other, silent_s=9.0)
    assert board.status().streams["desk"].state == "away"
    assert board.beat("audio.desk").beat("video.desk").status().state == "running"


def test_a_stream_that_is_behind():
    board = Board().beat("speech.desk", behind_s=1.9)
    assert board.status().state == "running"
    status = board.beat("fusion", behind_s=4.0).status()
    assert (status.state, status.streams["desk"].behind_s) == ("degraded", 4.0)


def test_utterances_without_a_label_are_told_when_their_label_should_have_come():
    board = Board().at(10).beat("speech.desk", counters={"utterances": 3, "utterances_ended": 2}).label()
    stream = board.at(11).status().streams["desk"]
    assert (stream.heard, stream.labelled, stream.unlabelled) == (3, 1, 0)
    assert board.at(12.1).status().streams["desk"].unlabelled == 1
    assert board.label().status().streams["desk"].unlabelled == 0  # it came late
    assert board.status(over=True).streams["desk"].unlabelled == 1  # the third never ended


def test_an_utterance_that_was_open_when_speech_died_is_lost():
    board = Board().at(10).beat("speech.desk", counters={"utterances": 1, "utterances_ended": 0})
    board.board.away("speech.desk", board.ns)
    board.board.started("speech.desk")
    board.at(11).beat("speech.desk", counters={"utterances": 1, "utterances_ended": 1}).label()
    stream = board.at(14).status().streams["desk"]
    assert (stream.heard, stream.labelled, stream.unlabelled) == (2, 1, 1)


def test_utterances_of_faces_alone_are_counted_by_fusion():
    board = Board(["video.desk", "fusion"])
    board.beat("fusion", by_stream={"desk": {"face_utterances": 2, "face_utterances_ended": 2, "late_video": 1}})
    stream = board.label().at(3).status().streams["desk"]
    assert (stream.heard, stream.labelled, stream.unlabelled, stream.late_video) == (2, 1, 1, 1)
    board.board.started("fusion")
    board.beat("fusion", by_stream={"desk": {"face_utterances": 1, "face_utterances_ended": 0, "late_video": 2}})
    stream = board.status().streams["desk"]
    assert (stream.heard, stream.late_video) == (3, 3)


def test_counters_go_on_when_a_node_is_started_again():
    board = Board().beat("audio.desk", counters={"capture_gaps": 2}, dropped=3, gaps=1)
    board.board.started("audio.desk")
    node = board.status().nodes["audio.desk"]
    assert (node.counters["capture_gaps"], node.dropped, node.gaps) == (2, 3, 1)
    node = board.beat("audio.desk", counters={"capture_gaps": 1}, dropped=1).status().nodes["audio.desk"]
    assert (node.counters["capture_gaps"], node.dropped, node.gaps) == (3, 4, 1)


def test_lost_sound_is_what_was_missing_and_what_came_while_speech_was_away():
    board = Board().beat("speech.desk", counters={"sound_lost_ms": 1500})
    board.board.away("speech.desk", 2 * _S)
    board.board.started("speech.desk")
    board.at(2.5).beat("speech.desk")
    assert board.at(60).status().streams["desk"].sound_lost_s == 2.0


def test_a_stream_as_a_line():
    board = Board().beat("speech.desk", counters={"utterances": 2, "utterances_ended": 2, "sound_lost_ms": 1500})
    board.beat("fusion", behind_s=8.2, by_stream={"desk": {"late_video": 3}})
    assert stream_line("desk", board.at(5).status().streams["desk"]) == (
        "desk: degraded, 0 labelled of 2 heard, running 8 s behind, 1.5 s of sound lost, 2 without a label, "
        "3 labelled without all faces"
    )


@pytest.mark.parametrize("data", [b"", b"{}x", b"\xff", b'{"schema": "emostream/1"}', b"[]", b'{"streams": 1}'])
def test_what_is_no_status(data):
    with pytest.raises(msgspec.DecodeError):
        decode_status(data)


def test_a_status_of_a_later_version_with_more_fields_is_read():
    data = json.loads(encode_status(Board().status())) | {"new": 1}
    assert decode_status(json.dumps(data).encode()).run == "r"
