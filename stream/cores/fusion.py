"""Core of the fusion node: the features of all streams in, labels out. The only place where the networks run.

Speech events make jobs (see ``jobs``). All jobs that are ready, of all streams, go through the networks as one batch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from emostream.stream.clock import Clock
from emostream.stream.config import Config
from emostream.stream.cores.adapt import Adaptation, Baseline
from emostream.stream.cores.classifier import Classify, Features, Head, Result
from emostream.stream.cores.face_endpoint import FaceEndpointer
from emostream.stream.cores.inputs import Inputs, StreamState, job_key, speaker_of
from emostream.stream.cores.jobs import Job, Rules, Schedule
from emostream.stream.cores.people import Choice, People
from emostream.stream.cores.report import Reporter, RunTimes
from emostream.stream.cores.runs import Call, Elsewhere, GaveUp, Runs, Steps
from emostream.stream.cores.speakers import Speakers
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.emotion import Emotion
from emostream.stream.features.logmel import DIM, HOP_NS
from emostream.stream.messages import AudioRows, End, Face, Message, SpeechEvent

log = logging.getLogger(__name__)

_OUT = {"window": "windows_out", "pause": "early_out", "utterance": "utterances_out"}


class FusionCore:
    """``streams``: by name, which of ``audio``, ``video`` and ``speech`` to expect. ``realtime``: wait for late
    modalities no longer than configured; ``estimates``: publish running estimates too; ``run``: the run's name in
    messages; ``first``: the first ``seq``, and one less than the first utterance's number; ``elsewhere``: where the
    networks run, if not in ``classifier``. Other streams then go on while one waits for an answer."""

    def __init__(
        self,
        streams: Mapping[str, Iterable[str]],
        classifier: Head,
        config: Config,
        clock: Clock,
        realtime: bool,
        estimates: bool = True,
        run: str = "",
        first: int = 0,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._classifier, self._config, self._clock = classifier, config, clock
        self.counters: Counter[str] = Counter()
        self._inputs = Inputs(classifier, config.video.who, self.counters)
        self._runs: Runs[list[tuple[StreamState, Job]], Emotion] = Runs(classifier, elsewhere)
        self._realtime = realtime
        keep_text = config.privacy.text == "keep"
        self._reporter = Reporter(classifier, config.video.fps, realtime, clock, run, first, keep_text)
        self._rules = Rules.from_config(config, realtime, estimates)
        self._streams: dict[str, StreamState] = {}
        for name, expected in streams.items():
            self.add_stream(name, expected, first)

    def add_stream(self, name: str, expected: Iterable[str], first: int = 0) -> None:
        """Expect another stream from now on; any earlier one of the same name must have ended."""
        before = self._streams.get(name)
        self._streams[name] = stream = self._new_stream(name, Schedule(expected, self._rules, first), first)
        if before is not None:  # its counters go on
            stream.counters, stream.schedule.late = before.counters, before.schedule.late

    def follow(self, config: Config) -> None:
        """Use the prior of this configuration from now on."""
        self._classifier.correct_for(config.fusion.prior)

    def _new_stream(self, name: str, schedule: Schedule, first: int) -> StreamState:
        return StreamState(
            name,
            schedule,
            SlidingWindow((DIM,), np.float32),
            self._classifier.voice_encoder(),
            self._classifier.text_encoder(),
            People(self._classifier.face_dim, self._config.video.who),
            Speakers(int(self._config.speech.speaker_s * 1e9), first),
            None if "speech" in schedule.expected else self._face_endpointer(name),
            known=self._adaptation(),
        )

    def _adaptation(self) -> Adaptation:
        fusion = self._config.fusion
        forget_ns = None if fusion.profile else int(fusion.adapt_s * 1e9)  # a profile belongs to one person
        return Adaptation(self._classifier.rest if fusion.adapt else {}, forget_ns, alone=bool(fusion.profile))

    @property
    def baselines(self) -> dict[str, dict[str, Baseline]]:
        """What is known about each stream's person, by modality."""
        return {name: stream.known.first for name, stream in self._streams.items()}

    def _face_endpointer(self, stream: str) -> FaceEndpointer:
        return FaceEndpointer(stream, self._config.video.fps, self._config.speech)

    def by_stream(self) -> dict[str, dict[str, int]]:
        """Counters of each stream: utterances begun and ended by the face alone; labels that did not wait for all
        faces."""
        return {
            name: {**stream.counters, "late_video": stream.schedule.late["video"]}
            for name, stream in self._streams.items()
        }

    @property
    def done(self) -> bool:
        """Whether every stream has ended and all its labels are out."""
        return all(stream.schedule.done for stream in self._streams.values())

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to do until somebody begins to speak. Never if faces alone begin the utterances."""
        return all(stream.schedule.at_rest and stream.endpointer is None for stream in self._streams.values())

    def patience_ms(self) -> int:
        """How long it is until the first deadline of a job. Until then none becomes ready unless a message comes."""
        left_ns = min(stream.schedule.deadline_ns for stream in self._streams.values()) - self._clock.now_ns()
        return max(0, -(-left_ns // 1_000_000))

    def ahead_ns(self, stream: str) -> int:
        """How far video is ahead of speech, in media time; 0 if either is absent or has ended."""
        return self._streams[stream].schedule.ahead_ns

    def needed_from_ns(self, stream: str) -> int:
        """The media time before which no future label of a stream needs anything."""
        return self._streams[stream].schedule.needed_from_ns

    def push(self, message: Message) -> None:
        """Take a producer's message. ``step`` returns the labels that it makes possible."""
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        match message:
            case AudioRows():
                times = message.media_start_ns + HOP_NS * np.arange(len(message.rows), dtype=np.int64)
                self._inputs.append(stream.audio, times, message.rows)
                stream.schedule.advance("audio", message.media_end_ns)
            case Face():
                self._on_face(stream, message)
            case SpeechEvent():
                self._on_speech(stream, message)
            case End():
                self._on_end(stream, message)
        before_ns = stream.schedule.needed_from_ns
        stream.audio.forget_before(before_ns)
        stream.people.forget_before(before_ns)

    def step(self, flush: bool = False) -> list[Emotion]:
        """Run all jobs that are ready (``flush``: all jobs); returns their messages, stamped with the time."""
        if self._realtime:
            for stream in self._streams.values():
                if stream.endpointer is not None:
                    self._on_face_events(stream, stream.endpointer.stalled(self._clock.now_ns()))
        published = self._runs.go_on(flush, self._finish)
        while ready := self._take_ready(flush):
            for together in [ready] if self._runs.here else [[each] for each in ready]:
                published += self._runs.start(together[0][0].name, together, self._run(together), self._finish)
            if flush:
                published += self._runs.go_on(flush, self._finish)
        return published

    def _finish(self, ready: list[tuple[StreamState, Job]], given_up: GaveUp | None) -> None:
        """The run of these jobs has ended."""
        for stream, job in ready:
            stream.schedule.finish()
            if given_up is not None and job.kind == "utterance":
                self.counters["utterances_given_up"] += 1
                log.warning("%s: utterance %d has no label: %s", stream.name, job.utterance, given_up)

    def _on_face(self, stream: StreamState, face: Face) -> None:
        try:
            stream.people.push(face)
        except ValueError:  # a producer that was restarted repeats what it had sent
            self.counters["rows_out_of_order"] += face.found
        stream.schedule.advance("video", face.media_end_ns)
        if stream.endpointer is not None:
            self._on_face_events(stream, stream.endpointer.push(face, self._clock.now_ns()))
        elif not stream.schedule.heard:
            stream.undecided.append(face)

    def _on_speech(self, stream: StreamState, event: SpeechEvent) -> None:
        stream.undecided.clear()
        if stream.schedule.push(event, self._clock.now_ns()):
            stream.provisional = None
            self.counters["utterances_in"] += 1

    def _on_face_events(self, stream: StreamState, events: list[SpeechEvent]) -> None:
        for event in events:
            self.counters["face_utterances"] += event.event == "started"
            stream.counters["face_utterances"] += event.event == "started"
            stream.counters["face_utterances_ended"] += event.event == "ended"
            self._on_speech(stream, event)

    def _on_end(self, stream: StreamState, end: End) -> None:
        modality = "video" if end.content == "face" else end.content
        if modality not in stream.schedule.expected:  # End messages are repeated until received
            return
        stream.schedule.end(modality)
        now_ns = self._clock.now_ns()
        if modality == "speech" and not stream.schedule.heard:
            stream.endpointer = self._face_endpointer(stream.name)
            for face in list(stream.undecided):
                self._on_face_events(stream, stream.endpointer.push(face, now_ns))
            if "video" in stream.schedule.expected:
                log.info("%s: no sound (%s); labels come from the face alone", stream.name, end.reason)
        if stream.endpointer is not None and "video" not in stream.schedule.expected:
            self._on_face_events(stream, stream.endpointer.finish(now_ns))

    def _take_ready(self, flush: bool) -> list[tuple[StreamState, Job]]:
        """The first job of each stream, if it is ready."""
        now_ns = self._clock.now_ns()
        jobs = [(stream, stream.schedule.take_ready(now_ns, flush)) for stream in self._streams.values()]
        return [(stream, job) for stream, job in jobs if job is not None]

    def _run(self, ready: list[tuple[StreamState, Job]]) -> Steps[Emotion]:
        """Do jobs of different streams together. Yields what the networks have to run, and is sent the answers."""
        begun_ns = self._clock.now_ns()
        choices = [self._inputs.choose(stream, job) for stream, job in ready]
        speakers = [speaker_of(stream, job, choice) for (stream, job), choice in zip(ready, choices, strict=True)]
        sounds, texts = yield from self._inputs.encode(ready, choices)
        features = [
            self._inputs.features(stream, job, choice, speaker, sound, text)
            for (stream, job), choice, speaker, sound, text in zip(ready, choices, speakers, sounds, texts, strict=True)
        ]
        encoded_ns = self._clock.now_ns()
        keys = [job_key(job, item, choice) for (_, job), item, choice in zip(ready, features, choices, strict=True)]
        trials = [
            stream.known.trial(speaker, sound) if job.kind != "window" else []
            for (stream, job), speaker, sound in zip(ready, speakers, sounds, strict=True)
        ]
        results, tried = yield from self._results(ready, features, keys, trials)
        if self._config.video.who == "all":
            yield from self._estimate_each(ready, choices)
        times = RunTimes(begun_ns, encoded_ns, self._clock.now_ns())
        published = []
        for i, (stream, job) in enumerate(ready):
            if i not in results:
                continue
            if not np.isfinite(results[i].probabilities).all():
                if job.kind == "utterance":
                    self.counters["utterances_not_finite"] += 1
                    log.warning("%s: the network's answer to utterance %d is no number", stream.name, job.utterance)
                continue
            if job.kind == "pause":
                stream.provisional = (keys[i], results[i], tried[i])
                if not self._config.fusion.early:
                    continue
            now_ns = self._clock.now_ns()
            adapted = stream.known.known(features[i].present(), choices[i].face, speakers[i])
            published.append(
                self._reporter.build(
                    stream.name, job, features[i], results[i], times, now_ns, adapted, choices[i], speakers[i]
                )
            )
            if job.kind == "utterance":
                self._learn(stream, job, results[i], choices[i], speakers[i], sounds[i], tried[i])
            self.counters[_OUT[job.kind]] += 1
        return published

    def _results(
        self,
        ready: list[tuple[StreamState, Job]],
        features: list[Features],
        keys: list[tuple[object, ...]],
        trials: list[list[np.ndarray]],
    ) -> Generator[Call, Any, tuple[dict[int, Result], list[list[float]]]]:
        """Results by the job's index, in one run of the network, none for a job without features; and for each job the
        best label's probability for each sound to be tried."""
        results: dict[int, Result] = {}
        tried: list[list[float]] = [[] for _ in ready]
        left: list[int] = []
        for i, ((stream, job), item) in enumerate(zip(ready, features, strict=True)):
            if stream.provisional is not None and stream.provisional[0] == keys[i]:
                _, results[i], tried[i] = stream.provisional
                self.counters["labels_ready_at_end"] += job.kind == "utterance"
            elif item.present():
                left.append(i)
            elif job.kind == "utterance":
                self.counters["utterances_without_features"] += 1
                log.warning("%s: utterance %d has no features, so no label", stream.name, job.utterance)
        if left:
            contributions = [ready[i][1].kind != "window" for i in left]
            heard = [i for i in left if len(features[i].audio)]
            sounds = [(i, replace(features[i], audio=sound).only(["audio"])) for i in heard for sound in trials[i]]
            classified: list[Result] = yield Classify(
                [features[i] for i in left] + [sound for _, sound in sounds], contributions + [False] * len(sounds)
            )
            results |= dict(zip(left, classified, strict=False))
            for (i, _), result in zip(sounds, classified[len(left) :], strict=True):
                tried[i].append(float(result.probabilities.max()))
        return results, tried

    def _learn(
        self,
        stream: StreamState,
        job: Job,
        result: Result,
        choice: Choice,
        speaker: str | None,
        sound: np.ndarray,
        tried: list[float],
    ) -> None:
        """What an utterance tells of the person: as much as it is neutral. ``sound``: its voice vectors as they are;
        ``tried``: what came of moving them."""
        stream.ended_ns = job.end_ns
        stream.people.learn(choice)
        if "neutral" not in self._classifier.labels:
            return
        weight = float(result.probabilities[list(self._classifier.labels).index("neutral")]) ** 2
        stream.known.learn_voice(speaker, sound, weight, job.end_ns, tried)
        stream.known.keep_voices(stream.speakers.names)
        if choice.face is not None and (face := stream.known.face(choice.face)) is not None:
            face.update(self._inputs.face_vectors(stream, job, choice.face), weight)

    def _estimate_each(self, ready: list[tuple[StreamState, Job]], choices: list[Choice]) -> Generator[Call, Any, None]:
        """Label each face in view by itself; the results go into ``Choice.seen``."""
        if "video" not in self._classifier.modalities:
            return
        shown = [
            (face, self._inputs.faces(stream, job, face.id))
            for (stream, job), choice in zip(ready, choices, strict=True)
            if job.kind != "pause"  # this is not published at a pause
            for face in choice.seen
        ]
        shown = [(face, rows) for face, rows in shown if len(rows)]
        if not shown:
            return
        silence = self._classifier.voice_encoder().encode(np.zeros((0, DIM), np.float32))
        wordless = self._classifier.text_encoder().encode([])
        items = [Features(silence, rows, wordless) for _, rows in shown]
        results: list[Result] = yield Classify(items, [False] * len(items))
        for (face, _), result in zip(shown, results, strict=True):
            face.probabilities = {
                label: round(float(value), 6)
                for label, value in zip(self._classifier.labels, result.probabilities, strict=True)
            }
            face.label = max(face.probabilities, key=face.probabilities.__getitem__)
