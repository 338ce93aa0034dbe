"""A report of a run for somebody who looks into a problem, in one file that can be sent."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

from emostream.files import OWNER_ONLY
from emostream.stream.config import Config
from emostream.stream.source_spec import masked
from emostream.stream.status import Status, encode_status
from emostream.stream.view import now

_LINES = 20_000
_PAGE = re.compile(r"(?<=/)[\w-]{16,}/")  # the token in the page's address


class ProblemReport:
    """Collects a run's log and its last status. It contains no sound, pictures or words, and passwords in URLs are
    masked."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path, self._config = path, config
        self._lines: deque[str] = deque(maxlen=_LINES)
        self.status: Status | None = None

    def log(self, node: str, level: str, text: str) -> None:
        self._lines.append(f"{now()} {level}: {node}: {_PAGE.sub('***/', masked(text))}")

    def _settings(self) -> dict[str, Any]:
        settings = self._config.model_dump()
        settings["page"]["token"] = "***" if settings["page"]["token"] else ""
        return settings

    def write(self) -> str:
        """Write the file. Returns a line for the user."""
        parts = {
            "README.txt": "Made by stream-run --report. It holds settings, versions, what this machine has, the log "
            "and counters; no sound, no picture, no words. Look through it before you send it.\n",
            "config.json": json.dumps(_masked(self._settings()), indent=1),
            "versions.txt": _versions(),
            "doctor.txt": _doctor(),
            "log.txt": "\n".join(self._lines) + "\n",
            "status.json": "" if self.status is None else encode_status(self.status).decode(),
        }
        try:
            with (
                open(self._path, "wb", opener=lambda name, flags: os.open(name, flags, OWNER_ONLY)) as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                for name, text in parts.items():
                    archive.writestr(name, text)
        except OSError as error:
            return f"the report cannot be written to {self._path} ({error.strerror})"
        return f"report: {self._path}"


def _masked(value: Any) -> Any:
    """The settings with ``***`` for passwords in URLs."""
    if isinstance(value, dict):
        return {key: _masked(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(part) for part in value]
    return masked(value) if isinstance(value, str) else value


def _versions() -> str:
    lines = [f"python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors"]
    found = {(dist.metadata["Name"] or "").lower(): dist.version for dist in importlib.metadata.distributions()}
    return "\n".join([*lines, *(f"{name} {version}" for name, version in sorted(found.items()))]) + "\n"


def _doctor() -> str:
    from emostream.stream.doctor import examine

    try:
        return "\n".join(f"{one.area}: {one.name}: {one.ok}: {one.detail} {one.mend}" for one in examine()) + "\n"
    except Exception as error:  # a report is needed most from a broken machine
        return f"stream-doctor itself fails here ({type(error).__name__}: {error})\n"
