"""When the networks run: which jobs a stream's speech events create, and when each is ready.

A running estimate is due each hop, a provisional label at a pause, the label at the end of an utterance. A job waits
until each modality of the stream has arrived up to the job's end: at real-time pace no longer than ``fusion.wait_ms``,
or where the words came late, since the machine is busy, half as long again as these; at fast pace for as long as it
takes, so that the labels of a file are the same on any machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from emostream.stream.config import Config
from emostream.stream.emotion import Word
from emostream.stream.messages import SpeechEvent

JobKind = Literal["window", "pause", "utterance"]

_LATE_NS = 2_000_000_000  # do not wait for a modality that is this far behind
_KEEP_NS = 3_000_000_000  # an utterance may still begin this long before the last speech event
REST_NS = 2_000_000_000  # the time before an utterance in which a face counts as at rest
_PATIENCE_NS = 1_000_000_000  # the longest wait for a modality because the words were late
_MARGIN_S = 10  # in real time, keep the longest utterance and this much more, whatever speech does
_FOREVER_NS = 1 << 62


@dataclass(frozen=True)
class Job:
    """One run of the networks, on the features of [``start_ns``, ``end_ns``) and ``words``."""

    kind: JobKind
    utterance: int
    start_ns: int
    end_ns: int
    utterance_start_ns: int
    words: list[Word]
    cause: SpeechEvent
    arrived_ns: int  # when the cause arrived
    deadline_ns: int  # when to run whether or not all modalities have arrived


@dataclass(frozen=True)
class Rules:
    """What the configuration says about jobs. ``realtime``: jobs have deadlines and may replace older ones;
    ``estimates``: make running estimates; ``longest_ns``: how much media to keep at most in real time."""

    realtime: bool
    estimates: bool
    hop_ns: int
    window_ns: int
    wait_ns: int
    longest_ns: int

    @classmethod
    def from_config(cls, config: Config, realtime: bool, estimates: bool) -> Rules:
        return cls(
            realtime,
            estimates,
            hop_ns=config.window.hop_ms * 1_000_000,
            window_ns=int(config.window.length_s * 1e9),
            wait_ns=config.fusion.wait_ms * 1_000_000,
            longest_ns=int((config.speech.max_utterance_s + _MARGIN_S) * 1e9),
        )


class Schedule:
    """The jobs of one stream, in order. ``expected``: which of ``audio``, ``video`` and ``speech`` are still to come.

    ``utterances``: how many there have been, so that numbering continues. ``watermark_ns``: by modality, the media time
    up to which everything has arrived. ``late``: by modality, how many labels did not wait for all of it.
    """

    def __init__(self, expected: Iterable[str], rules: Rules, utterances: int = 0) -> None:
        self.expected = set(expected)
        self.watermark_ns = {"audio": 0, "video": 0, "speech": 0}
        self.late: Counter[str] = Counter()
        self._rules = rules
        self._jobs: deque[Job] = deque()
        self._under_way: Job | None = None
        self._utterances = utterances  # counted here, since a restarted speech node counts from 1 again
        self._open: int | None = None  # the speech node's number of the open utterance
        self._start_ns = 0  # of that utterance
        self._next_estimate_ns = 0
        self._words: list[Word] = []

    @property
    def done(self) -> bool:
        """Whether no message is expected and no job waits or is under way."""
        return not self.expected and not self._jobs and self._under_way is None

    @property
    def at_rest(self) -> bool:
        """Whether nobody speaks and no job waits or is under way."""
        return self._open is None and not self._jobs and self._under_way is None

    @property
    def heard(self) -> bool:
        """Whether there has been a speech event."""
        return self.watermark_ns["speech"] > 0

    @property
    def deadline_ns(self) -> int:
        """When the first job becomes ready even if no message comes."""
        return self._jobs[0].deadline_ns if self._jobs and self._under_way is None else _FOREVER_NS

    @property
    def ahead_ns(self) -> int:
        """How far video is ahead of speech, in media time; 0 if either is absent or has ended."""
        if not {"video", "speech"} <= self.expected:
            return 0
        return self.watermark_ns["video"] - self.watermark_ns["speech"]

    @property
    def needed_from_ns(self) -> int:
        """The media time before which no job will need features."""
        jobs = [*self._jobs] if self._under_way is None else [self._under_way, *self._jobs]
        needed_ns = [self.watermark_ns["speech"] - _KEEP_NS, *(job.start_ns - REST_NS for job in jobs)]
        if self._open is not None:
            needed_ns.append(self._start_ns - REST_NS)
        from_ns = min(needed_ns)
        if self._rules.realtime:  # bounded even if speech events never come or stop coming
            newest_ns = max(self.watermark_ns["audio"], self.watermark_ns["video"])
            from_ns = max(from_ns, newest_ns - self._rules.longest_ns)
        return from_ns

    def advance(self, modality: Literal["audio", "video"], media_end_ns: int) -> None:
        """Features up to this media time have arrived."""
        self.watermark_ns[modality] = max(self.watermark_ns[modality], media_end_ns)

    def end(self, modality: str) -> None:
        """No more messages of a modality will come."""
        self.expected.discard(modality)
        if modality == "speech" and self.heard:
            self.watermark_ns["speech"] = _FOREVER_NS  # no utterance can begin any more

    def push(self, event: SpeechEvent, now_ns: int) -> bool:
        """Create the jobs that a speech event asks for. Returns whether an utterance began."""
        self.watermark_ns["speech"] = event.media_end_ns
        if event.event == "progress":
            return False
        began = event.event == "started" or event.utterance != self._open
        if began:
            self._open, self._start_ns = event.utterance, event.start_ns
            self._next_estimate_ns = event.start_ns + self._rules.hop_ns
            self._utterances += 1
        self._words = event.words
        if event.event == "ended":
            self._replace("window", "pause")
            self._add("utterance", event, event.start_ns, event.end_ns, now_ns)
            self._open = None
        elif event.event == "dropped":
            self._jobs = deque(job for job in self._jobs if job.utterance != self._utterances)
            self._open = None
        elif event.event == "paused" and self._rules.realtime:
            self._replace("window", "pause")
            self._add("pause", event, event.start_ns, event.end_ns, now_ns)
        elif event.event in ("started", "words") and self._rules.estimates:
            self._add_estimates(event, now_ns)
        return began

    def take_ready(self, now_ns: int, flush: bool) -> Job | None:
        """Take the first job if it is ready (``flush``: even if not). It is under way until ``finish``; until then no
        other is taken, so that jobs keep their order."""
        if self._under_way is None and self._jobs and (flush or self._is_ready(self._jobs[0], now_ns)):
            self._under_way = job = self._jobs.popleft()
            if job.kind == "utterance":
                self.late.update(name for name, by_ns in self._behind_ns(job).items() if by_ns > 0)
            return job
        return None

    def finish(self) -> None:
        """The job under way is done."""
        self._under_way = None

    def _add_estimates(self, event: SpeechEvent, now_ns: int) -> None:
        while self._next_estimate_ns <= event.media_end_ns:
            self._replace("window")
            end_ns = self._next_estimate_ns
            self._next_estimate_ns += self._rules.hop_ns
            if not self._rules.realtime or self._next_estimate_ns > event.media_end_ns:
                self._add("window", event, max(self._start_ns, end_ns - self._rules.window_ns), end_ns, now_ns)

    def _add(self, kind: JobKind, cause: SpeechEvent, start_ns: int, end_ns: int, now_ns: int) -> None:
        wait_ns = self._rules.wait_ns
        if wait_ns and kind == "utterance" and cause.captured_ns:
            wait_ns = max(wait_ns, min((now_ns - cause.captured_ns) // 2, _PATIENCE_NS))
        deadline_ns = now_ns + wait_ns if self._rules.realtime else _FOREVER_NS
        self._jobs.append(
            Job(kind, self._utterances, start_ns, end_ns, self._start_ns, self._words, cause, now_ns, deadline_ns)
        )

    def _replace(self, *kinds: JobKind) -> None:
        """In real time, drop the waiting jobs of these kinds: a newer job makes them useless."""
        if self._rules.realtime:
            self._jobs = deque(job for job in self._jobs if job.kind not in kinds)

    def _is_ready(self, job: Job, now_ns: int) -> bool:
        if now_ns >= job.deadline_ns:
            return True
        return all(by_ns <= 0 or (self._rules.realtime and by_ns > _LATE_NS) for by_ns in self._behind_ns(job).values())

    def _behind_ns(self, job: Job) -> dict[str, int]:
        """How far each modality that is still to come is behind the job's end."""
        return {name: job.end_ns - self.watermark_ns[name] for name in ("audio", "video") if name in self.expected}
