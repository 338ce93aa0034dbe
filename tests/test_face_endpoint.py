"""stream/cores/face_endpoint.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.config import Speech
from emostream.stream.cores.face_endpoint import FaceEndpointer
from emostream.stream.messages import Face, SpeechEvent

_MS = 1_000_000
_T0 = 1_700_000_000_000 * _MS
_SEEN, _NONE = np.zeros((48, 48), np.uint8), np.zeros((0, 0), np.uint8)


def _face(ms: int, seen: bool, live: bool = True) -> Face:
    return Face(
        stream="a",
        media_start_ns=ms * _MS,
        media_end_ns=ms * _MS,
        captured_ns=_T0 + ms * _MS if live else 0,
        crop=_SEEN if seen else _NONE,
    )


def _run(*runs: tuple[bool, int], fps: float = 10, live: bool = True, **config) -> list[SpeechEvent]:
    """Events for runs of frames, each given as (face seen, number of frames)."""
    endpointer = FaceEndpointer("a", fps, Speech(**config))
    seen = [flag for flag, n in runs for _ in range(n)]
    events = [e for i, flag in enumerate(seen) for e in endpointer.push(_face(int(i * 1000 / fps), flag, live), 5)]
    return events + endpointer.finish(9)


def _kinds(events: list[SpeechEvent]) -> list[str]:
    """The events without repetitions, which mean that nothing changed."""
    kinds = [event.event for event in events if event.event != "progress"]
    return [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]


def test_an_utterance_lasts_as_long_as_a_face_is_seen():
    events = _run((False, 10), (True, 30), (False, 10))
    assert _kinds(events) == ["started", "words", "paused", "ended"]
    ended = events[[event.event for event in events].index("ended")]
    assert (ended.start_ns, ended.end_ns) == (1000 * _MS, 4000 * _MS)
    assert ended.media_end_ns == 4300 * _MS  # 400 ms without a face: the frames at 4.0, 4.1, 4.2 and 4.3 s
    assert ended.words == []
    assert ended.utterance == 1


@pytest.mark.parametrize(("frames", "utterances"), [(4, 0), (5, 1)])
def test_a_passer_by_starts_no_utterance(frames, utterances):
    assert _kinds(_run((False, 5), (True, frames), (False, 10))).count("ended") == utterances


def test_the_detector_may_miss_a_face_for_a_moment():
    events = _run((True, 20), (False, 3), (True, 20), (False, 10))
    assert _kinds(events) == ["started", "words", "paused", "words", "paused", "ended"]
    assert max(event.utterance for event in events) == 1


def test_a_face_that_stays_is_cut():
    events = _run((True, 100), max_utterance_s=4)
    ends = [event for event in events if event.event == "ended"]
    assert [(event.start_ns // _MS, event.end_ns // _MS) for event in ends] == [(0, 4000), (4000, 8000), (8000, 10_000)]
    assert [event.utterance for event in ends] == [1, 2, 3]


def test_the_last_frame_ends_the_utterance():
    events = _run((True, 12))
    assert events[-1].event == "ended"
    assert events[-1].received_ns == 9
    assert _run((False, 12))[-1].event == "progress"


def test_without_frames_there_is_no_utterance():
    assert FaceEndpointer("a", 10, Speech()).finish(0) == []


@pytest.mark.parametrize("fps", [2.5, 10, 30])
def test_every_frame_rate(fps):
    ended = [event for event in _run((True, int(4 * fps)), (False, int(2 * fps)), fps=fps) if event.event == "ended"]
    assert len(ended) == 1
    assert ended[0].end_ns == pytest.approx(4000 * _MS, abs=2 * _MS)


def test_capture_times():
    for event in _run((True, 10), (False, 10)):
        assert event.captured_ns == _T0 + event.media_end_ns
        if event.event in ("started", "paused", "ended"):
            assert event.speech_captured_ns == min(event.captured_ns, _T0 + event.end_ns)
    assert {event.speech_captured_ns for event in _run((True, 10), (False, 10), live=False)} == {0}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=12))
def test_events_come_in_order(runs):
    open_, utterance = False, 0
    for event in _run(*runs, max_utterance_s=3):
        if event.event == "progress":
            continue
        if event.event == "started":
            assert not open_
            open_, utterance = True, utterance + 1
        assert open_
        assert event.utterance == utterance
        assert event.start_ns < event.end_ns <= event.media_end_ns + 100 * _MS
        open_ = event.event != "ended"
    assert not open_


@given(st.lists(st.booleans(), max_size=60))
def test_every_frame_advances_the_watermark(seen):
    endpointer = FaceEndpointer("a", 10, Speech())
    for i, flag in enumerate(seen):
        events = endpointer.push(_face(100 * i, flag), 0)
        assert events
        assert {event.media_end_ns for event in events} == {100 * i * _MS}


def test_a_gap_between_frames_ends_the_utterance():
    endpointer = FaceEndpointer("a", 10, Speech())
    times = [*range(0, 2000, 100), *range(12_000, 14_000, 100)]
    events = [event for ms in times for event in endpointer.push(_face(ms, True), 0)] + endpointer.finish(0)
    ended = [event for event in events if event.event == "ended"]
    assert [(event.start_ns // _MS, event.end_ns // _MS) for event in ended] == [(0, 2000), (12_000, 14_000)]
