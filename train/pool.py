"""Process pools whose workers hold what every task needs, made once in each process."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_work: Callable[[Any], Any] | None = None  # of a worker process


def worker_pool(
    processes: int, make: Callable[..., Callable[[Any], Any]], *args: Any, **kwargs: Any
) -> ProcessPoolExecutor:
    """A pool to which tasks go by ``pool.submit(work, task)``: each process calls ``make(*args, **kwargs)`` once, and
    what that returns with each task.

    Processes are spawned: a fork would share the locks of torch's threads and might hang. They ignore Ctrl-C, which a
    terminal sends to all of them, so that the main process decides.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _start, (make, args, kwargs))


def work(task: Any) -> Any:
    """Do a task in a worker process; see ``worker_pool``."""
    assert _work is not None
    return _work(task)


def _start(make: Callable[..., Callable[[Any], Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work = make(*args, **kwargs)
