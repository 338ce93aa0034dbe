"""Keeps track of files: each is handed out until it has one outcome, whatever dies. Outcomes come in order."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from emostream.files import printable

OWN_DEATHS = 3  # give up a file after this many of its workers died on machines that are still there
ALL_DEATHS = 10  # give up a file after this many of its workers died for whatever reason


class Outcome(msgspec.Struct):
    """The outcome of a file. ``labels``: the public messages as JSON; ``error``: why there are no more, or empty;
    ``records``: logger name, level and text of each log line; ``media_s``: how much of the file was read, and
    ``cpu_s``: how much CPU time that took, in seconds."""

    labels: list[bytes] = []
    error: str = ""
    records: list[tuple[str, int, str]] = []
    media_s: float = 0.0
    cpu_s: float = 0.0


class Ledger:
    """Hands out files by index and collects one outcome for each. ``open``: how many have none yet."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._waiting = list(range(len(files)))  # in order
        self._deaths: dict[int, list[str]] = {}  # the node of each worker that died with a file
        self._unseen: dict[int, set[str]] = {}  # the nodes that do not see a file
        self._outcomes: dict[int, Outcome] = {}  # not yet taken
        self._next = 0  # the first that is not yet taken
        self.open = len(files)

    def hand_out(self, node: str) -> int | None:
        """The first waiting file that this node may be able to see; None if there is none."""
        for place, index in enumerate(self._waiting):
            if node not in self._unseen.get(index, ()):
                return self._waiting.pop(place)
        return None

    def done(self, index: int, outcome: Outcome) -> None:
        """A file that was handed out has its outcome."""
        self._outcomes[index] = outcome
        self.open -= 1

    def died(self, index: int, node: str, alive: Collection[str]) -> None:
        """The worker that had a file died. The file waits again, unless this has happened too often: ``OWN_DEATHS``
        times on nodes that are still ``alive`` (a lost machine is hardly the file's fault), or ``ALL_DEATHS`` times."""
        deaths = self._deaths.setdefault(index, [])
        deaths.append(node)
        if sum(node in alive for node in deaths) >= OWN_DEATHS:
            self._give_up(index, f"given up: {OWN_DEATHS} workers died of it")
        elif len(deaths) >= ALL_DEATHS:
            self._give_up(index, f"given up: {ALL_DEATHS} workers that had it died, or their machines did")
        else:
            bisect.insort(self._waiting, index)

    def unseen(self, index: int, node: str) -> None:
        """The file does not exist on this node; it waits for another."""
        self._unseen.setdefault(index, set()).add(node)
        bisect.insort(self._waiting, index)

    def give_up_unseen(self, nodes: Collection[str]) -> None:
        """Give up files that none of these nodes sees."""
        lost = [index for index in self._waiting if self._unseen.get(index, set()).issuperset(nodes)]
        self._waiting = [index for index in self._waiting if index not in lost]
        for index in lost:
            self._give_up(index, "no machine of the cluster sees it; put it where all of them do")

    def take(self) -> Iterator[tuple[Path, Outcome]]:
        """The next outcomes in the order of the files, each once."""
        while (outcome := self._outcomes.pop(self._next, None)) is not None:
            self._next += 1
            yield self._files[self._next - 1], outcome

    def _give_up(self, index: int, why: str) -> None:
        self.done(index, Outcome(error=f"{printable(self._files[index])}: {why}"))
