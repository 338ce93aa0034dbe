"""A fusion core on a virtual clock, with a classifier whose results depend on all of its input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from emostream.stream.clock import VirtualClock
from emostream.stream.config import Config
from emostream.stream.cores.classifier import Classify, Encode, Encoded, Features, Result
from emostream.stream.cores.fusion import FusionCore
from emostream.stream.emotion import Emotion, Word
from emostream.stream.messages import AudioRows, End, Face, Media, Message, SpeechEvent
from emostream.stream.topics import Content

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
ALL = frozenset({"audio", "video", "speech"})


class FakeVoice:
    """One vector per 8 rows, which depends on all of them."""

    def reset(self) -> None:
        self.resets = getattr(self, "resets", 0) + 1

    def begin(self, rows: np.ndarray) -> np.ndarray | None:
        return rows[None] if len(rows) else None

    def finish(self, computed: np.ndarray | None) -> np.ndarray:
        return np.zeros((0, 4), np.float32) if computed is None else computed[0]

    def encode(self, rows: np.ndarray) -> np.ndarray:
        return self.finish(self.begin(rows))


class FakeWords:
    """Two numbers for each word."""

    def begin(self, words: Sequence[str]) -> np.ndarray | None:
        return np.array([[[len(word), ord(word[0])] for word in words]], np.float32) if words else None

    def finish(self, words: Sequence[str], computed: np.ndarray | None) -> np.ndarray:
        return np.zeros((0, 2), np.float32) if computed is None else computed[0]

    def encode(self, words: Sequence[str]) -> np.ndarray:
        return self.finish(words, self.begin(words))


class FakeClassifier:
    """Its probabilities depend on every row. Its work takes time on the virtual clock."""

    labels = ("anger", "joy", "neutral")
    bundle_id = "fake@0"
    backend = "fake"
    uncertain_below = 0.5
    punctuation = False
    coordinates: ClassVar[dict[str, tuple[float, float]]] = {}
    modalities = ("audio", "video", "text")
    rest: ClassVar[dict[str, np.ndarray]] = {}
    face_dim = 4

    def __init__(self, clock: VirtualClock, encode_ns: int = 0, classify_ns: int = 0) -> None:
        self._clock, self._encode_ns, self._classify_ns = clock, encode_ns, classify_ns
        self.batches: list[list[Features]] = []
        self.crops = 0

    def voice_encoder(self) -> FakeVoice:
        return FakeVoice()

    def encode_faces(self, crops: np.ndarray) -> np.ndarray:
        self.crops += len(crops)
        if len(crops):
            self._clock.advance_ns(self._encode_ns)
        return crops[:, 0, :4].astype(np.float32)

    def text_encoder(self) -> FakeWords:
        return FakeWords()

    def run(self, call: Encode | Classify) -> Encoded | list[Result]:
        if isinstance(call, Classify):
            return self.classify(call.items, call.contributions)
        voices = [np.add.reduceat(rows[0], np.arange(0, len(rows[0]), 8))[None, :, :4] for rows in call.rows]
        return Encoded(self.encode_faces(call.crops), voices, call.pieces)

    def classify(self, batch: Sequence[Features], contributions: Sequence[bool]) -> list[Result]:
        self._clock.advance_ns(self._classify_ns)
        self.batches.append(list(batch))
        return [self._result(item, wanted) for item, wanted in zip(batch, contributions, strict=True)]

    def _result(self, item: Features, wanted: bool) -> Result:
        assert item.present()
        digest = hashlib.sha256(b"|".join(getattr(item, name).tobytes() for name in ("audio", "video", "text")))
        values = np.frombuffer(digest.digest()[:3], np.uint8) + 1.0
        share = 0.125 if wanted else 0.0
        return Result(values / values.sum(), {"audio": share, "video": 0.0, "text": 0.0})


# Messages


def nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND)


def sound_message(at_s: float, rows: int = 10, stream: str = "a") -> AudioRows:
    """Rows whose values are their numbers."""
    first = round(at_s * 100)
    values = np.arange(first, first + rows, dtype=np.float32)[:, None] * np.ones((1, 32), np.float32)
    end = first + rows
    return AudioRows(
        stream=stream, media_start_ns=first * 10 * MILLISECOND, media_end_ns=end * 10 * MILLISECOND,
        captured_ns=T0 + end * 10 * MILLISECOND, rows=values,
    )  # fmt: skip


def face_message(at_s: float, seen: bool = True, stream: str = "a") -> Face:
    number = round(at_s * 10)
    value = (number + (100 if stream == "b" else 0)) % 251
    crop = np.full((48, 48), value, np.uint8) if seen else np.zeros((0, 0), np.uint8)
    return Face(
        stream=stream,
        media_start_ns=nanoseconds(at_s),
        media_end_ns=nanoseconds(at_s),
        captured_ns=T0 + nanoseconds(at_s),
        crop=crop,
    )


def speech_message(
    event: str, now_s: float, utterance: int = 0, start_s=0.0, end_s=0.0, words: str = "", stream="a", **more
):
    heard = words.split()
    length = (end_s - start_s) / max(1, len(heard))
    listed = [Word(word, start_s + i * length, start_s + (i + 1) * length, 0.9) for i, word in enumerate(heard)]
    fields = {
        "stream": stream, "media_start_ns": nanoseconds(now_s) - 32 * MILLISECOND, "media_end_ns": nanoseconds(now_s),
        "captured_ns": T0 + nanoseconds(now_s), "event": event, "utterance": utterance,
        "start_ns": nanoseconds(start_s),
        "end_ns": nanoseconds(end_s), "words": listed, "speech_captured_ns": T0 + nanoseconds(end_s),
        "received_ns": T0 + nanoseconds(now_s), "sent_ns": T0 + nanoseconds(now_s),
    }  # fmt: skip
    return SpeechEvent(**(fields | more))


def end_message(content: Content, stream: str = "a") -> End:
    return End(stream=stream, content=content, reason="end")


def all_topics(length_s: float, spoken: list[tuple[float, float, str]], stream: str = "a") -> dict[str, list[Message]]:
    """Messages of the producers of a stream, by topic. ``spoken``: start, end and words of each utterance."""
    sound: list[Message] = [sound_message(i / 10, stream=stream) for i in range(round(length_s * 10))]
    face: list[Message] = [face_message(i / 10, seen=i % 7 != 3, stream=stream) for i in range(round(length_s * 10))]
    speech: list[Message] = []
    now, utterance = 0.25, 0
    for start, end, words in spoken:
        while now < start:
            speech.append(speech_message("progress", now, utterance, stream=stream))
            now += 0.25
        utterance += 1
        heard = words.split()
        speech.append(speech_message("started", start + 0.1, utterance, start, start + 0.1, stream=stream))
        now = start + 0.35
        while now < end:
            so_far = " ".join(heard[: round(len(heard) * (now - start) / (end - start))])
            speech.append(speech_message("words", now, utterance, start, now, so_far, stream=stream))
            now += 0.25
        speech.append(speech_message("paused", end + 0.16, utterance, start, end, words, stream=stream))
        speech.append(speech_message("ended", end + 0.4, utterance, start, end, words, stream=stream))
        now = end + 0.65
    while now < length_s:
        speech.append(speech_message("progress", now, utterance, stream=stream))
        now += 0.25
    sound.append(end_message("audio", stream))
    face.append(end_message("face", stream))
    speech.append(end_message("speech", stream))
    return {"audio": sound, "face": face, "speech": speech}


class Run:
    """A core, its clock and everything it has published."""

    def __init__(self, *, realtime=True, estimates=False, streams=None, encode_ns=0, classify_ns=0, **sections) -> None:
        self.clock = VirtualClock(T0)
        self.classifier = FakeClassifier(self.clock, encode_ns, classify_ns)
        self.core = FusionCore(
            streams or {"a": ALL}, self.classifier, Config(**sections), self.clock, realtime, estimates  # type: ignore[arg-type]
        )  # fmt: skip
        self.published: list[Emotion] = []

    def push(self, *messages: Message) -> Run:
        for message in messages:
            self.core.push(message)
        return self

    def step(self, flush: bool = False) -> Run:
        self.published += self.core.step(flush)
        return self

    def at(self, media_s: float) -> Run:
        """Advance the clock to a media time."""
        self.clock.advance_ns(max(0, T0 + nanoseconds(media_s) - self.clock.now_ns()))
        return self

    def live(self, topics: dict[str, list[Message]]) -> Run:
        """Push each message when it is captured, and step after it."""
        ends = [message for messages in topics.values() for message in messages if isinstance(message, End)]
        rest = [message for messages in topics.values() for message in messages if isinstance(message, Media)]
        for message in sorted(rest, key=lambda message: message.captured_ns):
            self.at((message.captured_ns - T0) / SECOND).push(message).step()
        return self.push(*ends).step()

    @property
    def labels(self) -> list[Emotion]:
        return [emotion for emotion in self.published if emotion.kind == "utterance"]

    @property
    def windows(self) -> list[Emotion]:
        return [emotion for emotion in self.published if emotion.kind == "window"]


SPOKEN = [(1.0, 2.5, "what a fine day"), (3.4, 4.0, "oh no"), (5.0, 7.2, "i never said that to you")]


def ready_run(run: Run, words: str = "so good", end_s: float = 2.0) -> Run:
    """An utterance that began at 1.0 s has ended, and everything up to 3 s has arrived."""
    run.push(*(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(31)))
    return run.at(end_s + 0.4).push(speech_message("ended", end_s + 0.4, 1, 1.0, end_s, words))


def late_video(run: Run, known_s: float) -> Run:
    run.push(
        *(sound_message(i / 10) for i in range(30)), *(face_message(i / 10) for i in range(round(known_s * 10) + 1))
    )
    return run.at(2.4).push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good"))
