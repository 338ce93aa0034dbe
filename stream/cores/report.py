"""Builds the public messages from the results of jobs: label, evidence, latency."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from emostream.stream.clock import Clock
from emostream.stream.cores.classifier import Features, Head, Result
from emostream.stream.cores.jobs import Job
from emostream.stream.cores.people import Choice
from emostream.stream.dimensions import valence_and_arousal
from emostream.stream.emotion import Emotion, Evidence, Latency
from emostream.stream.features.voice import VECTOR_NS


@dataclass(frozen=True)
class RunTimes:
    """When the networks began a job, had encoded its inputs, and had its probabilities (Unix time)."""

    begun_ns: int
    encoded_ns: int
    fused_ns: int


class Reporter:
    """Builds and numbers the messages of all streams. ``fps``: frame rate of the analysed video; ``realtime``: whether
    labels have a latency; ``run``: as in the message; ``first``: the first ``seq`` of each topic; ``keep_text``:
    whether messages contain the recogniser's words (``[privacy] text``)."""

    def __init__(
        self,
        classifier: Head,
        fps: float,
        realtime: bool,
        clock: Clock,
        run: str = "",
        first: int = 0,
        keep_text: bool = True,
    ) -> None:
        self._classifier, self._fps, self._realtime = classifier, fps, realtime
        self._clock, self._run, self._keep_text = clock, run, keep_text
        self._seq: defaultdict[str, int] = defaultdict(lambda: first)  # by topic

    def build(
        self,
        stream: str,
        job: Job,
        features: Features,
        result: Result,
        times: RunTimes,
        published_ns: int,
        adapted: float,
        choice: Choice,
        speaker: str | None,
    ) -> Emotion:
        """Build a job's message right before it is published. ``adapted``: as in the message; ``choice``: whose face
        was used; ``speaker``: whose voice it is."""
        labels = self._classifier.labels
        best = int(result.probabilities.argmax())
        confidence = round(float(result.probabilities[best]), 6)
        coordinates = valence_and_arousal(labels, result.probabilities, self._classifier.coordinates)
        valence, arousal = (round(value, 3) for value in coordinates) if coordinates else (None, None)
        captured_ns = job.cause.speech_captured_ns
        if captured_ns:  # an estimate may end before the sound that caused it
            captured_ns -= job.cause.end_ns - job.end_ns
        set_by_ns = self._clock.wall_ns(published_ns) - published_ns  # how far the wall clock was set since the start
        words = job.words if self._keep_text else []
        kind: Literal["utterance", "window"] = "window" if job.kind == "window" else "utterance"
        message = Emotion(
            kind=kind,
            stream=stream,
            seq=0,
            utterance=job.utterance,
            start_s=round(job.utterance_start_ns / 1e9, 3),
            end_s=round(job.end_ns / 1e9, 3),
            label=labels[best],
            confidence=confidence,
            uncertain=confidence < self._classifier.uncertain_below,
            probabilities={
                label: round(float(value), 6) for label, value in zip(labels, result.probabilities, strict=True)
            },
            text=" ".join(word.word for word in words),
            words=words,
            modalities=_evidence(job, features, result, self._fps),
            latency_ms=_latency(job, times, published_ns) if kind == "utterance" and self._realtime else None,
            captured_ns=captured_ns and captured_ns + set_by_ns,
            published_ns=published_ns + set_by_ns,
            bundle=self._classifier.bundle_id,
            backend=result.backend or self._classifier.backend,
            valence=valence,
            arousal=arousal,
            adapted=round(adapted, 3),
            run=self._run,
            final=job.kind != "pause",
            speaker=speaker,
            face=choice.face,
            speaking=choice.speaking,
            faces=choice.seen,
            faces_seen=choice.faces,
            overlap=None if kind == "window" else job.cause.overlap,
        )
        message.seq = self._seq[message.topic]
        self._seq[message.topic] += 1
        return message


def _evidence(job: Job, features: Features, result: Result, fps: float) -> dict[str, Evidence]:
    length_s = max((job.end_ns - job.start_ns) / 1e9, 1e-9)
    covered_s = {
        "audio": len(features.audio) * VECTOR_NS / 1e9,
        "video": len(features.video) / fps,
        "text": sum(word.end_s - word.start_s for word in job.words),
    }
    return {
        name: Evidence(
            len(getattr(features, name)),
            round(min(1.0, seconds / length_s), 3),
            round(result.contributions[name], 6),
        )
        for name, seconds in covered_s.items()
    }


def _latency(job: Job, times: RunTimes, published_ns: int) -> Latency:
    """Breaks down the time from the capture of the last speech sample to the publishing of the label.

    The frame that confirmed the end was captured at ``cause.captured_ns``; the speech node received it at
    ``cause.received_ns`` and sent the event at ``cause.sent_ns``.
    """
    cause = job.cause
    sent_ns = cause.sent_ns or job.arrived_ns  # an event created in this process was not sent
    parts_ns = {
        "endpoint_wait": cause.captured_ns - cause.speech_captured_ns,
        "recognition": cause.recognition_ns,
        "queue": (cause.received_ns - cause.captured_ns) + (times.begun_ns - sent_ns),
        "encode": times.encoded_ns - times.begun_ns,
        "fusion": times.fused_ns - times.encoded_ns,
    }
    parts_ms = {name: round(value / 1e6, 3) for name, value in parts_ns.items()}
    total_ms = round((published_ns - cause.speech_captured_ns) / 1e6, 3)
    return Latency(total=total_ms, other=round(total_ms - sum(parts_ms.values()), 3), **parts_ms)
