"""Workers make what their tasks need once, and leave Ctrl-C to the main process."""

import os
import signal
import time
from concurrent.futures import as_completed

import pytest

from emostream.train.pool import submit, worker_pool


class Counter:
    """Counts the calls in its process."""

    def __init__(self, first, step=1):
        self.count, self.step = first, step

    def __call__(self, task):
        self.count += self.step
        return task, self.count, os.getpid()


@pytest.mark.process
def test_a_worker_makes_its_object_once():
    with worker_pool(1, Counter, 10, step=2) as pool:
        futures = submit(pool, "abc")
        results = [future.result() for future in as_completed(futures)]
        assert [futures[future] for future in futures] == ["a", "b", "c"]
    assert sorted(results)[0][:2] == ("a", 12) and {count for _, count, _ in results} == {12, 14, 16}
    assert {pid for *_, pid in results}.isdisjoint({os.getpid()})


@pytest.mark.process
def test_a_process_that_is_just_starting_survives_ctrl_c():
    with worker_pool(2, Counter, 0) as pool:
        futures = submit(pool, range(4))
        for _ in range(20):  # from its first instruction on
            for pid in list(pool._processes):
                os.kill(pid, signal.SIGINT)
            time.sleep(0.01)
        assert sorted(future.result()[0] for future in futures) == [0, 1, 2, 3]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())  # the main process hears it again
