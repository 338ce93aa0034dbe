"""stream/exits.py: what follows when a process ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emostream.errors import RunError
from emostream.stream.config import Supervision
from emostream.stream.exits import BACKOFF_NS, Exit, judge
from emostream.stream.nodes.process import CANNOT_RUN, TERMINATED, UNREADABLE

RULES = Supervision(failures=3, within_s=60)
CRASH = Exit("speech.desk", "speech", -9)
CAMERA = Exit("video.desk", "capture", CANNOT_RUN, is_live=True)


def verdict(end, lossless=False, stopping=False):
    return judge(end, RULES, lossless, stopping)


@pytest.mark.parametrize(
    ("end", "stopping"), [(replace(CRASH, code=0), False), (CRASH, True), (replace(CAMERA, code=1), True)]
)
def test_an_orderly_end_or_any_end_of_a_run_that_stops_is_no_news(end, stopping):
    found = verdict(end, stopping=stopping)
    assert (found.wait_ns, found.line, found.fatal, found.crashed) == (None, None, "", False)


def test_a_live_source_that_has_run_is_tried_again_less_and_less_often_and_told_once():
    waits = [verdict(replace(CAMERA, away=away)) for away in range(7)]
    assert [each.wait_ns for each in waits] == [*BACKOFF_NS, BACKOFF_NS[-1], BACKOFF_NS[-1]]
    assert waits[0].line[0] == "warning" and "away" in waits[0].line[1]
    assert not any(each.line for each in waits[1:]) and all(each.away for each in waits)
    assert not any(each.crashed or each.fatal for each in waits)  # an absent source is not a crash


@pytest.mark.parametrize("change", [{"has_run": False}, {"is_live": False}, {"code": UNREADABLE}])
def test_a_source_that_cannot_be_used_ends_its_stream_alone(change):
    found = verdict(replace(CAMERA, **change))
    assert found.cannot_run and found.wait_ns is None and not found.fatal


def test_anything_else_that_cannot_run_ends_the_run_with_its_own_reason():
    found = verdict(Exit("fusion", "fusion", CANNOT_RUN))
    assert found.fatal == "fusion cannot run" and found.reason and found.cannot_run


def test_a_process_that_could_not_even_begin_ends_the_run():
    found = verdict(replace(CRASH, code=1, has_reported=False))
    assert "could not start (exit code 1)" in found.fatal and '__name__ == "__main__"' in found.fatal
    assert "can this user run /" in verdict(replace(CRASH, code=255, has_reported=False)).fatal
    assert not verdict(replace(CRASH, has_reported=False)).fatal  # killed, by its signal: started again


def test_at_fast_pace_nothing_may_be_lost():
    assert "at fast pace" in verdict(CRASH, lossless=True).fatal


def test_crashes_wait_longer_each_time_and_end_the_run_after_too_many():
    assert [verdict(replace(CRASH, crashes=n)).wait_ns for n in range(3)] == list(BACKOFF_NS[:3])
    found = verdict(replace(CRASH, crashes=3))
    assert found.fatal == "speech.desk crashed (exit code -9), 4 times in 60 s: giving up"
    assert found.fatal_code == RunError.GAVE_UP and found.reason
    assert "SIGTERM" in verdict(replace(CRASH, code=TERMINATED)).line[1]


def test_a_page_never_ends_the_run():
    page = Exit("page", "page", 1, has_reported=False)
    assert verdict(page).wait_ns == 0 and verdict(page).crashed
    given_up = verdict(replace(page, crashes=3))
    assert given_up.wait_ns is None and not given_up.fatal and "going on without" in given_up.line[1]
    assert not verdict(replace(page, code=CANNOT_RUN)).fatal
