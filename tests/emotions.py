"""Labels for tests."""

from __future__ import annotations

from typing import Any

from emostream.stream.emotion import Emotion, Evidence, Latency, Word


def emotion_message(**changes: Any) -> Emotion:
    """A complete public message for the utterance "so happy", with ``changes``."""
    fields: dict[str, Any] = {
        "kind": "utterance", "stream": "a", "seq": 3, "utterance": 4, "start_s": 0.5, "end_s": 3.0,
        "label": "joy", "confidence": 0.75, "uncertain": False, "probabilities": {"joy": 0.75, "anger": 0.25},
        "text": "so happy", "words": [Word("so", 0.5, 0.7, 0.9), Word("happy", 0.7, 1.2, 0.8)],
        "modalities": {"audio": Evidence(250, 1.0, 0.2), "video": Evidence(0, 0.0, 0.0), "text": Evidence(2, 0.4, 0.1)},
        "latency_ms": Latency(431.0, 400.0, 18.1, 0.9, 4.1, 7.0, 0.9),
        "captured_ns": 1, "published_ns": 2, "bundle": "ekman7@0123456789ab", "backend": "onnxruntime/cpu",
    }  # fmt: skip
    return Emotion(**(fields | changes))
