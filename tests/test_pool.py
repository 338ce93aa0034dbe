"""Workers make what their tasks need once."""

import os

import pytest

from emostream.train.pool import work, worker_pool


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
        results = [pool.submit(work, task).result() for task in "abc"]
    assert [(task, count) for task, count, _ in results] == [("a", 12), ("b", 14), ("c", 16)]
    assert {pid for *_, pid in results}.isdisjoint({os.getpid()})
