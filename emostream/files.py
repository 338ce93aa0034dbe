"""Files written completely or not at all, their hashes, and where a user's own files are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import platformdirs

from emostream.errors import ConfigError

OWNER_ONLY = 0o600  # mode of files that hold what people said, or numbers made from how they look and sound
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def write_atomically(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file so that a reader sees either the old content or all of the new; text is written as UTF-8.

    ``mode``: permissions of the new file, before the umask. A failure leaves the old file unchanged and no other file
    behind. Raises OSError with ``path`` as its file name.
    """
    content = data.encode() if isinstance(data, str) else data
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # os.replace needs the same file system
    with becoming(part, path), open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)


@contextlib.contextmanager
def becoming(part: Path, path: Path) -> Iterator[None]:
    """Rename ``part``, which the block writes, to ``path`` when the block ends; remove it on failure. Raises OSError
    with ``path`` as its file name."""
    try:
        yield
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


def user_path(path: str | Path) -> Path:
    """A path as a user writes it, with ``~`` expanded. Raises ConfigError if the user has no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: this user has no home folder; write the whole path, or set HOME") from error


def printable(text: str | Path) -> str:
    """A name as text that can be written anywhere: bytes of it that are not UTF-8 are replaced, and so are control
    characters, which would begin a line or give a terminal orders."""
    return _CONTROL.sub("\ufffd", str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def cache_folder() -> Path:
    """Where this user's models and engines are kept. Raises ConfigError if the user has no home folder."""
    return _folder_of_user(platformdirs.user_cache_path, "XDG_CACHE_HOME")


def config_folder() -> Path:
    """Where this user's settings and keys are kept. Raises ConfigError if the user has no home folder."""
    return _folder_of_user(platformdirs.user_config_path, "XDG_CONFIG_HOME")


def _folder_of_user(find: Callable[[str], Path], variable: str) -> Path:
    try:
        return find("emostream")
    except RuntimeError as error:
        raise ConfigError(f"this user has no home folder: set HOME or {variable}") from error


def as_json(value: object) -> bytes:
    """Any value that msgspec can encode, such as a report or manifest, as indented JSON that ends in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
