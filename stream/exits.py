"""The policy for a node's process that has ended, without processes, clocks or sockets."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from emostream.errors import RunError
from emostream.stream.config import Supervision
from emostream.stream.nodes.process import CANNOT_RUN, TERMINATED, UNREADABLE
from emostream.stream.topics import BESIDE

BACKOFF_NS = (0, 500_000_000, 2_000_000_000, 5_000_000_000, 10_000_000_000)
_NO_PROGRAM = 255  # of multiprocessing, if the interpreter cannot be executed


@dataclass(frozen=True)
class Exit:
    """How a process ended, and what is known about its node. ``crashes``: recent ones, not counting this one."""

    name: str
    kind: str
    code: int
    is_live: bool = False  # its source may come back
    has_reported: bool = True  # this process or an earlier one sent a heartbeat
    has_run: bool = True  # at any start
    away: int = 0  # consecutive starts at which its source was away
    crashes: int = 0


@dataclass(frozen=True)
class Verdict:
    """``wait_ns``: time until the node is restarted; None: it is not. ``fatal``: why the whole run ends, if it does.
    ``line``: level and text for the log."""

    wait_ns: int | None = None
    line: tuple[str, str] | None = None
    fatal: str = ""
    fatal_code: int = RunError.exit_code
    reason: bool = False  # the node's last logged error says why the run ends
    cannot_run: bool = False
    away: bool = False
    crashed: bool = False


def judge(end: Exit, rules: Supervision, lossless: bool, stopping: bool) -> Verdict:
    """Decide what follows from ``end``. ``lossless``: the run is at fast pace. ``stopping``: the run is stopping.

    The page and the recording are beside the run: whatever happens to them, labels go on.
    """
    is_beside = end.kind in BESIDE
    if end.code == 0 or stopping:
        return Verdict()
    if end.code == CANNOT_RUN and end.has_run and end.is_live:
        first = ("warning", "its source is away; trying again until it is back")
        return Verdict(BACKOFF_NS[min(end.away, len(BACKOFF_NS) - 1)], None if end.away else first, away=True)
    if end.code in (CANNOT_RUN, UNREADABLE):  # a source that cannot be used ends its stream alone
        fatal = "" if is_beside or end.kind == "capture" else f"{end.name} cannot run"
        return Verdict(fatal=fatal, reason=bool(fatal), cannot_run=True)
    if end.code > 0 and not end.has_reported and not is_beside:  # its process could not even begin
        why = (
            'a script that calls emostream.run does so below `if __name__ == "__main__":`, since the nodes are '
            "processes that import it"
        )
        if end.code == _NO_PROGRAM:
            why = f"can this user run {sys.executable}?"
        return Verdict(fatal=f"{end.name} could not start (exit code {end.code}); {why}")
    if lossless:
        text = f"{end.name} crashed (exit code {end.code}); at fast pace nothing may be lost, so the run ends here"
        return Verdict(fatal=text)
    how = "was ended by somebody's SIGTERM" if end.code == TERMINATED else f"crashed (exit code {end.code})"
    if end.crashes + 1 > rules.failures:
        how += f", {end.crashes + 1} times in {rules.within_s:g} s"
        if is_beside:
            return Verdict(line=("error", f"{how}: going on without"), crashed=True)
        text = f"{end.name} {how}: giving up"
        return Verdict(fatal=text, fatal_code=RunError.GAVE_UP, reason=True, crashed=True)
    wait_ns = BACKOFF_NS[min(end.crashes, len(BACKOFF_NS) - 1)]
    return Verdict(wait_ns, ("error", f"{how}; starting it again in {wait_ns / 1e9:g} s"), crashed=True)
