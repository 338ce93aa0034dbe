"""The user's own cache of engines.

An engine is code that runs with the user's rights, so it is loaded only if nobody else can have put it there: from a
directory and a file that belong to the user and that nobody else may write, with the size and hash recorded when it was
built. It is never taken from a bundle, which may come from anywhere.

There is one engine for each graph file, options and GPU, such as `fusion-gpu-….engine`, with its Entry beside it,
`fusion-gpu-….json`. If anything it was built from has changed since, it is built again. `tactics-…` holds the timings
of tactics on one GPU.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from emostream.engines.options import Device, Options
from emostream.engines.trt import build
from emostream.engines.trt.build import Progress, Report
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError, ConfigError
from emostream.files import as_json, cache_folder, sha256, user_path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDY = "set EMOSTREAM_CACHE to a directory that you can write and that has room"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Everything that an engine depends on: a change in any of it makes the engine stale. ``builder``: see
    ``build.version``."""

    graph_sha256: str
    profile: Profile
    options: Options
    runtime_version: str
    device: Device
    builder: str


@dataclass(frozen=True)
class Entry:
    """What is recorded beside an engine."""

    key: str
    graph: str
    origin: Origin
    report: Report


def root() -> Path:
    """The directory of engines: `engines` in EMOSTREAM_CACHE, or else in the user's cache directory.

    Raises BackendError where the user has no home directory."""
    chosen = os.environ.get("EMOSTREAM_CACHE")
    try:
        return (user_path(chosen) if chosen else cache_folder()) / "engines"
    except ConfigError as error:
        raise BackendError(f"{error}, or EMOSTREAM_CACHE") from error


def key(origin: Origin) -> str:
    """SHA-256 of everything in ``origin``."""
    return _digest(msgspec.json.encode(origin, order="sorted"))


def engine(
    onnx_path: Path,
    profile: Profile,
    options: Options,
    device: Device,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of an engine for the graph, checked as described above; it is built if there is none to be trusted.

    ``directory`` defaults to ``root()``. Raises BackendError if the engine cannot be built (see ``build.compile``) or
    written, or if the directory is another user's or inside a bundle.
    """
    directory = (root() if directory is None else directory).absolute()
    trt = load_module(options.runtime)
    try:
        graph_sha256 = sha256(onnx_path)
    except OSError as error:
        raise BackendError(f"{onnx_path}: cannot be read ({error.strerror})") from error
    origin = Origin(graph_sha256, profile, options, trt.__version__, device, build.version())
    slot = msgspec.json.encode((str(onnx_path.resolve()), options, device.name, device.compute))
    path = directory / f"{onnx_path.stem}-{_digest(slot)[:16]}.engine"
    with _writing(directory):
        _make_private(directory)
        if _distrust(path, origin) is None:
            return path  # without the lock, so that a cache on a read-only file system works
        with _locked(directory):
            reason = _distrust(path, origin)
            if reason is None:
                return path  # another process has built it in the meantime
            _log.info("%s: building an engine, %s", path, reason)
            _remove(path)
            tactics = None
            if options.runtime == "tensorrt":
                tactics = directory / f"tactics-{_digest(msgspec.json.encode((trt.__version__, device)))[:16]}"
            timings = bytearray(_read_tactics(tactics)) if tactics else None
            blob, report = build.compile(onnx_path, profile, options, trt, timings, progress)
            if tactics and timings is not None:
                _write(tactics, _digest(timings).encode() + timings)
            _write(path, blob)
            _write(path.with_suffix(".json"), as_json(Entry(key(origin), onnx_path.name, origin, report)))
    return path


def entry(path: Path) -> Entry:
    """What is recorded beside an engine of the cache."""
    return msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Entry)


def _distrust(path: Path, origin: Origin) -> str | None:
    """Why the engine cannot be loaded, in words; None if it can."""
    try:
        for file in (path, path.with_suffix(".json")):
            _check_owner(file)
        recorded = entry(path)
        if recorded.key != key(origin) or recorded.key != key(recorded.origin):
            changed = [
                field.name.replace("_", " ")
                for field in dataclasses.fields(Origin)
                if getattr(recorded.origin, field.name) != getattr(origin, field.name)
            ]
            return f"as it is stale: {', '.join(changed) or 'key'} changed"
        blob = path.read_bytes()
    except FileNotFoundError:
        return "as there is none"
    except (msgspec.DecodeError, BackendError) as error:
        return f"as the one there cannot be trusted: {error}"
    if len(blob) != recorded.report.size_bytes:
        return f"as it is damaged: {len(blob)} of {recorded.report.size_bytes} bytes"
    if _digest(blob) != recorded.report.sha256:
        return "as it is damaged: its bytes are not those that were built"
    return None


def _make_private(directory: Path) -> None:
    """Create the directory if it is missing. Raises BackendError if engines must not be kept there."""
    for folder in (directory, *directory.parents):
        if (folder / "manifest.json").exists():
            raise BackendError(f"{directory} is inside a bundle, from which no engine is loaded; {_REMEDY}")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise BackendError(f"{directory} belongs to another user, who could change engines there; {_REMEDY}")
    if status.st_mode & _OTHERS_WRITE:
        _log.warning("%s: other users could write here; their permission is removed", directory)
        directory.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)


def _check_owner(file: Path) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0) or status.st_mode & _OTHERS_WRITE:
        raise BackendError(f"{file.name} is not a regular file that only its user can write")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One builder at a time; two would also disturb each other's timings on the GPU."""
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendError("the filelock package is not installed: pip install 'emostream[engines]'") from error
    lock = FileLock(directory / "builder.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: waiting for another process to finish building an engine", directory)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(directory).free
            raise BackendError(
                f"{directory}: no room for an engine ({error.strerror}; {free:,} bytes free); {_REMEDY}"
            ) from error
        raise BackendError(f"{directory}: no engine can be kept there ({error.strerror}); {_REMEDY}") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file that only the user can read, whole or not at all even if the machine crashes. Needs the lock."""
    part = path.with_name(path.name + ".part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove(path: Path) -> None:
    for file in (path, path.with_suffix(".json")):
        file.unlink(missing_ok=True)


def _read_tactics(path: Path) -> bytes:
    """Timings of tactics from earlier builds; empty if they are damaged or another user could have written them."""
    try:
        _check_owner(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except BackendError as error:
        _log.warning("tactics are timed again: %s", error)
        return b""
    digest, timings = data[:64], data[64:]
    if digest != _digest(timings).encode():
        _log.warning("tactics are timed again: %s is damaged", path)
        return b""
    return timings


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
