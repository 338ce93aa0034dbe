"""Runs the commands as a stranger: a user without a name or a home, on a read-only file system."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import BIN, ROOT

STRANGER = 12345
_WORLD_WRITABLE = ("/", "/tmp", "/var/tmp", "/dev/shm")


def need_root(*programs: str) -> None:
    """Skip a test, with the reason, where mounts and other users are not available."""
    if os.getuid() != 0:
        pytest.skip("needs root, to mount and to become another user")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} of util-linux")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount, which this container does not have")


def as_stranger(
    folder: Path, name: str, *arguments: object, writable: Path | None = None, full: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without a name, with ``env`` as the whole environment.

    ``writable``: everything else is read-only, and this is a tmpfs of 1 MB; with ``full``, without room. ``folder`` is
    for the helper's own use.
    """
    lines = ["mount --make-rprivate /", *_opened(folder)]
    if writable is not None:
        lines.append(f"mount -t tmpfs -o size=1m,uid={STRANGER},mode=700 tmpfs {writable}")
        if full:
            lines.append(f"head -c 2M /dev/zero >{writable}/zero 2>/dev/null || true")
        lines += [f"! mountpoint -q {path} || mount -o remount,bind,ro {path}" for path in _WORLD_WRITABLE]
    lines.append(f'exec setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups env -i "$@"')
    variables = [f"{key}={value}" for key, value in {"PATH": "/usr/bin:/bin", **env}.items()]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", "\n".join(lines), "sh", *variables, BIN / name, *map(str, arguments)],
        capture_output=True, text=True, timeout=120, cwd="/",
    )  # fmt: skip


def _opened(folder: Path) -> list[str]:
    """Let a stranger read Python and the checkout if they are in a folder that only its owner may enter."""
    lines: list[str] = []
    closed = {top: [p for p in _needed() if top in p.parents] for path in _needed() if (top := _closed(path))}
    for n, (top, paths) in enumerate(closed.items()):
        for k, path in enumerate(paths):
            hold = folder / f"hold-{n}-{k}"
            hold.mkdir(parents=True)
            lines.append(f"mount --bind {path} {hold}")
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {top}")
        for k, path in enumerate(paths):
            lines.append(f"mkdir -p {path} && mount --bind {folder}/hold-{n}-{k} {path}")
    return lines


def _needed() -> set[Path]:
    return {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT.resolve()}


def _closed(path: Path) -> Path | None:
    """The topmost folder on the way to ``path`` that others may not enter."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & stat.S_IXOTH), None)
