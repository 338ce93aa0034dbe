"""Core of the speech node: 16 kHz blocks in; starts, pauses, ends and words of utterances out."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from emostream.stream.clock import Clock
from emostream.stream.config import Speech
from emostream.stream.cores.segments import Segments
from emostream.stream.emotion import Word
from emostream.stream.messages import Message, Pcm, SpeechEvent
from emostream.stream.speech.endpoint import Endpointer, EndpointEvent
from emostream.stream.speech.listener import Listener
from emostream.stream.speech.overlap import OverlapMeter
from emostream.stream.speech.recognizer import Recognizer
from emostream.stream.speech.speaker_vector import SpeakerVector
from emostream.stream.speech.vad import FRAME_NS, SileroVad

log = logging.getLogger(__name__)

_PREROLL_BLOCKS = 8  # 256 ms before the first speech frame also go to the recogniser, as onsets are soft
_REPORTED_GAP_NS = 250_000_000  # missing sound that is worth a log line; anything shorter holds no word
_SCRAP_NS = 400_000_000  # an utterance cut shorter than this by missing sound gets no label
_PROGRESS_NS = 250_000_000
_STALL_NS = 500_000_000
_PERHAPS_NS = 64_000_000  # of silence, after which the recogniser expects the end
_ONSET_NS = 100_000_000  # speech that starts this soon after missing sound had begun before it
_EXTERNAL_WORDS, _BEFORE_S = 1000, 0.5  # another program's words: how many to keep; how early they may begin
_HOLD_BLOCKS = 10  # 320 ms; after 192 ms, 2 of 60 voices of normal level were no louder than on a quiet microphone
_VERY_QUIET_DBFS = -40.0
_WARN_NS = 60_000_000_000  # media time between two warnings, at least


@dataclass(frozen=True)
class _Heard:
    """A block and its speech probability, both as captured and amplified."""

    pcm: Pcm
    probability: float
    raised: Pcm
    raised_probability: float


class SpeechCore:
    """Finds utterances and recognises the words in them.

    Recognition runs only within utterances, in segments: a pause ends a segment, so that its words become final during
    the rest of the hangover, and further speech begins the next one. The event of a pause comes when the recogniser is
    ready, at the latest when something else happens.

    ``quiet_vad``: a second voice activity detector, which hears a quiet microphone's blocks amplified (see
    ``speech.level``), as the recogniser then does too; without it there is no automatic level. A microphone counts as
    quiet until something loud is heard, and every voice begins softly. So the possible start of an utterance is held
    back for 320 ms; if it becomes loud by then, it is heard as captured. Thus a normal microphone yields the same
    utterances with and without the automatic level.

    ``voice``: computes each utterance's speaker vector, for the events at its pauses and its end; ``overlap``: how much
    of it two people speak at once.
    """

    def __init__(
        self,
        stream: str,
        vad: SileroVad,
        recognizer: Recognizer | None,
        config: Speech,
        clock: Clock,
        quiet_vad: SileroVad | None = None,
        voice: SpeakerVector | None = None,
        overlap: OverlapMeter | None = None,
    ) -> None:
        self._stream, self._segments, self._clock, self._voice = stream, Segments(recognizer), clock, voice
        self._overlap = overlap
        # networks run without Python's lock, so beside a recogniser that finishes elsewhere
        self._beside = None if voice is None and overlap is None else ThreadPoolExecutor(1, "voices")
        self._listener = Listener(vad, quiet_vad)
        self._has_level = quiet_vad is not None
        self._recent_peak_dbfs = -120.0
        self._voiced = False  # somebody speaks, and does not pause
        self._held: list[_Heard] = []  # may be the start of an utterance
        self._raised: deque[Pcm] = deque(maxlen=_PREROLL_BLOCKS)  # the preroll, amplified
        self._peak_dbfs = 0.0  # of the open utterance
        self._warned_ns: int | None = None
        self._threshold = config.threshold
        self._endpointer = Endpointer.from_config(config)
        self._hangover_ns = int(config.hangover_ms * 1e6)
        self._preroll: deque[Pcm] = deque()
        self._utterance = 0
        self._told: deque[Word] = deque(maxlen=_EXTERNAL_WORDS)  # from another program
        self._last: Pcm | None = None
        self._reported_ns = 0
        self.utterances = 0
        self.utterances_ended = 0
        self.sound_lost_ns = 0
        self.scraps = 0
        self._resumed_ns = -_SCRAP_NS  # when sound came back after it was missing
        self.quiet_utterances = 0
        self._loudest, self._likeliest = 0, 0.0  # since the last ``take_senses``

    def follow(self, config: Speech) -> None:
        """Use the threshold and waits of this configuration from now on."""
        self._threshold = config.threshold
        self._endpointer.follow(config)
        self._hangover_ns = int(config.hangover_ms * 1e6)

    def take_senses(self) -> dict[str, float]:
        """The loudest sample (dBFS, -120 for silence) and the highest speech probability since the last call."""
        level_dbfs = 20 * math.log10(max(self._loudest, 0.03) / 32768)
        senses = {"level_dbfs": round(level_dbfs, 1), "speech": round(self._likeliest, 3)}
        self._loudest, self._likeliest = 0, 0.0
        return senses

    def hear(self, words: list[Word]) -> None:
        """Take words from another program's recogniser, with times on the stream's timeline. An utterance gets those
        that fall into it, or into the half second before it."""
        self._told.extend(words)

    def _told_since(self, start_ns: int) -> list[Word]:
        return sorted((w for w in self._told if w.end_s > start_ns / 1e9 - _BEFORE_S), key=lambda word: word.start_s)

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks, so that the next block is not urgent."""
        return self._endpointer.at_rest and not self._held

    def expect(self, blocks: Sequence[Pcm]) -> None:
        """Tell of the blocks that are pushed next: voice activity takes less time for several at once."""
        known = [blocks[0].samples]
        for before, block in pairwise(blocks):
            if block.media_start_ns != before.media_end_ns:
                break
            known.append(block.samples)
        self._listener.expect(known)

    def push(self, pcm: Pcm) -> list[Message]:
        """Take a block; returns the events that it causes."""
        received_ns = self._clock.now_ns()
        events: list[Message] = []
        newest = self._held[-1].pcm if self._held else self._last
        if newest is not None and pcm.media_start_ns - newest.media_end_ns > 0:
            events += self._release(received_ns)
            events += self._gap(pcm, received_ns)
        if self._overlap is not None:
            self._overlap.push(pcm)
        self._loudest = max(self._loudest, int(pcm.samples.max(initial=0)), -int(pcm.samples.min(initial=0)))
        listened = self._listener.push(pcm.samples, self._endpointer.speaking)
        probability = listened.probability
        self._likeliest = max(self._likeliest, probability)
        if not self._has_level:
            return events + self._take(pcm, probability, received_ns)
        self._recent_peak_dbfs = listened.peak_dbfs
        self._peak_dbfs = max(self._peak_dbfs, listened.peak_dbfs)
        if listened.raised is None:
            self._raised.clear()
            held, self._held = self._held, []
            for heard in held:
                events += self._take(heard.pcm, heard.probability, received_ns)
            return events + self._take(pcm, probability, received_ns)
        raised = msgspec.structs.replace(pcm, samples=listened.raised)
        if self._endpointer.speaking:
            return events + self._take(raised, listened.raised_probability, received_ns)
        if self._held or max(probability, listened.raised_probability) >= self._threshold:
            self._held.append(_Heard(pcm, probability, raised, listened.raised_probability))
            return events if len(self._held) < _HOLD_BLOCKS else events + self._release(received_ns)
        self._raised.append(raised)
        return events + self._take(pcm, probability, received_ns)

    def _release(self, received_ns: int) -> list[Message]:
        """Process the blocks that were held back as those of a quiet microphone."""
        held, self._held = self._held, []
        if held:
            raised = {block.media_start_ns: block for block in self._raised}
            blocks = [raised.get(block.media_start_ns, block) for block in self._preroll]
            self._preroll = deque(blocks)
        events: list[Message] = []
        for heard in held:
            probability = max(heard.probability, heard.raised_probability)
            events += self._take(heard.raised, probability, received_ns)
        return events

    def _take(self, pcm: Pcm, probability: float, received_ns: int) -> list[Message]:
        events: list[Message] = []
        self._last = pcm
        self._preroll.append(pcm)
        while len(self._preroll) > _PREROLL_BLOCKS:
            if self._endpointer.speaking and self._segments.awaits(self._preroll[0]):
                break  # it came in a pause of the open utterance
            self._preroll.popleft()
        changes = self._endpointer.push(probability, pcm.media_start_ns)
        begun_ns = self._clock.now_ns()
        events += self._after_pause(at_once=bool(changes))
        self._segments.feed(self._preroll)
        if 0 <= self._endpointer.silence_ns - _PERHAPS_NS < FRAME_NS:
            self._segments.ready(self._endpointer.silence_ns)
        self._listen_to_voice(pcm, [change.kind for change in changes])
        for change in changes:
            if change.kind == "paused" and not self._segments.ready(self._silence_ns(change)):
                self._segments.pause = change, received_ns
                if self._beside is not None:
                    self._beside.submit(self._measure, change.end_ns)
            else:
                events.append(self._on_change(change, received_ns, begun_ns))
        if not changes and pcm.media_end_ns - self._reported_ns >= _PROGRESS_NS:
            events.append(self._progress(received_ns))
        if events:
            self._reported_ns = pcm.media_end_ns
        return events

    def _after_pause(self, at_once: bool) -> list[Message]:
        """The event of a pause for whose words we wait, if they have come. ``at_once``: wait for them now."""
        if self._segments.pause is None or not (at_once or self._segments.ready(0)):
            return []
        (pause, received_ns), self._segments.pause = self._segments.pause, None
        return [self._on_change(pause, received_ns, self._clock.now_ns())]

    def _silence_ns(self, change: EndpointEvent) -> int:
        """How much sound has come since the last speech."""
        assert self._last is not None
        return max(0, self._last.media_end_ns - change.end_ns)

    def _listen_to_voice(self, pcm: Pcm, changes: list[str]) -> None:
        """Feed the speaker vector with the sound between a start and a pause."""
        if self._voice is None:
            return
        if "started" in changes:
            self._voice.reset()
            for block in self._preroll:
                self._voice.push(block.samples)
        elif self._voiced or "resumed" in changes:
            self._voice.push(pcm.samples)
        if changes:
            self._voiced = changes[-1] in ("started", "resumed")

    def stalled(self) -> list[Message]:
        """To be called in real time when no block comes: ends the utterance if sound has stopped coming."""
        now_ns = self._clock.now_ns()
        newest = self._held[-1].pcm if self._held else self._last
        if newest is None or now_ns - newest.captured_ns < self._hangover_ns + _STALL_NS:
            return self._after_pause(at_once=False)
        events = self._release(now_ns) + self._after_pause(at_once=True)
        if self._endpointer.speaking:
            event = self._on_change(self._endpointer.end(), now_ns, now_ns)
            event.captured_ns = now_ns  # the end was confirmed now, not by a frame of silence
            events.append(event)
        return events

    def finish(self) -> list[Message]:
        """No more sound: ends the open utterance."""
        now_ns = self._clock.now_ns()
        events = self._release(now_ns) + self._after_pause(at_once=True)
        if self._endpointer.speaking:
            events.append(self._on_change(self._endpointer.end(), now_ns, now_ns))
        return events

    def _gap(self, pcm: Pcm, received_ns: int) -> list[Message]:
        """Sound is missing before ``pcm``: a long gap ends the utterance, a short one counts as silence."""
        assert self._last is not None
        missing_ns = pcm.media_start_ns - self._last.media_end_ns
        self.sound_lost_ns += missing_ns
        if missing_ns >= _REPORTED_GAP_NS:
            span = f"from {self._last.media_end_ns / 1e9:.2f} to {pcm.media_start_ns / 1e9:.2f} s"
            log.warning("%s: sound is missing %s; what was said then is lost", pcm.stream, span)
            self._resumed_ns = pcm.media_start_ns
        self._preroll.clear()
        self._raised.clear()
        if not self._endpointer.speaking:
            self._endpointer.reset()
        if missing_ns < self._hangover_ns:
            self._segments.skip(missing_ns)
            return []
        self._listener.reset()
        if not self._endpointer.speaking:
            return []
        begun_ns = self._clock.now_ns()
        events = self._after_pause(at_once=True)
        event = self._on_change(self._endpointer.end(), received_ns, begun_ns, cut=True)
        event.captured_ns = pcm.captured_ns  # the end was confirmed by what came after the gap
        return [*events, event]

    def _on_change(self, change: EndpointEvent, received_ns: int, begun_ns: int, cut: bool = False) -> SpeechEvent:
        """``begun_ns``: since when it has been worked on; ``cut``: the utterance ends because sound is missing."""
        if change.kind == "started":
            self._utterance += 1
            self.utterances += 1
            self._segments.words = []
            self._peak_dbfs = self._recent_peak_dbfs
        if change.kind == "started" and self._overlap is not None:
            self._overlap.begin(change.start_ns)
        if change.kind in ("started", "resumed"):
            self._segments.begin(self._preroll)
            kind = "started" if change.kind == "started" else "words"
            recognition_ns = self._clock.now_ns() - begun_ns
        else:
            measured = None if self._beside is None else self._beside.submit(self._measure, change.end_ns)
            self._segments.finish(self._silence_ns(change))
            kind = change.kind
            if change.kind == "ended":
                self.utterances_ended += 1
                self._note_level(change)
                if self._is_scrap(change, cut):
                    self.scraps += 1
                    kind = "dropped"
            recognition_ns = self._clock.now_ns() - begun_ns
            if measured is not None:
                measured.result()  # so that _event finds both at hand
        return self._event(kind, change, self._segments.words, received_ns, recognition_ns)

    def _measure(self, end_ns: int) -> None:
        """Compute the speaker vector and the overlap up to a pause or an end; to ask again costs nothing."""
        if self._voice is not None:
            self._voice.value()
        if self._overlap is not None:
            self._overlap.value(end_ns)

    def _is_scrap(self, utterance: EndpointEvent, cut: bool) -> bool:
        """Whether missing sound has left too little of an utterance to label."""
        cut = cut or utterance.start_ns - self._resumed_ns < _ONSET_NS
        return cut and utterance.end_ns - utterance.start_ns < _SCRAP_NS

    def _note_level(self, utterance: EndpointEvent) -> None:
        """Count an utterance at a very quiet microphone and, in real time, warn about it."""
        assert self._last is not None
        if not self._has_level or self._peak_dbfs >= _VERY_QUIET_DBFS:
            return
        self.quiet_utterances += 1
        warned_ns, now_ns = self._warned_ns, utterance.end_ns
        if self._last.captured_ns > 0 and (warned_ns is None or now_ns - warned_ns >= _WARN_NS):
            self._warned_ns = now_ns
            log.warning(
                "%s: speech is very quiet (peak %.0f dBFS); raise the microphone's gain",
                self._stream,
                self._peak_dbfs,
            )

    def _progress(self, received_ns: int) -> SpeechEvent:
        so_far = self._endpointer.so_far()
        if so_far is None or so_far.kind == "paused":
            return self._event("progress", None, [], received_ns, 0)
        begun_ns = self._clock.now_ns()
        words = self._segments.so_far()
        return self._event("words", so_far, words, received_ns, self._clock.now_ns() - begun_ns)

    def _event(
        self, kind: str, change: EndpointEvent | None, words: list[Word], received_ns: int, recognition_ns: int
    ) -> SpeechEvent:
        pcm = self._last
        assert pcm is not None
        live = pcm.captured_ns > 0 and change is not None
        start_ns, end_ns = (change.start_ns, change.end_ns) if change is not None else (0, 0)
        silent = kind in ("paused", "ended")
        voice = self._voice.value() if self._voice is not None and silent else None
        overlap = self._overlap.value(end_ns) if self._overlap is not None and silent else None
        if self._overlap is not None and kind in ("ended", "dropped"):
            self._overlap.reset()
        if self._told and change is not None:
            words = [*words, *self._told_since(start_ns)]
            if kind in ("ended", "dropped"):
                self._told.clear()
        return SpeechEvent(
            stream=self._stream,
            media_start_ns=pcm.media_start_ns,
            media_end_ns=pcm.media_end_ns,
            captured_ns=pcm.captured_ns,
            event=kind,  # type: ignore[arg-type]
            utterance=self._utterance,
            start_ns=start_ns,
            end_ns=end_ns,
            words=list(words),
            speech_captured_ns=pcm.captured_ns - (pcm.media_end_ns - end_ns) if live else 0,
            received_ns=received_ns,
            recognition_ns=recognition_ns,
            voice=voice,
            voice_s=0.0 if voice is None or self._voice is None else round(self._voice.seconds, 3),
            overlap=overlap,
        )
