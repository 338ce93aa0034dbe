"""Public messages for tests that care about their number alone."""

from __future__ import annotations

from emostream.stream.messages import Emotion


def emotion(n: int) -> Emotion:
    return Emotion(
        kind="utterance", stream="a", seq=n, utterance=n, start_s=0, end_s=1, label="joy", confidence=1,
        uncertain=False, probabilities={"joy": 1.0}, text="", words=[], modalities={}, latency_ms=None,
        captured_ns=0, published_ns=0, bundle="", backend="",
    )  # fmt: skip
