"""Labels and heartbeats of invented runs, for the benchmarks' tests."""

from __future__ import annotations

from benchmarks.labels import Label
from emostream.stream.emotion import Emotion, Evidence, Latency
from emostream.stream.messages import Health

SOUND_ALONE = {name: Evidence(int(name == "audio"), 1.0, 0.0) for name in ("audio", "video", "text")}
T0_NS = 1_700_000_000_000_000_000


def label(
    stream: str,
    seq: int,
    start_s: float,
    end_s: float,
    late_ms: float = 10.0,
    modalities: dict[str, Evidence] | None = None,
) -> Label:
    """The label of an utterance, published ``late_ms`` after its end was confirmed and received 1 ms later."""
    parts = {"endpoint_wait": 416.0, "recognition": 1.0, "queue": late_ms - 4, "encode": 1.0, "fusion": 1.0}
    captured_ns = T0_NS + round(end_s * 1e9)
    published_ns = captured_ns + round((416 + late_ms) * 1e6)
    emotion = Emotion(
        kind="utterance", stream=stream, seq=seq, utterance=seq + 1, start_s=start_s, end_s=end_s, label="joy",
        confidence=1.0, uncertain=False, probabilities={"joy": 1.0}, text="", words=[],
        modalities=modalities or SOUND_ALONE,
        latency_ms=Latency(total=416 + late_ms, other=1.0, **parts), captured_ns=captured_ns,
        published_ns=published_ns, bundle="b", backend="none",
    )  # fmt: skip
    return Label(published_ns + 1_000_000, emotion)


def beat(node: str, passed_s: float = 0.0, **fields) -> Health:
    """A heartbeat sent ``passed_s`` after go."""
    sent_ns = T0_NS + round(passed_s * 1e9)
    return Health(node=node, **{"sent_ns": sent_ns, "state": "running"} | fields)
