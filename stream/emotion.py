"""The public message: what a subscriber of the emotion topics reads, as UTF-8 JSON.

Only fields may be added: programs out there read the old ones.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from emostream.stream import topics

_M = TypeVar("_M")
Box = tuple[float, float, float, float]  # x, y, width and height as fractions of the frame's width and height


class Word(msgspec.Struct):
    """A recognised word; times in seconds on the stream's timeline, confidence in [0, 1]."""

    word: str
    start_s: float
    end_s: float
    confidence: float


class Evidence(msgspec.Struct):
    """What one modality gave: ``frames`` (voice vectors, faces, rows of text) that went into the network; ``coverage``,
    the part of the time that they cover, in [0, 1]; ``contribution``, by how much the label's probability drops when
    the modality is left out (with nothing else there: its excess over chance)."""

    frames: int
    coverage: float
    contribution: float


class SeenFace(msgspec.Struct):
    """A face that was in view. ``id``: the same as long as the face is in view, and where it is back soon; it is no
    identity and is not kept. ``box``: its last x, y, width and height, as fractions of the picture's width and height.
    ``share``: of the time that it was seen, in [0, 1]. ``moves``: how well its mouth moves with the sound, up to 1, 0
    for a mouth that does not move at all; null where there is too little to tell. ``label`` and ``probabilities``: what
    the face shows by itself, where ``[video] who = "all"`` asks for it."""

    id: int
    box: Box
    share: float
    moves: float | None = None
    label: str | None = None
    probabilities: dict[str, float] | None = None


class Latency(msgspec.Struct):
    """Milliseconds. ``total`` runs from the capture of the last speech sample to the publishing of the label; the
    others are its parts and sum to it: waiting for the silence that ends an utterance; finishing recognition;
    waiting in queues and for late modalities; encoding faces and words; the fusion network; all else."""

    total: float
    endpoint_wait: float
    recognition: float
    queue: float
    encode: float
    fusion: float
    other: float


class Emotion(msgspec.Struct, kw_only=True):
    """The public message of ``emotion.utterance.<stream>`` (the label, once per utterance) and
    ``emotion.window.<stream>`` (a running estimate while someone speaks). Times in seconds on the stream's timeline;
    ``captured_ns``, when what is at ``end_s`` was captured, and ``published_ns`` are Unix time. ``latency_ms`` is null
    where there is no live capture to measure from: running estimates, and files read as fast as possible, of which
    ``captured_ns`` is 0. ``valence`` and ``arousal``, in [-1, 1], are
    derived from the probabilities, not measured: the mean under them of the labels' coordinates, those of the bundle's
    training data or else published ones; null for labels without, and in messages from before they existed.
    ``adapted``, 0 to 1: how much of what is just this person's resting face or voice was told from the mood.
    ``run`` names the run of ``stream-run``, within which no ``utterance`` and no ``seq`` of a topic comes twice; it is
    empty where a recording was labelled without one. ``source``: the path of a recording as it was given; empty in live
    runs. Numbers are without gaps, but go on at a later thousand after fusion had to be started again.
    ``speaker``: which voice spoke, by a name within the run (s1, s2, …), null where that is not told. ``overlap``, 0 to
    1: the share of the utterance's time in which two or more people spoke at once, null where it is not measured.
    ``final``: false where ``[fusion] early`` asks for labels at a pause, which may not be the end; a final one follows.
    ``face``: the id of the face that the label is of, null for none; ``speaking``: that whose mouth surely moved with
    the sound; ``faces``: those in view; ``faces_seen``: how many there were at a time, followed or not."""

    schema: Literal["emostream/1"] = "emostream/1"
    kind: Literal["utterance", "window"]
    stream: str
    seq: int
    utterance: int
    start_s: float
    end_s: float
    label: str
    confidence: float
    uncertain: bool
    probabilities: dict[str, float]
    text: str
    words: list[Word]
    modalities: dict[str, Evidence]
    latency_ms: Latency | None
    captured_ns: int
    published_ns: int
    bundle: str
    backend: str
    valence: float | None = None
    arousal: float | None = None
    adapted: float = 0.0
    run: str = ""
    source: str = ""
    final: bool = True
    speaker: str | None = None
    face: int | None = None
    speaking: int | None = None
    faces: list[SeenFace] = []
    faces_seen: int = 0
    overlap: float | None = None

    @property
    def topic(self) -> str:
        return topics.emotion_topic(self.kind, self.stream)


_emotion_encoder = msgspec.json.Encoder()
_emotion_decoder = msgspec.json.Decoder(Emotion)


def encode_emotion(message: Emotion) -> bytes:
    """UTF-8 JSON of a public message."""
    return _emotion_encoder.encode(message)


def decode_public(decoder: msgspec.json.Decoder[_M], data: bytes) -> _M:
    """A public message from its JSON. Raises msgspec.DecodeError if that is not one."""
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8 ({error})") from error
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error


def decode_emotion(data: bytes) -> Emotion:
    """A label or running estimate from its JSON. Raises msgspec.DecodeError if that is not one."""
    return decode_public(_emotion_decoder, data)


def emotion_json_schema() -> dict[str, Any]:
    """JSON Schema of the public message."""
    return msgspec.json.schema(Emotion)


if __name__ == "__main__":  # python -m emostream.stream.emotion > docs/emotion.schema.json
    print(msgspec.json.format(msgspec.json.encode(emotion_json_schema()), indent=2).decode())
