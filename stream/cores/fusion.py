"""Fusion node's core: the features of all streams in, labels out. The only place where the networks run.

Speech events make jobs: a running estimate each hop, a provisional label at a pause, the label at the end. A job
waits until every modality that the stream has is known up to the job's end: at real-time pace no longer than
``fusion.wait_ms``, at full speed as long as it takes, so that the labels of a file are the same on any machine.
Jobs of all streams that are ready go through the networks as one batch.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from emostream.stream.clock import Clock
from emostream.stream.config import Config
from emostream.stream.cores.classifier import Classifier, Features, Result
from emostream.stream.cores.face_endpoint import FaceEndpointer
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.features.face import CROP
from emostream.stream.features.mfcc import DIM, FRAME_NS, HOP_NS
from emostream.stream.messages import Emotion, End, Evidence, Face, Latency, Message, MfccRows, SpeechEvent, Word

log = logging.getLogger(__name__)

_LATE_NS = 2_000_000_000  # a modality that is this far behind is not waited for
_KEEP_NS = 3_000_000_000  # rows before what is known of speech that an utterance may still begin in
_FOREVER = 1 << 62
_UNDECIDED = 100_000  # faces: hours of them, in a file whose sound track turns out to be empty


@dataclass
class _Job:
    kind: Literal["window", "pause", "utterance"]
    utterance: int
    start_ns: int  # what the features cover
    end_ns: int
    begun_ns: int  # where the utterance began
    words: list[Word]
    cause: SpeechEvent
    deadline_ns: int
    arrived_ns: int


@dataclass
class _Stream:
    """What is known of one stream. ``watermark_ns``: by modality, the media time up to which everything has come."""

    name: str
    expected: set[str]
    audio: SlidingWindow
    crops: SlidingWindow  # faces not encoded yet
    video: SlidingWindow  # their vectors
    turns: FaceEndpointer | None
    undecided: deque[Face] = field(default_factory=lambda: deque(maxlen=_UNDECIDED))  # came before any word of speech
    watermark_ns: dict[str, int] = field(default_factory=lambda: {"audio": 0, "video": 0, "speech": 0})
    utterance: int | None = None
    begun_ns: int = 0
    next_hop_ns: int = 0
    words: list[Word] = field(default_factory=list)
    count: int = 0  # of utterances; numbered here, since a speech node that was started again counts from 1
    jobs: deque[_Job] = field(default_factory=deque)
    provisional: tuple[tuple, Result] | None = None
    seq: Counter[str] = field(default_factory=Counter)


class FusionCore:
    """``streams``: names of the streams and which of ``audio``, ``video`` and ``speech`` each has. ``estimates``:
    whether to give running estimates; ``realtime``: whether to wait for late modalities no longer than configured."""

    def __init__(
        self,
        streams: dict[str, frozenset[str]],
        classifier: Classifier,
        config: Config,
        clock: Clock,
        realtime: bool,
        estimates: bool = True,
    ) -> None:
        self._classifier, self._config, self._clock = classifier, config, clock
        self._realtime, self._estimates = realtime, estimates
        self._hop_ns = config.window.hop_ms * 1_000_000
        self._length_ns = int(config.window.length_s * 1e9)
        self._wait_ns = config.fusion.wait_ms * 1_000_000
        self._cap_ns = int((config.speech.max_utterance_s + 10) * 1e9)
        self._streams = {name: self._new_stream(name, expected) for name, expected in streams.items()}
        self.counters: Counter[str] = Counter()

    def _new_stream(self, name: str, expected: frozenset[str]) -> _Stream:
        dim = self._classifier.encode_faces(np.zeros((0, CROP, CROP), np.uint8)).shape[1]
        return _Stream(
            name,
            set(expected),
            SlidingWindow((DIM,), np.float32),
            SlidingWindow((CROP, CROP), np.uint8),
            SlidingWindow((dim,), np.float32),
            None if "speech" in expected else FaceEndpointer(name, self._config.video.fps, self._config.speech),
        )

    @property
    def done(self) -> bool:
        """Whether every stream has ended and all its labels are out."""
        return not any(stream.expected or stream.jobs for stream in self._streams.values())

    def patience_ms(self) -> int:
        """How long no job will be ready if no message comes: until the first of their deadlines."""
        deadlines_ns = [stream.jobs[0].deadline_ns for stream in self._streams.values() if stream.jobs]
        left_ns = min(deadlines_ns, default=_FOREVER) - self._clock.now_ns()
        return max(0, -(-left_ns // 1_000_000))

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to do until somebody begins to speak. Not where faces tell who speaks."""
        return all(
            stream.utterance is None and not stream.jobs and stream.turns is None for stream in self._streams.values()
        )

    def ahead_ns(self, stream: str) -> int:
        """How far video is ahead of speech, in media time; 0 if either does not come (any more)."""
        state = self._streams[stream]
        if not {"video", "speech"} <= state.expected:
            return 0
        return state.watermark_ns["video"] - state.watermark_ns["speech"]

    def push(self, message: Message) -> None:
        """Take a message of a producer. What it makes possible comes from ``step``."""
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        match message:
            case MfccRows():
                times = message.media_start_ns + HOP_NS * np.arange(len(message.rows), dtype=np.int64)
                self._append(stream.audio, times, message.rows)
                stream.watermark_ns["audio"] = max(stream.watermark_ns["audio"], message.media_end_ns)
            case Face():
                if message.found:
                    self._append(stream.crops, np.array([message.media_start_ns]), message.crop[None])
                stream.watermark_ns["video"] = max(stream.watermark_ns["video"], message.media_end_ns)
                if stream.turns is not None:
                    self._turn(stream, stream.turns.push(message, self._clock.now_ns()))
                elif not stream.watermark_ns["speech"]:
                    stream.undecided.append(message)
            case SpeechEvent():
                self._on_speech(stream, message)
            case End():
                self._on_end(stream, message)
        self._evict(stream)

    def step(self, flush: bool = False) -> list[Emotion]:
        """Run all jobs that are ready (``flush``: all jobs) and return their messages, stamped with the time."""
        published: list[Emotion] = []
        if self._realtime:
            for stream in self._streams.values():
                if stream.turns is not None:
                    self._turn(stream, stream.turns.stalled(self._clock.now_ns()))
        while ready := self._take_ready(flush):
            published += self._run(ready)
        return published

    def _append(self, window: SlidingWindow, times: np.ndarray, rows: np.ndarray) -> None:
        try:
            window.append(times, rows)
        except ValueError:  # a producer that was started again repeats what it had sent
            self.counters["rows_out_of_order"] += len(rows)

    def _on_speech(self, stream: _Stream, event: SpeechEvent) -> None:
        stream.watermark_ns["speech"] = event.media_end_ns
        stream.undecided.clear()
        if event.event == "progress":
            return
        if event.event == "started" or event.utterance != stream.utterance:
            stream.utterance, stream.begun_ns = event.utterance, event.start_ns
            stream.next_hop_ns = event.start_ns + self._hop_ns
            stream.provisional = None
            stream.count += 1
            self.counters["utterances_in"] += 1
        stream.words = event.words
        if event.event == "ended":
            if self._realtime:
                stream.jobs = deque(job for job in stream.jobs if job.kind == "utterance")
            self._add(stream, "utterance", event, event.start_ns, event.end_ns)
            stream.utterance = None
        elif event.event == "paused" and self._realtime:
            stream.jobs = deque(job for job in stream.jobs if job.kind == "utterance")
            self._add(stream, "pause", event, event.start_ns, event.end_ns)
        elif self._estimates and event.event in ("started", "words"):
            while stream.next_hop_ns <= event.media_end_ns:
                if self._realtime:  # an estimate that a newer one overtakes is of no use
                    stream.jobs = deque(job for job in stream.jobs if job.kind != "window")
                end_ns = stream.next_hop_ns
                stream.next_hop_ns += self._hop_ns
                if not self._realtime or stream.next_hop_ns > event.media_end_ns:
                    self._add(stream, "window", event, max(stream.begun_ns, end_ns - self._length_ns), end_ns)

    def _add(
        self,
        stream: _Stream,
        kind: Literal["window", "pause", "utterance"],
        cause: SpeechEvent,
        start_ns: int,
        end_ns: int,
    ) -> None:
        now_ns = self._clock.now_ns()
        deadline_ns = now_ns + self._wait_ns if self._realtime else _FOREVER
        stream.jobs.append(
            _Job(kind, stream.count, start_ns, end_ns, stream.begun_ns, stream.words, cause, deadline_ns, now_ns)
        )

    def _on_end(self, stream: _Stream, end: End) -> None:
        modality = {"mfcc": "audio", "face": "video"}.get(end.of, end.of)
        stream.expected.discard(modality)
        now_ns = self._clock.now_ns()
        if modality == "speech" and stream.watermark_ns["speech"]:
            stream.watermark_ns["speech"] = _FOREVER  # no utterance can begin any more
        elif modality == "speech":
            stream.turns = FaceEndpointer(stream.name, self._config.video.fps, self._config.speech)
            for face in list(stream.undecided):
                self._turn(stream, stream.turns.push(face, now_ns))
            if "video" in stream.expected:
                log.info("%s: no sound (%s); labels come from the face alone", stream.name, end.reason)
        if stream.turns is not None and "video" not in stream.expected:
            self._turn(stream, stream.turns.finish(now_ns))

    def _turn(self, stream: _Stream, events: list[SpeechEvent]) -> None:
        for event in events:
            self.counters["turns"] += event.event == "started"
            self._on_speech(stream, event)

    def _evict(self, stream: _Stream) -> None:
        """Drop rows that no job can need any more."""
        needed = [stream.watermark_ns["speech"] - _KEEP_NS, *(job.start_ns for job in stream.jobs)]
        if stream.utterance is not None:
            needed.append(stream.begun_ns)
        before_ns = min(needed)
        if self._realtime:  # bounded even if speech does not come, or does not go on
            newest_ns = max(stream.watermark_ns["audio"], stream.watermark_ns["video"])
            before_ns = max(before_ns, newest_ns - self._cap_ns)
        for window in (stream.audio, stream.crops, stream.video):
            window.forget_before(before_ns)

    def _is_ready(self, stream: _Stream, job: _Job, now_ns: int) -> bool:
        if now_ns >= job.deadline_ns:
            return True
        behind = [job.end_ns - stream.watermark_ns[name] for name in ("audio", "video") if name in stream.expected]
        return all(by <= 0 or (self._realtime and by > _LATE_NS) for by in behind)

    def _take_ready(self, flush: bool) -> list[tuple[_Stream, _Job]]:
        """The first job of each stream, if it is ready: jobs of one stream keep their order."""
        now_ns = self._clock.now_ns()
        return [
            (stream, stream.jobs.popleft())
            for stream in self._streams.values()
            if stream.jobs and (flush or self._is_ready(stream, stream.jobs[0], now_ns))
        ]

    def _run(self, ready: list[tuple[_Stream, _Job]]) -> list[Emotion]:
        begun_ns = self._clock.now_ns()
        self._encode_faces(ready)
        features = [self._features(stream, job) for stream, job in ready]
        encoded_ns = self._clock.now_ns()
        results: dict[int, Result] = {}
        todo: list[int] = []
        for i, ((stream, job), item) in enumerate(zip(ready, features, strict=True)):
            if stream.provisional is not None and stream.provisional[0] == _key(job, item):
                results[i] = stream.provisional[1]
                self.counters["labels_ready_at_end"] += job.kind == "utterance"
            elif item.present():
                todo.append(i)
            elif job.kind == "utterance":
                self.counters["utterances_without_features"] += 1
                log.warning("%s: utterance %d has no features, so no label", job.cause.stream, job.utterance)
        if todo:
            asked = [ready[i][1].kind != "window" for i in todo]
            results |= dict(zip(todo, self._classifier.classify([features[i] for i in todo], asked), strict=True))
        fused_ns = self._clock.now_ns()
        published = []
        for i, (stream, job) in enumerate(ready):
            if i not in results:
                continue
            if job.kind == "pause":
                stream.provisional = (_key(job, features[i]), results[i])
                continue
            spans = (begun_ns, encoded_ns, fused_ns)
            published.append(self._message(stream, job, features[i], results[i], spans))
            self.counters["utterances_out" if job.kind == "utterance" else "windows_out"] += 1
        return published

    def _encode_faces(self, ready: list[tuple[_Stream, _Job]]) -> None:
        """Encode the faces that these jobs need and that are not encoded yet, of all streams in one run."""
        for stream, job in ready:
            stream.crops.forget_before(job.begun_ns)
        parts = [(stream, job.end_ns, stream.crops.cut(0, job.end_ns)) for stream, job in ready]
        vectors = self._classifier.encode_faces(np.concatenate([crops for _, _, crops in parts]))
        at = 0
        for stream, end_ns, crops in parts:
            self._append(stream.video, stream.crops.times(0, end_ns), vectors[at : at + len(crops)])
            stream.crops.forget_before(end_ns)
            at += len(crops)

    def _features(self, stream: _Stream, job: _Job) -> Features:
        return Features(
            stream.audio.cut(job.start_ns, job.end_ns - FRAME_NS + 1),  # frames that lie whole within, as in training
            stream.video.cut(job.start_ns, job.end_ns),
            self._classifier.encode_words([word.word for word in job.words]),
        )

    def _message(
        self, stream: _Stream, job: _Job, features: Features, result: Result, spans: tuple[int, int, int]
    ) -> Emotion:
        labels = self._classifier.labels
        best = int(result.probabilities.argmax())
        confidence = round(float(result.probabilities[best]), 6)
        kind: Literal["utterance", "window"] = "window" if job.kind == "window" else "utterance"
        seq = stream.seq[kind]
        stream.seq[kind] += 1
        published_ns = self._clock.now_ns()
        return Emotion(
            kind=kind,
            stream=stream.name,
            seq=seq,
            utterance=job.utterance,
            start_s=round(job.begun_ns / 1e9, 3),
            end_s=round(job.end_ns / 1e9, 3),
            label=labels[best],
            confidence=confidence,
            uncertain=confidence < self._classifier.uncertain_below,
            probabilities={
                label: round(float(value), 6) for label, value in zip(labels, result.probabilities, strict=True)
            },
            text=" ".join(word.word for word in job.words),
            words=job.words,
            modalities=self._evidence(job, features, result),
            latency_ms=_latency(job, spans, published_ns) if kind == "utterance" and self._realtime else None,
            captured_ns=job.cause.speech_captured_ns,
            published_ns=published_ns,
            bundle=self._classifier.bundle_id,
            backend=self._classifier.backend,
        )

    def _evidence(self, job: _Job, features: Features, result: Result) -> dict[str, Evidence]:
        length_s = max((job.end_ns - job.start_ns) / 1e9, 1e-9)
        seconds = {
            "audio": (len(features.audio) * HOP_NS + FRAME_NS - HOP_NS) / 1e9 if len(features.audio) else 0.0,
            "video": len(features.video) / self._config.video.fps,
            "text": sum(word.end_s - word.start_s for word in job.words),
        }
        return {
            name: Evidence(
                len(getattr(features, name)),
                round(min(1.0, covered / length_s), 3),
                round(result.contributions[name], 6),
            )
            for name, covered in seconds.items()
        }


def _key(job: _Job, features: Features) -> tuple:
    """What a label depends on; features only grow within an utterance, so their lengths tell them apart."""
    words = tuple(word.word for word in job.words)
    return job.utterance, job.start_ns, job.end_ns, words, len(features.audio), len(features.video)


def _latency(job: _Job, spans: tuple[int, int, int], published_ns: int) -> Latency:
    """Parts of the time from the last speech sample's capture to the publishing of the label.

    ``cause.captured_ns`` is the capture of the frame that confirmed the end; the speech node began with it at
    ``received_ns``, and sent the event at ``sent_ns``.
    """
    begun_ns, encoded_ns, fused_ns = spans
    cause = job.cause
    sent_ns = cause.sent_ns or job.arrived_ns
    queue_ns = (cause.received_ns - cause.captured_ns) + (begun_ns - sent_ns)
    parts = {
        "endpoint_wait": cause.captured_ns - cause.speech_captured_ns,
        "recognition": cause.recognition_ns,
        "queue": queue_ns,
        "encode": encoded_ns - begun_ns,
        "fusion": fused_ns - encoded_ns,
    }
    total_ns = published_ns - cause.speech_captured_ns
    milliseconds = {name: round(value / 1e6, 3) for name, value in parts.items()}
    total = round(total_ns / 1e6, 3)
    return Latency(total=total, other=round(total - sum(milliseconds.values()), 3), **milliseconds)
