"""What a job feeds to the networks: whose face it uses, and its sound, faces and words as vectors.

A method that needs the networks yields the call and is sent the answer (see ``runs``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from emostream.stream.cores.adapt import Adaptation, Baseline
from emostream.stream.cores.classifier import Encode, Encoded, Features, Head, Result
from emostream.stream.cores.face_endpoint import FaceEndpointer
from emostream.stream.cores.jobs import REST_NS, Job, Schedule
from emostream.stream.cores.people import AFTER_NS, BEFORE_NS, Choice, People, Person
from emostream.stream.cores.runs import Call
from emostream.stream.cores.speakers import Speakers
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.features.face import CROP
from emostream.stream.features.logmel import FRAME_NS
from emostream.stream.features.spelling import spoken
from emostream.stream.features.text import TextEncoder
from emostream.stream.features.voice import VECTOR_NS, VoiceEncoder
from emostream.stream.messages import Face

_UNDECIDED = 100_000  # faces: hours of them, in a file whose sound track turns out to be empty

_REST_CROPS = 8  # crops that show a face at rest, before an utterance
_LAG_NS = 500_000_000  # by which a camera may lag behind the microphone
_BEFORE_NS, _AFTER_NS = 150_000_000, 300_000_000  # this close to an utterance, a face still looks like a speaker's

# what a label depends on (see ``job_key``), the result, and the result of the voice's trial (see ``Adaptation.trial``)
Provisional = tuple[tuple[object, ...], Result, list[float]]


@dataclass
class StreamState:
    """The schedule and the features of one stream."""

    name: str
    schedule: Schedule
    audio: SlidingWindow  # log-mel rows
    voice: VoiceEncoder
    words: TextEncoder
    people: People  # their faces
    speakers: Speakers  # their voices
    endpointer: FaceEndpointer | None  # only for a stream without sound
    undecided: deque[Face] = field(default_factory=lambda: deque(maxlen=_UNDECIDED))  # before the first speech event
    voice_of: int = 0  # the utterance that ``voice`` encodes
    known: Adaptation = field(default_factory=lambda: Adaptation({}, None, alone=False))
    rested_for: int = 0  # the utterance before which the face was last looked at
    ended_ns: int = 0  # end of the last utterance
    provisional: Provisional | None = None  # of the last pause
    counters: Counter[str] = field(default_factory=Counter)


class Inputs:
    """``who``: whose faces the networks look at, as in ``[video] who``; ``counters``: the fusion core's."""

    def __init__(self, classifier: Head, who: str, counters: Counter[str]) -> None:
        self._classifier, self._who, self._counters = classifier, who, counters

    def append(self, window: SlidingWindow, times: np.ndarray, rows: np.ndarray) -> None:
        """Add rows to a window, or just count them if they are older than what it holds."""
        try:
            window.append(times, rows)
        except ValueError:  # a producer that was restarted repeats what it had sent
            self._counters["rows_out_of_order"] += len(rows)

    def choose(self, stream: StreamState, job: Job) -> Choice:
        """Whose face the job uses, judged from the whole utterance so far."""
        start_ns, end_ns = job.utterance_start_ns, job.end_ns
        around = (start_ns - BEFORE_NS - _LAG_NS, end_ns + AFTER_NS + _LAG_NS)
        row_times = stream.audio.times(*around)
        first_row_ns = int(row_times[0]) if len(row_times) else 0
        final = job.kind != "window"
        choice = stream.people.choose(start_ns, end_ns, first_row_ns, stream.audio.cut(*around), final)
        if choice.face is None and job.cause.voice is not None:  # too short to judge, but a known voice has a face
            face = stream.speakers.face(stream.speakers.find(job.cause.voice, end_ns))
            if any(seen.id == face and seen.moves is None for seen in choice.seen):
                return replace(choice, face=face)
        return choice

    def _wanted(self, choice: Choice) -> list[int]:
        """Whose faces the networks look at."""
        if self._who == "all":
            return [face.id for face in choice.seen]
        return [] if choice.face is None else [choice.face]

    def encode(
        self, ready: list[tuple[StreamState, Job]], choices: list[Choice]
    ) -> Generator[Call, Any, tuple[list[np.ndarray], list[np.ndarray]]]:
        """Encode, in one run for all streams: the faces that these jobs need and that are not encoded yet; at an
        utterance's first job, some faces from before it, while nobody spoke; and each job's sound and words. Returns
        the vectors of the sounds and of the words, (n, dim) for each job."""
        crops: list[np.ndarray] = [np.zeros((0, CROP, CROP), np.uint8)]
        resting: list[tuple[Baseline, int]] = []
        waiting: list[tuple[Person, np.ndarray]] = []  # with the times of the crops
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
        words = [spoken((word.word for word in job.words), self._classifier.punctuation) for _, job in ready]
        pieces = [stream.words.begin(said) for (stream, _), said in zip(ready, words, strict=True)]
        encoded: Encoded = yield Encode(
            np.concatenate(crops),
            [each for each in rows if each is not None],
            [each for each in pieces if each is not None],
        )
        parts = np.split(encoded.faces, np.cumsum([len(part) for part in crops])[:-1])
        for (baseline, at_ns), vectors in zip(resting, parts[1:first], strict=True):
            baseline.seen(at_ns)  # before the update, so that somebody who has left is forgotten
            baseline.update(vectors, len(vectors) / _REST_CROPS)
        for (person, times), vectors in zip(waiting, parts[first:], strict=True):
            self.append(person.video, times, vectors)
            if len(times):  # keep those that have come since
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

    def _resting(self, stream: StreamState, job: Job) -> list[tuple[Baseline, np.ndarray]]:
        """At an utterance's first job: a few crops from before it, (n, 48, 48), of each person who was in view."""
        if stream.rested_for == job.utterance or stream.endpointer is not None:
            return []
        stream.rested_for = job.utterance
        start_ns, end_ns = job.utterance_start_ns - REST_NS, job.utterance_start_ns - _BEFORE_NS
        start_ns = max(start_ns, stream.ended_ns + _AFTER_NS)
        found = []
        for id_ in stream.people.in_view(start_ns, end_ns):
            crops = stream.people[id_].crops.cut(start_ns, end_ns)
            if len(crops) and (baseline := stream.known.face(id_)) is not None:
                chosen = np.unique(np.linspace(0, len(crops) - 1, _REST_CROPS).round().astype(int))
                found.append((baseline, crops[chosen]))
        return found

    def features(
        self,
        stream: StreamState,
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
        return Features(sound, self.faces(stream, job, choice.face), words).only(self._classifier.modalities)

    def face_vectors(self, stream: StreamState, job: Job, id_: int | None) -> np.ndarray:
        """Uncorrected vectors of a face during the job: (n, dim)."""
        if id_ is None or id_ not in stream.people:  # seen so long ago that nothing is left
            return np.zeros((0, self._classifier.face_dim), np.float32)
        return stream.people[id_].video.cut(job.start_ns, job.end_ns)

    def faces(self, stream: StreamState, job: Job, id_: int | None) -> np.ndarray:
        """Vectors of a face during the job, corrected for the person's look at rest: (n, dim)."""
        faces = self.face_vectors(stream, job, id_)
        if (baseline := stream.known.face(id_)) is not None:
            if len(faces):
                baseline.seen(job.end_ns)
            faces = baseline.correct(faces)
        return faces


def _begin_sound(stream: StreamState, job: Job) -> np.ndarray | None:
    """The rows that the voice network has to encode for a job; an utterance is encoded from its start."""
    if stream.voice_of != job.utterance:
        stream.voice.reset()
        stream.voice_of = job.utterance
    return stream.voice.begin(
        stream.audio.cut(job.utterance_start_ns, job.end_ns - FRAME_NS + 1)  # frames entirely within it
    )


def _finish_sound(stream: StreamState, job: Job, computed: np.ndarray | None) -> np.ndarray:
    """Voice vectors of the job's part of its utterance: (n, dim)."""
    return stream.voice.finish(computed)[(job.start_ns - job.utterance_start_ns) // VECTOR_NS :]


def speaker_of(stream: StreamState, job: Job, choice: Choice) -> str | None:
    """Whose voice an utterance (at a pause: its part so far) has. None for a running estimate: too little was heard."""
    if job.kind == "window":
        return None
    voice, seconds = job.cause.voice, job.cause.voice_s
    if voice is None:
        return stream.speakers.of_face(choice.speaking, job.end_ns)
    told = stream.speakers.assign if job.kind == "utterance" else stream.speakers.tell
    return told(voice, seconds, job.end_ns, choice.speaking)


def job_key(job: Job, features: Features, choice: Choice) -> tuple[object, ...]:
    """What a label depends on. Features only grow within an utterance, so their lengths identify them, together with
    the last voice vector, which changes until all of its rows have arrived."""
    words, last = tuple(word.word for word in job.words), features.audio[-1:].tobytes()
    return job.utterance, job.start_ns, job.end_ns, words, len(features.audio), last, choice.face, len(features.video)
