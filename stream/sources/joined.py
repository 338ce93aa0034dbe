"""Finds recordings that were joined byte by byte (``cat a.flv b.flv``), of which FFmpeg reads only the first, or
decodes the others as if they had its codec, rate and tracks (Ogg, FLAC, AVI, Matroska): in a file in advance, and in
what can be read only once, such as a pipe, on the way.

This module ignores formats that FFmpeg reads completely (MPEG-TS, MPEG-PS, MP3, AAC, Matroska without sizes, as
browsers write it): ``timeline.py`` repairs their times.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Part = tuple[int, int]  # offset of its first byte, and of the byte after its last

HEAD = 24  # bytes that tell which format it is, and that a chain looks at
LOOK = 320  # bytes from the beginning of a recording within which it is recognised; an Ogg page's header is the longest
_AT_ONCE = 32_768
_MOST_LINKS = 10_000
_FEW = 4096  # bytes after a WAV file's samples that may be no chunk
_UNKNOWN = (0, 0xFFFFFFFF)  # the length in a header that was written into a pipe

# how a recording begins: searched for in the whole file, and long enough not to occur by chance inside a recording
_BEGINNINGS = {
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\x00{3}\x09\x00{4}"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c.{12}\x01\x02", re.DOTALL),
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "ogg": re.compile(rb"OggS\x00[\x02\x06]\x00{8}.{4}\x00{4}", re.DOTALL),  # the first page of a track
    "caf": re.compile(rb"caff\x00\x01\x00\x00desc\x00{7}\x20"),
    "wav": re.compile(rb"RIFF.{4}WAVEfmt [\x10-\x28]\x00\x00\x00", re.DOTALL),  # only if its length is unknown
}


class Link(Protocol):
    """What follows in a format whose parts tell their lengths. ``at``: where its next header is; None: nowhere that is
    known."""

    at: int | None

    def step(self, head: bytes) -> bool:
        """Look at the ``HEAD`` bytes at ``at`` (fewer at the end) and go on to the next. Returns whether another
        recording begins at ``at``, which then stays."""
        ...


class _Forms:
    """RIFF and IFF, whose forms begin with a mark, the size of the rest, and a kind. ``more``: the kind of forms that
    continue the previous one."""

    def __init__(self, order: str, mark: bytes, kinds: tuple[bytes, ...], more: bytes = b"") -> None:
        self._order, self._mark, self._kinds, self._more = order, mark, kinds, more
        self.at: int | None = 0
        self._is_odd = False

    def step(self, head: bytes) -> bool:
        assert self.at is not None
        if self._is_odd and head[1:5] == self._mark:
            self.at, head = self.at + 1, head[1:]
        if len(head) < 12 or head[:4] != self._mark or head[8:12] not in (*self._kinds, self._more):
            self.at = None
        elif self.at and head[8:12] != self._more:
            return True
        else:
            (length,) = struct.unpack(f"{self._order}I", head[4:8])
            self._is_odd = bool(length % 2)
            self.at = None if length in _UNKNOWN else self.at + 8 + length
        return False


class _Movies:
    """MP4 and its relatives. None if it is fragmented, since FFmpeg reads all fragments, whichever recording they
    belong to."""

    def __init__(self) -> None:
        self.at: int | None = 0
        self._movies = 0

    def step(self, head: bytes) -> bool:
        assert self.at is not None
        if len(head) < 8:
            self.at = None
            return False
        length, kind = struct.unpack(">I4s", head[:8])
        if kind == b"ftyp" and self._movies:
            return True
        self._movies += kind == b"moov"
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        self.at = None if kind == b"moof" or length < 8 else self.at + length
        return False


class _Segments:
    """Matroska, a header and a segment per recording. None if a size is unknown."""

    def __init__(self) -> None:
        self.at: int | None = 0

    def step(self, head: bytes) -> bool:
        assert self.at is not None
        length, width = _ebml_size(head[4:12])
        is_header = head[:4] == b"\x1a\x45\xdf\xa3"
        if is_header and self.at:
            return length is not None
        is_known = length is not None and (is_header or head[:4] == b"\x18\x53\x80\x67")
        self.at = self.at + 4 + width + (length or 0) if is_known else None
        return False


_LINKS: dict[str, Callable[[], Link]] = {
    "wav": lambda: _Forms("<", b"RIFF", (b"WAVE",)),
    "avi": lambda: _Forms("<", b"RIFF", (b"AVI ",), more=b"AVIX"),
    "aiff": lambda: _Forms(">", b"FORM", (b"AIFF", b"AIFC")),
    "mov": _Movies,
    "matroska": _Segments,
}


SEARCHED = frozenset(_BEGINNINGS) - frozenset(_LINKS)  # formats of which all has to be read to find the parts


def format_of(head: bytes) -> str:
    """FFmpeg's name of the format that begins with these ``HEAD`` bytes; empty if it is none that is joined."""
    for name, kind in (("wav", b"WAVE"), ("avi", b"AVI ")):
        if head[:4] == b"RIFF" and head[8:12] == kind:
            return name
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mov"
    marks = {b"\x1a\x45\xdf\xa3": "matroska", b"FLV\x01": "flv", b"\x30\x26\xb2\x75": "asf", b"fLaC": "flac"}
    return (marks | {b"OggS": "ogg", b"caff": "caf"}).get(head[:4], "")


def parts_of(path: Path, format_name: str) -> list[Part]:
    """The recordings in a file of this format (by FFmpeg's name), in order; empty if there is only one, or if FFmpeg
    reads all of them. Raises OSError."""
    name = format_name.split(",")[0]
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if name in SEARCHED and size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                search = Search(name)
                begins = [0]
                while (at := search.next(content, begins[-1] + 1, size)) is not None:
                    begins.append(at)
            return _parts(begins, size)
        return linked_parts(file, size, name)


def wav_goes_on(path: Path) -> bool:
    """Whether the sound of a WAV file goes on where it ends by its header, which was not brought up to date when the
    recorder stopped: after its samples come many bytes that begin no other chunk. Raises OSError."""
    with path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return False
        at, is_sound = 12, False
        while size - at >= 8:
            file.seek(at)
            name, length = struct.unpack("<4sI", file.read(8))
            is_chunk = name.isascii() and name.decode("ascii").isprintable() and at + 8 + length <= size
            if not is_chunk or length in _UNKNOWN:
                return is_sound and size - at > _FEW
            is_sound, at = is_sound or name == b"data", at + 8 + length + length % 2
        return False


def linked_parts(file: BinaryIO, size: int, name: str) -> list[Part]:
    """As ``parts_of``, for formats whose parts tell their lengths, of which only the headers are read; empty for
    others."""
    if name not in _LINKS:
        return []
    begins, begin, link = [0], 0, _LINKS[name]()
    for _ in range(_MOST_LINKS):
        if link.at is None or begin + link.at >= size:
            break
        if file.seek(begin + link.at) != begin + link.at:  # of a server that does not do what it says
            break
        if link.step(_read(file, HEAD)):
            begin += link.at
            begins.append(begin)
            link = _LINKS[name]()
    if name == "mov" and not _are_whole(file, begins, size):
        return []
    return _parts(begins, size)


def _read(file: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _are_whole(file: BinaryIO, begins: list[int], size: int) -> bool:
    """Whether there is an index in each of these MP4 recordings, and none is fragmented."""
    for begin, end in _parts(begins, size):
        at = begin
        kinds: list[bytes] = []
        while at + 8 <= end and len(kinds) < _MOST_LINKS:
            file.seek(at)
            head = _read(file, HEAD)
            if len(head) < 8:
                break
            length, kind = struct.unpack(">I4s", head[:8])
            kinds.append(kind)
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8:
                break
            at += length
        if kinds.count(b"moov") != 1 or b"moof" in kinds:
            return False
    return True


def _parts(begins: list[int], size: int) -> list[Part]:
    return list(zip(begins, [*begins[1:], size], strict=True)) if len(begins) > 1 else []


class Search:
    """Searches for how a recording of this format begins."""

    def __init__(self, name: str) -> None:
        self._pattern, self._is_ogg = _BEGINNINGS[name], name == "ogg"
        self._same_at = -1  # where another first page of the same recording begins

    def next(self, content: bytes | bytearray | mmap.mmap, start: int, end: int, base: int = 0) -> int | None:
        """Where in ``content`` the next recording begins, at or after ``start`` and before ``end``. ``base``: where the
        content begins; the first content begins with a recording."""
        if self._is_ogg and self._same_at < 0:
            self._same_at = _page_end(content, 0)
        for match in self._pattern.finditer(content, start):
            at = match.start()
            if at >= end:
                return None
            is_same = self._is_ogg and base + at == self._same_at
            if self._is_ogg:
                self._same_at = base + _page_end(content, at)
            if not is_same:
                return at
        return None


def _page_end(content: bytes | bytearray | mmap.mmap, at: int) -> int:
    """Where an Ogg page ends. The first pages of the tracks of one recording follow each other directly."""
    count = content[at + 26] if at + 26 < len(content) else 0
    return at + 27 + count + sum(content[at + 27 : at + 27 + count])


def _ebml_size(data: bytes) -> tuple[int | None, int]:
    """A size in EBML notation, None if unknown, and the number of bytes that the notation takes."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return None, width
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


class Splitter:
    """What can be read only once, such as a pipe, as one recording after another, for PyAV: ``read`` ends at the end of
    each, and ``next`` goes on to the one that follows. ``name``: for PyAV; ``file``: has ``read``, and ``read1`` where
    ``read`` would wait for more than there is."""

    def __init__(self, file: Any, name: str) -> None:
        self.name = name
        self._file = file
        self._read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        self._buffer = bytearray()  # read, and not given yet
        self._at = 0  # of the buffer, in this recording
        self._is_end = False  # of everything
        self._fill(HEAD)
        self._begin()

    def _begin(self) -> None:
        head = bytes(self._buffer[:HEAD])
        kind = format_of(head)
        self._at = 0
        self._end: int | None = None  # of this recording, in the buffer
        self._link = _LINKS[kind]() if kind in _LINKS else None
        self._search = Search(kind) if kind in SEARCHED else None
        if kind == "wav" and struct.unpack("<I", head[4:8])[0] in _UNKNOWN:
            self._link, self._search = None, Search(kind)
        self._searched = 1  # in the buffer

    def _fill(self, size: int) -> None:
        while not self._is_end and len(self._buffer) < size:
            data = self._read(max(size - len(self._buffer), _AT_ONCE))
            self._is_end = not data
            self._buffer += data

    def read(self, size: int) -> bytes:
        """The next bytes of this recording, at most ``size``; empty at its end."""
        if self._end is None:
            self._fill(1 + LOOK)
            self._find_end()
        ready = len(self._buffer) if self._is_end else max(0, len(self._buffer) - LOOK)
        count = min(size, ready if self._end is None else self._end)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._at += count
        self._searched = max(0, self._searched - count)
        self._end = None if self._end is None else self._end - count
        return data

    def _find_end(self) -> None:
        """Look for the beginning of another recording in the buffer."""
        certain = len(self._buffer) if self._is_end else len(self._buffer) - LOOK
        if self._search is not None:
            self._end = self._search.next(self._buffer, self._searched, certain, self._at)
            self._searched = max(self._searched, certain)
        while self._link is not None and self._link.at is not None and self._link.at - self._at < certain:
            at = self._link.at - self._at
            if self._link.step(bytes(self._buffer[at : at + HEAD])):
                self._end = self._link.at - self._at
                return

    def next(self) -> bool:
        """Go on to the next recording, past what was not read of this one. Returns whether there is one."""
        while self._end != 0 and self.read(_AT_ONCE):
            pass
        if self._end != 0:
            return False
        self._fill(HEAD)
        self._begin()
        return True

    def close(self) -> None:
        self._file.close()
