"""The public messages as events of a conversation, in the format of hosted speech emotion services."""

from __future__ import annotations

from typing import Any

from emostream.stream.emotion import Emotion
from emostream.stream.status import Status


class Events:
    """Turns messages, in order, into events. Each reader needs its own, since each begins at a different time."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}  # by stream: the utterance that has begun
        self._words: dict[str, str] = {}

    def of(self, emotion: Emotion) -> list[dict[str, Any]]:
        """The events of a message: ``utterance.start`` with an utterance's first message, ``words`` when they change, a
        ``measurement`` with each message, ``utterance.end`` with the label."""
        common = {"stream": emotion.stream, "run": emotion.run, "utterance": emotion.utterance}
        out: list[dict[str, Any]] = []
        if self._open.get(emotion.stream) != emotion.utterance:
            self._open[emotion.stream] = emotion.utterance
            self._words.pop(emotion.stream, None)
            out.append({"type": "utterance.start", **common, "time_s": emotion.start_s})
        if emotion.text and emotion.text != self._words.get(emotion.stream):
            self._words[emotion.stream] = emotion.text
            out.append({"type": "words", **common, "text": emotion.text, "final": emotion.kind == "utterance"})
        emotions = [{"name": name, "score": score} for name, score in emotion.probabilities.items()]
        time = {"begin_s": emotion.start_s, "end_s": emotion.end_s}
        out.append(
            {"type": "measurement", **common, "time": time, "emotions": emotions, "final": emotion.kind == "utterance"}
        )
        if emotion.kind == "utterance":
            out.append(
                {
                    "type": "utterance.end", **common, "time_s": emotion.end_s, "label": emotion.label,
                    "confidence": emotion.confidence, "uncertain": emotion.uncertain,
                }
            )  # fmt: skip
        return out

    @staticmethod
    def health(status: Status) -> dict[str, Any]:
        """The event of a status."""
        streams = {name: stream.state for name, stream in status.streams.items()}
        return {"type": "health", "run": status.run, "state": status.state, "streams": streams}
