"""Recordings of a run: what was heard and seen, and the results, in MCAP files that Foxglove can open.

Channels of each stream: ``/NAME/sound`` (``foxglove.RawAudio``, 16 kHz mono), ``/NAME/face`` (``foxglove.RawImage``,
the main face), ``/NAME/faces`` (all faces, with ids and places), ``/NAME/speech`` (what recognition said),
``/NAME/window`` and ``/NAME/utterance`` (the public messages); with ``record.video``, ``/NAME/picture``
(``foxglove.CompressedImage``) and ``/NAME/boxes`` (``foxglove.ImageAnnotations``); and ``/status`` and ``/log``
(``foxglove.Log``). All are JSON. Times are Unix times of capture.

A chunk is closed about every second, so a crash loses only that much; everything before stays readable. Encrypted
files are held in memory for a minute and then written (``encryption.seal``), so that nothing readable without the key
is ever on the disk; a crash loses that minute.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from mcap.writer import CompressionType, Writer

from emostream.errors import RunError
from emostream.files import OWNER_ONLY
from emostream.stream.config import Record
from emostream.stream.emotion import Box, Emotion, emotion_json_schema, encode_emotion
from emostream.stream.encryption import SUFFIX, recipients, seal
from emostream.stream.messages import Face, Log, Pcm, Picture, SpeechEvent

log = logging.getLogger(__name__)

FORMAT = "emostream-recording/1"
RATE_HZ = 16_000
_CHUNK = 48 << 10  # bytes: about a second of sound
_FLUSH_S = 1.0
_SEALED_MINUTES = 1.0  # longest encrypted file
_MOST_HELD = 32 << 20  # bytes of such a file in memory; a file that reaches this ends early
_NAME = re.compile(rf"emostream-\d{{8}}T\d{{6}}Z-[0-9a-f]+-\d{{4,}}\.mcap({re.escape(SUFFIX)})?")
_PART = re.compile(rf"\.{_NAME.pattern}\.part")
_LEFT_S = 3600  # an unfinished encrypted file older than this was left by a killed run
_TIME = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_NUMBER, _TEXT, _INTEGER, _LIST = ({"type": kind} for kind in ("number", "string", "integer", "array"))
_LEVELS = {"debug": 1, "info": 2, "warning": 3, "error": 4, "critical": 5}  # foxglove.Log's
_LINE_LOOP = 2  # of foxglove.PointsAnnotation


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
    "faces": ("emostream.Faces", _object("emostream.Faces", faces=_INTEGER, people=_LIST)),
    "speech": (
        "emostream.Speech",
        _object("emostream.Speech", event=_TEXT, start_s=_NUMBER, end_s=_NUMBER, words=_LIST),
    ),
    "window": ("emostream.Emotion", {"title": "emostream.Emotion", **emotion_json_schema()}),
    "utterance": ("emostream.Emotion", {"title": "emostream.Emotion", **emotion_json_schema()}),
    "picture": (
        "foxglove.CompressedImage", _object("foxglove.CompressedImage", frame_id=_TEXT, data=_BASE64, format=_TEXT),
    ),
    "boxes": (
        "foxglove.ImageAnnotations", _object("foxglove.ImageAnnotations", circles=_LIST, points=_LIST, texts=_LIST),
    ),
    "log": (
        "foxglove.Log",
        _object("foxglove.Log", level=_INTEGER, message=_TEXT, name=_TEXT, file=_TEXT, line=_INTEGER),
    ),
    "status": ("emostream.Status", {"title": "emostream.Status", "type": "object"}),
}  # fmt: skip


def _timestamp(at_ns: int) -> dict[str, int]:
    return {"sec": at_ns // 1_000_000_000, "nsec": at_ns % 1_000_000_000}


def _colour(r: float, g: float, b: float, a: float) -> dict[str, float]:
    return {"r": r, "g": g, "b": b, "a": a}


_FRAME, _CLEAR, _DARK = _colour(1, 0.8, 0.2, 1), _colour(0, 0, 0, 0), _colour(0, 0, 0, 0.6)


def _encoded(data: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(data).tobytes()).decode()


class Recorder:
    """Writes a run's files. ``facts``: metadata, such as the run's name and configuration; ``wall_ns``: converts the
    run's clock to Unix time. Raises RunError if the folder cannot be written, ConfigError if ``record.public_key`` is
    not valid, and ModelError if the encryption package is missing."""

    def __init__(
        self, config: Record, facts: dict[str, str], wall_ns: Callable[[int], int], now: Callable[[], float] = time.time
    ) -> None:
        self._config, self._facts, self._wall_ns, self._now = config, facts, wall_ns, now
        self._folder = Path(config.folder).expanduser()
        self._readers = recipients(config.public_key) if config.public_key else []
        self._minutes = min(config.minutes, _SEALED_MINUTES) if self._readers else config.minutes
        self._number = 0
        self._file: IO[bytes] | None = None
        self._writer: Writer | None = None
        self._channels: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        self._begun_s = self._flushed_s = 0.0
        self._faces: dict[str, Face] = {}  # the last of each stream
        self.messages = 0
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._readers:
                with tempfile.TemporaryFile(dir=self._folder):  # test now: the first file is only written in a minute
                    pass
            self._open()
        except OSError as error:
            raise RunError(f"{self._folder}: cannot record there ({error.strerror})") from error

    @property
    def path(self) -> Path:
        """The file that is being written or held in memory."""
        return self._path

    def _open(self) -> None:
        self._number += 1
        self._begun_s = self._flushed_s = self._now()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._begun_s))
        self._path = self._folder / f"emostream-{stamp}-{self._facts['run']}-{self._number:04}.mcap"
        if self._readers:
            self._path = self._path.with_name(self._path.name + SUFFIX)
            self._file = io.BytesIO()
        else:
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb")
        self._writer = Writer(self._file, chunk_size=_CHUNK, compression=CompressionType.ZSTD)
        self._writer.start(FORMAT, "emostream")
        self._writer.add_metadata("emostream", self._facts)
        self._channels, self._sequences = {}, {}
        self._make_room()

    def _make_room(self) -> None:
        """Remove the oldest recordings beyond ``max_gb`` and ``max_days``; other files are left alone."""
        there = list(self._folder.iterdir())
        files = [path for path in there if _NAME.fullmatch(path.name) and path != self._path]
        facts = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in files)
        total = sum(size for _, size, _ in facts)
        for modified_s, size, path in facts:
            old = self._now() - modified_s > self._config.max_days * 86_400
            if old or total > self._config.max_gb * 1e9:
                path.unlink(missing_ok=True)
                total -= size
                log.info("removed %s: %s", path.name, "too old" if old else "the folder is full")
        for path in there:  # unfinished (and encrypted) files of runs that were killed while writing
            if _PART.fullmatch(path.name) and self._now() - path.stat().st_mtime > _LEFT_S:
                path.unlink(missing_ok=True)

    def tick(self) -> None:
        """Call it after each message: flushes what was written, and begins another file when it is time. Raises OSError
        if the disk is full."""
        now_s = self._now()
        assert self._file is not None
        if now_s - self._flushed_s >= _FLUSH_S:
            self._file.flush()
            self._flushed_s = now_s
        full = bool(self._readers) and self._file.tell() >= _MOST_HELD
        if full or now_s - self._begun_s >= 60 * self._minutes:
            self.close()
            self._open()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None and self._file is not None:
            writer, file, self._writer, self._file = self._writer, self._file, None, None
            with file:
                writer.finish()  # type: ignore[no-untyped-call]
                if isinstance(file, io.BytesIO):
                    seal(file, self._path, self._readers)

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
        self._faces[face.stream] = face
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

    def look(self, picture: Picture) -> None:
        """Write a picture, with boxes around its faces if they came before it."""
        at_ns = self._wall_ns(picture.captured_ns)
        times = {"timestamp": _timestamp(at_ns), "media_ns": picture.media_start_ns}
        content = {**times, "frame_id": picture.stream, "format": "jpeg", "data": _encoded(picture.jpeg)}
        self._write(f"/{picture.stream}/picture", "picture", at_ns, msgspec.json.encode(content))
        face = self._faces.get(picture.stream)
        same = face is not None and face.media_start_ns == picture.media_start_ns
        people = face.people if face is not None and same else []
        boxes = [(each.person, each.box) for each in people if each.box is not None]
        stamp, size = times["timestamp"], (picture.width, picture.height)
        annotations = {
            **times, "circles": [],
            "points": [_frame(box, size, stamp) for _, box in boxes],
            "texts": [_name(person, box, size, stamp) for person, box in boxes],
        }  # fmt: skip
        self._write(f"/{picture.stream}/boxes", "boxes", at_ns, msgspec.json.encode(annotations))

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

    def log(self, line: Log) -> None:
        at_ns = self._wall_ns(line.at_ns)
        content = {
            "timestamp": _timestamp(at_ns), "level": _LEVELS.get(line.level, 0), "message": line.text,
            "name": line.node, "file": "", "line": 0,
        }  # fmt: skip
        self._write("/log", "log", at_ns, msgspec.json.encode(content))


def _frame(box: Box, size: tuple[int, int], stamp: Any) -> dict[str, Any]:
    """A box around a face. ``size``: width and height of the picture in pixels."""
    (x, y, wide, high), (width, height) = box, size
    corners = ((x, y), (x + wide, y), (x + wide, y + high), (x, y + high))
    return {
        "timestamp": stamp, "type": _LINE_LOOP, "points": [{"x": x * width, "y": y * height} for x, y in corners],
        "outline_color": _FRAME, "outline_colors": [], "fill_color": _CLEAR, "thickness": 2, "metadata": [],
    }  # fmt: skip


def _name(person: int, box: Box, size: tuple[int, int], stamp: Any) -> dict[str, Any]:
    """A face's id above its box."""
    return {
        "timestamp": stamp, "position": {"x": box[0] * size[0], "y": box[1] * size[1]}, "text": str(person),
        "font_size": 14, "text_color": _FRAME, "background_color": _DARK, "metadata": [],
    }  # fmt: skip
