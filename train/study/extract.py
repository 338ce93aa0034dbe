"""Features of clips, by the code that runs live, computed once and kept.

Each clip's features lie in a file of their own, named by a hash of all that they depend on: the recording (place,
size, time of its last change), the stretch of it, the words, the settings of the features, the bundle's networks, the
face detector. So nothing stale is ever taken, and extraction that was interrupted goes on where it was.

A clip is an utterance whose bounds are known. Its sound gives the rows whose 25 ms lie within them, its picture the
faces of one person, followed from the clip's first frame on; both as a live stream of the file would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import multiprocessing
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from emostream.engines.bundle import FACE, MODALITIES, WORDS, Bundle
from emostream.errors import CorpusError, Problems, SourceError
from emostream.files import sha256
from emostream.stream import models
from emostream.stream.config import Video
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.features import face, follow, mfcc
from emostream.stream.features.words import tokens
from emostream.stream.messages import Face, Message, MfccRows
from emostream.stream.sources.base import AudioChunk, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.topics import Medium
from emostream.train.corpora import Clip
from emostream.train.study.dataset import Chosen, Grouped, Part, Sequences

VERSION = 2  # raise this number when what a clip's features are changes, here or in the live code
_FOREVER_NS = 1 << 62

# What features depend on


def settings(bundle: Bundle) -> dict[str, Any]:
    """All that any clip's features depend on, apart from the clip: as JSON has it, for a hash."""
    manifest = bundle.manifest
    detector = make_detector(Video()).name
    yunet = models.find("yunet") if detector == "yunet" else None
    followed = {name: p.default for name, p in inspect.signature(face.FaceTracker).parameters.items()}
    return {
        "version": VERSION,
        "audio": dict(mfcc.SETTINGS),
        "video": {
            **face.SETTINGS, "fps": manifest.video.settings["fps"], "detect_width": face.DETECT_WIDTH, **followed,
            **follow.SETTINGS, "detector": detector, "detector_model": sha256(yunet) if yunet else cv2.__version__,
            "network": manifest.files[FACE].sha256,
        },
        "text": {
            **manifest.text.settings, "max_rows": manifest.text.max_rows, "table": manifest.files[WORDS].sha256,
        },
    }  # fmt: skip


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _key(clip: Clip) -> str:
    """Hash of what the clip's features depend on; not of its label. Raises OSError if a file is not there."""

    def state(path: Path | None) -> list | None:
        if path is None:
            return None
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]

    return _hash([state(clip.media), state(clip.audio), clip.start_s, clip.end_s, clip.text, clip.crop])


# One file's clips at a time

Task = list[tuple[int, Clip, Path]]  # clips of one file: the clip's number, the clip, where its features go


class Extractor:
    """The live cores and networks, loaded once."""

    def __init__(self, bundle: Bundle) -> None:
        self._classifier = Classifier(bundle, "onnxruntime")
        self._detector = make_detector(Video())
        self._fps = bundle.manifest.video.settings["fps"]

    def run(self, task: Task) -> list[tuple[int, str]]:
        """Features of clips of one file, each written to its path. Returns what is wrong, by the clip's number."""
        clips = [clip for _, clip, _ in task]
        try:
            heard_and_seen = self._media(clips)
        except SourceError as error:
            return [(number, str(error)) for number, _, _ in task]
        problems = []
        for (number, clip, path), (sound, crops) in zip(task, heard_and_seen, strict=True):
            if clip.audio is not None:
                try:
                    sound = _Recording(clip.audio).whole()
                except SourceError as error:
                    problems.append((number, str(error)))
                    continue
            arrays = {
                "audio": np.zeros((0, mfcc.DIM), np.float32) if sound is None else sound,
                "video": self._classifier.encode_faces(crops),
                "text": self._classifier.encode_words(tokens(clip.text or "")),
            }
            wrong = _wrong(arrays, sound is not None)
            problems += [(number, text) for text in wrong]
            if not wrong:
                _write(path, arrays)
        return problems

    def _media(self, clips: Sequence[Clip]) -> list[tuple[np.ndarray | None, np.ndarray]]:
        """For each clip, MFCC rows (n, 120), None without a sound track, and face crops (n, 48, 48)."""
        media = clips[0].media
        if media is None:
            return [(None, _crops([]))] * len(clips)
        own_sound = all(clip.audio is not None for clip in clips)
        recording = _Recording(media, frozenset({"video"} if own_sound else {"audio", "video"}), self._fps)
        bounds = [_bounds(clip) for clip in clips]
        seen = [VideoCore(clip.where, self._detector, None) for clip in clips]
        faces: list[list[Face]] = [[] for _ in clips]
        for frame in recording.frames():
            for i, (start_ns, end_ns) in enumerate(bounds):
                if start_ns <= frame.media_ns < end_ns:
                    image = _half(frame.image, clips[i].crop)
                    faces[i] += _found(seen[i].push(dataclasses.replace(frame, image=image)))
        return [(recording.cut(*bound), _crops(found)) for bound, found in zip(bounds, faces, strict=True)]


class _Recording:
    """A file as live nodes take it: its frames as they come, its sound as MFCC rows with times."""

    def __init__(self, path: Path, media: frozenset[Medium] = frozenset({"audio"}), fps: float = 1) -> None:
        self._source = FileSource(path, media, fps)
        self._core = AudioCore(path.name, None)
        self._rows = SlidingWindow((mfcc.DIM,), np.float32)
        self._there = False

    def frames(self) -> Iterator[VideoFrame]:
        """Reads the whole file; gives its frames. Raises SourceError if it cannot be read."""
        self._source.open()
        try:
            self._there = "audio" in self._source.tracks()
            for item in self._source.items():
                if isinstance(item, VideoFrame):
                    yield item
                elif isinstance(item, AudioChunk):
                    if not np.isfinite(item.samples).all():
                        raise SourceError(f"{self._source.name}: sound at {item.media_ns / 1e9:.2f} s is not finite")
                    self._take(self._core.push(item))
        finally:
            self._source.close()
        self._take(self._core.flush())

    def whole(self) -> np.ndarray | None:
        """MFCC rows of a file that is one clip; see ``cut``."""
        for _ in self.frames():
            pass
        return self.cut(0, _FOREVER_NS)

    def cut(self, start_ns: int, end_ns: int) -> np.ndarray | None:
        """Rows whose 25 ms lie within the bounds, (n, 120); None if the file, read by now, has no sound track."""
        return self._rows.cut(start_ns, end_ns - mfcc.FRAME_NS + 1).copy() if self._there else None

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, MfccRows):
                times = message.media_start_ns + mfcc.HOP_NS * np.arange(len(message.rows), dtype=np.int64)
                with contextlib.suppress(ValueError):  # rows that go back in time are left out, as in a live run
                    self._rows.append(times, message.rows)


def _bounds(clip: Clip) -> tuple[int, int]:
    start_ns = round((clip.start_s or 0) * 1e9)
    return start_ns, _FOREVER_NS if clip.end_s is None else round(clip.end_s * 1e9)


def _half(image: np.ndarray, crop: str | None) -> np.ndarray:
    """The left or right half of a split screen, or the whole picture. (h, w) → (h, w / 2)"""
    middle = image.shape[1] // 2
    return image if crop is None else image[:, :middle] if crop == "left" else image[:, middle:]


def _found(messages: list[Message]) -> list[Face]:
    return [message for message in messages if isinstance(message, Face) and message.found]


def _crops(faces: list[Face]) -> np.ndarray:
    return np.stack([f.crop for f in faces]) if faces else np.zeros((0, face.CROP, face.CROP), np.uint8)


def _wrong(arrays: dict[str, np.ndarray], has_sound: bool) -> list[str]:
    """Why these features are not those of an utterance."""
    wrong = [
        f"{m} features are NaN or infinite in row {int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])}"
        for m, rows in arrays.items()
        if not np.isfinite(rows).all()
    ]
    if has_sound and not len(arrays["audio"]):
        wrong.append("its sound is shorter than one frame of 25 ms")
    elif not any(len(rows) for rows in arrays.values()):
        wrong.append("has no features: no sound, no face, no word")
    return wrong


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    part.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    part.replace(path)


# All clips


def extract(
    clips: Sequence[Clip],
    bundle: Bundle,
    cache: Path,
    jobs: int = 1,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """The file of each clip's features: ``audio`` (n, 120), ``video`` (n, D), ``text`` (n, D), float32, n = 0 where
    there is none.

    Files that are there from before are kept, the others are made, by ``jobs`` processes; ``done`` is told how many
    clips of how many are finished. Raises Problems, when all others are finished, for clips that cannot be read, are
    shorter than a frame, or whose features are not finite; BundleError if the bundle was made for other features.
    """
    made_with = settings(bundle)
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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(made_with, indent=1) + "\n")
        first = {path: number for number, path in reversed(list(enumerate(paths)))}  # equal clips have equal features
        missing = {path: number for path, number in first.items() if not path.is_file()}
        tasks: dict[Path | None, Task] = defaultdict(list)
        for path, number in sorted(missing.items(), key=lambda entry: entry[1]):
            clip = clips[number]
            tasks[clip.media or clip.audio].append((number, clip, path))
        finished = len(first) - len(missing)
        done(finished, len(first))
        for size, wrong in _run(list(tasks.values()), bundle, jobs):
            problems += wrong
            finished += size
            done(finished, len(first))
    if problems:
        raise Problems("clips", [f"{clips[number].where}: {text}" for number, text in sorted(problems)])
    return paths


def _run(tasks: list[Task], bundle: Bundle, jobs: int) -> Iterator[tuple[int, list[tuple[int, str]]]]:
    """The size of each task, when it is done, and its problems."""
    if not tasks:
        return
    if jobs == 1:
        extractor = Extractor(bundle)
        for task in tasks:
            yield len(task), extractor.run(task)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share the threads' locks with this process
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_worker, (bundle,))
    try:
        futures = {pool.submit(_work, task): len(task) for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "a process of the extraction died (out of memory?); run it again with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # what runs is finished and kept


_extractor: Extractor | None = None  # of a worker process


def _start_worker(bundle: Bundle) -> None:
    global _extractor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the main process decides
    _extractor = Extractor(bundle)


def _work(task: Task) -> list[tuple[int, str]]:
    assert _extractor is not None
    return _extractor.run(task)


@dataclass(frozen=True)
class Stored:
    """One modality of extracted clips, read when asked for; ``files``: what ``extract`` returned."""

    files: Sequence[Path]
    modality: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int, /) -> np.ndarray:
        with safe_open(self.files[i], "numpy") as file:
            return file.get_tensor(self.modality)


def lengths(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """Rows of each extracted clip, by modality: (N,) int64."""
    found = np.zeros((len(MODALITIES), len(files)), np.int64)
    for i, path in enumerate(files):
        with safe_open(path, "numpy") as file:
            found[:, i] = [file.get_slice(m).get_shape()[0] for m in MODALITIES]
    return dict(zip(MODALITIES, found, strict=True))


@dataclass(frozen=True)
class Given:
    """Folds that the corpus itself assigns: fold f tests on the items of the f-th number, selects on the next one's.

    ``assigned`` (N,): the number of each item.
    """

    name: str
    label_names: Sequence[str]
    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    assigned: np.ndarray
    settings: dict[str, Any]

    @property
    def folds(self) -> int:
        return len(np.unique(self.assigned))

    def split(self, fold: int) -> dict[str, Part]:
        place = np.unique(self.assigned, return_inverse=True)[1]
        test, dev = place == fold, place == (fold + 1) % self.folds

        def part(chosen: np.ndarray) -> Part:
            numbers = np.flatnonzero(chosen)
            features = {m: Chosen(rows, numbers) for m, rows in self.features.items()}
            return Part(features, {m: self.labels[m][numbers] for m in features}, together=True)

        return {"train": part(~test & ~dev), "dev": part(dev), "test": part(test)}


def dataset(
    name: str, clips: Sequence[Clip], label_names: Sequence[str], files: Sequence[Path], folds: int = 5
) -> Given | Grouped:
    """Extracted clips in folds: those that the clips name if all do, else ``folds`` that split no group.

    A modality that no clip has is left out. Raises CorpusError if there are too few groups.
    """
    features = {m: Stored(files, m) for m, n in lengths(files).items() if n.any()}
    numbers = np.array([list(label_names).index(clip.label) for clip in clips], np.int64)
    labels = dict.fromkeys(features, numbers)
    assigned = [clip.fold for clip in clips]
    made = {"files": _hash([path.name for path in files]), "folder": files[0].parent.parent.name}
    about: dict[str, Any] = made | {"labels": _hash([clip.label for clip in clips])}
    if None not in assigned:
        return Given(name, label_names, features, labels, np.array(assigned), about | {"folds": _hash(assigned)})
    groups = np.array([clip.group for clip in clips])
    about |= {"groups": _hash(groups.tolist()), "folds": folds}
    return Grouped(name, label_names, features, labels, dict.fromkeys(features, groups), True, folds, about)
