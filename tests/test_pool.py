"""Workers make what their tasks need once, and leave Ctrl-C to the main process."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import as_completed

import psutil
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


KILLED = """
import os, signal
from emostream.train.pool import submit, worker_pool
from tests.test_pool import Counter
if __name__ == "__main__":
    pool = worker_pool(2, Counter, 0)
    print(*{future.result()[2] for future in submit(pool, range(4))}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells them")
def test_workers_of_a_process_that_is_killed_end(tmp_path):
    """Each would wait for its next task for ever."""
    (script := tmp_path / "killed.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGKILL and done.stdout
    until = time.monotonic() + 5
    while left := [pid for pid in map(int, done.stdout.split()) if is_alive(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
