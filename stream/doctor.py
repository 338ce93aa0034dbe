"""Checks what this machine has for a run, and how to get what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from emostream.errors import ModelError
from emostream.stream import models


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``ok``: True if present, False if missing and needed, None if missing but something else
    takes its place. ``mend``: the command that installs it."""

    area: str
    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def examine() -> list[Finding]:
    """Examine everything; opens no device."""
    return [*_versions(), *_models(), *_bundles(), *_backends(), *_microphones(), *_cameras()]


def _versions() -> list[Finding]:
    findings = [Finding("system", "python", True, f"{platform.python_version()} on {platform.platform()}")]
    for name in ("emostream", "onnxruntime", "av", "opencv-python-headless", "pyzmq", "sounddevice", "vosk", "numpy"):
        try:
            findings.append(Finding("packages", name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding("packages", name, False, "not installed", f"pip install {name}"))
    return findings


def _models() -> list[Finding]:
    findings = []
    for name, model in models.MODELS.items():
        try:
            path = models.find(name)
        except ModelError as error:
            findings.append(Finding("models", name, False, str(error)))
            continue
        if path is not None:
            findings.append(Finding("models", name, True, f"{model.what}: {path}"))
        else:
            needed = False if name == "silero-vad" else None
            findings.append(Finding("models", name, needed, model.what, models.how_to_get(name)))
    if importlib.util.find_spec("pocketsphinx") is None:
        findings.append(
            Finding("models", "pocketsphinx", None, "English recogniser", "pip install 'emostream[offline]'")
        )
    else:
        findings.append(Finding("models", "pocketsphinx", True, "English recogniser, in its pip package"))
    return findings


def _bundles() -> list[Finding]:
    from emostream.engines.bundle import BUNDLES, open_bundle
    from emostream.errors import BundleError

    findings = []
    for path in sorted(BUNDLES.glob("*/manifest.json")):
        try:
            bundle = open_bundle(path.parent)
            findings.append(
                Finding("bundles", path.parent.name, True, f"{bundle.id}: {', '.join(bundle.manifest.labels)}")
            )
        except BundleError as error:
            findings.append(Finding("bundles", path.parent.name, False, str(error), "restore it from the distribution"))
    return findings


def _backends() -> list[Finding]:
    from emostream.engines.load import available

    findings = []
    for name, lacking in available().items():
        findings.append(Finding("backends", name, None if lacking else True, lacking or "can run here"))
    return findings


def _microphones() -> list[Finding]:
    try:
        import sounddevice as sd

        devices = list(sd.query_devices())
        default = sd.default.device[0]
    except (OSError, ValueError) as error:
        return [Finding("microphones", "portaudio", False, str(error), "apt-get install libportaudio2")]
    inputs = [
        Finding(
            "microphones",
            f"microphone:{device['index']}",
            True,
            f"{device['name']}, {device['default_samplerate']:.0f} Hz, {device['max_input_channels']} channels"
            + (", the default" if device["index"] == default else ""),
        )
        for device in devices
        if device["max_input_channels"] > 0
    ]
    return inputs or [Finding("microphones", "none", None, "no input device; files, cameras and URLs still work")]


def _cameras() -> list[Finding]:
    if sys.platform != "linux":
        return [
            Finding("cameras", "camera:0", None, "cameras are listed on Linux only; try stream-run --stream camera:0")
        ]
    findings = []
    for path in sorted(Path("/dev").glob("video[0-9]*")):
        name = Path("/sys/class/video4linux", path.name, "name")
        label = name.read_text().strip() if name.is_file() else str(path)
        findings.append(Finding("cameras", f"camera:{path.name.removeprefix('video')}", True, label))
    return findings or [Finding("cameras", "none", None, "no /dev/video*; files, microphones and URLs still work")]
