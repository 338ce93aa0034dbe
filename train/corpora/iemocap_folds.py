"""IEMOCAP as the ready features that Yoon et al. give to holders of a licence, and that the paper used.

A folder with a subfolder for each fold (``fold01`` …), or a single fold. In each, for train, dev and test:

    train_nlp_trans.npy      (N, 128) whole numbers: rows of W_embedding, 0 after the last word
      or train_text.npy      (N, 128, 300): those rows themselves, as the paper's authors store them
    train_video.npy          (N, 32, 2048) ResNet-101, 3 frames a second     train_video_seqN.npy    (N,) true lengths
    train_audio_mfcc.npy     (N, 1000, 120)                                  train_audio_seqN.npy    (N,) true lengths
    train_audio_prosody.npy  (N, P), may be missing: one vector a clip, which the paper's model does not use
    train_label.npy          (N,) whole numbers, or (N, labels) with a single 1

and ``W_embedding.npy`` (V, 300), there or in the folder above. A length beyond an array's end means that the clip was
cut there. Clips without a picture (length 0) are left out, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emostream.errors import CorpusError, Problems
from emostream.train.corpora.iemocap import COUNTS
from emostream.train.study.dataset import Part, Sequences

NAME = "IEMOCAP (processed folds)"
LICENCE = "by application to the authors, for holders of IEMOCAP's licence"
CITATION = "Yoon et al., Attentive Modality Hopping Mechanism for Speech Emotion Recognition, ICASSP 2020"
SPLITS = ("train", "dev", "test")
KINDS = ("video", "video_seqN", "audio_mfcc", "audio_seqN", "label")
DIMENSIONS = {
    "video": (3,), "audio_mfcc": (3,), "text": (2, 3), "audio_prosody": (2,), "W_embedding": (2,), "label": (1, 2),
    "video_seqN": (1, 2), "audio_seqN": (1, 2),
}  # fmt: skip
LABELS = 7
_BLOCK = 64  # clips checked at a time: a whole array may be larger than memory


@dataclass(frozen=True)
class Rows:
    """Sequences of an (N, T, D) array. ``items``: the clips' numbers; ``length``: the rows of each, at most T."""

    array: np.ndarray
    items: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return np.asarray(self.array[self.items[i], : self.length[i]], np.float32)


@dataclass(frozen=True)
class Words:
    """Word vectors: an (N, T) array of row numbers of ``table`` (V, D), or an (N, T, D) array of vectors.

    A sequence ends before its first ``padding``, a number or a (D,) vector, if that is given.
    """

    array: np.ndarray
    table: np.ndarray | None
    items: np.ndarray
    padding: np.ndarray | None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int, /) -> np.ndarray:
        words = self.array[self.items[i]]  # (T,) or (T, D)
        if self.padding is not None:
            end = np.equal(words, self.padding).reshape(len(words), -1).all(axis=1)
            words = words[: end.argmax() if end.any() else len(words)]
        if words.ndim == 1:
            assert self.table is not None
            words = self.table[words.astype(np.int64)]
        return np.asarray(words, np.float32)


@dataclass(frozen=True)
class ArrayFolds:
    """The folds, mapped into memory on access, so that this can be sent to other processes.

    ``fixed``: whole arrays, as the paper's model takes them; otherwise sequences are cut to their true lengths.
    """

    folders: tuple[Path, ...]
    label_names: tuple[str, ...]
    fixed: bool
    name: str = NAME
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folds(self) -> int:
        return len(self.folders)

    def split(self, fold: int) -> dict[str, Part]:
        return {split: self._part(self.folders[fold], split) for split in SPLITS}

    def prosody(self, fold: int, split: str) -> np.ndarray:
        """Prosody vectors (n, P) of the clips of ``split`` (train, dev, test). Raises CorpusError if there are none."""
        folder = self.folders[fold]
        path = folder / f"{split}_audio_prosody.npy"
        if not path.is_file():
            raise CorpusError(f"{path}: no such file")
        return np.asarray(np.load(path, mmap_mode="r")[_with_picture(folder, split)], np.float32)

    def _part(self, folder: Path, split: str) -> Part:
        items = _with_picture(folder, split)
        video, audio = (np.load(folder / f"{split}_{m}.npy", mmap_mode="r") for m in ("video", "audio_mfcc"))
        features: dict[str, Sequences] = {
            "audio": Rows(audio, items, self._length(folder / f"{split}_audio_seqN.npy", audio)[items]),
            "video": Rows(video, items, self._length(folder / f"{split}_video_seqN.npy", video)[items]),
        }
        path, table_path = _text(folder, split), _table(folder)
        assert path is not None  # ``load`` checked it
        text = np.load(path, mmap_mode="r")
        table = None if table_path is None else np.load(table_path, mmap_mode="r")
        padding = np.zeros(text.shape[2:], text.dtype)
        if text.ndim == 3 and table is not None:
            padding = table[0]
        features["text"] = Words(text, table, items, None if self.fixed else padding)
        labels = _numbers(np.load(folder / f"{split}_label.npy"))[items]
        return Part(features, dict.fromkeys(features, labels), aligned=True)

    def _length(self, path: Path, array: np.ndarray) -> np.ndarray:
        most = array.shape[1]
        return np.full(len(array), most) if self.fixed else np.minimum(np.load(path).astype(np.int64).ravel(), most)


def load(folder: Path, fixed: bool) -> ArrayFolds:
    """The folds below ``folder``. Every value is read once, to find NaN and values out of range.

    The arrays do not say what a label's number means. Where the numbers of clips are the published ones, labels are
    named by them, else "label 0" and so on. Raises Problems with everything that is wrong with the arrays.
    """
    folders = [folder] if any(folder.glob("train_*.npy")) else sorted({p.parent for p in folder.glob("*/*_*.npy")})
    if not folders:
        raise CorpusError(
            f"{folder}: neither holds train_label.npy and the like nor has a subfolder that does; "
            "expected fold01, fold02, … (see docs/corpora.md)"
        )
    problems: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}  # a clip's shape in each kind of array, the same in all splits and folds
    for place in folders:
        for split in SPLITS:
            problems += _check(place, split, shapes)
    if problems:
        raise Problems(str(folder), list(dict.fromkeys(problems)))
    files = sorted({path for place in folders for path in (*place.glob("*.npy"), *place.parent.glob("W_*.npy"))})
    listed = {str(p.relative_to(folder.parent)): [p.stat().st_size, p.stat().st_mtime_ns] for p in files}
    return ArrayFolds(tuple(folders), _names(folders[0]), fixed, settings={"fixed": fixed, "files": listed})


def _text(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{split}_{name}.npy" for name in ("text", "nlp_trans"))
    return next((path for path in paths if path.is_file()), None)


def _table(folder: Path) -> Path | None:
    paths = (place / "W_embedding.npy" for place in (folder, folder.parent))
    return next((path for path in paths if path.is_file()), None)


def _with_picture(folder: Path, split: str) -> np.ndarray:
    return np.flatnonzero(np.load(folder / f"{split}_video_seqN.npy").ravel() > 0)


def _numbers(label: np.ndarray) -> np.ndarray:
    """(N,) numbers, (N, 1) or one-hot (N, labels) → (N,) int64."""
    return (label.argmax(axis=1) if label.ndim == 2 and label.shape[1] > 1 else label.ravel()).astype(np.int64)


def _names(folder: Path) -> tuple[str, ...]:
    labels = np.concatenate([_numbers(np.load(folder / f"{split}_label.npy")) for split in SPLITS])
    count = np.bincount(labels, minlength=LABELS).tolist()
    by_count = {number: label for label, number in COUNTS.items()}  # no two labels have the same number
    if set(count) == set(by_count):
        return tuple(by_count[number] for number in count)
    return tuple(f"label {k}" for k in range(LABELS))


def _check(folder: Path, split: str, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the arrays of one split of one fold."""
    arrays: dict[str, np.ndarray] = {}
    paths = {name: folder / f"{split}_{name}.npy" for name in KINDS}
    text = _text(folder, split)
    if text is None:
        yield f"{folder}: has neither {split}_text.npy nor {split}_nlp_trans.npy"
    else:
        paths["text"] = text
    if (prosody := folder / f"{split}_audio_prosody.npy").is_file():
        paths["audio_prosody"] = prosody
    if (table := _table(folder)) is not None:
        paths["W_embedding"] = table
    for name, path in paths.items():
        try:
            arrays[name] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            yield f"{path}: " + ("no such file" if not path.is_file() else f"is no array that NumPy reads ({error})")
    wrong = set()
    for name, array in arrays.items():
        if array.dtype.kind not in "iuf":
            yield f"{paths[name]}: holds {array.dtype}, expected numbers"
            wrong.add(name)
        elif array.ndim not in DIMENSIONS[name] or (name.endswith("seqN") and array.size != len(array)):
            yield f"{paths[name]}: has the shape {array.shape}"
            wrong.add(name)
        elif not name.startswith(("label", "W_")) and shapes.setdefault(name, array.shape[1:]) != array.shape[1:]:
            yield f"{paths[name]}: clips have the shape {array.shape[1:]}, in the first fold {shapes[name]}"
    for name in wrong:
        del arrays[name]
    counts = {name: len(array) for name, array in arrays.items() if name != "W_embedding"}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"{folder}: {split} arrays are of different numbers of clips: {listed}"
    for name, array in arrays.items():
        yield from (f"{paths[name]}: {problem}" for problem in _values(name, array, arrays.get("W_embedding")))


def _values(name: str, array: np.ndarray, table: np.ndarray | None) -> Iterator[str]:
    """What is wrong with the values of one array."""
    bad: list[int] = []
    for start in range(0, len(array), _BLOCK):
        block = np.asarray(array[start : start + _BLOCK])
        finite = np.isfinite(block).reshape(len(block), -1)
        bad += (start + np.flatnonzero(~finite.all(axis=1))).tolist()
    if bad:
        yield f"NaN or infinite in {_some(bad)}"
        return
    whole = np.zeros(0, bool)
    if name == "label":
        one_hot = array.ndim == 2 and array.shape[1] > 1
        if one_hot and array.shape[1] != LABELS:
            yield f"has {array.shape[1]} columns, expected {LABELS}"
        elif one_hot:
            whole = ((array == 0) | (array == 1)).all(axis=1) & (array.sum(axis=1) == 1)
        else:
            flat = array.ravel()
            whole = (flat == np.floor(flat)) & (flat >= 0) & (flat < LABELS)
        expected = "a single 1 in each row" if one_hot else f"a whole number from 0 to {LABELS - 1}"
    elif name.endswith("seqN"):
        flat = array.ravel()
        whole, expected = (flat == np.floor(flat)) & (flat >= 0), "a whole number from 0 up"
        if name == "video_seqN" and not flat.any():
            yield "no clip has a picture"
    elif name == "text" and array.ndim == 2:
        if table is None:
            yield "holds row numbers of W_embedding.npy, which is neither here nor in the folder above"
            return
        whole = ((array == np.floor(array)) & (array >= 0) & (array < len(table))).all(axis=1)
        expected = f"whole numbers from 0 to {len(table) - 1}, the rows of W_embedding"
    if not whole.all():
        yield f"not {expected} in {_some(np.flatnonzero(~whole).tolist())}"


def _some(items: list[int], most: int = 10) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"item{'s' if len(items) > 1 else ''} {', '.join(map(str, items[:most]))}{more}"
