"""A run's folder of sockets: where it is made, what marks it as in use, and whether somebody has removed it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from emostream.errors import BusError
from emostream.files import user_path

try:
    import fcntl
except ImportError:  # on Windows, where ipc sockets do not exist either
    fcntl = None  # type: ignore[assignment]

_RUN_DIR = "emostream-"
_LOCK = "in-use"
_LONGEST_DIR = 70  # a Unix socket's path has at most 107 bytes; 35 are added here
_MISSING_NS = 1_000_000_000  # sockets that are missing for less may be those of a node that ends


def make_run_dir(configured: str = "") -> Path:
    """Make a folder of mode 0700 for this run's ipc sockets: in ``configured``, else in the user's runtime folder
    (``XDG_RUNTIME_DIR``), else in the system's temporary folder. Removes folders there that killed runs have left.

    Raises BusError.
    """
    parent = user_path(configured) if configured else None
    try:
        if parent is not None:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
            usable = os.access(runtime, os.W_OK) and len(runtime) <= _LONGEST_DIR
            parent = Path(runtime) if usable else None
        if len(str(parent or tempfile.gettempdir())) > _LONGEST_DIR:
            raise BusError(
                f"{parent or tempfile.gettempdir()}: too long for sockets; set bus.run_dir to a shorter path"
            )
        _sweep(parent or Path(tempfile.gettempdir()))
        return Path(tempfile.mkdtemp(prefix=_RUN_DIR, dir=parent))  # of mode 0700
    except OSError as error:
        raise BusError(f"bus.run_dir = {configured!r}: cannot be used ({error.strerror})") from error


def hold(run_dir: Path) -> contextlib.ExitStack:
    """Mark a run's folder as in use until what this returns is closed, if only by the end of the process. The folder is
    locked too: systemd-tmpfiles leaves such folders alone, however old they are.

    Raises BusError; the folder is removed then."""
    path = run_dir / f"{_LOCK}.new"
    try:
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(path.open("w"))
            if fcntl is not None:
                fcntl.flock(held, fcntl.LOCK_EX)
                folder = os.open(run_dir, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_SH)
            path.rename(run_dir / _LOCK)  # only now, so that no file of this name is free while its run lives
            return stack.pop_all()
    except OSError as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise BusError(f"{run_dir}: cannot be used ({error.strerror})") from error


def are_there(run_dir: Path, nodes: Iterable[str]) -> bool:
    """Whether others could still connect to these nodes: whether the files of their sockets are there."""
    return all(os.path.exists(ipc(run_dir, node).removeprefix("ipc://")) for node in nodes)


def _sweep(parent: Path) -> None:
    """Remove the folders of this user's runs that have ended without removing them."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{_RUN_DIR}*"):
        with contextlib.suppress(OSError):  # another user's, in use, or just removed by another run that starts
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def ipc(run_dir: Path, node: str) -> str:
    """Endpoint of a node's publisher. The file name is short however long the node's name is, since paths are
    limited."""
    return f"ipc://{run_dir}/{hashlib.sha256(node.encode()).hexdigest()[:12]}"


class RunFolder:
    """The folder of a run that lives. ``removed``: somebody has removed sockets in it. Raises BusError, as
    ``make_run_dir``."""

    def __init__(self, configured: str) -> None:
        self.path = make_run_dir(configured)
        self._held = hold(self.path)
        self.removed = False
        self._missing_ns: int | None = None  # since when sockets are not there

    def notice_removal(self, nodes: Iterable[str], now_ns: int) -> bool:
        """Whether it shows now, and for the first time, that sockets of these nodes were removed. What is connected
        stays connected."""
        if self.removed or are_there(self.path, nodes):
            self._missing_ns = None
            return False
        self._missing_ns = self._missing_ns or now_ns
        self.removed = now_ns - self._missing_ns >= _MISSING_NS
        return self.removed

    def can_be_joined(self, node: str) -> bool:
        """Whether a further node could still connect to this one."""
        return not self.removed and are_there(self.path, [node])

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._held.close()
