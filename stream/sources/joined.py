"""Recordings that were glued together byte by byte (``cat a.flv b.flv``), where FFmpeg reads the first of them alone,
or decodes the others as if they had its codec, rate and tracks (Ogg, FLAC, AVI, Matroska).

Those of which it reads all (MPEG-TS, MPEG-PS, MP3, AAC, Matroska without sizes as browsers write it) are none of this
module's: ``timeline.py`` mends their times.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

Part = tuple[int, int]  # its first byte, and that after its last

# what a recording begins with, long enough not to be found within one: to be looked for in the whole file
_BEGINNINGS = {
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\x00{3}\x09\x00{4}"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c.{12}\x01\x02", re.DOTALL),
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "ogg": re.compile(rb"OggS\x00[\x02\x06]\x00{8}.{4}\x00{4}", re.DOTALL),  # the first page of a track
    "caf": re.compile(rb"caff\x00\x01\x00\x00desc\x00{7}\x20"),
}


def parts_of(path: Path, format_name: str) -> list[Part]:
    """The recordings in a file of this format (as FFmpeg calls it), in their order; none if it is one recording, or
    FFmpeg reads all of it. Raises OSError."""
    name = format_name.split(",")[0]
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if name in _BEGINNINGS and size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                begins = [match.start() for match in _BEGINNINGS[name].finditer(content)]
                if name == "ogg":
                    begins = [at for at in begins if at not in {_page_end(content, other) for other in begins}]
        elif name in _CHAINS:
            begins = list(_CHAINS[name](file, size))
        else:
            begins = []
    if len(begins) < 2:
        return []
    return list(zip([0, *begins[1:]], [*begins[1:], size], strict=True))


def _page_end(content: mmap.mmap, at: int) -> int:
    """Where an Ogg page ends. The first pages of tracks that belong together follow one another."""
    count = content[at + 26] if at + 26 < len(content) else 0
    return at + 27 + count + sum(content[at + 27 : at + 27 + count])


def _forms(
    order: str, mark: bytes, kinds: tuple[bytes, ...], more: bytes = b""
) -> Callable[[BinaryIO, int], Iterator[int]]:
    """Of RIFF and IFF: a mark, the size of what follows it, and which kind that is; ``more``: kind of those that go on
    with the one before."""

    def begins(file: BinaryIO, size: int) -> Iterator[int]:
        at = 0
        while at + 12 <= size:
            file.seek(at)
            head = file.read(12)
            if head[:4] != mark or head[8:] not in (*kinds, more):
                return
            if head[8:] != more:
                yield at
            (length,) = struct.unpack(f"{order}I", head[4:8])
            at += 8 + length
            if length % 2 and _is_at(file, at + 1, mark):
                at += 1

    return begins


def _is_at(file: BinaryIO, at: int, mark: bytes) -> bool:
    file.seek(at)
    return file.read(len(mark)) == mark


def _movies(file: BinaryIO, size: int) -> Iterator[int]:
    """Of MP4 and its relatives: the boxes with which a whole recording begins. None where it consists of fragments,
    which FFmpeg reads wherever they come from."""
    begins, at, movies = [], 0, 0
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        elif length == 0:
            length = size - at
        if kind == b"moof" or length < 8:
            return
        movies += kind == b"moov"
        if kind == b"ftyp":
            begins.append(at)
        at += length
    if movies == len(begins):
        yield from begins


def _segments(file: BinaryIO, size: int) -> Iterator[int]:
    """Of Matroska: a header and a segment. None where one does not say how long it is."""
    begins, at = [], 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        length, width = _ebml_size(head[4:])
        if length is None:
            return
        if head[:4] == b"\x1a\x45\xdf\xa3":
            begins.append(at)
        elif head[:4] != b"\x18\x53\x80\x67":
            break
        at += 4 + width + length
    yield from begins


def _ebml_size(data: bytes) -> tuple[int | None, int]:
    """A size as EBML writes it, None if it is unknown, and of how many bytes."""
    width = 9 - data[0].bit_length() if data and data[0] else 0
    if not width or len(data) < width:
        return None, width
    value = int.from_bytes(data[:width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), width


_CHAINS: dict[str, Callable[[BinaryIO, int], Iterator[int]]] = {
    "wav": _forms("<", b"RIFF", (b"WAVE",)),
    "avi": _forms("<", b"RIFF", (b"AVI ",), more=b"AVIX"),
    "aiff": _forms(">", b"FORM", (b"AIFF", b"AIFC")),
    "mov": _movies,
    "matroska": _segments,
}
