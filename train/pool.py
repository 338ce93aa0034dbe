"""Process pools whose workers hold what every task needs, made once in each process."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from emostream.stream.nodes.tether import end_with

Task = TypeVar("Task")
_work: Callable[[Any], Any] | None = None  # a worker process's function


def worker_pool(
    processes: int, make: Callable[..., Callable[[Any], Any]], *args: Any, **kwargs: Any
) -> ProcessPoolExecutor:
    """A pool for ``submit``: each process calls ``make(*args, **kwargs)`` once, then calls the result with each task.

    Processes are spawned: a fork would share the locks of torch's threads and might hang.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _start, (make, args, kwargs))


def submit(pool: ProcessPoolExecutor, tasks: Iterable[Task]) -> dict[Future[Any], Task]:
    """Give all tasks to a ``worker_pool``; returns the task of each future.

    The processes start here. They ignore Ctrl-C, which a terminal sends to all of them, so that the main process
    decides; during their imports, before they can ignore it, they inherit it as a blocked signal.
    """
    resource_tracker.ensure_running()  # if it started later, it would unblock the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(_call, task): task for task in tasks}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start(make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with(parent.pid)  # else it would wait for tasks for ever, where the parent was killed
    _work = make(*args, **kwargs)


def _call(task: Any) -> Any:
    assert _work is not None
    return _work(task)
