"""Labels files on a Ray cluster: a worker per core, one file at a time per worker, one outcome per file."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emostream.errors import ClusterError
from emostream.files import printable
from emostream.stream.cluster.connect import joined, reachable
from emostream.stream.cluster.ledger import Ledger, Outcome
from emostream.stream.cluster.worker import Started, Worker
from emostream.stream.config import Config
from emostream.stream.label import Labeller

_SECTIONS = {"audio", "speech", "video", "fusion", "privacy", "log"}  # sections of the configuration that workers need
_LOOK_S = 2.0  # how often nodes are counted
_PATIENCE_S = 60.0  # how long to wait for a busy core if no other can do the work
_HEAD_S = 20.0  # how long a cluster may be without its head; Ray ends the process after 60
_FAILED_STARTS = 3  # in a row
_BLIND = 20  # a node that does not see this many files, and has seen none, is not used

log = logging.getLogger(__name__)


@dataclass
class Tally:
    """Statistics of a run. ``core_s``: total time of all workers since they finished loading, idle or not; ``workers``:
    most workers at a time; ``deaths``: workers that died with a file, including those on lost machines."""

    media_s: float = 0.0
    wall_s: float = 0.0
    core_s: float = 0.0
    workers: int = 0
    deaths: int = 0

    def line(self, files: int) -> str:
        """The statistics as a line of text."""
        media_h, core_h = self.media_s / 3600, self.core_s / 3600
        rate = f"{media_h / core_h:.1f} hours of media per core hour" if core_h else "nothing was read"
        died = f"; workers died {self.deaths} times with a file" if self.deaths else ""
        return (
            f"{files:,} files, {media_h:,.2f} hours of media, in {self.wall_s / 60:,.1f} minutes on at most "
            f"{self.workers} cores: {rate}{died}"
        )


@dataclass(eq=False)
class _Hand:
    """A worker, as the command sees it. ``node``: empty until it has loaded; ``file``: index of the file it works
    on."""

    actor: Any
    node: str = ""
    host: str = ""
    file: int | None = None
    since_s: float = field(default_factory=time.monotonic)  # when it was created, later when it had loaded


class ClusterLabeller:
    """Labels files on the Ray cluster at ``address`` (see ``joined``) with ``jobs`` workers, by default one per CPU,
    including CPUs of nodes that join later. Each worker requests a core of its own.

    ``show`` is called with each file that has its outcome. This machine briefly loads the models too, to compare: a
    node where labels would differ, or where a model is missing, is not used, and a line says so.
    """

    def __init__(
        self, config: Config, address: str, jobs: int | None = None, show: Callable[[Path], None] = lambda path: None
    ) -> None:
        self._config, self._address, self._jobs, self._show = config, address, jobs, show
        self.tally = Tally()
        self._hands: list[_Hand] = []
        self._pending: dict[Any, _Hand] = {}  # by Ray's reference to each worker's pending call
        self._cpus: dict[str, int] = {}  # number of CPUs of each present node
        self._refused: dict[str, str] = {}  # nodes that are not used, and why
        self._saw: Counter[str] = Counter()  # how many files each node saw
        self._missed: Counter[str] = Counter()
        self._failed_starts, self._start_after_s = 0, -math.inf

    def label(self, files: Sequence[Path], tracks: str = "") -> Iterator[tuple[Path, Outcome]]:
        """Yield the outcome of each file, once, in the order of the files.

        Raises what ``Labeller`` and ``joined`` raise, and ClusterError if no node of the cluster can be used.
        """
        with Labeller(self._config) as labeller:
            self._facts = labeller.facts
        self._files, self._ledger = files, Ledger(files)
        begun_s, looked_s = time.monotonic(), -math.inf
        with joined(self._address, self._jobs or os.cpu_count() or 1) as self._ray:
            remote = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")
            self._class = remote(Worker)
            self._head, self._head_seen_s = self._ray.get_runtime_context().gcs_address, time.monotonic()
            self._arguments = (self._config.model_dump(include=_SECTIONS, exclude_none=True), os.getcwd(), tracks)
            while self._ledger.open:
                if time.monotonic() > looked_s + _LOOK_S:
                    looked_s = time.monotonic()
                    self._look()
                self._resize()
                self._hand_out()
                self._wait()
                yield from self._ledger.take()
            self.tally.wall_s = time.monotonic() - begun_s
            for hand in [*self._hands]:
                self._dismiss(hand)

    def _look(self) -> None:
        """Count the present nodes. Raises ClusterError if none can be used, or the cluster's head is gone."""
        if not reachable(self._head):
            if time.monotonic() > self._head_seen_s + _HEAD_S:
                raise ClusterError(f"the head of the cluster, {self._head}, is gone")
            return  # Ray would wait for it, and then end this process
        self._head_seen_s = time.monotonic()
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        self._cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes}
        if self._cpus.keys() <= self._refused.keys():
            raise ClusterError("no machine of the cluster can be used")

    def _resize(self) -> None:
        """Keep as many workers as there is work for: more when nodes join, fewer at the end."""
        cpus = sum(count for node, count in self._cpus.items() if node not in self._refused)
        wanted = min(self._jobs or cpus, self._ledger.open)
        spare = [hand for hand in self._hands if hand.file is None][: max(0, len(self._hands) - wanted)]
        for hand in spare:
            self._dismiss(hand)
        if time.monotonic() < self._start_after_s:
            return
        # not ray.put: a worker's arguments must not be lost together with the node that stores them
        selector = {"ray.io/node-id": f"!in({','.join(self._refused)})"} if self._refused else None
        for _ in range(wanted - len(self._hands)):
            hand = _Hand(self._class.options(label_selector=selector).remote(*self._arguments))
            self._hands.append(hand)
            self._pending[hand.actor.start.remote()] = hand

    def _hand_out(self) -> None:
        """Give each idle worker a file; if there is none, check whether that can ever change."""
        useless: set[str] = set()  # nodes for which no file is left
        for hand in self._hands:
            if hand.node and hand.file is None and hand.node not in useless:
                hand.file = self._ledger.hand_out(hand.node)
                if hand.file is None:
                    useless.add(hand.node)
                else:
                    self._pending[hand.actor.label.remote(self._files[hand.file])] = hand
        loaded = [hand for hand in self._hands if hand.node]
        coming = [hand for hand in self._hands if not hand.node and time.monotonic() < hand.since_s + _PATIENCE_S]
        if loaded and not coming and all(hand.file is None for hand in loaded):
            self._ledger.give_up_unseen({hand.node for hand in loaded})

    def _wait(self) -> None:
        """Take results of workers, waiting a while for them."""
        if not self._pending:
            time.sleep(min(_LOOK_S, 0.1))
            return
        ready, _ = self._ray.wait(list(self._pending), timeout=_LOOK_S)
        for reference in ready:
            hand = self._pending.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._died(hand, error)
                continue
            if isinstance(result, Started):
                self._started(hand, result)
            else:
                self._labelled(hand, result)

    def _started(self, hand: _Hand, started: Started) -> None:
        self._failed_starts = 0
        why = started.error or "; ".join(
            f"{name} is {there or 'missing'} there, {self._facts.get(name) or 'missing'} here"
            for name, there in started.facts.items()
            if there != self._facts.get(name)
        )
        if why:
            self._refuse(started.node, started.host, why)
            self._dismiss(hand)
            return
        hand.node, hand.host, hand.since_s = started.node, started.host, time.monotonic()
        self.tally.workers = max(self.tally.workers, sum(bool(hand.node) for hand in self._hands))

    def _labelled(self, hand: _Hand, outcome: Outcome | None) -> None:
        assert hand.file is not None
        index, hand.file = hand.file, None
        path = self._files[index]
        if outcome is not None:
            self._saw[hand.node] += 1
            self._done(index, outcome)
        elif not os.path.exists(path):
            self._done(index, Outcome(error=f"{printable(path)}: no such file"))
        else:
            self._missed[hand.node] += 1
            if self._missed[hand.node] == 1:
                _note(f"{hand.host} does not see {printable(path)}; another machine gets it")
            self._ledger.unseen(index, hand.node)
            if self._missed[hand.node] >= _BLIND and not self._saw[hand.node]:
                self._refuse(hand.node, hand.host, f"it sees none of {_BLIND} files")
        if hand.node in self._refused:
            self._dismiss(hand)

    def _done(self, index: int, outcome: Outcome) -> None:
        self._ledger.done(index, outcome)
        self.tally.media_s += outcome.media_s
        self._show(self._files[index])

    def _died(self, hand: _Hand, error: Exception) -> None:
        """A worker or its node died. If it lives on unreachable, its results are ignored."""
        log.debug("a worker died: %s", error)
        self._dismiss(hand)
        if hand.file is not None:
            self.tally.deaths += 1
            self._look()
            before = self._ledger.open
            self._ledger.died(hand.file, hand.node, self._cpus)
            if self._ledger.open < before:
                self._show(self._files[hand.file])
            return
        self._failed_starts += 1
        if self._failed_starts < _FAILED_STARTS:
            return
        why = f"workers die before they have loaded ({(str(error).strip().splitlines() or [''])[-1].strip()})"
        if not any(other.node for other in self._hands):
            raise ClusterError(f"{why}; every machine of the cluster needs this version of emostream")
        _note(f"{why}; trying again in {_PATIENCE_S:g} s")
        self._failed_starts, self._start_after_s = 0, time.monotonic() + _PATIENCE_S

    def _dismiss(self, hand: _Hand) -> None:
        self._hands.remove(hand)
        self._pending = {reference: other for reference, other in self._pending.items() if other is not hand}
        self._ray.kill(hand.actor)
        if hand.node:
            self.tally.core_s += time.monotonic() - hand.since_s

    def _refuse(self, node: str, host: str, why: str) -> None:
        if node not in self._refused:
            self._refused[node] = why
            _note(f"{host} is not used: {why}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
