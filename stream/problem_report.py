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

from emostream.errors import EmostreamError
from emostream.files import OWNER_ONLY
from emostream.stream.config import Config
from emostream.stream.report_media import ReportMedia
from emostream.stream.source_spec import masked
from emostream.stream.status import Status, encode_status
from emostream.stream.view import now

_LINES = 20_000
_PAGE = re.compile(r"(?<=/)[\w-]{16,}/")  # the token in the page's address


class ProblemReport:
    """Collects a run's log and its last status. There is no sound, no picture and no word in it, unless ``media`` has
    them, and passwords of URLs are masked."""

    def __init__(self, path: Path, config: Config, media: ReportMedia | None = None) -> None:
        self._path, self._config, self._media = path, config, media
        self._lines: deque[str] = deque(maxlen=_LINES)
        self.status: Status | None = None

    def log(self, node: str, level: str, text: str) -> None:
        self._lines.append(f"{now()} {level}: {node}: {_PAGE.sub('***/', masked(text))}")

    def tick(self, status: Status) -> None:
        """The run goes on. To be called about once a second."""
        self.status = status
        if self._media is not None:
            self._media.tick()

    def _settings(self) -> dict[str, Any]:
        settings = self._config.model_dump()
        settings["page"]["token"] = "***" if settings["page"]["token"] else ""
        return settings

    def write(self) -> str:
        """Write the file. Returns a line for the user."""
        held, media = "no sound, no picture, no words. Look through it before you send it", self._media_parts()
        if media:
            held = f"AND THE LAST {self._media_s:g} SECONDS OF SOUND AND PICTURES"
            held += ", as --report-media asked for. Listen to them and look at them before you send it"
        parts: dict[str, str | bytes] = {
            "README.txt": "Made by stream-run --report. It holds settings, versions, what this machine has, the log "
            f"and counters; {held}.\n",
            "config.json": json.dumps(_masked(self._settings()), indent=1),
            "versions.txt": _versions(),
            "doctor.txt": _doctor(),
            "log.txt": "\n".join(self._lines) + "\n",
            "status.json": "" if self.status is None else encode_status(self.status).decode(),
            **media,
        }
        try:
            with (
                open(self._path, "wb", opener=lambda name, flags: os.open(name, flags, OWNER_ONLY)) as file,
                zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                for name, content in parts.items():
                    archive.writestr(name, content)
        except OSError as error:
            return f"the report cannot be written to {self._path} ({error.strerror})"
        if self._media is None:
            return f"report: {self._path}"
        if not media:
            return f"report: {self._path}, without sound and pictures: there are none"
        return (
            f"report: {self._path}, with the last {self._media_s:g} s of sound and pictures, words included: "
            "listen to them and look at them before you send it"
        )

    @property
    def _media_s(self) -> float:
        return self._media.seconds if self._media is not None else 0.0

    def _media_parts(self) -> dict[str, bytes]:
        if self._media is None:
            return {}
        try:
            return self._media.parts()
        except (EmostreamError, ImportError) as error:
            self.log("run", "warning", f"no sound and pictures in the report: {error}")
            return {}


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
