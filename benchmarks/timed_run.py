"""``stream-run`` whose nodes also count the processor time that they spend sending and receiving, for ``cost.py``.

    python benchmarks/timed_run.py [arguments of stream-run]

Heartbeats carry it as the counter ``COUNTER``, in microseconds. Node processes are spawned, and therefore run this
module first, under another name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps

from emostream.stream import bus
from emostream.stream.messages import Health

COUNTER = "bus_us"
_spent_ns = 0


def _timed(function: Callable) -> Callable:
    @wraps(function)
    def run(self, *given):
        global _spent_ns
        if given and isinstance(given[0], Health):
            given[0].counters[COUNTER] = _spent_ns // 1000
        begun_ns = time.thread_time_ns()
        result = function(self, *given)
        _spent_ns += time.thread_time_ns() - begun_ns
        return result

    return run


for _class, _names in {
    bus.Publisher: ("send", "has_subscribers"),
    bus.EmotionPublisher: ("send",),
    bus.Inbox: ("_fill", "wait", "wait_for"),
}.items():
    for _name in _names:
        setattr(_class, _name, _timed(getattr(_class, _name)))

if __name__ == "__main__":
    from emostream.stream.cli import run

    sys.exit(run())
