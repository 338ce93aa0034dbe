"""``stream-run`` whose nodes also count the processor time that they spend sending and receiving, for ``cost.py``.

    python benchmarks/timed_run.py [arguments of stream-run]

Heartbeats carry it as the counter ``COUNTER``, in microseconds. Node processes are spawned, so each of them runs this
module, as ``__mp_main__``, before it starts its node.
"""

from __future__ import annotations

import sys
import threading
import time

from emostream.stream import bus

COUNTER = "bus_us"


class CpuMeter(threading.local):
    """Adds up the processor time of the node's own thread while it uses its sockets; where two nodes share a process,
    each has its own sum."""

    def __init__(self) -> None:
        self._begun_ns = self._spent_ns = 0

    def begin(self) -> None:
        self._begun_ns = time.thread_time_ns()

    def end(self) -> None:
        self._spent_ns += time.thread_time_ns() - self._begun_ns

    def counters(self) -> dict[str, int]:
        return {COUNTER: self._spent_ns // 1000}


if __name__ in ("__main__", "__mp_main__"):  # not where COUNTER alone is imported
    bus.observer = CpuMeter()

if __name__ == "__main__":
    from emostream.commands import exit_code
    from emostream.stream.run_command import run

    sys.exit(exit_code(run))
