"""Utterances of a stream that has no sound: as long as a face is there."""

from __future__ import annotations

from emostream.stream.config import Speech
from emostream.stream.messages import Face, SpeechEvent
from emostream.stream.speech.vad import Endpointer, EndpointEvent

_STALL_NS = 500_000_000
_MIN_FACE_MS = 500  # a face seen for less is a passer-by, or the detector's mistake


class FaceEndpointer:
    """Cuts ``Face`` messages into turns with the rules of utterances: hangover, longest length. Gives the events
    that a speech node would, without words."""

    def __init__(self, stream: str, fps: float, config: Speech) -> None:
        self._stream = stream
        self._length_ns = int(1e9 / fps)
        self._endpointer = Endpointer(
            0.5, _MIN_FACE_MS, config.pause_ms, config.hangover_ms, config.max_utterance_s, min_hangover_ms=None
        )
        self._hole_ns = int(config.hangover_ms * 1e6) + self._length_ns
        self._turn = 0
        self._last: Face | None = None

    def push(self, face: Face, received_ns: int) -> list[SpeechEvent]:
        """Take a frame's face, or "no face"; a hole in the frames as long as the hangover ends a turn."""
        events: list[SpeechEvent] = []
        if self._last is not None and face.media_start_ns - self._last.media_end_ns > self._hole_ns:
            events = self.finish(received_ns)
            self._endpointer.reset()
        self._last = face
        return events + self._step(face, received_ns)

    def stalled(self, now_ns: int) -> list[SpeechEvent]:
        """To be called now and then in real time: pictures that have stopped coming end the turn."""
        last = self._last
        if last is None or not self._endpointer.speaking or now_ns - last.captured_ns < self._hole_ns + _STALL_NS:
            return []
        event = self._event(self._endpointer.end(), now_ns)
        event.captured_ns = now_ns
        return [event]

    def _step(self, face: Face, received_ns: int) -> list[SpeechEvent]:
        bounds = self._endpointer.push(1.0 if face.found else 0.0, face.media_start_ns, self._length_ns)
        if bounds:
            return [self._event(bound, received_ns) for bound in bounds]
        so_far = self._endpointer.so_far()
        return [self._event(so_far if so_far and so_far.kind == "resumed" else None, received_ns)]

    def finish(self, received_ns: int) -> list[SpeechEvent]:
        """No more frames: ends the turn that is open."""
        return [self._event(self._endpointer.end(), received_ns)] if self._endpointer.speaking else []

    def _event(self, bound: EndpointEvent | None, received_ns: int) -> SpeechEvent:
        face = self._last
        assert face is not None
        kind = "progress" if bound is None else "words" if bound.kind == "resumed" else bound.kind
        if kind == "started":
            self._turn += 1
        end_ns = bound.end_ns if bound else 0
        return SpeechEvent(
            stream=self._stream,
            media_start_ns=face.media_start_ns,
            media_end_ns=face.media_end_ns,
            captured_ns=face.captured_ns,
            event=kind,
            utterance=self._turn,
            start_ns=bound.start_ns if bound else 0,
            end_ns=end_ns,
            speech_captured_ns=face.captured_ns - (face.media_end_ns - end_ns) if face.captured_ns and bound else 0,
            received_ns=received_ns,
        )
