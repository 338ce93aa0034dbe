"""Fusion with remote networks: the same labels however late answers come, and no stream waits for another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.stream.cores.runs import Call, GaveUp
from tests.fusion import ALL, SPOKEN, Run, all_topics, ready_run


class Late:
    """A ticket whose answer comes when the test says so."""

    def __init__(self, stream: str, work: Callable[[], object]) -> None:
        self.stream, self._work, self.done, self.why = stream, work, False, ""

    def answer(self):
        if self.why:
            raise GaveUp(self.why)
        return self._work()


class Elsewhere:
    """The same classifier, whose calls take the numbers of steps in ``delays``, in turn."""

    def __init__(self, run: Run, delays: list[int]) -> None:
        self._run, self._delays, self._calls = run, delays, 0
        self.open: list[Late] = []
        self._left: dict[int, int] = {}

    def submit(self, stream: str, call: Call) -> Late:
        ticket = Late(stream, lambda: self._run.classifier.run(call))
        delay = self._delays[self._calls % len(self._delays)]
        self._calls += 1
        ticket.done = delay == 0
        if delay:
            self._left[id(ticket)] = delay
            self.open.append(ticket)
        return ticket

    def tick(self) -> None:
        for ticket in self.open:
            self._left[id(ticket)] -= 1
            ticket.done = ticket.done or self._left[id(ticket)] <= 0
        self.open = [ticket for ticket in self.open if not ticket.done]

    def hurry(self) -> None:
        for ticket in self.open:
            ticket.done = True
        self.open.clear()


def elsewhere(delays: list[int], **options) -> tuple[Run, Elsewhere]:
    run = Run(**options)
    away = Elsewhere(run, delays)
    run.core._runs._elsewhere = away
    return run, away


def content(run: Run) -> dict[str, list]:
    """What was published for each stream, without times."""
    found: dict[str, list] = {}
    for each in run.published:
        span, frames = (each.start_s, each.end_s), {name: m.frames for name, m in each.modalities.items()}
        plain = (each.kind, each.utterance, each.seq, span, each.label, each.probabilities, each.text, frames)
        found.setdefault(each.stream, []).append(plain)
    return found


def play(run: Run, streams: list[str], away: Elsewhere | None = None) -> Run:
    """All messages at fast pace, alternating between the streams."""
    topics = [all_topics(8.0, SPOKEN, stream) for stream in streams]
    queues = [messages for topic in topics for messages in topic.values()]
    for i in range(max(map(len, queues))):
        for queue in queues:
            run.push(*queue[i : i + 1])
        run.step()
        if away is not None:
            away.tick()
    for _ in range(400):
        if run.core.done or away is None:
            break
        away.tick()
        run.step()
    return run


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_labels_and_estimates_are_the_same_however_late_each_answer_comes(delays):
    streams = {"a": ALL, "b": ALL}
    here = play(Run(realtime=False, estimates=True, streams=streams), [*streams])
    there, away = elsewhere(delays, realtime=False, estimates=True, streams=streams)
    play(there, [*streams], away)
    assert there.core.done and content(there) == content(here) and here.labels


def test_a_stream_goes_on_while_another_waits_for_an_answer():
    run, away = elsewhere([1_000_000], realtime=True, streams={"a": ALL, "b": ALL})
    run.live(all_topics(8.0, SPOKEN[:1], "a"))
    assert not run.labels and [ticket.stream for ticket in away.open] == ["a"]
    away._delays = [0]
    topics = all_topics(8.0, SPOKEN[:1], "b")
    run.push(*topics["audio"][:-1], *topics["face"][:-1])
    run.push(*topics["speech"]).step()
    assert [label.stream for label in run.labels] == ["b"]
    assert not run.core.done and run.core.patience_ms() > 0  # a's deadline has passed, and nothing can be done


def test_a_run_that_is_given_up_is_counted_and_the_next_one_goes_on(caplog):
    run, away = elsewhere([1_000_000], realtime=True)
    ready_run(run).step()
    (ticket,) = away.open
    ticket.done, ticket.why = True, "nobody answers"
    run.step()
    assert not run.labels and run.core.counters["utterances_given_up"] == 1
    assert "utterance 1 has no label: nobody answers" in caplog.text


def test_at_the_end_nothing_waits_any_more():
    run, _ = elsewhere([1_000_000], realtime=True)
    ready_run(run).step(flush=True)
    assert len(run.labels) == 1
