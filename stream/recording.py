"""Recordings of a run: what was heard and seen, and what was made of it, in MCAP files that Foxglove opens.

Channels of each stream: ``/NAME/sound`` (``foxglove.RawAudio``, 16 kHz mono), ``/NAME/face`` (``foxglove.RawImage``,
the main face), ``/NAME/faces`` (all faces, with ids and places), ``/NAME/speech`` (what recognition said),
``/NAME/window`` and ``/NAME/utterance`` (the public messages); and ``/status``. All are JSON. Times are Unix times of
capture.

A chunk is closed about every second, so a crash costs that much: what was written before stays readable.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
from mcap.records import Channel, Message, Metadata
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, Writer

from emostream.errors import RunError, SourceError
from emostream.stream.config import Record
from emostream.stream.features.face import CROP
from emostream.stream.messages import (
    Box,
    Emotion,
    Face,
    FaceInFrame,
    Mouth,
    Pcm,
    SpeechEvent,
    decode_emotion,
    emotion_json_schema,
    encode_emotion,
)  # fmt: skip

log = logging.getLogger(__name__)

FORMAT = "emostream-recording/1"
RATE_HZ = 16_000
_CHUNK = 48 << 10  # bytes: about a second of sound
_LARGEST = 64 << 20  # bytes of a record that is read
_FLUSH_S = 1.0
_NAME = re.compile(r"emostream-\d{8}T\d{6}Z-[0-9a-f]+-\d{4}\.mcap")
_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_NUMBER, _TEXT, _INTEGER = {"type": "number"}, {"type": "string"}, {"type": "integer"}


def _object(title: str, **properties: Any) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": {"timestamp": _TIME, "media_ns": _INTEGER, **properties}}


_SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {  # by channel: name and JSON Schema of its messages
    "sound": (
        "foxglove.RawAudio",
        _object("foxglove.RawAudio", data=_BASE64, format=_TEXT, sample_rate=_INTEGER, number_of_channels=_INTEGER),
    ),
    "face": (
        "foxglove.RawImage",
        _object(
            "foxglove.RawImage", frame_id=_TEXT, width=_INTEGER, height=_INTEGER, encoding=_TEXT, step=_INTEGER,
            data=_BASE64,
        ),
    ),
    "faces": ("emostream.Faces", _object("emostream.Faces", faces=_INTEGER, people={"type": "array"})),
    "speech": (
        "emostream.Speech",
        _object("emostream.Speech", event=_TEXT, start_s=_NUMBER, end_s=_NUMBER, words={"type": "array"}),
    ),
    "window": ("emostream.Emotion", {"title": "emostream.Emotion", **emotion_json_schema()}),
    "utterance": ("emostream.Emotion", {"title": "emostream.Emotion", **emotion_json_schema()}),
    "status": ("emostream.Status", {"title": "emostream.Status", "type": "object"}),
}  # fmt: skip


def _timestamp(at_ns: int) -> dict[str, int]:
    return {"sec": at_ns // 1_000_000_000, "nsec": at_ns % 1_000_000_000}


def _encoded(data: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(data).tobytes()).decode()


class Recorder:
    """Writes the files of a run. ``facts``: metadata, such as the run's name and configuration; ``wall_ns``: from the
    run's clock to Unix time. Raises RunError if the folder cannot be written."""

    def __init__(
        self, config: Record, facts: dict[str, str], wall_ns: Callable[[int], int], now: Callable[[], float] = time.time
    ) -> None:
        self._config, self._facts, self._wall_ns, self._now = config, facts, wall_ns, now
        self._folder = Path(config.folder).expanduser()
        self._number = 0
        self._file: IO[bytes] | None = None
        self._writer: Writer | None = None
        self._channels: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        self._begun_s = self._flushed_s = 0.0
        self.messages = 0
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise RunError(f"{self._folder}: cannot record there ({error.strerror})") from error

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._path

    def _open(self) -> None:
        self._number += 1
        self._begun_s = self._flushed_s = self._now()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._begun_s))
        self._path = self._folder / f"emostream-{stamp}-{self._facts['run']}-{self._number:04}.mcap"
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._writer = Writer(self._file, chunk_size=_CHUNK, compression=CompressionType.ZSTD)
        self._writer.start(FORMAT, "emostream")
        self._writer.add_metadata("emostream", self._facts)
        self._channels, self._sequences = {}, {}
        self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest recordings beyond ``max_gb`` and ``max_days``; other files are left alone."""
        files = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and path != self._path]
        facts = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in files)
        total = sum(size for _, size, _ in facts)
        for modified_s, size, path in facts:
            old = self._now() - modified_s > self._config.max_days * 86_400
            if old or total > self._config.max_gb * 1e9:
                path.unlink(missing_ok=True)
                total -= size
                log.info("removed %s: %s", path.name, "too old" if old else "the folder is full")

    def tick(self) -> None:
        """To be called now and then: hands over what was written, and begins another file when it is time. Raises
        OSError if the disk is full."""
        now_s = self._now()
        assert self._file is not None
        if now_s - self._flushed_s >= _FLUSH_S:
            self._file.flush()
            self._flushed_s = now_s
        if now_s - self._begun_s >= 60 * self._config.minutes:
            self.close()
            self._open()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None and self._file is not None:
            writer, file, self._writer, self._file = self._writer, self._file, None, None
            try:
                writer.finish()  # type: ignore[no-untyped-call]
            finally:
                file.close()

    def _write(self, topic: str, kind: str, at_ns: int, data: bytes) -> None:
        assert self._writer is not None
        if topic not in self._channels:
            name, schema = _SCHEMAS[kind]
            schema_id = self._writer.register_schema(name, "jsonschema", msgspec.json.encode(schema))
            self._channels[topic] = self._writer.register_channel(topic, "json", schema_id)
        channel = self._channels[topic]
        self._sequences[channel] = self._sequences.get(channel, -1) + 1
        at_ns = max(0, at_ns)
        self._writer.add_message(channel, at_ns, data, at_ns, self._sequences[channel])
        self.messages += 1

    def hear(self, pcm: Pcm) -> None:
        at_ns = self._wall_ns(pcm.captured_ns)
        content = {
            "timestamp": _timestamp(at_ns), "media_ns": pcm.media_start_ns, "data": _encoded(pcm.samples),
            "format": "pcm-s16", "sample_rate": RATE_HZ, "number_of_channels": 1,
        }  # fmt: skip
        self._write(f"/{pcm.stream}/sound", "sound", at_ns, msgspec.json.encode(content))

    def see(self, face: Face) -> None:
        at_ns = self._wall_ns(face.captured_ns)
        people = [
            {
                "id": each.person, "box": each.box, "score": each.score, "mouth": each.mouth,
                "crop": _encoded(each.crop),
            }
            for each in face.people
        ]  # fmt: skip
        times = {"timestamp": _timestamp(at_ns), "media_ns": face.media_start_ns}
        content = msgspec.json.encode({**times, "faces": face.faces, "people": people})
        self._write(f"/{face.stream}/faces", "faces", at_ns, content)
        if face.found:
            height, width = face.crop.shape
            image = {
                **times, "frame_id": face.stream, "width": width, "height": height, "encoding": "mono8", "step": width,
                "data": _encoded(face.crop),
            }  # fmt: skip
            self._write(f"/{face.stream}/face", "face", at_ns, msgspec.json.encode(image))

    def note(self, event: SpeechEvent, keep_text: bool) -> None:
        if event.event == "progress":
            return
        at_ns = self._wall_ns(event.captured_ns)
        content = {
            "timestamp": _timestamp(at_ns), "media_ns": event.media_end_ns, "event": event.event,
            "start_s": event.start_ns / 1e9, "end_s": event.end_ns / 1e9, "words": event.words if keep_text else [],
        }  # fmt: skip
        self._write(f"/{event.stream}/speech", "speech", at_ns, msgspec.json.encode(content))

    def label(self, emotion: Emotion) -> None:
        topic = f"/{emotion.stream}/{emotion.kind}"
        self._write(topic, emotion.kind, emotion.published_ns, encode_emotion(emotion))

    def status(self, payload: str, at_ns: int) -> None:
        self._write("/status", "status", at_ns, payload.encode())


# Reading


class _Timed(msgspec.Struct):
    media_ns: int


class _Sound(msgspec.Struct):
    media_ns: int
    data: str
    sample_rate: int


class _Person(msgspec.Struct):
    id: int
    crop: str
    box: Box | None = None
    score: float = 0.0
    mouth: Mouth | None = None


class _Faces(msgspec.Struct):
    media_ns: int
    faces: int
    people: list[_Person]


@dataclass(frozen=True)
class Recording:
    """What a file says of itself: ``facts``; by stream, the kinds of its channels, and its first and last media time.
    ``cut_short``: it has no end, as after a crash."""

    facts: dict[str, str]
    streams: dict[str, set[str]]
    spans_ns: dict[str, tuple[int, int]]
    cut_short: bool

    @classmethod
    def of(cls, path: Path) -> Recording:
        """Raises SourceError if the file cannot be read, or is no recording of emostream."""
        facts: dict[str, str] = {}
        streams: dict[str, set[str]] = {}
        spans: dict[str, tuple[int, int]] = {}
        whole = False
        for record in _records(path):
            if record is None:
                whole = True
            elif isinstance(record, dict):
                facts = record
            else:
                stream, kind, data = record
                streams.setdefault(stream, set()).add(kind)
                if kind in ("sound", "faces"):
                    at_ns = _decoded(_Timed, data, path).media_ns
                    first_ns, last_ns = spans.get(stream, (at_ns, at_ns))
                    spans[stream] = min(first_ns, at_ns), max(last_ns, at_ns)
        if not facts:
            raise SourceError(f"{path}: is no recording of emostream")
        return cls(facts, {name: kinds for name, kinds in streams.items() if name in spans}, spans, not whole)


def sound_and_faces(path: Path, stream: str) -> Iterator[tuple[int, np.ndarray] | Face]:
    """Blocks of sound, (n,) int16 at 16 kHz with the media time of the first, and faces, in the order in which they
    were written. Raises SourceError."""
    for record in _records(path):
        if not isinstance(record, tuple) or record[0] != stream:
            continue
        _, kind, data = record
        if kind == "sound":
            sound = _decoded(_Sound, data, path)
            yield sound.media_ns, np.frombuffer(_bytes(sound.data, path), "<i2")
        elif kind == "faces":
            frame = _decoded(_Faces, data, path)
            people = [
                FaceInFrame(
                    person=each.id,
                    crop=np.frombuffer(_bytes(each.crop, path, CROP * CROP), np.uint8).reshape(CROP, CROP),
                    box=each.box,
                    score=each.score,
                    mouth=each.mouth,
                )
                for each in frame.people
            ]
            face = Face(
                stream=stream, media_start_ns=frame.media_ns, media_end_ns=frame.media_ns, captured_ns=0,
                crop=np.zeros((0, 0), np.uint8), faces=frame.faces, others=people[1:],
            )  # fmt: skip
            if people:
                face.crop, face.box, face.score = people[0].crop, people[0].box, people[0].score
                face.person, face.mouth = people[0].person, people[0].mouth
            yield face


def labels(path: Path, stream: str) -> list[Emotion]:
    """The labels that were made while it was recorded. Raises SourceError."""
    found = [record for record in _records(path) if isinstance(record, tuple) and record[:2] == (stream, "utterance")]
    try:
        return [decode_emotion(data) for _, _, data in found]
    except msgspec.DecodeError as error:
        raise SourceError(f"{path}: a label is damaged ({error})") from error


_S = TypeVar("_S", bound=msgspec.Struct)


def _decoded(form: type[_S], data: bytes, path: Path) -> _S:
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path}: is damaged ({error})") from error


def _bytes(text: str, path: Path, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise SourceError(f"{path}: is damaged ({error})") from error
    if len(data) % 2 or size not in (None, len(data)):
        raise SourceError(f"{path}: is damaged ({len(data)} bytes in place of {size or 'an even number'})")
    return data


def _records(path: Path) -> Iterator[tuple[str, str, bytes] | dict[str, str] | None]:
    """Stream, kind of channel and content of each message, in the order in which they were written; the file's
    metadata; None at its end, if it has one: after a crash the last chunk may be cut anywhere."""
    topics: dict[int, tuple[str, str]] = {}
    begun = False
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        try:
            for record in StreamReader(file, record_size_limit=_LARGEST).records:
                begun = True
                if isinstance(record, Channel):
                    stream, _, kind = record.topic.strip("/").rpartition("/")
                    topics[record.id] = stream, kind
                elif isinstance(record, Metadata) and record.name == "emostream":
                    yield dict(record.metadata)
                elif isinstance(record, Message) and record.channel_id in topics:
                    yield (*topics[record.channel_id], record.data)
        except SourceError:
            raise
        except Exception as error:  # whatever mcap and zstandard say of bytes that are none of theirs
            if not begun:
                raise SourceError(f"{path}: is no MCAP file ({type(error).__name__})") from error
            return
    yield None
