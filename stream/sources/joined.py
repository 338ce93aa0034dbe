"""Finds recordings that were joined byte by byte (``cat a.flv b.flv``), of which FFmpeg reads only the first, or
decodes the others as if they had its codec, rate and tracks (Ogg, FLAC, AVI, Matroska).

This module ignores formats that FFmpeg reads completely (MPEG-TS, MPEG-PS, MP3, AAC, Matroska without sizes, as
browsers write it): ``timeline.py`` repairs their times.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

Part = tuple[int, int]  # offset of its first byte, and of the byte after its last

# how a recording begins: searched for in the whole file, and long enough not to occur by chance inside a recording
_BEGINNINGS = {
    "flv": re.compile(rb"FLV\x01[\x01\x04\x05]\x00{3}\x09\x00{4}"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c.{12}\x01\x02", re.DOTALL),
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22"),
    "ogg": re.compile(rb"OggS\x00[\x02\x06]\x00{8}.{4}\x00{4}", re.DOTALL),  # the first page of a track
    "caf": re.compile(rb"caff\x00\x01\x00\x00desc\x00{7}\x20"),
}


def parts_of(path: Path, format_name: str) -> list[Part]:
    """The recordings in a file of this format (by FFmpeg's name), in order; empty if there is only one, or if FFmpeg
    reads all of them. Raises OSError."""
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
    """Where an Ogg page ends. The first pages of the tracks of one recording follow each other directly."""
    count = content[at + 26] if at + 26 < len(content) else 0
    return at + 27 + count + sum(content[at + 27 : at + 27 + count])


def _forms(
    order: str, mark: bytes, kinds: tuple[bytes, ...], more: bytes = b""
) -> Callable[[BinaryIO, int], Iterator[int]]:
    """For RIFF and IFF, whose forms begin with a mark, the size of the rest, and a kind. ``more``: the kind of forms
    that continue the previous one."""

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
    """For MP4 and its relatives: where each complete recording begins. Nothing if it is fragmented, since FFmpeg reads
    all fragments, whichever recording they belong to."""
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
    """For Matroska, a header and a segment per recording: where each begins. Nothing if a size is unknown."""
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
    """A size in EBML notation, None if unknown, and the number of bytes that the notation takes."""
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
