"""Jobs that are being done: in steps, between which the networks work, here or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from emostream.stream.cores.classifier import Classify, Encode, Encoded, Head, Result

Call = Encode | Classify
"""What the networks have to do; the answer is an ``Encoded``, or a ``Result`` for each item."""

_Jobs = TypeVar("_Jobs")
_Out = TypeVar("_Out")
Steps = Generator[Call, Any, list[_Out]]


class GaveUp(Exception):
    """No answer came, and why."""


class Ticket(Protocol):
    """A call that was handed in."""

    @property
    def done(self) -> bool:
        """Whether ``answer`` may be called."""
        ...

    def answer(self) -> Encoded | list[Result]:
        """Raises GaveUp."""
        ...


class Elsewhere(Protocol):
    """Networks that run elsewhere, while this process goes on."""

    def submit(self, stream: str, call: Call) -> Ticket:
        """Hand in a call of a stream. Never waits."""
        ...

    def hurry(self) -> None:
        """Answer all calls that are open, by whatever means, or give them up."""
        ...


@dataclass
class _Waiting(Generic[_Jobs, _Out]):
    stream: str
    jobs: _Jobs
    steps: Steps[_Out]
    ticket: Ticket


class Runs(Generic[_Jobs, _Out]):
    """Runs of jobs. ``elsewhere``: where their networks are; None: in ``classifier``, and ``start`` does it all.

    ``finish`` is called with the jobs of each run that ends, and with a GaveUp if it came to nothing.
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
        """Begin a run; returns what it made, if it has ended."""
        return self._go(stream, jobs, steps, None, finish)

    def go_on(self, flush: bool, finish: Callable[[_Jobs, GaveUp | None], None]) -> list[_Out]:
        """Go on with the runs whose answers have come (``flush``: with all); returns what those made that ended."""
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
