"""The user's own cache of engines.

An engine is code that runs with the user's rights, so one is loaded only if nobody else can have put it there: from a
directory and a file that are the user's and that no other may write, with the size and hash that were noted when it was
built. It is never taken from a bundle, which may come from anywhere.

For each graph, options and GPU there is one engine, `fusion-….engine`, with its Entry beside it, `fusion-….json`. If
anything that it was made from has changed since, it is built anew in its place. `tactics-…` holds the tactics' times of
one GPU.
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
from typing import Any

import msgspec
import platformdirs

from emostream.engines.trt import build
from emostream.engines.trt.build import Options, Progress, Report
from emostream.engines.trt.profiles import Profile
from emostream.engines.trt.runtimes import load_module
from emostream.errors import BackendError

AHEAD_OF_TIME = "ahead-of-time"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEND = "set EMOSTREAM_CACHE to a directory that you can write and that has room"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What an engine is for. ``compute``: the compute capability, such as SM86. ``driver``: its version. If built ahead
    of time: AHEAD_OF_TIME, all capabilities joined by "+", and "-"."""

    name: str
    compute: str
    driver: str


@dataclass(frozen=True)
class Origin:
    """All that an engine is made from and for; a change of any of it makes another engine. ``builder``: see
    ``build.version``."""

    graph_sha256: str
    profile: Profile
    options: Options
    runtime_version: str
    device: Device
    builder: str


@dataclass(frozen=True)
class Entry:
    """What is noted beside an engine."""

    key: str
    graph: str
    origin: Origin
    report: Report


def ahead_of_time(compute: tuple[str, ...]) -> Device:
    """The device of an engine for several compute capabilities that was built without their GPUs."""
    return Device(AHEAD_OF_TIME, "+".join(compute), "-")


def root() -> Path:
    """Where engines are kept: `engines` in the user's cache directory, or in EMOSTREAM_CACHE."""
    chosen = os.environ.get("EMOSTREAM_CACHE")
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("emostream")) / "engines"


def key(origin: Origin) -> str:
    """SHA-256 of everything in ``origin``."""
    return sha256(msgspec.json.encode(origin, order="sorted"))


def engine(
    onnx_path: Path,
    profile: Profile,
    options: Options,
    device: Device,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of an engine for the graph, checked as described above; built if there is none, or none to be trusted.

    ``directory`` is ``root()`` unless given. Raises BackendError if the engine cannot be built (see
    ``build.compile``), if it cannot be written there, or if the directory is another user's or inside of a bundle.
    """
    directory = (root() if directory is None else directory).absolute()
    trt = load_module(options.runtime)
    try:
        graph = onnx_path.read_bytes()
    except OSError as error:
        raise BackendError(f"{onnx_path}: cannot be read ({error.strerror})") from error
    origin = Origin(sha256(graph), profile, options, trt.__version__, device, build.version())
    slot = msgspec.json.encode((str(onnx_path.resolve()), options, device.name, device.compute))
    path = directory / f"{onnx_path.stem}-{sha256(slot)[:16]}.engine"
    with _writing(directory):
        _make_private(directory)
        if _distrust(path, origin) is None:
            return path  # without the lock, so that a cache on a read-only system serves as well
        with _locked(directory):
            reason = _distrust(path, origin)
            if reason is None:
                return path  # another process has built it in the meantime
            _log.info("%s: building an engine, %s", path, reason)
            _remove(path)
            tactics = None
            if options.runtime == "tensorrt":
                tactics = directory / f"tactics-{sha256(msgspec.json.encode((trt.__version__, device)))[:16]}"
            times = bytearray(_read_tactics(tactics)) if tactics else None
            blob, report = build.compile(onnx_path, profile, options, trt, times, progress)
            if tactics and times is not None:
                _write(tactics, sha256(times).encode() + times)
            entry = Entry(key(origin), onnx_path.name, origin, report)
            _write(path, blob)
            _write(path.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n")
    return path


def entry(path: Path) -> Entry:
    """What is noted beside an engine of the cache."""
    return msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Entry)


def _distrust(path: Path, origin: Origin) -> str | None:
    """Why there is no engine to be loaded, in words; None: there is one."""
    try:
        for file in (path, path.with_suffix(".json")):
            _check_owner(file)
        noted = entry(path)
        if noted.key != key(origin) or noted.key != key(noted.origin):
            changed = [
                field.name.replace("_", " ")
                for field in dataclasses.fields(Origin)
                if getattr(noted.origin, field.name) != getattr(origin, field.name)
            ]
            return f"as it is stale: {', '.join(changed) or 'key'} changed"
        blob = path.read_bytes()
    except FileNotFoundError:
        return "as there is none"
    except (msgspec.DecodeError, BackendError) as error:
        return f"as what is there cannot be trusted: {error}"
    if len(blob) != noted.report.size_bytes:
        return f"as it is damaged: {len(blob)} of {noted.report.size_bytes} bytes"
    if sha256(blob) != noted.report.sha256:
        return "as it is damaged: its bytes are not those that were built"
    return None


def _make_private(directory: Path) -> None:
    """Raises BackendError if the directory is no place for engines."""
    for folder in (directory, *directory.parents):
        if (folder / "manifest.json").exists():
            raise BackendError(f"{directory} is inside of a bundle, from which no engine is loaded; {_MEND}")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise BackendError(f"{directory} is another user's, who could change engines there; {_MEND}")
    if found.st_mode & _OTHERS_WRITE:
        _log.warning("%s could be written by others; that is ended", directory)
        directory.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def _check_owner(file: Path) -> None:
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0) or found.st_mode & _OTHERS_WRITE:
        raise BackendError(f"{file.name} is no file that only its user can write")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One builder at a time: two would also disturb each other's measurements on the GPU."""
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise BackendError("the filelock package is not installed: pip install 'emostream[engines]'") from error
    lock = FileLock(directory / "builder.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("%s: waiting for another process that builds an engine", directory)
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
                f"{directory}: no room for an engine ({error.strerror}; {free:,} bytes free); {_MEND}"
            ) from error
        raise BackendError(f"{directory}: no engine can be kept there ({error.strerror}); {_MEND}") from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also if the machine stops in the middle. Under the lock."""
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
    """Tactics' times of earlier builds; none if they are damaged or could be of another user."""
    try:
        _check_owner(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except BackendError as error:
        _log.warning("tactics are timed anew: %s", error)
        return b""
    digest, times = data[:64], data[64:]
    if digest != sha256(times).encode():
        _log.warning("tactics are timed anew: %s is damaged", path)
        return b""
    return times


def sha256(data: Any) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
