"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import msgspec

OWNER_ONLY = 0o600  # mode of files that hold what people said, or numbers made from how they look and sound


def write_atomically(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old content or all of the new; text is written as UTF-8.

    ``mode``: permissions of the new file, less the umask's. A failure leaves the old file as it was and nothing beside
    it. Raises OSError that names ``path``.
    """
    content = data.encode() if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # same folder: os.replace needs one file system
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_json(value: object) -> bytes:
    """A report or manifest, any value that msgspec encodes, as indented JSON that ends in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
