"""What a run writes: a file of labels, and a display. Neither may ever delay or end the run.

A full disk, a terminal that was stopped with Ctrl-S or a pipe that nobody reads only affects that output.
"""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from emostream.errors import ConfigError
from emostream.files import OWNER_ONLY
from emostream.stream.emotion import Emotion, decode_emotion, encode_emotion
from emostream.stream.messages import Health
from emostream.stream.status import Status
from emostream.stream.view import View

KEPT_FILES = 5
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # Windows has no such pipes
_QUEUE = 10_000


class LabelFile:
    """Appends each label as a line of JSON to a file that only its owner can read, since it holds what people said.

    Beyond ``most_bytes`` the file is rotated to FILE.1, that one to FILE.2, up to FILE.5; 0: it grows for ever. Labels
    that cannot be written are counted in ``lost``; ``warn`` is called when that begins. A pipe is never waited for:
    while nobody reads it, or it is full, its labels are lost. Raises ConfigError if the file cannot be opened.
    """

    def __init__(self, path: Path, most_bytes: int, warn: Callable[[str], None]) -> None:
        self.lost = 0
        self._path, self._most_bytes, self._warn = path, most_bytes, warn
        self._failing = False
        self._torn = False  # a pipe has taken only part of a line
        self._file: int | None = None
        try:
            self._file = self._open()
        except OSError as error:
            if error.errno == errno.ENXIO and path.is_fifo():  # nobody reads it yet
                return
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error

    def add(self, message: Emotion) -> None:
        """Write a label."""
        line = encode_emotion(message) + b"\n"
        try:
            self._write(line)
            self._failing = False
        except OSError as error:
            self.lost += 1
            if not self._failing:
                self._warn(f"{self._path}: labels cannot be written ({error.strerror})")
            self._failing = True

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_WAITING, OWNER_ONLY)

    def _write(self, line: bytes) -> None:
        if self._file is None:  # it could not be reopened earlier
            self._file = self._open()
        status = os.fstat(self._file)
        size = status.st_size
        if self._most_bytes and size and size + len(line) > self._most_bytes:
            self.close()
            self._shift()
            self._file = self._open()
            size = 0
        part = os.write(self._file, b"\n" * self._torn + line) - self._torn
        self._torn = False
        if part < len(line):  # half a line would spoil the next
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(self._file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._torn = True
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _shift(self) -> None:
        for number in range(KEPT_FILES, 0, -1):
            younger = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
            if younger.exists():
                younger.replace(self._path.with_name(f"{self._path.name}.{number}"))


def open_labels(path: Path) -> BinaryIO:
    """A new file of labels that only its owner can read, replacing an existing one. Raises ConfigError if it cannot be
    written."""
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, OWNER_ONLY), "wb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # not a pipe or a device
            os.fchmod(file.fileno(), OWNER_ONLY)
            file.truncate()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    return file


def resume_labels(path: Path, names: Sequence[str]) -> tuple[BinaryIO, set[str]]:
    """Reopen the label file of an interrupted ``stream-label`` to append to it. Also returns which of the recordings
    ``names`` are done in it.

    An incomplete last line is removed. The last recording may be incomplete, so if it is one of ``names``, its labels
    are removed too, and it has to be labelled again. Raises ConfigError.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"--resume tells recordings apart by their paths; twice: {', '.join(twice)}")
    if not path.exists():
        return open_labels(path), set()
    if not path.is_file():
        raise ConfigError(f"{path}: is no file that --resume could go on with")
    try:
        starts, end = _labelled(path, names)
        if starts and (last := next(reversed(starts))) in names:
            end = starts.pop(last)
        file = path.open("r+b")
        file.seek(end)
        file.truncate()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read and written ({error.strerror})") from error
    return file, starts.keys() & set(names)


def _labelled(path: Path, names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Where in a label file each recording's last labels begin, in order, and where the last complete line ends. Labels
    of older versions have a file name instead of a path; they count for the one of ``names`` with that file name."""
    starts: dict[str, int] = {}
    by_file: dict[str, list[str]] = {}
    for name in names:
        by_file.setdefault(os.path.basename(name), []).append(name)
    last, end = "", 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                label = decode_emotion(line)
                recording = label.source or _only(by_file.get(label.stream, [label.stream]), path)
            except msgspec.DecodeError as error:
                raise ConfigError(f"{path}: is left as it is: line {number} is no label ({error})") from error
            if recording != last:
                starts.pop(recording, None)  # so that it comes last
                starts[recording] = end
            last, end = recording, end + len(line)
    return starts, end


def _only(paths: Sequence[str], labels: Path) -> str:
    if len(paths) > 1:
        raise ConfigError(f"{labels}: its labels do not say which of these they are of: {', '.join(paths)}")
    return paths[0]


class Background:
    """Runs a view in its own thread. Updates that it cannot show in time are dropped and counted."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE)
        self.left_out = 0
        self.error: OSError | None = None  # the last error of the display
        self._thread = threading.Thread(target=self._work, name="view", daemon=True)
        self._thread.start()

    def emotion(self, message: Emotion) -> None:
        self._put(lambda: self._view.emotion(message))

    def health(self, message: Health) -> None:
        self._put(lambda: self._view.health(message))

    def status(self, message: Status) -> None:
        self._put(lambda: self._view.status(message))

    def log(self, node: str, level: str, text: str) -> None:
        self._put(lambda: self._view.log(node, level, text))

    def close(self, last: Callable[[], None] = lambda: None, wait_s: float = 1.0) -> bool:
        """Show what is left, close the view and call ``last``. Returns whether that was done in time."""
        self._put(self._view.close)
        self._put(last)
        self._put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.left_out += 1

    def _work(self) -> None:
        told = 0
        while (call := self._calls.get()) is not None:
            if isinstance(self.error, BrokenPipeError):
                continue  # this is permanent, unlike a full disk
            try:
                call()
                if (left_out := self.left_out - told) and self._calls.qsize() < _QUEUE // 2:
                    told += left_out
                    text = f"the display took nothing for a while; {left_out} lines and updates were not shown"
                    self._view.log("run", "warning", text)
            except OSError as error:
                self.error = error
