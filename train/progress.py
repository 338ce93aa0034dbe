"""Progress of long commands: stages that report their steps, and bars that show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StepDone(Protocol):
    """Called after each step of a stage."""

    def __call__(self, done: int, total: int, loss: float | None = None, /) -> None: ...


Stage = Callable[[str], StepDone]  # a stage's name → the callback for its steps


def ignore(done: int, total: int, loss: float | None = None, /) -> None:
    """A ``StepDone`` that nobody watches."""


def ignore_stage(name: str) -> StepDone:
    """A ``Stage`` that nobody watches."""
    return ignore


class ProgressBars(Progress):
    """A bar for each stage that has begun, on stderr."""

    def __init__(self, speed_estimate_period: float = 30) -> None:
        super().__init__(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[loss]}"),
            console=Console(stderr=True), speed_estimate_period=speed_estimate_period,
        )  # fmt: skip

    def stage(self, name: str) -> StepDone:
        """A ``Stage``. Its bar appears with the first step, so a stage whose result is cached has none."""
        task: TaskID | None = None

        def step_done(done: int, total: int, loss: float | None = None, /) -> None:
            nonlocal task
            if task is None:
                task = self.add_task(name, loss="")
            self.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.3f}")

        return step_done
