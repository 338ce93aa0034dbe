"""A run's metrics in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from emostream.stream.emotion import Emotion
from emostream.stream.page.state import PageState

BOUNDS_S = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 5.0)
_PARTS = ("total", "endpoint_wait", "recognition", "queue", "encode", "fusion")


class RunMetrics(Collector):
    """Collects metrics from labels as they come, and from the newest status. With ``count_labels`` it counts each label
    by name; by default no label is named, since what people feel is personal."""

    def __init__(self, state: PageState, count_labels: bool = False) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._latency: dict[tuple[str, str], tuple[list[int], float]] = {}
        self._coverage: dict[tuple[str, str], float] = {}
        self._labels: Counter[tuple[str, str]] | None = Counter() if count_labels else None
        self._bundle = self._backend = ""
        state.on_label = self._add

    def text(self) -> bytes:
        """The present metrics."""
        registry = CollectorRegistry()
        registry.register(self)
        return bytes(generate_latest(registry))

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def _add(self, emotion: Emotion) -> None:
        with self._lock:
            self._bundle, self._backend = emotion.bundle, emotion.backend
            for modality, evidence in emotion.modalities.items():
                self._coverage[emotion.stream, modality] = evidence.coverage
            if self._labels is not None:
                self._labels[emotion.stream, emotion.label] += 1
            if emotion.latency_ms is None:
                return
            for part in _PARTS:
                seconds = getattr(emotion.latency_ms, part) / 1e3
                counts, total = self._latency.get((emotion.stream, part), ([0] * (len(BOUNDS_S) + 1), 0.0))
                counts[sum(seconds > bound for bound in BOUNDS_S)] += 1
                self._latency[emotion.stream, part] = counts, total + seconds

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            latencies = [(key, list(counts), total) for key, (counts, total) in self._latency.items()]
            bundle, backend = self._bundle, self._backend
            coverages = dict(self._coverage)
            counts_of_labels = None if self._labels is None else dict(self._labels)
        latency = HistogramMetricFamily(
            "emostream_label_latency_seconds", "From the last speech sample to the label.", labels=["stream", "part"]
        )
        for (stream, part), counts, total in latencies:
            buckets, sum_ = [], 0
            for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], counts, strict=True):
                sum_ += count
                buckets.append((bound, sum_))
            latency.add_metric([stream, part], buckets, total)
        yield latency
        coverage = GaugeMetricFamily(
            "emostream_coverage", "Of the newest label's time, the share that each modality has.",
            labels=["stream", "modality"],
        )  # fmt: skip
        for key, share in coverages.items():
            coverage.add_metric(key, share)
        yield coverage
        if counts_of_labels is not None:
            named = CounterMetricFamily("emostream_labels", "Labels by name.", labels=["stream", "label"])
            for key, count in counts_of_labels.items():
                named.add_metric(key, count)
            yield named
        info = GaugeMetricFamily("emostream_info", "What makes the labels.", labels=["bundle", "backend", "run"])
        found = self._state.status()
        if found is None:
            return
        _, status = found
        info.add_metric([bundle, backend, status.run], 1)
        yield info
        yield GaugeMetricFamily("emostream_uptime_seconds", "Since the run began.", value=status.uptime_s)
        labelled = CounterMetricFamily("emostream_utterances", "Utterances that have a label.", labels=["stream"])
        heard = CounterMetricFamily("emostream_utterances_heard", "Utterances that began.", labels=["stream"])
        lost = CounterMetricFamily(
            "emostream_lost", "Utterances without a label; labels without all faces.", labels=["stream", "why"]
        )
        sound = CounterMetricFamily(
            "emostream_sound_lost_seconds", "Sound that never reached speech recognition.", labels=["stream"]
        )
        up = GaugeMetricFamily("emostream_source_up", "Whether labels can come.", labels=["stream"])
        behind = GaugeMetricFamily(
            "emostream_behind_seconds", "Age of the oldest message that waits.", labels=["stream"]
        )
        for name, stream_ in status.streams.items():
            labelled.add_metric([name], stream_.labelled)
            heard.add_metric([name], stream_.heard)
            lost.add_metric([name, "unlabelled"], stream_.unlabelled)
            lost.add_metric([name, "late_video"], stream_.late_video)
            sound.add_metric([name], stream_.sound_lost_s)
            up.add_metric([name], float(stream_.can_label))
            behind.add_metric([name], stream_.behind_s)
        yield from (labelled, heard, lost, sound, up, behind)
        dropped = CounterMetricFamily("emostream_dropped", "Messages that a full queue dropped.", labels=["node"])
        cpu = CounterMetricFamily("emostream_node_cpu_seconds", "Of its present process.", labels=["node"])
        memory = GaugeMetricFamily("emostream_node_resident_bytes", "Of its present process.", labels=["node"])
        starts = CounterMetricFamily("emostream_node_starts", "How often its process was started.", labels=["node"])
        for name, node in status.nodes.items():
            dropped.add_metric([name], node.dropped)
            cpu.add_metric([name], node.cpu_s)
            memory.add_metric([name], node.rss_bytes)
            starts.add_metric([name], node.starts)
        yield from (dropped, cpu, memory, starts)
