"""Core of the fusion node: the features of all streams in, labels out. The only place where the networks run.

Speech events make jobs (see ``jobs``); those of all streams that are ready go through the networks as one batch.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emostream.stream.clock import Clock
from emostream.stream.config import Config
from emostream.stream.cores.adapt import Adaptation, Baseline
from emostream.stream.cores.classifier import Classify, Encode, Encoded, Features, Head, Result
from emostream.stream.cores.face_endpoint import FaceEndpointer
from emostream.stream.cores.jobs import REST_NS, Job, Rules, Schedule
from emostream.stream.cores.people import AFTER_NS, BEFORE_NS, Choice, People, Person
from emostream.stream.cores.report import Reporter, RunTimes
from emostream.stream.cores.runs import Call, Elsewhere, GaveUp, Runs, Steps
from emostream.stream.cores.speakers import Speakers
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.emotion import Emotion
from emostream.stream.features.face import CROP
from emostream.stream.features.logmel import DIM, FRAME_NS, HOP_NS
from emostream.stream.features.text import TextEncoder
from emostream.stream.features.voice import VECTOR_NS, VoiceEncoder
from emostream.stream.messages import AudioRows, End, Face, Message, SpeechEvent

log = logging.getLogger(__name__)

_UNDECIDED = 100_000  # faces: hours of them, in a file whose sound track turns out to be empty

_RESTING = 8  # faces of one rest
_LAG_NS = 500_000_000  # by which a camera may be behind
_BEFORE_NS, _AFTER_NS = 150_000_000, 300_000_000  # before and after an utterance, faces are those of someone who speaks

_OUT = {"window": "windows_out", "pause": "early_out", "utterance": "utterances_out"}

# what a label depends on (see _key), the result, and what came of the voice's trial (see Adaptation.trial)
_Provisional = tuple[tuple[object, ...], Result, list[float]]


@dataclass
class _Stream:
    """The schedule and the features of one stream."""

    name: str
    schedule: Schedule
    audio: SlidingWindow  # log-mel rows
    voice: VoiceEncoder
    words: TextEncoder
    people: People  # their faces
    speakers: Speakers  # their voices
    endpointer: FaceEndpointer | None  # of a stream without sound
    undecided: deque[Face] = field(default_factory=lambda: deque(maxlen=_UNDECIDED))  # before the first speech event
    voice_of: int = 0  # the utterance that ``voice`` encodes
    known: Adaptation = field(default_factory=lambda: Adaptation({}, None, alone=False))
    rested_for: int = 0  # the utterance before which the face was last looked at
    ended_ns: int = 0  # end of the last utterance
    provisional: _Provisional | None = None  # of the last pause
    counters: Counter[str] = field(default_factory=Counter)


class FusionCore:
    """``streams``: by name, which of ``audio``, ``video`` and ``speech`` to expect. ``realtime``: wait for late
    modalities no longer than configured; ``estimates``: publish running estimates too; ``run``: its name in messages;
    ``first``: what ``seq`` begins at, and one less than the first utterance's number; ``elsewhere``: where the networks
    run, if that is not in ``classifier``: other streams then go on while one waits for an answer."""

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
        self._runs: Runs[list[tuple[_Stream, Job]], Emotion] = Runs(classifier, elsewhere)
        self._realtime = realtime
        keep_text = config.privacy.text == "keep"
        self._reporter = Reporter(classifier, config.video.fps, realtime, clock, run, first, keep_text)
        self._rules = Rules.from_config(config, realtime, estimates)
        self._streams: dict[str, _Stream] = {}
        for name, expected in streams.items():
            self.add_stream(name, expected, first)
        self.counters: Counter[str] = Counter()

    def add_stream(self, name: str, expected: Iterable[str], first: int = 0) -> None:
        """Expect a further stream from now on; one of the same name must have ended."""
        before = self._streams.get(name)
        self._streams[name] = stream = self._new_stream(name, Schedule(expected, self._rules, first), first)
        if before is not None:  # its counters go on
            stream.counters, stream.schedule.late = before.counters, before.schedule.late

    def follow(self, config: Config) -> None:
        """Go on with another prior."""
        self._classifier.correct_for(config.fusion.prior)

    def _new_stream(self, name: str, schedule: Schedule, first: int) -> _Stream:
        return _Stream(
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
        forget_ns = None if fusion.profile else int(fusion.adapt_s * 1e9)  # a profile is of one person
        return Adaptation(self._classifier.rest if fusion.adapt else {}, forget_ns, alone=bool(fusion.profile))

    @property
    def baselines(self) -> dict[str, dict[str, Baseline]]:
        """What is known of the person of each stream, by modality."""
        return {name: stream.known.first for name, stream in self._streams.items()}

    def _face_endpointer(self, stream: str) -> FaceEndpointer:
        return FaceEndpointer(stream, self._config.video.fps, self._config.speech)

    def by_stream(self) -> dict[str, dict[str, int]]:
        """Counters of each stream: utterances told by the face alone, begun and ended; labels that did not wait for all
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
        """Whether there is nothing to do until somebody begins to speak. Never where faces show who speaks."""
        return all(stream.schedule.at_rest and stream.endpointer is None for stream in self._streams.values())

    def patience_ms(self) -> int:
        """How long no job will be ready if no message comes: until the first of their deadlines."""
        left_ns = min(stream.schedule.deadline_ns for stream in self._streams.values()) - self._clock.now_ns()
        return max(0, -(-left_ns // 1_000_000))

    def ahead_ns(self, stream: str) -> int:
        """How far video is ahead of speech, in media time; 0 if either does not come (any more)."""
        return self._streams[stream].schedule.ahead_ns

    def needed_from_ns(self, stream: str) -> int:
        """The media time before which nothing of a stream will be in a further label."""
        return self._streams[stream].schedule.needed_from_ns

    def push(self, message: Message) -> None:
        """Take a message of a producer. ``step`` returns the labels that it makes possible."""
        stream = self._streams.get(message.stream)
        if stream is None:
            return
        match message:
            case AudioRows():
                times = message.media_start_ns + HOP_NS * np.arange(len(message.rows), dtype=np.int64)
                self._append(stream.audio, times, message.rows)
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

    def _finish(self, ready: list[tuple[_Stream, Job]], given_up: GaveUp | None) -> None:
        """The run of these jobs has ended."""
        for stream, job in ready:
            stream.schedule.finish()
            if given_up is not None and job.kind == "utterance":
                self.counters["utterances_given_up"] += 1
                log.warning("%s: utterance %d has no label: %s", stream.name, job.utterance, given_up)

    def _append(self, window: SlidingWindow, times: np.ndarray, rows: np.ndarray) -> None:
        try:
            window.append(times, rows)
        except ValueError:  # a producer that was started again repeats what it had sent
            self.counters["rows_out_of_order"] += len(rows)

    def _on_face(self, stream: _Stream, face: Face) -> None:
        try:
            stream.people.push(face)
        except ValueError:  # as above
            self.counters["rows_out_of_order"] += face.found
        stream.schedule.advance("video", face.media_end_ns)
        if stream.endpointer is not None:
            self._on_face_events(stream, stream.endpointer.push(face, self._clock.now_ns()))
        elif not stream.schedule.heard:
            stream.undecided.append(face)

    def _on_speech(self, stream: _Stream, event: SpeechEvent) -> None:
        stream.undecided.clear()
        if stream.schedule.push(event, self._clock.now_ns()):
            stream.provisional = None
            self.counters["utterances_in"] += 1

    def _on_face_events(self, stream: _Stream, events: list[SpeechEvent]) -> None:
        for event in events:
            self.counters["face_utterances"] += event.event == "started"
            stream.counters["face_utterances"] += event.event == "started"
            stream.counters["face_utterances_ended"] += event.event == "ended"
            self._on_speech(stream, event)

    def _on_end(self, stream: _Stream, end: End) -> None:
        modality = "video" if end.content == "face" else end.content
        if modality not in stream.schedule.expected:  # it comes again until it was heard
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

    def _take_ready(self, flush: bool) -> list[tuple[_Stream, Job]]:
        """The first job of each stream, if it is ready."""
        now_ns = self._clock.now_ns()
        jobs = [(stream, stream.schedule.take_ready(now_ns, flush)) for stream in self._streams.values()]
        return [(stream, job) for stream, job in jobs if job is not None]

    def _run(self, ready: list[tuple[_Stream, Job]]) -> Steps[Emotion]:
        """Do jobs of different streams together. Yields what the networks have to run, and is sent the answers."""
        begun_ns = self._clock.now_ns()
        choices = [self._choose(stream, job) for stream, job in ready]
        speakers = [_speaker(stream, job, choice) for (stream, job), choice in zip(ready, choices, strict=True)]
        sounds, texts = yield from self._encode(ready, choices)
        features = [
            self._features(stream, job, choice, speaker, sound, text)
            for (stream, job), choice, speaker, sound, text in zip(ready, choices, speakers, sounds, texts, strict=True)
        ]
        encoded_ns = self._clock.now_ns()
        keys = [_key(job, item, choice) for (_, job), item, choice in zip(ready, features, choices, strict=True)]
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
        ready: list[tuple[_Stream, Job]],
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

    def _choose(self, stream: _Stream, job: Job) -> Choice:
        """Whose face the job is about. That is told by the whole utterance so far."""
        start_ns, end_ns = job.utterance_start_ns, job.end_ns
        around = (start_ns - BEFORE_NS - _LAG_NS, end_ns + AFTER_NS + _LAG_NS)
        row_times = stream.audio.times(*around)
        first_row_ns = int(row_times[0]) if len(row_times) else 0
        final = job.kind != "window"
        choice = stream.people.choose(start_ns, end_ns, first_row_ns, stream.audio.cut(*around), final)
        if choice.face is None and job.cause.voice is not None:  # a known voice has a face, though it said too little
            face = stream.speakers.face(stream.speakers.find(job.cause.voice, end_ns))
            if any(seen.id == face and seen.moves is None for seen in choice.seen):
                return replace(choice, face=face)
        return choice

    def _wanted(self, choice: Choice) -> list[int]:
        """Whose faces are looked at by the networks."""
        if self._config.video.who == "all":
            return [face.id for face in choice.seen]
        return [] if choice.face is None else [choice.face]

    def _encode(
        self, ready: list[tuple[_Stream, Job]], choices: list[Choice]
    ) -> Generator[Call, Any, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Encode the faces that these jobs need and that are not encoded yet, of all streams in one run; at an
        utterance's first job, some of the faces before it, while nobody spoke; and each job's sound and words, of which
        the vectors are returned: (n, dim) each."""
        crops: list[np.ndarray] = [np.zeros((0, CROP, CROP), np.uint8)]
        resting: list[tuple[Baseline, int]] = []
        waiting: list[tuple[Person, np.ndarray]] = []  # and the times of the crops
        for stream, job in ready:
            for baseline, before in self._resting(stream, job):
                resting.append((baseline, job.utterance_start_ns))
                crops.append(before)
        first = len(crops)
        for (stream, job), choice in zip(ready, choices, strict=True):
            for id_ in self._wanted(choice):
                person = stream.people[id_]
                person.crops.forget_before(job.utterance_start_ns)
                waiting.append((person, person.crops.times(0, job.end_ns)))
                crops.append(person.crops.cut(0, job.end_ns))
        rows = [_begin_sound(stream, job) for stream, job in ready]
        words = [[word.word for word in job.words] for _, job in ready]
        pieces = [stream.words.begin(said) for (stream, _), said in zip(ready, words, strict=True)]
        encoded: Encoded = yield Encode(
            np.concatenate(crops),
            [each for each in rows if each is not None],
            [each for each in pieces if each is not None],
        )
        parts = np.split(encoded.faces, np.cumsum([len(part) for part in crops])[:-1])
        for (baseline, at_ns), vectors in zip(resting, parts[1:first], strict=True):
            baseline.seen(at_ns)  # before, what is known of the last one goes
            baseline.update(vectors, len(vectors) / _RESTING)
        for (person, times), vectors in zip(waiting, parts[first:], strict=True):
            self._append(person.video, times, vectors)
            if len(times):  # not those that came since
                person.crops.forget_before(int(times[-1]) + 1)
        voices, texts = iter(encoded.voices), iter(encoded.texts)
        sounds = [
            _finish_sound(stream, job, None if each is None else next(voices))
            for (stream, job), each in zip(ready, rows, strict=True)
        ]
        said_vectors = [
            stream.words.finish(said, None if each is None else next(texts))
            for (stream, _), said, each in zip(ready, words, pieces, strict=True)
        ]
        return sounds, said_vectors

    def _resting(self, stream: _Stream, job: Job) -> list[tuple[Baseline, np.ndarray]]:
        """At an utterance's first job, a few of the crops before it, (n, 48, 48), of each person who was in view."""
        if stream.rested_for == job.utterance or stream.endpointer is not None:
            return []
        stream.rested_for = job.utterance
        start_ns, end_ns = job.utterance_start_ns - REST_NS, job.utterance_start_ns - _BEFORE_NS
        start_ns = max(start_ns, stream.ended_ns + _AFTER_NS)
        found = []
        for id_ in stream.people.in_view(start_ns, end_ns):
            crops = stream.people[id_].crops.cut(start_ns, end_ns)
            if len(crops) and (baseline := stream.known.face(id_)) is not None:
                chosen = np.unique(np.linspace(0, len(crops) - 1, _RESTING).round().astype(int))
                found.append((baseline, crops[chosen]))
        return found

    def _learn(
        self,
        stream: _Stream,
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
            face.update(self._face_vectors(stream, job, choice.face), weight)

    def _features(
        self,
        stream: _Stream,
        job: Job,
        choice: Choice,
        speaker: str | None,
        sound: np.ndarray,
        words: np.ndarray,
    ) -> Features:
        if len(sound):
            stream.known.heard(speaker, job.utterance_start_ns, job.end_ns)
        if (baseline := stream.known.voice(speaker)) is not None:
            sound = baseline.correct(sound)
        return Features(sound, self._faces(stream, job, choice.face), words).only(self._classifier.modalities)

    def _face_vectors(self, stream: _Stream, job: Job, id_: int | None) -> np.ndarray:
        """Vectors of a face during the job, as they are: (n, dim)."""
        if id_ is None or id_ not in stream.people:  # or so long ago that nothing is left
            return np.zeros((0, self._classifier.face_dim), np.float32)
        return stream.people[id_].video.cut(job.start_ns, job.end_ns)

    def _faces(self, stream: _Stream, job: Job, id_: int | None) -> np.ndarray:
        """The same, as if everyone's rest were this person's."""
        faces = self._face_vectors(stream, job, id_)
        if (baseline := stream.known.face(id_)) is not None:
            if len(faces):
                baseline.seen(job.end_ns)
            faces = baseline.correct(faces)
        return faces

    def _estimate_each(self, ready: list[tuple[_Stream, Job]], choices: list[Choice]) -> Generator[Call, Any, None]:
        """What each face in view shows by itself, into ``Choice.seen``."""
        if "video" not in self._classifier.modalities:
            return
        shown = [
            (face, self._faces(stream, job, face.id))
            for (stream, job), choice in zip(ready, choices, strict=True)
            if job.kind != "pause"  # of which nothing is published
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


def _begin_sound(stream: _Stream, job: Job) -> np.ndarray | None:
    """What the voice network has to run for a job, whose utterance is encoded from its start on."""
    if stream.voice_of != job.utterance:
        stream.voice.reset()
        stream.voice_of = job.utterance
    return stream.voice.begin(
        stream.audio.cut(job.utterance_start_ns, job.end_ns - FRAME_NS + 1)  # frames entirely within it
    )


def _finish_sound(stream: _Stream, job: Job, computed: np.ndarray | None) -> np.ndarray:
    """Voice vectors of the job's part of its utterance: (n, dim)."""
    return stream.voice.finish(computed)[(job.start_ns - job.utterance_start_ns) // VECTOR_NS :]


def _speaker(stream: _Stream, job: Job, choice: Choice) -> str | None:
    """Which voice an utterance is of, as far as it has come at a pause; of an estimate, None: too little was heard."""
    if job.kind == "window":
        return None
    voice, seconds = job.cause.voice, job.cause.voice_s
    if voice is None:
        return stream.speakers.of_face(choice.speaking, job.end_ns)
    told = stream.speakers.assign if job.kind == "utterance" else stream.speakers.tell
    return told(voice, seconds, job.end_ns, choice.speaking)


def _key(job: Job, features: Features, choice: Choice) -> tuple[object, ...]:
    """What a label depends on. Features only grow within an utterance, so their lengths tell them apart, with the last
    voice vector, which changes until all of its rows are there."""
    words, last = tuple(word.word for word in job.words), features.audio[-1:].tobytes()
    return job.utterance, job.start_ns, job.end_ns, words, len(features.audio), last, choice.face, len(features.video)
