"""What the supervisor knows of a node: its process, its heartbeats, its crashes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from emostream.stream.exits import Exit
from emostream.stream.messages import Health
from emostream.stream.nodes.spec import NodeSpec

_READY_TIMEOUT_NS = 60_000_000_000  # for a node to start, since a recogniser's large model takes long to load
_SILENT_NS = 15_000_000_000  # without a heartbeat for longer, a node counts as hung


@dataclass
class Watched:
    """A node of a run, whose process may have been started several times."""

    spec: NodeSpec
    process: BaseProcess | None = None
    ready: bool = False
    done: bool = False
    cannot_run: bool = False
    starts: int = 0
    crashed_ns: deque[int] = field(default_factory=deque)  # recent crashes
    has_run: bool = False  # at any start
    gone_ns: int | None = None  # since when it has not been running, if it is being restarted
    away: int = 0  # consecutive starts at which its source was away
    restart_ns: int = 0
    seen_ns: int = 0
    health: Health | None = None
    error: str = ""  # the last error that it logged
    t0_ns: int | None = None  # Unix time of its media time 0
    orders: int = 0  # serial number of the last orders that it carried out

    def take(self, health: Health, now_ns: int) -> None:
        """Note a heartbeat that came."""
        self.seen_ns, self.health = now_ns, health
        self.orders = max(self.orders, health.orders)
        self.ready = self.ready or health.state != "starting"
        if health.state == "running":
            self.has_run, self.away = True, 0

    def take_absence(self, now_ns: int) -> str:
        """What to say of a node that runs again, once: for how long it was away. Empty if it was not."""
        if self.gone_ns is None or self.t0_ns is None:
            return ""
        start_s, end_s = ((at_ns - self.t0_ns) / 1e9 for at_ns in (self.gone_ns, now_ns))
        self.gone_ns = None
        return f"runs again; it was away from {start_s:.2f} to {end_s:.2f} s, and what came then may be missing"

    def end(self, code: int, now_ns: int, within_s: float) -> Exit:
        """Note that its process has ended. Crashes count that were within the last ``within_s`` seconds."""
        if self.gone_ns is None:
            behind_s = 0.0 if self.health is None else self.health.behind_s
            self.gone_ns = self.seen_ns - int(behind_s * 1e9)  # what waited for it at its last sign of life is lost too
        while self.crashed_ns and now_ns - self.crashed_ns[0] > within_s * 1e9:
            self.crashed_ns.popleft()
        return Exit(
            name=self.spec.name,
            kind=self.spec.kind,
            code=code,
            is_live=self.spec.source is not None and self.spec.source.is_live,
            has_reported=self.health is not None,
            has_run=self.has_run,
            away=self.away,
            crashes=len(self.crashed_ns),
        )

    def hangs(self, now_ns: int) -> bool:
        """Whether its process lives and has been silent for too long."""
        limit_ns = _SILENT_NS if self.ready else _READY_TIMEOUT_NS
        return self.process is not None and self.process.exitcode is None and now_ns - self.seen_ns > limit_ns

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of its process, if it has one."""
        if self.process is not None:
            self.process.join(max(0.0, seconds))
        return self.process is None or self.process.exitcode is not None


def kill(nodes: Iterable[Watched]) -> None:
    """Kill the processes that are still alive, and wait for their ends."""
    alive = [node.process for node in nodes if node.process is not None and node.process.is_alive()]
    for process in alive:
        process.kill()
    for process in alive:
        process.join()
