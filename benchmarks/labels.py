"""Labels compared with a script: which utterance each belongs to, the parts of its latency, and what was lost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.script import Utterance
from emostream.stream.emotion import Emotion
from emostream.stream.messages import Health

PARTS = ("vad", "endpoint_wait", "recognition", "queue", "encode", "fusion", "other", "transport")
CONFIRMED = "confirmed end → label"
SPANS = {  # time span for percentiles → the parts of the total that it leaves out
    "total": (),
    "without endpoint wait": ("endpoint_wait",),
    CONFIRMED: ("vad", "endpoint_wait"),
}
_PIPELINE_PARTS = PARTS[1:-1]
_ROUNDING_MS = 0.01  # parts are published with three decimals
_COUNTERS = ("capture_gaps", "late_chunks", "late_frames", "source_dropped", "overflows", "rows_out_of_order")


@dataclass(frozen=True)
class Label:
    """The label of an utterance, and when a subscriber received it."""

    received_ns: int
    emotion: Emotion


@dataclass
class Matching:
    """Which label belongs to which utterance, by the longest overlap in time."""

    pairs: list[tuple[Utterance, Label]] = field(default_factory=list)
    missed: list[Utterance] = field(default_factory=list)
    doubled: list[Utterance] = field(default_factory=list)
    unexpected: list[Label] = field(default_factory=list)

    def faults(self) -> list[str]:
        """One line per utterance without a label or with two, and per label without an utterance."""
        wrong = (("missed", self.missed), ("doubled", self.doubled))
        lines = [f"{what}: {utterance.place}" for what, utterances in wrong for utterance in utterances]
        spans = ((label.emotion.start_s, label.emotion.end_s) for label in self.unexpected)
        return lines + [f"unexpected label: {start_s:.2f} to {end_s:.2f} s" for start_s, end_s in spans]

    def counts(self) -> dict[str, int]:
        return {"missed": len(self.missed), "doubled": len(self.doubled), "unexpected": len(self.unexpected)}


def match(utterances: Sequence[Utterance], labels: Sequence[Label]) -> Matching:
    """Give each label to the utterance with which it shares the most time."""
    chosen: dict[int, list[Label]] = {i: [] for i in range(len(utterances))}
    matching = Matching()
    for label in labels:
        start_ns, end_ns = label.emotion.start_s * 1e9, label.emotion.end_s * 1e9
        shared = [min(u.end_ns, end_ns) - max(u.start_ns, start_ns) for u in utterances]
        best = max(range(len(shared)), key=shared.__getitem__, default=None)
        if best is None or shared[best] <= 0:
            matching.unexpected.append(label)
        else:
            chosen[best].append(label)
    for utterance, candidates in zip(utterances, chosen.values(), strict=True):
        match candidates:
            case []:
                matching.missed.append(utterance)
            case [label]:
                matching.pairs.append((utterance, label))
            case _:
                matching.doubled.append(utterance)
    return matching


def parts(utterance: Utterance, label: Label, t0_ns: int) -> dict[str, float]:
    """``total`` and its parts in milliseconds. Raises ValueError if they do not sum to it."""
    latency = label.emotion.latency_ms
    if latency is None:
        raise ValueError("the label carries no latency")
    vad_end_ns = label.emotion.captured_ns - t0_ns  # where voice activity detection saw the end, in media time
    total = (label.received_ns - t0_ns - utterance.end_ns) / 1e6
    values = {"total": total, "vad": (vad_end_ns - utterance.end_ns) / 1e6}
    values |= {name: getattr(latency, name) for name in _PIPELINE_PARTS}
    values["transport"] = (label.received_ns - label.emotion.published_ns) / 1e6
    off = total - sum(values[name] for name in PARTS)
    if abs(off) > _ROUNDING_MS:
        raise ValueError(f"parts are {off:.3f} ms less than the total of {total:.3f} ms")
    if abs(vad_end_ns / 1e9 - label.emotion.end_s) > 0.0011:  # published with three decimals
        raise ValueError(f"its end is {label.emotion.end_s} s, but {vad_end_ns / 1e9:.3f} s by its time of capture")
    if (least := min(values[name] for name in (*_PIPELINE_PARTS, "transport"))) < -_ROUNDING_MS:
        raise ValueError(f"a part is negative ({least:.3f} ms), so some time was counted twice")
    return {name: round(value, 3) for name, value in values.items()}


def all_parts(
    pairs: Iterable[tuple[Utterance, Label]], t0_ns: int | None
) -> tuple[list[tuple[Utterance, dict[str, float]]], list[str]]:
    """``parts`` of each pair; and one fault per label whose parts do not add up. Nothing if the run never began."""
    rows, faults = [], []
    for utterance, label in pairs if t0_ns is not None else ():
        try:
            rows.append((utterance, parts(utterance, label, t0_ns or 0)))
        except ValueError as error:
            faults.append(f"{utterance.name}, {utterance.start_ns / 1e9:.2f} s: {error}")
    return rows, faults


def span_ms(row: Mapping[str, float], span: str) -> float:
    """One of SPANS, from the total and its parts."""
    return row["total"] - sum(row[name] for name in SPANS[span])


def losses(last_beats: Iterable[Health]) -> dict[str, int]:
    """How much each node dropped or missed, from its last heartbeat; nodes that lost nothing are left out."""
    lost: Counter[str] = Counter()
    for last in last_beats:
        lost[last.node] += last.dropped + last.gaps + sum(last.counters.get(name, 0) for name in _COUNTERS)
    return dict(+lost)


def restarted(beats: Mapping[str, Sequence[Health]]) -> list[str]:
    """Nodes whose processor time fell from one heartbeat to the next: another process has taken over the name. A node
    that was killed because it started too slowly is not among them."""
    return [
        node
        for node, heartbeats in beats.items()
        if any(a.state == "running" and b.cpu_s < a.cpu_s for a, b in itertools.pairwise(heartbeats))
    ]
