"""The public message: what a subscriber of the emotion topics receives, as UTF-8 JSON.

Fields may be added but never changed or removed, since existing programs read them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from emostream.stream import topics

_M = TypeVar("_M")
Box = tuple[float, float, float, float]  # x, y, width and height as fractions of the frame's width and height


class Word(msgspec.Struct):
    """A recognised word, as the recogniser writes it: some with case and punctuation. Times in seconds on the stream's
    timeline (estimated, if the recogniser tells none), confidence in [0, 1]."""

    word: str
    start_s: float
    end_s: float
    confidence: float


class Evidence(msgspec.Struct):
    """What one modality contributed. ``frames``: number of voice vectors, faces or word pieces that went into the
    network; ``coverage``: the fraction of the time that they cover, in [0, 1]; ``contribution``: by how much the
    label's probability drops if the modality is left out (for a lone modality: its excess over chance)."""

    frames: int
    coverage: float
    contribution: float


class SeenFace(msgspec.Struct):
    """A face that was in view. ``id``: stays the same while the face is in view and if it soon comes back; it does not
    identify a person and is not stored. ``box``: its last x, y, width and height, as fractions of the picture's width
    and height. ``share``: the fraction of the time in which it was seen, in [0, 1]. ``moves``: how well its mouth moves
    with the sound, at most 1; 0 for a mouth that does not move at all; null if there is too little data. ``label`` and
    ``probabilities``: what the face shows by itself, if ``[video] who = "all"`` asks for it."""

    id: int
    box: Box
    share: float
    moves: float | None = None
    label: str | None = None
    probabilities: dict[str, float] | None = None


class Latency(msgspec.Struct):
    """Milliseconds. ``total`` runs from the capture of the last speech sample to the publishing of the label; the
    other fields are its parts and sum to it: waiting for the silence that ends an utterance; finishing recognition;
    waiting in queues and for late modalities; encoding sound, faces and words; the fusion network; everything else."""

    total: float
    endpoint_wait: float
    recognition: float
    queue: float
    encode: float
    fusion: float
    other: float


class Emotion(msgspec.Struct, kw_only=True):
    """The public message of ``emotion.utterance.<stream>`` (the label, once per utterance) and
    ``emotion.window.<stream>`` (a running estimate while someone speaks). Times are seconds on the stream's timeline;
    ``captured_ns`` (when ``end_s`` was captured) and ``published_ns`` are Unix times. ``latency_ms`` is null if there
    is no live capture to measure from: in running estimates, and for files read as fast as possible, whose
    ``captured_ns`` is 0. ``valence`` and ``arousal``, in [-1, 1], are derived from the probabilities, not measured:
    they are the mean of the labels' coordinates under the probabilities. The coordinates come from the bundle's
    training data, or else are published ones; both fields are null if a label has none, and in messages of older
    versions. ``adapted``, 0 to 1: to what extent this person's resting face or voice has been separated from the mood.
    ``run`` names the run of ``stream-run``, within which each ``utterance``, and each ``seq`` of a topic, is unique; it
    is empty if a recording was labelled without a run. ``source``: the path of a recording as it was given; empty in
    live runs. Numbers have no gaps, but continue at a later thousand if fusion had to be restarted.
    ``speaker``: the name of the voice within the run (s1, s2, …); null if unknown. ``overlap``, 0 to 1: the share of
    the utterance's time in which two or more people speak at once; null if not measured.
    ``final``: false for labels at a pause (``[fusion] early``), after which speech may go on; a final one follows.
    ``face``: the id of the face used for the label, null for none; ``speaking``: the face whose mouth clearly moved
    with the sound; ``faces``: the faces in view; ``faces_seen``: the most faces seen at a time, followed or not."""

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
    """A public message from its JSON. Raises msgspec.DecodeError if it is not valid."""
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"not UTF-8 ({error})") from error
    except RecursionError as error:
        raise msgspec.DecodeError("nested too deeply") from error


def decode_emotion(data: bytes) -> Emotion:
    """A label or running estimate from its JSON. Raises msgspec.DecodeError if it is not valid."""
    return decode_public(_emotion_decoder, data)


def emotion_json_schema() -> dict[str, Any]:
    """JSON Schema of the public message."""
    return msgspec.json.schema(Emotion)


if __name__ == "__main__":  # python -m emostream.stream.emotion > docs/emotion.schema.json
    print(msgspec.json.format(msgspec.json.encode(emotion_json_schema()), indent=2).decode())
