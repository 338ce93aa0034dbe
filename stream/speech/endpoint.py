"""Endpointing: speech probabilities of frames in; starts, pauses and ends of utterances out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emostream.stream.config import Speech
from emostream.stream.speech.vad import FRAME_NS

SURE = 0.05  # a speech probability below this counts as certain silence
SURE_FRAMES = 4  # of 32 ms
_HYSTERESIS = 0.15  # Silero's value


@dataclass(frozen=True)
class EndpointEvent:
    """A change in the state of an utterance. ``start_ns`` and ``end_ns`` are media times of its first and last speech
    (``end_ns``: so far); ``forced`` marks an end at the longest allowed utterance instead of in silence."""

    kind: Literal["started", "paused", "resumed", "ended"]
    start_ns: int
    end_ns: int
    forced: bool = False


class Endpointer:
    """Turns frame probabilities into the starts and ends of utterances.

    An utterance starts once ``min_speech_ms`` of consecutive frames reach ``threshold`` (its start is the first of
    them), pauses after ``pause_ms`` of frames below ``threshold - 0.15``, ends after ``hangover_ms`` of them, and is
    cut at ``max_utterance_s``; speech that goes on after a cut is a new utterance.

    It already ends after ``min_hangover_ms`` if the silence is certain: if all probabilities of the last 128 ms are
    below 0.05. After a breath, after a trailing sound or in noise they are not, and the whole hangover has to pass.
    Both limits were chosen with ``benchmarks/endpoint.py`` on recordings of real speech.
    """

    def __init__(
        self,
        *,
        threshold: float,
        min_speech_ms: float,
        pause_ms: float,
        hangover_ms: float,
        min_hangover_ms: float,
        max_utterance_s: float,
    ) -> None:
        self._on, self._off = threshold, max(threshold - _HYSTERESIS, 0.01)
        self._min_speech_ns = int(min_speech_ms * 1e6)
        self._pause_ns = int(pause_ms * 1e6)
        self._hangover_ns = int(hangover_ms * 1e6)
        self._min_hangover_ns = int(min_hangover_ms * 1e6)
        self._longest_ns = int(max_utterance_s * 1e9)
        self.reset()

    def follow(self, config: Speech) -> None:
        """Use the rules of another configuration from now on, even in mid-utterance."""
        rules = vars(Endpointer.from_config(config))
        for name in ("_on", "_off", "_min_speech_ns", "_pause_ns", "_hangover_ns", "_min_hangover_ns", "_longest_ns"):
            setattr(self, name, rules[name])

    @classmethod
    def from_config(cls, config: Speech) -> Endpointer:
        """The endpointer of a live run with this configuration."""
        return cls(
            threshold=config.threshold,
            min_speech_ms=config.min_speech_ms,
            pause_ms=config.pause_ms,
            hangover_ms=config.hangover_ms,
            min_hangover_ms=config.min_hangover_ms,
            max_utterance_s=config.max_utterance_s,
        )

    def reset(self) -> None:
        self.speaking = False
        self._paused = False
        self._start: int | None = None  # media time of the first frame above the threshold
        self._end = 0  # end of the last speech frame
        self._heard = 0  # end of the last frame
        self._sure_frames = 0  # consecutive frames that certainly hold no speech

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks or may just have begun to."""
        return self._start is None

    @property
    def silence_ns(self) -> int:
        """How long nothing has been said in the open utterance; 0 if there is none."""
        return self._heard - self._end if self.speaking else 0

    def push(self, probability: float, start_ns: int, length_ns: int = FRAME_NS) -> list[EndpointEvent]:
        """Take the probability of the frame that begins at media time ``start_ns``; returns what changed."""
        self._heard = end_ns = start_ns + length_ns
        if not self.speaking:
            if probability < self._on:
                self._start = None
                return []
            if self._start is None:
                self._start = start_ns
            self._end = end_ns
            if end_ns - self._start < self._min_speech_ns:
                return []
            self.speaking, self._paused = True, False
            return [EndpointEvent("started", self._start, self._end)]
        assert self._start is not None
        self._sure_frames = self._sure_frames + 1 if probability < SURE else 0
        if probability >= (self._on if self._paused else self._off):
            self._end = end_ns
            events = [EndpointEvent("resumed", self._start, self._end)] if self._paused else []
            self._paused = False
            if end_ns - self._start >= self._longest_ns:
                events.append(self.end(forced=True))
            return events
        silence_ns = end_ns - self._end
        if silence_ns >= self._hangover_ns or (
            silence_ns >= self._min_hangover_ns and self._sure_frames >= SURE_FRAMES
        ):
            return [self.end()]
        if end_ns - self._start >= self._longest_ns:
            return [self.end(forced=True)]
        if silence_ns >= self._pause_ns and not self._paused:
            self._paused = True
            return [EndpointEvent("paused", self._start, self._end)]
        return []

    def so_far(self) -> EndpointEvent | None:
        """The open utterance so far, as an event of kind ``paused`` or ``resumed``; None if there is none."""
        if not self.speaking or self._start is None:
            return None
        return EndpointEvent("paused" if self._paused else "resumed", self._start, self._end)

    def end(self, forced: bool = False) -> EndpointEvent:
        """End the open utterance now."""
        assert self.speaking and self._start is not None
        event = EndpointEvent("ended", self._start, self._end, forced)
        self.speaking, self._start = False, None
        return event
