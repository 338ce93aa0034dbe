"""Which file is where: each is handed out until it has one outcome, whatever dies. Outcomes come in order."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from emostream.files import printable

OWN_DEATHS = 3  # of workers that had the file, on machines that are still there
ALL_DEATHS = 10  # of workers that had the file, for whatever reason


class Outcome(msgspec.Struct):
    """What became of a file. ``labels``: the public messages, as JSON; ``error``: why there are no more, or empty;
    ``records``: name of the logger, level and text of each line of the log; ``media_s``: how much of the file was
    read, and ``cpu_s``: how much processor time that took, in seconds."""

    labels: list[bytes] = []
    error: str = ""
    records: list[tuple[str, int, str]] = []
    media_s: float = 0.0
    cpu_s: float = 0.0


class Ledger:
    """Hands out files, by their index, and collects one outcome for each. ``open``: how many have none yet."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._waiting = list(range(len(files)))  # in order
        self._deaths: dict[int, list[str]] = {}  # the node of each worker that died with a file
        self._unseen: dict[int, set[str]] = {}  # the nodes that do not see a file
        self._outcomes: dict[int, Outcome] = {}  # not yet taken
        self._next = 0  # the first that is not yet taken
        self.open = len(files)

    def hand_out(self, node: str) -> int | None:
        """The first file that waits, and that this node may see; None if there is none."""
        for place, index in enumerate(self._waiting):
            if node not in self._unseen.get(index, ()):
                return self._waiting.pop(place)
        return None

    def done(self, index: int, outcome: Outcome) -> None:
        """A file that was handed out has its outcome."""
        self._outcomes[index] = outcome
        self.open -= 1

    def died(self, index: int, node: str, alive: Collection[str]) -> None:
        """The worker that had a file died. The file waits again, unless that has been so too often: ``OWN_DEATHS`` on
        nodes that are ``alive``, since a machine that went away is hardly a file's fault, or ``ALL_DEATHS``."""
        deaths = self._deaths.setdefault(index, [])
        deaths.append(node)
        if sum(node in alive for node in deaths) >= OWN_DEATHS:
            self._give_up(index, f"given up: {OWN_DEATHS} workers died of it")
        elif len(deaths) >= ALL_DEATHS:
            self._give_up(index, f"given up: {ALL_DEATHS} workers that had it died, or their machines did")
        else:
            bisect.insort(self._waiting, index)

    def unseen(self, index: int, node: str) -> None:
        """The file is not there on this node; it waits for another."""
        self._unseen.setdefault(index, set()).add(node)
        bisect.insort(self._waiting, index)

    def give_up_unseen(self, nodes: Collection[str]) -> None:
        """Files that none of these nodes sees wait no longer."""
        lost = [index for index in self._waiting if self._unseen.get(index, set()).issuperset(nodes)]
        self._waiting = [index for index in self._waiting if index not in lost]
        for index in lost:
            self._give_up(index, "no machine of the cluster sees it; put it where all of them do")

    def take(self) -> Iterator[tuple[Path, Outcome]]:
        """The outcomes that are next in the order of the files, each once."""
        while (outcome := self._outcomes.pop(self._next, None)) is not None:
            self._next += 1
            yield self._files[self._next - 1], outcome

    def _give_up(self, index: int, why: str) -> None:
        self.done(index, Outcome(error=f"{printable(self._files[index])}: {why}"))
