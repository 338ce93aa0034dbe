"""Utterances of a stream without sound: an utterance lasts as long as a face is seen."""

from __future__ import annotations

from emostream.stream.config import Speech
from emostream.stream.messages import Face, SpeechEvent
from emostream.stream.speech.endpoint import Endpointer, EndpointEvent

_STALL_NS = 500_000_000
_THRESHOLD = 0.5  # a frame counts as 1 with a face, as 0 without
_MIN_FACE_MS = 500  # a face seen for less is a passer-by, or a false detection


class FaceEndpointer:
    """Cuts ``Face`` messages into utterances by the rules for sound (hangover, longest utterance). Returns the events
    that a speech node would send, without words. A missing face is never certain silence, so the hangover is never
    shortened.
    """

    def __init__(self, stream: str, fps: float, config: Speech) -> None:
        self._stream = stream
        self._length_ns = int(1e9 / fps)
        face_rules = {"threshold": _THRESHOLD, "min_speech_ms": _MIN_FACE_MS, "min_hangover_ms": config.hangover_ms}
        self._endpointer = Endpointer.from_config(config.model_copy(update=face_rules))
        self._gap_ns = int(config.hangover_ms * 1e6) + self._length_ns
        self._utterance = 0
        self._last: Face | None = None

    def push(self, face: Face, received_ns: int) -> list[SpeechEvent]:
        """Take a frame with or without a face; a gap between frames as long as the hangover ends the utterance."""
        events: list[SpeechEvent] = []
        if self._last is not None and face.media_start_ns - self._last.media_end_ns > self._gap_ns:
            events = self.finish(received_ns)
            self._endpointer.reset()
        self._last = face
        return events + self._step(face, received_ns)

    def stalled(self, now_ns: int) -> list[SpeechEvent]:
        """To be called now and then in real time: ends the utterance if frames have stopped coming."""
        last = self._last
        if last is None or not self._endpointer.speaking or now_ns - last.captured_ns < self._gap_ns + _STALL_NS:
            return []
        event = self._event(self._endpointer.end(), now_ns)
        event.captured_ns = now_ns
        return [event]

    def finish(self, received_ns: int) -> list[SpeechEvent]:
        """No more frames: ends the open utterance."""
        return [self._event(self._endpointer.end(), received_ns)] if self._endpointer.speaking else []

    def _step(self, face: Face, received_ns: int) -> list[SpeechEvent]:
        changes = self._endpointer.push(1.0 if face.found else 0.0, face.media_start_ns, self._length_ns)
        if changes:
            return [self._event(change, received_ns) for change in changes]
        so_far = self._endpointer.so_far()
        return [self._event(so_far if so_far is not None and so_far.kind == "resumed" else None, received_ns)]

    def _event(self, change: EndpointEvent | None, received_ns: int) -> SpeechEvent:
        face = self._last
        assert face is not None
        kind = "progress" if change is None else "words" if change.kind == "resumed" else change.kind
        if kind == "started":
            self._utterance += 1
        start_ns, end_ns = (change.start_ns, change.end_ns) if change is not None else (0, 0)
        live = face.captured_ns > 0 and change is not None
        return SpeechEvent(
            stream=self._stream,
            media_start_ns=face.media_start_ns,
            media_end_ns=face.media_end_ns,
            captured_ns=face.captured_ns,
            event=kind,
            utterance=self._utterance,
            start_ns=start_ns,
            end_ns=end_ns,
            # a frame stands for the time until the next one, but was captured at its start
            speech_captured_ns=min(face.captured_ns, face.captured_ns - (face.media_end_ns - end_ns)) if live else 0,
            received_ns=received_ns,
        )
