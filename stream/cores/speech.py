"""Speech node's core: 16 kHz blocks in, utterance bounds and words out."""

from __future__ import annotations

from collections import deque

import numpy as np

from emostream.stream.clock import Clock
from emostream.stream.config import Speech
from emostream.stream.messages import Message, Pcm, SpeechEvent, Word
from emostream.stream.speech.recognizer import Recognizer
from emostream.stream.speech.vad import RATE_HZ, Endpointer, EndpointEvent, SileroVad

_PREROLL_BLOCKS = 8  # 256 ms before the first speech frame go to the recogniser: onsets are soft
_PROGRESS_NS = 250_000_000
_STALL_NS = 500_000_000


class SpeechCore:
    """Finds utterances and recognises the words in them.

    Recognition runs inside utterances alone, in segments: a pause ends one (its words become final while the end of
    the utterance is still being waited for) and further speech begins the next.
    """

    def __init__(
        self, stream: str, vad: SileroVad, recognizer: Recognizer | None, config: Speech, clock: Clock
    ) -> None:
        self._stream, self._vad, self._recognizer, self._clock = stream, vad, recognizer, clock
        self._endpointer = Endpointer.from_config(config)
        self._hangover_ns = int(config.hangover_ms * 1e6)
        self._preroll: deque[Pcm] = deque(maxlen=_PREROLL_BLOCKS)
        self._fed_ns = 0  # the recogniser has had everything before this media time
        self._segment_ns: int | None = None  # media time of the open segment's first sample
        self._words: list[Word] = []  # of this utterance's finished segments
        self._utterance = 0
        self._last: Pcm | None = None
        self._said_ns = 0
        self.utterances = 0

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks, so that nothing waits for what comes next."""
        return self._endpointer.at_rest

    def push(self, pcm: Pcm) -> list[Message]:
        """Take a block; returns the events that it caused."""
        received_ns = self._clock.now_ns()
        events: list[Message] = []
        if self._last is not None and pcm.media_start_ns - self._last.media_end_ns > 0:
            events += self._gap(pcm, received_ns)
        self._last = pcm
        self._preroll.append(pcm)
        bounds = self._endpointer.push(self._vad.push(pcm.samples), pcm.media_start_ns)
        if self._segment_ns is not None:
            self._feed()
        for bound in bounds:
            events.append(self._on_bound(bound, received_ns))
        if not bounds and pcm.media_end_ns - self._said_ns >= _PROGRESS_NS:
            events.append(self._progress(received_ns))
        if events:
            self._said_ns = pcm.media_end_ns
        return events

    def stalled(self) -> list[Message]:
        """To be called when no block comes, in real time: sound that has stopped coming ends the utterance."""
        now_ns = self._clock.now_ns()
        if not self._endpointer.speaking or self._last is None:
            return []
        if now_ns - self._last.captured_ns < self._hangover_ns + _STALL_NS:
            return []
        event = self._on_bound(self._endpointer.end(), now_ns)
        event.captured_ns = now_ns  # no frame of silence confirmed the end, but this moment
        return [event]

    def finish(self) -> list[Message]:
        """No more sound: ends the utterance that is open."""
        if not self._endpointer.speaking:
            return []
        return [self._on_bound(self._endpointer.end(), self._clock.now_ns())]

    def _gap(self, pcm: Pcm, received_ns: int) -> list[Message]:
        """Sound is missing before ``pcm``: a long gap ends an utterance, a short one is taken as silence."""
        assert self._last is not None
        missing_ns = pcm.media_start_ns - self._last.media_end_ns
        self._preroll.clear()
        if not self._endpointer.speaking:
            self._endpointer.reset()
        if missing_ns < self._hangover_ns:
            if self._segment_ns is not None and self._recognizer is not None:  # it counts samples to tell the time
                self._recognizer.push(np.zeros(missing_ns * RATE_HZ // 1_000_000_000, np.int16))
            return []
        self._vad.reset()
        if not self._endpointer.speaking:
            return []
        return [self._on_bound(self._endpointer.end(), received_ns)]

    def _on_bound(self, bound: EndpointEvent, received_ns: int) -> Message:
        begun_ns = self._clock.now_ns()
        if bound.kind == "started":
            self._utterance += 1
            self.utterances += 1
            self._words = []
        if bound.kind in ("started", "resumed"):
            if self._recognizer is not None:
                self._recognizer.begin()
                self._segment_ns = next(b.media_start_ns for b in self._preroll if b.media_end_ns > self._fed_ns)
                self._feed()
            event, words = ("started", []) if bound.kind == "started" else ("words", self._words)
        else:
            if self._recognizer is not None and self._segment_ns is not None:
                self._words = self._words + self._timed(self._recognizer.finish())
                self._segment_ns = None
            event, words = bound.kind, self._words
        return self._event(event, bound, words, received_ns, self._clock.now_ns() - begun_ns)

    def _feed(self) -> None:
        """Give the recogniser the blocks that it has not had yet."""
        assert self._recognizer is not None
        for block in self._preroll:
            if block.media_end_ns > self._fed_ns:
                self._recognizer.push(block.samples)
                self._fed_ns = block.media_end_ns

    def _progress(self, received_ns: int) -> Message:
        bound = self._endpointer.so_far()
        if bound is None or bound.kind == "paused":
            return self._event("progress", None, [], received_ns, 0)
        begun_ns = self._clock.now_ns()
        words = self._words
        if self._recognizer is not None:
            words = words + self._timed(self._recognizer.partial())
        return self._event("words", bound, words, received_ns, self._clock.now_ns() - begun_ns)

    def _timed(self, words: list[Word]) -> list[Word]:
        """Words with times on the stream's timeline."""
        assert self._segment_ns is not None
        offset_s = self._segment_ns / 1e9
        return [
            Word(w.word, round(w.start_s + offset_s, 3), round(w.end_s + offset_s, 3), round(w.confidence, 3))
            for w in words
        ]

    def _event(
        self, event: str, bound: EndpointEvent | None, words: list[Word], received_ns: int, recognition_ns: int
    ) -> Message:
        pcm = self._last
        assert pcm is not None
        live = pcm.captured_ns > 0
        end_ns = bound.end_ns if bound else 0
        return SpeechEvent(
            stream=self._stream,
            media_start_ns=pcm.media_start_ns,
            media_end_ns=pcm.media_end_ns,
            captured_ns=pcm.captured_ns,
            event=event,  # type: ignore[arg-type]
            utterance=self._utterance,
            start_ns=bound.start_ns if bound else 0,
            end_ns=end_ns,
            words=list(words),
            speech_captured_ns=pcm.captured_ns - (pcm.media_end_ns - end_ns) if live and bound else 0,
            received_ns=received_ns,
            recognition_ns=recognition_ns,
        )
