"""Recordings that only the holder of a key can read: files in the age format (age-encryption.org/v1).

Recordings are encrypted for public keys; the recording machine needs no secret key. The format has no passwords, no
settings and no choice of ciphers (X25519, HKDF-SHA-256, ChaCha20-Poly1305), so there are none here.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import IO, Any

from emostream.errors import ConfigError, ModelError, SourceError
from emostream.files import OWNER_ONLY, becoming, user_path

SUFFIX = ".age"
_HEADER = b"age-encryption.org/"
_LARGEST = 256 << 20  # bytes of a file to decrypt, which happens in memory; files written here are far smaller
_KEY = re.compile(r"age1[0-9a-z]+", re.IGNORECASE)
_MAKE_ONE = "make one with age-keygen: docs/recording.md"


def _pyrage() -> Any:
    try:
        import pyrage
    except ImportError as error:
        raise ModelError(f"encryption needs packages ({error.name}): pip install 'emostream[record]'") from error
    return pyrage


def recipients(public_key: str) -> list[Any]:
    """The recipients that ``record.public_key`` names: a key, "age1…", or a file with one key per line, where # begins
    a comment. Raises ConfigError, and ModelError if the encryption package is missing."""
    pyrage = _pyrage()
    where = "record.public_key"
    keys = [public_key]
    if not _KEY.fullmatch(public_key):
        path = user_path(public_key)
        where = str(path)
        try:
            keys = _lines(path)
        except OSError as error:
            raise ConfigError(
                f"record.public_key = {public_key!r}: is neither a key of age (age1…) nor a file of them "
                f"({error.strerror}); {_MAKE_ONE}"
            ) from error
        if not keys:
            raise ConfigError(f"{where}: holds no public key; {_MAKE_ONE}")
    found = []
    for key in keys:
        try:
            found.append(pyrage.x25519.Recipient.from_str(key))
        except pyrage.RecipientError as error:
            if key.upper().startswith("AGE-SECRET-KEY-"):
                raise ConfigError(f"{where}: holds a secret key; give the public one that belongs to it") from None
            raise ConfigError(f"{where}: {key!r} is no public key of age ({error}); {_MAKE_ONE}") from error
    return found


def seal(content: io.BytesIO, path: Path, readers: list[Any]) -> None:
    """Encrypt ``content`` into a new file. The file appears only when complete, and is on the disk when this returns.
    Raises OSError with ``path`` as its file name; then nothing is left of it."""
    part = part_of(path)
    content.seek(0)
    file = _Kept(part)
    with becoming(part, path), file.raw:
        try:
            _pyrage().encrypt_io(content, file, readers)
        except Exception as error:
            if file.error is not None:  # the original error, such as a full disk
                raise file.error from error
            raise
        os.fsync(file.raw.fileno())
    _sync_folder(path.parent)


def part_of(path: Path) -> Path:
    """Where ``seal`` writes a file until it is complete."""
    return path.with_name(f".{path.name}.part")


class _Kept:
    """A new file that remembers why it could not be written, since pyrage only passes on an error's text."""

    def __init__(self, path: Path) -> None:
        self.raw: IO[bytes] = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb")
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.raw.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self.raw.flush()
        except OSError as error:
            self.error = error
            raise


def _sync_folder(folder: Path) -> None:
    """Let a new file name survive a power cut, if the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_sealed(path: Path, start: bytes) -> bool:
    """Whether a file is encrypted, by its name or its first bytes (``start``)."""
    return start.startswith(_HEADER) or path.suffix == SUFFIX


def unseal(file: IO[bytes], path: Path, identity: str) -> IO[bytes]:
    """The content of an encrypted file, in memory. ``identity``: a file of secret keys, as age-keygen writes it.

    Raises SourceError if the file cannot be decrypted, ConfigError if there is no usable key, and ModelError if the
    decryption package is missing."""
    if not identity:
        raise SourceError(f"{path}: is encrypted; give the file of its secret key: --identity FILE (record.identity)")
    keys = _identities(user_path(identity))
    if os.fstat(file.fileno()).st_size > _LARGEST:
        raise SourceError(f"{path}: is larger than {_LARGEST >> 20} MB; decrypt it: age -d -i {identity} {path}")
    pyrage = _pyrage()
    content = io.BytesIO()
    try:
        pyrage.decrypt_io(file, content, keys)
    except (pyrage.DecryptError, OSError) as error:
        if "No matching keys" in str(error):
            raise SourceError(f"{path}: is encrypted for another key than that in {identity}") from error
        if isinstance(error, pyrage.DecryptError):
            raise SourceError(f"{path}: is no file of age, or its start is cut off or damaged ({error})") from error
        raise SourceError(f"{path}: is cut off or damaged ({error})") from error
    content.seek(0)
    return content


def _identities(path: Path) -> list[Any]:
    try:
        keys = _lines(path)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read ({error.strerror})") from error
    pyrage = _pyrage()
    try:
        found = [pyrage.x25519.Identity.from_str(key) for key in keys]
    except pyrage.IdentityError as error:  # do not quote the line, which may contain most of a secret
        raise ConfigError(f"{path}: is no file of secret keys as age-keygen writes it ({error})") from error
    if not found:
        raise ConfigError(f"{path}: holds no secret key; {_MAKE_ONE}")
    return found


def _lines(path: Path) -> list[str]:
    """The lines of a small text file that are neither empty nor comments. Raises OSError."""
    with path.open("rb") as file:
        text = file.read(1 << 20).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
