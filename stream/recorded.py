"""Reads what ``recording.Recorder`` wrote, up to the last complete chunk."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, TypeVar

import msgspec
import numpy as np
from mcap.records import Channel, Message, Metadata
from mcap.stream_reader import CRCValidationError, StreamReader

from emostream.errors import EmostreamError, SourceError
from emostream.stream.emotion import Box, Emotion, decode_emotion
from emostream.stream.encryption import is_sealed, unseal
from emostream.stream.features.face import CROP
from emostream.stream.messages import Face, FaceInFrame, Mouth

_LARGEST = 64 << 20  # bytes of a record, at most
_START = 64
_Number = Annotated[int, msgspec.Meta(ge=-(1 << 60), le=1 << 60)]  # what follows calculates with 64 bits


class _Timed(msgspec.Struct):
    media_ns: _Number


class _Sound(msgspec.Struct):
    media_ns: _Number
    data: str
    sample_rate: _Number


class _Image(msgspec.Struct):
    media_ns: _Number
    data: str


class _Person(msgspec.Struct):
    id: _Number
    crop: str
    box: Box | None = None
    score: float = 0.0
    mouth: Mouth | None = None


class _Faces(msgspec.Struct):
    media_ns: _Number
    faces: _Number
    people: list[_Person]


@dataclass(frozen=True)
class Recording:
    """The content of a recording. ``facts``: its metadata; ``streams``: the kinds of each stream's channels;
    ``spans_ns``: each stream's first and last media time; ``cut_short``: a file has no end, as after a crash."""

    facts: dict[str, str]
    streams: dict[str, set[str]]
    spans_ns: dict[str, tuple[int, int]]
    cut_short: bool

    @classmethod
    def of(cls, path: Path | Sequence[Path], identity: str = "") -> Recording:
        """``path``: a file, or the files of one run in order. ``identity``: the key file, if they are encrypted. Raises
        SourceError if a file cannot be read, is not an emostream recording, or belongs to another run, and what
        ``encryption.unseal`` raises."""
        facts: dict[str, str] = {}
        streams: dict[str, set[str]] = {}
        spans: dict[str, tuple[int, int]] = {}
        paths = _several(path)
        whole = 0
        for record in _records(paths, identity):
            if record is None:
                whole += 1
            elif isinstance(record, _Facts):
                if record.facts.get("run") != facts.get("run", record.facts.get("run")):
                    raise SourceError(
                        f"{record.path}: is of another run than the files before it; name those of one run"
                    )
                facts = facts or record.facts
            else:
                streams.setdefault(record.stream, set()).add(record.kind)
                if record.kind in ("sound", "faces"):
                    at_ns = _decoded(_Timed, record).media_ns
                    first_ns, last_ns = spans.get(record.stream, (at_ns, at_ns))
                    spans[record.stream] = min(first_ns, at_ns), max(last_ns, at_ns)
        if not facts:
            raise SourceError(f"{paths[0]}: is no recording of emostream")
        kinds = {name: kinds for name, kinds in streams.items() if name in spans}
        return cls(facts, kinds, spans, cut_short=whole < len(paths))


def sound_and_faces(
    path: Path | Sequence[Path], stream: str, identity: str = ""
) -> Iterator[tuple[int, np.ndarray] | Face]:
    """Blocks of sound, each (media time of its first sample, (n,) int16 at 16 kHz), and faces, in the order in which
    they were written. Raises what ``Recording.of`` raises."""
    for record in _records(_several(path), identity):
        if not isinstance(record, _Entry) or record.stream != stream:
            continue
        if record.kind == "sound":
            sound = _decoded(_Sound, record)
            yield sound.media_ns, np.frombuffer(_bytes(sound.data, record.path), "<i2")
        elif record.kind == "faces":
            frame = _decoded(_Faces, record)
            people = [
                FaceInFrame(
                    person=each.id,
                    crop=np.frombuffer(_bytes(each.crop, record.path, CROP * CROP), np.uint8).reshape(CROP, CROP),
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


def labels(path: Path | Sequence[Path], stream: str, identity: str = "") -> list[Emotion]:
    """The labels that were published during the recording. Raises what ``Recording.of`` raises."""
    found = []
    for record in _records(_several(path), identity):
        if isinstance(record, _Entry) and (record.stream, record.kind) == (stream, "utterance"):
            try:
                found.append(decode_emotion(record.data))
            except msgspec.DecodeError as error:
                raise SourceError(f"{record.path}: a label is damaged ({error})") from error
    return found


def pictures(path: Path | Sequence[Path], stream: str, identity: str = "") -> Iterator[tuple[int, bytes]]:
    """Media times and JPEG pictures, where they were recorded. Raises as ``Recording.of`` does."""
    for record in _records(_several(path), identity):
        if isinstance(record, _Entry) and (record.stream, record.kind) == (stream, "picture"):
            image = _decoded(_Image, record)
            yield image.media_ns, _bytes(image.data, record.path, unit=1)


def files_of(location: Path) -> list[Path]:
    """The files that a path names, in the order in which they were written: a single file, the recordings in a folder,
    or the matches of a pattern such as ``recordings/*1a2b3c4d*``. Raises SourceError if there are none."""
    if location.is_dir():
        location = location / "emostream-*.mcap*"
    elif not any(sign in location.name for sign in "*?[") or location.exists():
        return [location]
    paths = sorted(path for path in location.parent.glob(location.name) if path.is_file())
    if not paths:
        raise SourceError(f"{location}: there are no such recordings")
    return paths


@dataclass(frozen=True)
class _Facts:
    """A file's metadata."""

    path: Path
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A message: its file, its stream, the kind of its channel, and its content."""

    path: Path
    stream: str
    kind: str
    data: bytes


def _several(path: Path | Sequence[Path]) -> Sequence[Path]:
    return [path] if isinstance(path, Path) else path


_S = TypeVar("_S", bound=msgspec.Struct)


def _decoded(form: type[_S], record: _Entry) -> _S:
    try:
        return msgspec.json.decode(record.data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{record.path}: is damaged ({error})") from error


def _bytes(text: str, path: Path, size: int | None = None, unit: int = 2) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise SourceError(f"{path}: is damaged ({error})") from error
    if len(data) % unit or size not in (None, len(data)):
        raise SourceError(f"{path}: is damaged ({len(data)} bytes in place of {size or 'an even number'})")
    return data


def _records(paths: Sequence[Path], identity: str) -> Iterator[_Entry | _Facts | None]:
    """The messages of files in the order in which they were written, each file's metadata, and None at each file's end.
    After a crash there is no end: the last chunk may be cut anywhere."""
    for path in paths:
        yield from _records_of(path, identity)


def _records_of(path: Path, identity: str) -> Iterator[_Entry | _Facts | None]:
    topics: dict[int, tuple[str, str]] = {}
    begun = False
    with _opened(path, identity) as file:
        try:
            for record in StreamReader(file, validate_crcs=True, record_size_limit=_LARGEST).records:
                begun = True
                if isinstance(record, Channel):
                    stream, _, kind = record.topic.strip("/").rpartition("/")
                    topics[record.id] = stream, kind
                elif isinstance(record, Metadata) and record.name == "emostream":
                    yield _Facts(path, dict(record.metadata))
                elif isinstance(record, Message) and record.channel_id in topics:
                    yield _Entry(path, *topics[record.channel_id], record.data)
        except EmostreamError:
            raise
        except CRCValidationError as error:  # no crash does that: what is read would not be what was heard and seen
            raise SourceError(f"{path}: is damaged ({error})") from error
        except Exception as error:  # whatever mcap and zstandard say of bytes that are none of theirs
            if not begun:
                raise SourceError(f"{path}: is no MCAP file ({type(error).__name__})") from error
            return
    yield None


def _opened(path: Path, identity: str) -> IO[bytes]:
    try:
        file = path.open("rb")
        start = file.read(_START)
        file.seek(0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    if not is_sealed(path, start):
        return file
    with file:
        return unseal(file, path, identity)
