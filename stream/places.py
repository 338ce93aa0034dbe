"""Paths in a configuration file; relative ones are relative to that file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emostream.stream.source_spec import is_plain_path

_SETTINGS = (
    ("speech", "vosk_model"), ("speech", "vad_model"), ("video", "yunet_model"), ("video", "blazeface_models"),
    ("fusion", "profile"), ("bus", "keys"), ("bus", "run_dir"), ("record", "folder"), ("record", "identity"),
    ("page", "certificate"), ("page", "key"),
)  # fmt: skip


def rebase(data: dict[str, Any], folder: Path) -> None:
    """Resolve relative paths in a configuration file's content (sources and other settings) against its folder. Values
    of a wrong type are left alone; the configuration's check reports them."""
    for section, key in _SETTINGS:
        _change(data.get(section), key, folder, bare=True)
    fusion, bus = data.get("fusion"), data.get("bus")
    if isinstance(fusion, dict) and _is_folder(fusion.get("bundle"), folder):
        _change(fusion, "bundle", folder, bare=True)
    if isinstance(bus, dict) and bus.get("control") not in ("auto", "off"):
        _change(bus, "control", folder, bare=True)
    record = data.get("record")
    if isinstance(record, dict) and not str(record.get("public_key", "")).startswith("age1"):  # else a key itself
        _change(record, "public_key", folder, bare=True)
    streams = data.get("streams")
    for stream in streams if isinstance(streams, list) else ():
        for key in ("source", "audio", "video"):
            _change(stream, key, folder, bare=False)


def _is_folder(bundle: Any, folder: Path) -> bool:
    """Whether a bundle is named by a path, or is beside the file; else it is the name of a shipped one."""
    return (
        isinstance(bundle, str)
        and bundle != ""
        and ("/" in bundle or os.path.isfile(folder / bundle / "manifest.json"))
    )


def _change(section: Any, key: str, folder: Path, bare: bool) -> None:
    """``bare``: the value is a path; otherwise it is a source, which has a path if it begins with ``file:`` or
    ``replay:``, or is a plain path."""
    value = section.get(key) if isinstance(section, dict) else None
    if not isinstance(value, str):
        return
    prefix = "" if bare else next((kind for kind in ("file:", "replay:") if value.startswith(kind)), "")
    path = value.removeprefix(prefix)
    is_path = bare or prefix or is_plain_path(value, folder)
    is_whole = path.startswith(("/", "~")) or Path(path).is_absolute()
    if is_path and path not in ("", "-") and not is_whole:
        section[key] = f"{prefix}{folder / path}"
