"""Runs jobs in steps; between the steps the networks run, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from emostream.stream.cores.classifier import Classify, Encode, Encoded, Head, Result

Call = Encode | Classify
"""A request to the networks. The answer is an ``Encoded``, or a ``Result`` for each item."""

_Jobs = TypeVar("_Jobs")
_Out = TypeVar("_Out")
Steps = Generator[Call, Any, list[_Out]]


class GaveUp(Exception):
    """No answer came; the message says why."""


class Ticket(Protocol):
    """A call that was submitted."""

    @property
    def done(self) -> bool:
        """Whether ``answer`` may be called."""
        ...

    def answer(self) -> Encoded | list[Result]:
        """The answer. Raises GaveUp if there will be none."""
        ...


class Elsewhere(Protocol):
    """Networks that run elsewhere while this process goes on."""

    def submit(self, stream: str, call: Call) -> Ticket:
        """Submit a stream's call. Never waits."""
        ...

    def hurry(self) -> None:
        """Answer or give up all open calls at once."""
        ...


@dataclass
class _Waiting(Generic[_Jobs, _Out]):
    stream: str
    jobs: _Jobs
    steps: Steps[_Out]
    ticket: Ticket


class Runs(Generic[_Jobs, _Out]):
    """Runs of jobs. ``elsewhere``: where the networks run; None: in ``classifier``, and ``start`` completes the run.

    ``finish`` is called with the jobs of each run that ends, and with a GaveUp if it failed.
    """

    def __init__(self, classifier: Head, elsewhere: Elsewhere | None) -> None:
        self._classifier, self._elsewhere = classifier, elsewhere
        self._waiting: list[_Waiting[_Jobs, _Out]] = []

    @property
    def here(self) -> bool:
        """Whether the networks run in this process."""
        return self._elsewhere is None

    def start(
        self, stream: str, jobs: _Jobs, steps: Steps[_Out], finish: Callable[[_Jobs, GaveUp | None], None]
    ) -> list[_Out]:
        """Begin a run; returns its results if it has ended already."""
        return self._go(stream, jobs, steps, None, finish)

    def go_on(self, flush: bool, finish: Callable[[_Jobs, GaveUp | None], None]) -> list[_Out]:
        """Continue the runs whose answers have come (``flush``: all runs); returns the results of those that ended."""
        made: list[_Out] = []
        while self._waiting:
            if flush and self._elsewhere is not None:
                self._elsewhere.hurry()
            ready = [each for each in self._waiting if each.ticket.done]
            if not ready:
                break
            self._waiting = [each for each in self._waiting if not each.ticket.done]
            for each in ready:
                try:
                    answer = each.ticket.answer()
                except GaveUp as why:
                    each.steps.close()
                    finish(each.jobs, why)
                    continue
                made += self._go(each.stream, each.jobs, each.steps, answer, finish)
        return made

    def _go(
        self,
        stream: str,
        jobs: _Jobs,
        steps: Steps[_Out],
        answer: Encoded | list[Result] | None,
        finish: Callable[[_Jobs, GaveUp | None], None],
    ) -> list[_Out]:
        try:
            while True:
                call = steps.send(answer)
                if self._elsewhere is None:
                    answer = self._classifier.run(call)
                    continue
                ticket = self._elsewhere.submit(stream, call)
                if not ticket.done:
                    self._waiting.append(_Waiting(stream, jobs, steps, ticket))
                    return []
                answer = ticket.answer()
        except StopIteration as end:
            made: list[_Out] = end.value
            finish(jobs, None)
            return made
        except GaveUp as why:
            steps.close()
            finish(jobs, why)
            return []
