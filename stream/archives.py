"""Unpacks an archive that cannot be trusted yet."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from emostream.errors import ModelError

MAX_BYTES = 8 << 30  # unpacked; the largest models of Vosk have 3 GB
MAX_ENTRIES = 10_000
_BLOCK = 1 << 20
# what zipfile raises for damaged, encrypted and unknown entries
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError
)  # fmt: skip


def unpack_zip(path: Path, target: Path, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
    """Unpack into ``target``, without the archive's top folder.

    Sizes are counted while reading, since an archive may lie about them. Raises ModelError for a file that is not a zip
    archive, is damaged or encrypted, or holds more than ``max_entries`` files or ``max_bytes`` bytes, a link, or a name
    that leads out of the folder; whatever was unpacked by then stays in ``target``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > max_entries:
                raise ModelError(f"the archive holds {len(entries):,} files, more than {max_entries:,}")
            left = max_bytes
            for entry in entries:
                left -= _unpack(archive, entry, target, left)
    except _DAMAGED as error:
        raise ModelError(f"no zip archive, or damaged ({error})") from error
    except OSError as error:
        raise ModelError(f"the archive cannot be unpacked ({error.strerror or error})") from error


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
    """Unpack a file of at most ``limit`` bytes; returns its size."""
    parts = PurePosixPath(entry.filename).parts
    if ".." in parts or PurePosixPath(entry.filename).is_absolute() or "\\" in entry.filename:
        raise ModelError(f"the archive holds an unsafe name: {entry.filename[:100]!r}")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise ModelError(f"the archive holds a link: {entry.filename[:100]!r}")
    if len(parts) < 2 or entry.filename.endswith("/"):
        return 0
    path = target.joinpath(*parts[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(entry) as source, path.open("xb") as out:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > limit:
                raise ModelError("the archive is larger, unpacked, than any model")
            out.write(block)
    return size
