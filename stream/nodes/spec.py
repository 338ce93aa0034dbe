"""What a node is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emostream.stream.config import Config
from emostream.stream.messages import Orders
from emostream.stream.run_folder import ipc
from emostream.stream.source_spec import SourceSpec
from emostream.stream.topics import Medium


@dataclass(frozen=True)
class NodeSpec:
    """All that a node needs to know. ``inputs``: names of the nodes that it subscribes to; ``source``, ``media`` and
    ``tracks``: for a capture node; ``host``: the node whose process this one shares; ``streams``: by name, the
    modalities that fusion has to expect; ``t0_ns``: Unix time of media time 0, if the run has already begun (the node
    is restarted); ``run``: the run's name; ``first``: fusion's first number, higher after a restart; ``orders``: the
    orders so far; ``parent``: the supervisor's process id."""

    kind: Literal["capture", "speech", "fusion", "page", "record"]
    name: str
    stream: str
    config: Config
    run_dir: str
    clock_offset_ns: int
    inputs: tuple[str, ...] = ()
    source: SourceSpec | None = None
    media: frozenset[Medium] = frozenset()
    tracks: str = ""
    host: str = ""
    streams: tuple[tuple[str, frozenset[str]], ...] = ()
    t0_ns: int | None = None
    run: str = ""
    first: int = 0
    orders: Orders = field(default_factory=Orders)
    parent: int = 0

    @property
    def realtime(self) -> bool:
        return self.config.pace == "realtime"


def ipc_of(spec: NodeSpec, node: str) -> str:
    """Endpoint of a node of the same run."""
    return ipc(Path(spec.run_dir), node)
