"""Summary of a run: utterances, latency by part, and what was lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from emostream.stream.emotion import Emotion
from emostream.stream.status import NodeStatus, Status, StreamStatus, stream_line

PARTS = ("total", "endpoint_wait", "recognition", "queue", "encode", "fusion", "other")
_LOST_AT_SOURCE = ("source_dropped", "overflows", "late_chunks", "late_frames")
_KEPT = 10_000  # latencies; bounded, since a run may last for months


@dataclass
class Summary:
    """Collects labels. Percentiles cover the last 10,000 utterances that had a latency.

    ``labels``: number of utterances by label. ``latencies``: (10000, 7) float32 ring of milliseconds, columns as PARTS.
    ``status``: the status at the run's end.
    """

    labels: Counter[str] = field(default_factory=Counter)
    uncertain: int = 0
    timed: int = 0  # utterances that had a latency
    latencies: np.ndarray = field(default_factory=lambda: np.zeros((_KEPT, len(PARTS)), np.float32))  # a ring
    status: Status = field(default_factory=Status)

    def add(self, emotion: Emotion) -> None:
        """Add a label; running estimates are ignored."""
        if emotion.kind != "utterance":
            return
        self.labels[emotion.label] += 1
        self.uncertain += emotion.uncertain
        if emotion.latency_ms is not None:
            self.latencies[self.timed % _KEPT] = [getattr(emotion.latency_ms, part) for part in PARTS]
            self.timed += 1

    @property
    def utterances(self) -> int:
        """Number of labelled utterances."""
        return self.labels.total()

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        heard = sum(stream.heard for stream in self.status.streams.values())
        out = [f"utterances: {self.utterances} labelled of {heard} heard"]
        if self.labels:
            out[0] += "  (" + ", ".join(f"{label} {n}" for label, n in self.labels.most_common()) + ")"
            out.append(
                f"sure: {self.utterances - self.uncertain} of {self.utterances}"
                + " (the others: ?)" * bool(self.uncertain)
            )
        lost = [stream_line(name, stream) for name, stream in self.status.streams.items() if _has_lost(stream)]
        if self.timed:
            p50, p90 = np.percentile(self.latencies[: self.timed, 0], [50, 90])
            out.append(f"latency: half came within {p50:.0f} ms of the last word, nine of ten within {p90:.0f} ms")
        nodes = self.status.nodes
        dropped = {name: n for name, node in nodes.items() if (n := _dropped(node))}
        gaps = {name: node.gaps for name, node in nodes.items() if node.gaps}
        holes = {name: n for name, node in nodes.items() if (n := node.counters.get("capture_gaps", 0))}
        nothing = "nothing" if not (dropped or gaps or holes) else "no utterance; what was dropped or missing is below"
        out.append("lost: " + ("; ".join(lost) if lost else nothing))
        if self.timed:
            values = self.latencies[: self.timed]
            out.append(f"latency, ms, from the last speech sample to the label (n={len(values)}):")
            out.append(f"  {'':14}" + "".join(f"{name:>9}" for name in ("p50", "p90", "p99")))
            for i, part in enumerate(PARTS):
                p50, p90, p99 = np.percentile(values[:, i], [50, 90, 99])
                out.append(f"  {part:14}{p50:9.1f}{p90:9.1f}{p99:9.1f}")
            early = sum(node.counters.get("labels_ready_at_end", 0) for node in self.status.nodes.values())
            out.append(f"  labels already computed at the pause: {early} of {self.timed}")
        out.append(f"dropped: {_total(dropped)}   missed in transit: {_total(gaps)}   gaps in capture: {_total(holes)}")
        late = {
            name: n
            for name, node in nodes.items()
            if (n := sum(node.counters.get(counter, 0) for counter in ("late_chunks", "late_frames")))
        }
        if late:
            out.append(f"came too late to be used: {_total(late)}")
        if unpublished := sum(node.counters.get("not_published", 0) for node in nodes.values()):
            out.append(f"not published, since another program had the endpoint: {unpublished} labels and estimates")
        again = {name: node.starts - 1 for name, node in nodes.items() if node.starts > 1}
        if again:
            away_s = sum(nodes[name].away_s for name in again)
            out.append(f"started again: {_total(again)}, away for {away_s:.1f} s in all")
        return out


def _has_lost(stream: StreamStatus) -> bool:
    return bool(stream.sound_lost_s or stream.unlabelled or stream.late_video)


def _dropped(node: NodeStatus) -> int:
    """What a node lost: messages dropped by its full queue, losses at its source, and items that came too late."""
    return node.dropped + sum(node.counters.get(name, 0) for name in _LOST_AT_SOURCE)


def _total(counts: dict[str, int]) -> str:
    if not counts:
        return "0"
    return f"{sum(counts.values())} (" + ", ".join(f"{node} {n}" for node, n in counts.items()) + ")"
