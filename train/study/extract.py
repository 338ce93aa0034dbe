"""Features of clips, by the code that runs live, computed once and kept.

Each clip's features are in a file of their own, named by a hash of everything they depend on: the recording (path,
size, time of its last change), the section of it, the words, the settings of the features, the bundle's networks, the
face detector. So no stale features are ever used, and an interrupted extraction continues where it stopped.

A clip is an utterance whose bounds are known. Its sound gives the rows whose frames lie within them, its picture
the faces of one person, followed from the clip's first frame on; both as a live stream of the file would.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from emostream.engines.bundle import FACE, MODALITIES, TEXT, VOICE, Bundle
from emostream.errors import CorpusError, Problems, SourceError
from emostream.files import OWNER_ONLY, sha256, write_atomically
from emostream.stream import models
from emostream.stream.config import Video
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.features import face, follow, mfcc, people
from emostream.stream.features.text import tokens
from emostream.stream.messages import Face, Message
from emostream.train.corpora import Clip
from emostream.train.pool import submit, worker_pool
from emostream.train.progress import StepDone, ignore
from emostream.train.recordings import FOREVER_NS, Recording, read_sound
from emostream.train.recordings import Features as RowFeatures
from emostream.train.study.dataset import GroupedFolds, PredefinedFolds

SoundFeatures = Literal["mfcc", "voice"]
VERSION = 3  # raise this number when a clip's features change, through this file or through the live code

# What features depend on


def settings(bundle: Bundle, sound: SoundFeatures = "mfcc") -> dict[str, Any]:
    """Everything that features depend on apart from the clip, as JSON values, for a hash."""
    manifest = bundle.manifest
    heard: dict[str, Any] = dict(mfcc.SETTINGS)
    if sound == "voice":
        heard = {**manifest.audio.settings, "network": manifest.files[VOICE].sha256}
    detector, model = models.face_detector(Video())
    return {
        "version": VERSION,
        "audio": heard,
        "video": {
            **face.SETTINGS, "fps": manifest.video.settings["fps"], "detect_width": face.DETECT_WIDTH,
            **people.SETTINGS, **follow.SETTINGS, "detector": detector,
            "detector_model": _model_hash(model) if model else cv2.__version__,
            "network": manifest.files[FACE].sha256,
        },
        "text": {
            **manifest.text.settings, "max_rows": manifest.text.max_rows, "network": manifest.files[TEXT].sha256,
        },
    }  # fmt: skip


def _model_hash(path: Path) -> str:
    """A hash of a file, or of the files in a folder."""
    files = sorted(path.glob("face_detection_*")) if path.is_dir() else [path]
    return _hash([sha256(file) for file in files])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _key(clip: Clip) -> str:
    """Hash of everything in the clip that its features depend on (not its label). Raises OSError if a file is
    missing."""

    def state(path: Path | None) -> list[str | int] | None:
        if path is None:
            return None
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]

    return _hash([state(clip.media), state(clip.audio), clip.start_s, clip.end_s, clip.text, clip.crop])


# One file's clips at a time

Task = list[tuple[int, Clip, Path]]  # clips of one file: each one's number, the clip, the file for its features


class Extractor:
    """The live cores and networks, loaded once."""

    def __init__(self, bundle: Bundle, sound: SoundFeatures = "mfcc") -> None:
        self._classifier = Classifier(bundle, "onnxruntime")
        self._rows: RowFeatures = "mfcc" if sound == "mfcc" else "logmel"
        self._dim = mfcc.DIM if sound == "mfcc" else bundle.manifest.audio.dim
        self._detector = make_detector(Video())
        self._fps = bundle.manifest.video.settings["fps"]

    def run(self, task: Task) -> list[tuple[int, str]]:
        """Write the features of one file's clips to their paths. Returns the problems, each with its clip's number."""
        clips = [clip for _, clip, _ in task]
        try:
            sounds_and_crops = self._media(clips)
        except SourceError as error:
            return [(number, str(error)) for number, _, _ in task]
        problems = []
        for (number, clip, path), (sound, crops) in zip(task, sounds_and_crops, strict=True):
            if clip.audio is not None:
                try:
                    sound = _whole(clip.audio, self._rows)
                except SourceError as error:
                    problems.append((number, str(error)))
                    continue
            arrays = {
                "audio": np.zeros((0, self._dim), np.float32) if sound is None else self._sound(sound),
                "video": self._classifier.encode_faces(crops),
                "text": self._classifier.encode_words(tokens(clip.text or "")),
            }
            wrong = _wrong(arrays, sound is not None)
            problems += [(number, text) for text in wrong]
            if not wrong:
                path.parent.mkdir(parents=True, exist_ok=True)
                content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
                write_atomically(path, content, OWNER_ONLY)
        return problems

    def _sound(self, rows: np.ndarray) -> np.ndarray:
        """What the network reads for a clip's rows: the MFCC themselves, or voice vectors."""
        return rows if self._rows == "mfcc" else self._classifier.voice_encoder().encode(rows)

    def _media(self, clips: Sequence[Clip]) -> list[tuple[np.ndarray | None, np.ndarray]]:
        """Rows of each clip's sound, (n, 120) MFCC or (n, 32) log-mel, None without a sound track; and its face crops
        (n, 48, 48)."""
        media = clips[0].media
        if media is None:
            return [(None, _crops([]))] * len(clips)
        own_sound = all(clip.audio is not None for clip in clips)
        recording = Recording(media, frozenset({"video"} if own_sound else {"audio", "video"}), self._fps, self._rows)
        bounds = [_bounds(clip) for clip in clips]
        cores = [VideoCore(clip.where, self._detector, None) for clip in clips]
        faces: list[list[Face]] = [[] for _ in clips]
        for frame in recording.frames():
            for i, (start_ns, end_ns) in enumerate(bounds):
                if start_ns <= frame.media_ns < end_ns:
                    image = _half(frame.image, clips[i].crop)
                    faces[i] += _faces(cores[i].push(dataclasses.replace(frame, image=image)))
        sound = recording.sound
        return [
            (None if sound is None else sound.rows(*bound), _crops(followed))
            for bound, followed in zip(bounds, faces, strict=True)
        ]


def _whole(path: Path, features: RowFeatures) -> np.ndarray | None:
    """Rows of a file that is one clip, None without a sound track. Raises SourceError."""
    sound = read_sound(path, features)
    return None if sound is None else sound.rows()


def _bounds(clip: Clip) -> tuple[int, int]:
    start_ns = round((clip.start_s or 0) * 1e9)
    return start_ns, FOREVER_NS if clip.end_s is None else round(clip.end_s * 1e9)


def _half(image: np.ndarray, crop: str | None) -> np.ndarray:
    """The left or right half of a split screen, or the whole picture. (h, w) → (h, w / 2)"""
    middle = image.shape[1] // 2
    return image if crop is None else image[:, :middle] if crop == "left" else image[:, middle:]


def _faces(messages: list[Message]) -> list[Face]:
    return [message for message in messages if isinstance(message, Face) and message.found]


def _crops(faces: list[Face]) -> np.ndarray:
    return np.stack([f.crop for f in faces]) if faces else np.zeros((0, face.CROP, face.CROP), np.uint8)


def _wrong(arrays: dict[str, np.ndarray], has_sound: bool) -> list[str]:
    """Reasons why these cannot be the features of an utterance."""
    wrong = [
        f"{m} features are NaN or infinite in row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])}"
        for m, rows in arrays.items()
        if not np.isfinite(rows).all()
    ]
    if has_sound and not len(arrays["audio"]):
        wrong.append("its sound is shorter than one frame of features")
    elif not any(len(rows) for rows in arrays.values()):
        wrong.append("has no features: no sound, no face, no word")
    return wrong


# All clips


def extract(
    clips: Sequence[Clip],
    bundle: Bundle,
    cache: Path,
    jobs: int = 1,
    done: StepDone = ignore,
    sound: SoundFeatures = "mfcc",
) -> list[Path]:
    """The file of each clip's features: ``audio`` (n, 120) MFCC or, with ``sound`` "voice", (n, D) vectors, ``video``
    (n, D), ``text`` (n, D), float32, n = 0 where the clip lacks the modality.

    Existing files are kept; ``jobs`` processes make the others. ``done`` is called with the numbers of finished and of
    all clips. Raises Problems, after the other clips are finished, for clips that cannot be read, are shorter than a
    frame, or whose features are not finite; BundleError if the bundle was made for other features.
    """
    made_with = settings(bundle, sound)
    folder = cache / f"clips-{_hash(made_with)[:16]}"
    paths: list[Path] = []
    problems: list[tuple[int, str]] = []
    for number, clip in enumerate(clips):
        try:
            key = _key(clip)
            paths.append(folder / key[:2] / f"{key}.safetensors")
        except OSError as error:
            problems.append((number, f"{error.filename}: cannot be read ({error.strerror})"))
    if not problems:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / "settings.json", json.dumps(made_with, indent=1) + "\n", OWNER_ONLY)
        # equal clips share a file, which the first of them writes
        first = {path: number for number, path in reversed(list(enumerate(paths)))}
        missing = {path: number for path, number in first.items() if not path.is_file()}
        tasks: dict[Path | None, Task] = defaultdict(list)
        for path, number in sorted(missing.items(), key=lambda entry: entry[1]):
            clip = clips[number]
            tasks[clip.media or clip.audio].append((number, clip, path))
        finished = len(first) - len(missing)
        done(finished, len(first))
        for size, wrong in _run(list(tasks.values()), bundle, jobs, sound):
            problems += wrong
            finished += size
            done(finished, len(first))
    if problems:
        raise Problems("clips", [f"{clips[number].where}: {text}" for number, text in sorted(problems)])
    return paths


def _run(
    tasks: list[Task], bundle: Bundle, jobs: int, sound: SoundFeatures
) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """The size and the problems of each task, as it is done."""
    if not tasks:
        return
    if jobs == 1:
        extractor = Extractor(bundle, sound)
        for task in tasks:
            yield len(task), extractor.run(task)
        return
    pool = worker_pool(min(jobs, len(tasks)), _extracting, (bundle, sound))
    try:
        futures = submit(pool, tasks)
        for future in as_completed(futures):
            yield len(futures[future]), future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "a process of the extraction died (out of memory?); run it again with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # running tasks are finished and kept


def _extracting(what: tuple[Bundle, SoundFeatures]) -> Callable[[Task], list[tuple[int, str]]]:
    return Extractor(*what).run


@dataclass(frozen=True)
class Stored:
    """One modality of extracted clips, read on access; ``files``: what ``extract`` returned."""

    files: Sequence[Path]
    modality: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int, /) -> np.ndarray:
        with safe_open(self.files[i], "numpy") as file:
            rows: np.ndarray = file.get_tensor(self.modality)
            return rows


def lengths(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Rows of each extracted clip, by modality: (N,) int64."""
    rows = np.zeros((len(MODALITIES), len(files)), np.int64)
    for i, path in enumerate(files):
        with safe_open(path, "numpy") as file:
            rows[:, i] = [file.get_slice(m).get_shape()[0] for m in MODALITIES]
    return dict(zip(MODALITIES, rows, strict=True))


def dataset(
    name: str, clips: Sequence[Clip], label_names: Sequence[str], files: Sequence[Path], folds: int = 5
) -> PredefinedFolds | GroupedFolds:
    """Extracted clips in folds: those that the clips name if all do, else ``folds`` folds that split no group.

    A modality that no clip has is left out. Raises CorpusError if there are too few groups.
    """
    features = {m: Stored(files, m) for m, n in lengths(files).items() if n.any()}
    numbers = np.array([list(label_names).index(clip.label) for clip in clips], np.int64)
    labels = dict.fromkeys(features, numbers)
    assigned = [clip.fold for clip in clips]
    about: dict[str, Any] = {
        "files": _hash([path.name for path in files]), "folder": files[0].parent.parent.name,
        "labels": _hash([clip.label for clip in clips]),
    }  # fmt: skip
    if None not in assigned:
        about |= {"folds": _hash(assigned)}
        return PredefinedFolds(name, label_names, features, labels, np.array(assigned), about)
    groups = np.array([clip.group for clip in clips])
    about |= {"groups": _hash(groups.tolist()), "folds": folds}
    shared = dict.fromkeys(features, groups)
    return GroupedFolds(name, label_names, features, labels, shared, aligned=True, folds=folds, settings=about)
