"""Summary of a run: utterances, latency by part, drops and gaps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from emostream.stream.messages import Emotion, Health

PARTS = ("total", "endpoint_wait", "recognition", "queue", "encode", "fusion", "other")
_KEPT = 10_000  # latencies: a run may last for months


@dataclass
class Summary:
    """Collects labels and heartbeats. Percentiles cover the last 10,000 utterances that had a latency.

    ``labels``: number of utterances by label. ``latencies``: (10000, 7) float32 ring of milliseconds, columns as PARTS.
    ``health``: last heartbeat by node.
    """

    labels: Counter[str] = field(default_factory=Counter)
    timed: int = 0  # utterances that had a latency
    latencies: np.ndarray = field(default_factory=lambda: np.zeros((_KEPT, len(PARTS)), np.float32))  # a ring
    health: dict[str, Health] = field(default_factory=dict)
    _earlier: Counter[str] = field(default_factory=Counter)

    def add(self, emotion: Emotion) -> None:
        """Add a label; running estimates are ignored."""
        if emotion.kind != "utterance":
            return
        self.labels[emotion.label] += 1
        if emotion.latency_ms is not None:
            self.latencies[self.timed % _KEPT] = [getattr(emotion.latency_ms, part) for part in PARTS]
            self.timed += 1

    def add_health(self, health: Health) -> None:
        """Add a heartbeat. The counters of a node that was restarted begin at 0; those from before are kept."""
        last = self.health.get(health.node)
        if last is not None and health.cpu_s < last.cpu_s:
            self._earlier.update(last.counters)
        self.health[health.node] = health

    @property
    def utterances(self) -> int:
        """Number of labelled utterances."""
        return self.labels.total()

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        heard = self._counted("utterances") + self._counted("face_utterances")  # streams with and without sound
        out = [f"utterances: {self.utterances} labelled of {heard} heard"]
        if self.labels:
            out[0] += "  (" + ", ".join(f"{label} {n}" for label, n in self.labels.most_common()) + ")"
        if self.timed:
            values = self.latencies[: self.timed]
            out.append(f"latency, ms, from the last speech sample to the label (n={len(values)}):")
            out.append(f"  {'':14}" + "".join(f"{name:>9}" for name in ("p50", "p90", "p99")))
            for i, part in enumerate(PARTS):
                p50, p90, p99 = np.percentile(values[:, i], [50, 90, 99])
                out.append(f"  {part:14}{p50:9.1f}{p90:9.1f}{p99:9.1f}")
            early = self._counted("labels_ready_at_end")
            out.append(f"  labels already computed at the pause: {early} of {self.timed}")
        dropped = {node: n for node, h in self.health.items() if (n := _dropped(h))}
        gaps = {node: h.gaps for node, h in self.health.items() if h.gaps}
        holes = {node: n for node, h in self.health.items() if (n := h.counters.get("capture_gaps", 0))}
        out.append(f"dropped: {_total(dropped)}   missed in transit: {_total(gaps)}   gaps in capture: {_total(holes)}")
        return out

    def _counted(self, name: str) -> int:
        return self._earlier[name] + sum(health.counters.get(name, 0) for health in self.health.values())


def _dropped(health: Health) -> int:
    """Messages dropped from its full queue, and what its source lost before that."""
    return health.dropped + sum(health.counters.get(name, 0) for name in ("source_dropped", "overflows"))


def _total(counts: dict[str, int]) -> str:
    if not counts:
        return "0"
    return f"{sum(counts.values())} (" + ", ".join(f"{node} {n}" for node, n in counts.items()) + ")"
