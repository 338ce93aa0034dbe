"""A process that ends with its parent, even before it has imported anything."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.context import SpawnProcess
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class TetheredProcess(SpawnProcess):
    """Linux sends it SIGTERM when its parent dies, which ends it unless it has installed a handler."""

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle calls the function before it reads the state, whose reading imports modules
        return _begin, (os.getpid(),), self.__dict__


def end_with(parent: int) -> None:
    """From now on Linux sends this process SIGTERM when its parent dies; if that is dead already, this is the end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _begin(parent: int) -> TetheredProcess:
    end_with(parent)
    return TetheredProcess.__new__(TetheredProcess)
