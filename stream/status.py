"""What a run is doing, in one message: the state of each stream and node, and everything that was lost.

The supervisor keeps a status board. Once a second, and whenever a state changes, it is published as JSON at the public
endpoint under the topic ``status``. Fusion publishes it, so if no status comes, no labels can come either.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from emostream.stream.emotion import Emotion, decode_public
from emostream.stream.messages import Health
from emostream.stream.topics import FUSION, RECORD, node_name, parse_node

BEHIND_S = 2.0  # a run that is further behind counts as too slow
SILENT_S = 3.0  # a live source that is silent for longer counts as away
_REPORTED_LOSS_S = 0.05  # less lost sound is not mentioned
_SETTLE_NS = 2_000_000_000  # a label must come this soon after its utterance's end

NodeState = Literal["starting", "ready", "running", "away", "ended", "failed"]
StreamState = Literal["starting", "running", "degraded", "away", "ended"]


class NodeStatus(msgspec.Struct, kw_only=True):
    """A node. ``away``: it is about to be restarted. ``starts``: how often its process was started; ``away_s``: how
    long it was away in total. ``silent_s``: how long its live source has delivered nothing. ``behind_s``: age of the
    oldest of the ``queued`` messages that wait for it. ``dropped`` and ``gaps``: messages that its full queue dropped,
    and that never arrived. These two and ``counters`` continue after a restart. ``cpu_s``, ``rss_bytes``: of its
    present process."""

    state: NodeState = "starting"
    starts: int = 0
    away_s: float = 0.0
    silent_s: float = 0.0
    behind_s: float = 0.0
    queued: int = 0
    dropped: int = 0
    gaps: int = 0
    counters: dict[str, int] = {}
    cpu_s: float = 0.0
    rss_bytes: int = 0


class StreamStatus(msgspec.Struct, kw_only=True):
    """A stream. ``degraded``: labels come, but a node or a source is away, or the run is behind; ``away``: no labels
    can come.

    ``heard``: utterances that began; ``labelled``: utterances with a label; ``unlabelled``: utterances that ended at
    least two seconds ago and have no label. ``sound_lost_s``: sound that never reached speech recognition, for whatever
    reason. ``late_video``: labels that did not wait for all faces. ``behind_s``: the maximum over its nodes and fusion.
    ``level_dbfs``, ``speech``, ``face``: in the last second, the loudest sample, the highest speech probability and the
    share of pictures with a face; None without sound or picture, or before the first heartbeat.
    ``muted``: sound is ignored at present, on request; ``paused``: sound and pictures are."""

    state: StreamState = "starting"
    heard: int = 0
    labelled: int = 0
    unlabelled: int = 0
    sound_lost_s: float = 0.0
    late_video: int = 0
    behind_s: float = 0.0
    muted: bool = False
    paused: bool = False
    level_dbfs: float | None = None
    speech: float | None = None
    face: float | None = None

    @property
    def can_label(self) -> bool:
        """Whether an utterance would be labelled now."""
        return self.state in ("running", "degraded")


class Status(msgspec.Struct, kw_only=True):
    """The public message of the topic ``status``. ``run``: as in the labels; ``published_ns``: Unix time; ``uptime_s``:
    time since the run began; ``labels``: the label names, in the order of ``probabilities`` in the labels."""

    schema: Literal["emostream-status/1"] = "emostream-status/1"
    run: str = ""
    state: Literal["starting", "running", "degraded", "stopping", "ended"] = "starting"
    published_ns: int = 0
    uptime_s: float = 0.0
    streams: dict[str, StreamStatus] = {}
    nodes: dict[str, NodeStatus] = {}
    labels: list[str] = []

    @property
    def is_recorded(self) -> bool:
        """Whether what is heard and seen is being recorded (``stream-run --record``)."""
        return RECORD in self.nodes and self.nodes[RECORD].state == "running"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Status)


def encode_status(message: Status) -> bytes:
    """UTF-8 JSON of a status."""
    return _encoder.encode(message)


def decode_status(data: bytes) -> Status:
    """A status from its JSON. Raises msgspec.DecodeError if it is not valid."""
    return decode_public(_decoder, data)


def of_stream(status: Status, stream: str) -> Status:
    """The status of one of its streams: with the nodes that serve it alone."""
    nodes = {name: node for name, node in status.nodes.items() if parse_node(name)[1] in (stream, "")}
    return msgspec.structs.replace(status, streams={stream: status.streams[stream]}, nodes=nodes)


def status_json_schema() -> dict[str, Any]:
    """JSON Schema of the status message."""
    return msgspec.json.schema(Status)


def stream_line(name: str, stream: StreamStatus) -> str:
    """A stream's state and losses as one line of text."""
    parts = [f"{name}: {stream.state}, {stream.labelled} labelled of {stream.heard} heard"]
    if stream.paused or stream.muted:
        parts.append("paused" if stream.paused else "muted")
    if stream.behind_s >= BEHIND_S:
        parts.append(f"running {stream.behind_s:.0f} s behind")
    if stream.sound_lost_s >= _REPORTED_LOSS_S:
        parts.append(f"{stream.sound_lost_s:.1f} s of sound lost")
    if stream.unlabelled:
        parts.append(f"{stream.unlabelled} without a label")
    if stream.late_video:
        parts.append(f"{stream.late_video} labelled without all faces")
    return ", ".join(parts)


@dataclass
class _Record:
    """A node's history. ``earlier``, ``earlier_streams``, ``dropped`` and ``gaps``: totals of its earlier processes."""

    state: NodeState = "starting"
    starts: int = 0
    since_ns: int | None = None  # away since
    away_ns: int = 0
    health: Health | None = None
    earlier: Counter[str] = field(default_factory=Counter)
    earlier_streams: dict[str, Counter[str]] = field(default_factory=dict)
    dropped: int = 0
    gaps: int = 0

    def anew(self) -> _Record:
        """The record of the node of the same name when its stream is added again."""
        return replace(self, state="starting", starts=0, since_ns=None)

    def counters(self) -> Counter[str]:
        return self.earlier + Counter(self.health.counters if self.health else {})

    def of_stream(self, stream: str) -> Counter[str]:
        now = self.health.by_stream.get(stream, {}) if self.health else {}
        return self.earlier_streams.get(stream, Counter()) + Counter(now)

    def lost_for_ns(self, now_ns: int) -> int:
        return self.away_ns + (now_ns - self.since_ns if self.since_ns is not None else 0)


class StatusBoard:
    """Collects what the supervisor knows. ``nodes``: the nodes' names; ``labels``: as in the status. Times are by the
    run's clock."""

    def __init__(self, run: str, nodes: list[str], labels: list[str] | None = None) -> None:
        self._run, self._labels = run, labels or []
        self._nodes: dict[str, _Record] = {}
        self._nodes_of: dict[str, list[str]] = {}  # by stream
        self._labelled: Counter[str] = Counter()
        self._ended: dict[str, deque[tuple[int, int]]] = {}
        self._begun_ns: int | None = None
        self.add(nodes)

    def add(self, nodes: Iterable[str]) -> None:
        """Add nodes. Nodes of a stream that existed before replace its old ones and continue their counts."""
        self._nodes |= {name: _Record() if name not in self._nodes else self._nodes[name].anew() for name in nodes}
        for stream in dict.fromkeys(parse_node(name)[1] for name in nodes):
            if stream:
                self._nodes_of[stream] = []
                self._ended.setdefault(stream, deque())
        for stream, names in self._nodes_of.items():
            names[:] = [name for name in self._nodes if parse_node(name)[1] in (stream, "")]

    @property
    def streams(self) -> list[str]:
        """All present and past streams."""
        return list(self._nodes_of)

    @property
    def states(self) -> tuple[str, ...]:
        """The state of each node."""
        return tuple(record.state for record in self._nodes.values())

    def begun(self, now_ns: int) -> None:
        """The run begins: media time 0."""
        self._begun_ns = now_ns

    def started(self, node: str) -> None:
        """A node's process was started, for the first time or again."""
        record = self._nodes[node]
        record.starts += 1
        if record.health is not None:
            record.earlier = record.counters()
            record.earlier["utterances_ended"] = record.earlier["utterances"]  # an open utterance is lost
            names = {*record.earlier_streams, *record.health.by_stream}
            record.earlier_streams = {stream: record.of_stream(stream) for stream in names}
            record.dropped += record.health.dropped
            record.gaps += record.health.gaps
            record.health = None

    def add_health(self, health: Health, now_ns: int) -> None:
        """A node's heartbeat."""
        record = self._nodes[health.node]
        record.health = health
        if record.state in ("starting", "ready", "away") and health.state in ("ready", "running"):
            self._set(record, health.state, now_ns)
        kind, stream = parse_node(health.node)
        if kind in ("speech", "fusion"):
            for name in [stream] if stream else self._nodes_of:
                self._ended[name].append((now_ns, self._counted(name)[1]))

    def add_label(self, emotion: Emotion) -> None:
        """A label; running estimates are ignored."""
        self._labelled[emotion.stream] += emotion.kind == "utterance"

    def away(self, node: str, since_ns: int) -> None:
        """A node is away (since its last sign of life) and will be restarted."""
        record = self._nodes[node]
        record.state = "away"
        if record.since_ns is None:
            record.since_ns = since_ns

    def ended(self, node: str, failed: bool = False) -> None:
        """A node has ended, or failed for good."""
        self._nodes[node].state = "failed" if failed else "ended"

    def status(self, now_ns: int, wall_ns: int, stopping: bool = False, over: bool = False) -> Status:
        """The present status. ``wall_ns``: wall-clock time; ``over``: no more labels will come."""
        nodes = {name: self._node(record, now_ns) for name, record in self._nodes.items()}
        streams = {stream: self._stream(stream, nodes, now_ns, over) for stream in self._nodes_of}
        state: Literal["starting", "running", "degraded", "stopping", "ended"] = "running"
        if over:
            state = "ended"
        elif stopping:
            state = "stopping"
        elif self._begun_ns is None:
            state = "starting"
        elif any(stream.state in ("degraded", "away") for stream in streams.values()):
            state = "degraded"
        uptime_s = max(0, now_ns - self._begun_ns) / 1e9 if self._begun_ns is not None else 0.0
        return Status(
            run=self._run,
            state=state,
            published_ns=wall_ns,
            uptime_s=round(uptime_s, 3),
            streams=streams,
            nodes=nodes,
            labels=self._labels,
        )

    @staticmethod
    def _set(record: _Record, state: NodeState, now_ns: int) -> None:
        if state == "running" and record.since_ns is not None:
            record.away_ns += now_ns - record.since_ns
            record.since_ns = None
        if record.since_ns is None:  # a restarted node is away until it runs
            record.state = state

    def _node(self, record: _Record, now_ns: int) -> NodeStatus:
        status = NodeStatus(
            state=record.state,
            starts=record.starts,
            away_s=round(record.lost_for_ns(now_ns) / 1e9, 3) if record.state != "ended" else record.away_ns / 1e9,
            dropped=record.dropped,
            gaps=record.gaps,
            counters=dict(record.counters()),
        )
        if (health := record.health) is not None:
            status.dropped += health.dropped
            status.gaps += health.gaps
            status.silent_s, status.behind_s, status.queued = health.silent_s, health.behind_s, health.queued
            status.cpu_s, status.rss_bytes = health.cpu_s, health.rss_bytes
        return status

    def _stream(self, stream: str, nodes: Mapping[str, NodeStatus], now_ns: int, over: bool) -> StreamStatus:
        own = {name: nodes[name] for name in self._nodes_of[stream]}
        speech = nodes.get(node_name("speech", stream))
        lost_s = speech.counters.get("sound_lost_ms", 0) / 1e3 + speech.away_s if speech is not None else 0.0
        heard, _ = self._counted(stream)
        due = heard if over else self._settled(stream, now_ns)
        labelled = self._labelled[stream]
        senses: dict[str, float] = {}
        for name in own:
            if (health := self._nodes[name].health) is not None and own[name].state == "running":
                senses |= health.senses
        return StreamStatus(
            state=self._state(own),
            level_dbfs=senses.get("level_dbfs"),
            speech=senses.get("speech"),
            face=senses.get("face"),
            heard=heard,
            labelled=labelled,
            unlabelled=max(0, due - labelled),
            sound_lost_s=round(lost_s, 3),
            late_video=self._nodes[FUSION].of_stream(stream)["late_video"],
            behind_s=max((node.behind_s for node in own.values()), default=0.0),
        )

    def _counted(self, stream: str) -> tuple[int, int]:
        """Numbers of utterances that began and that ended."""
        faces = self._nodes[FUSION].of_stream(stream)  # for streams without sound
        begun, ended = faces["face_utterances"], faces["face_utterances_ended"]
        if (record := self._nodes.get(node_name("speech", stream))) is not None:
            sound = record.counters()
            begun, ended = begun + sound["utterances"], ended + sound["utterances_ended"]
        return begun, ended

    def _settled(self, stream: str, now_ns: int) -> int:
        """Number of ended utterances whose labels should have come by now."""
        history = self._ended[stream]
        while len(history) > 1 and history[1][0] <= now_ns - _SETTLE_NS:
            history.popleft()
        return history[0][1] if history and history[0][0] <= now_ns - _SETTLE_NS else 0

    def _state(self, nodes: Mapping[str, NodeStatus]) -> StreamState:
        captures = [
            "away" if node.silent_s >= SILENT_S and node.state == "running" else node.state
            for name, node in nodes.items()
            if parse_node(name)[0] in ("audio", "video", "capture")
        ]
        if self._begun_ns is None or all(state in ("starting", "ready") for state in captures):
            return "starting"  # a node that restarts is "away" instead
        if nodes[FUSION].state in ("ended", "failed") or all(state in ("ended", "failed") for state in captures):
            return "ended"
        speech = [node.state for name, node in nodes.items() if parse_node(name)[0] == "speech"]
        hears = not any(state in ("starting", "ready", "away") for state in speech)  # if it ended, faces still count
        if "running" not in captures or not hears or nodes[FUSION].state != "running":
            return "away"
        late = any(node.behind_s >= BEHIND_S for node in nodes.values())
        return "degraded" if late or any(state in ("away", "failed") for state in captures) else "running"


if __name__ == "__main__":  # python -m emostream.stream.status > docs/status.schema.json
    print(msgspec.json.format(msgspec.json.encode(status_json_schema()), indent=2).decode())
