"""Features of the corpora, by the code that runs live, computed once and kept.

Each result is in a folder named by a hash of everything it was made from, so that features of other settings or data
are never used instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from emostream.errors import CorpusError, Problems, SourceError
from emostream.files import OWNER_ONLY, sha256, write_atomically
from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.features import mfcc
from emostream.stream.speech.vad import SileroVad
from emostream.train.corpora import Item
from emostream.train.progress import StepDone, ignore
from emostream.train.recordings import read_sound, utterances

VERSION = 5  # raise this number when the code here changes the features
ENDPOINTING = {"threshold", "min_speech_ms", "pause_ms", "hangover_ms", "max_utterance_s", "min_hangover_ms"}


def fingerprint(items: Sequence[Item], labels: bool) -> str:
    """Hash of the items: names and sizes of files, contents of images and texts, and if ``labels`` their labels."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item.content, Path):
            stretch = "" if item.span_s is None else f" {item.span_s[0]:.3f}-{item.span_s[1]:.3f}"
            content = f"{item.content.name} {item.content.stat().st_size}{stretch}".encode()
        else:
            content = item.content.encode() if isinstance(item.content, str) else item.content
        digest.update(b"%d:%s|%s\n" % (len(content), content, item.label.encode() if labels else b""))
    return digest.hexdigest()


def code_of(*modules: ModuleType) -> str:
    """Hash of the modules' sources: what they trained is no longer used once they have changed."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def cached(
    cache: Path, kind: str, settings: dict[str, Any], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that ``make`` returns, or those that it returned for the same ``settings`` before."""
    text = json.dumps(settings, sort_keys=True, indent=1)
    folder = cache / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = folder / "arrays.safetensors"
    if not path.is_file():
        arrays = make()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / "settings.json", text + "\n", OWNER_ONLY)
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomically(path, content, OWNER_ONLY)
    return load_file(path)


@dataclass(frozen=True)
class Ragged:
    """Sequences of unequal length, end to end: sequence i is ``rows[starts[i] : starts[i + 1]]``."""

    rows: np.ndarray
    starts: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[self.starts[i] : self.starts[i + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Ragged:
        return cls(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)]))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """All sequences of the parts, in their order."""
        return cls.of([part[i] for part in parts for i in range(len(part))])


def audio(items: Sequence[Item], cache: Path, done: StepDone = ignore) -> Ragged:
    """MFCC of each recording, for studies: from the first utterance's start to the last one's end, as a live run cuts
    it, or of the whole recording if it has no utterance. (rows, 120) float16.

    Raises Problems with all recordings that cannot be used, and ModelError if Silero VAD is missing.
    """
    model = models.need("silero-vad")
    config = Speech()

    def make() -> dict[str, np.ndarray]:
        vad = SileroVad(model)
        sequences: list[np.ndarray] = []
        problems = []
        for i, item in enumerate(items):
            assert isinstance(item.content, Path)
            try:
                sequences.append(_rows(item.content, vad, config))
            except (SourceError, CorpusError) as error:
                problems.append(str(error))
                continue
            done(i + 1, len(items))
        if problems:
            raise Problems("recordings", problems)
        ragged = Ragged.of(sequences)
        return {"rows": ragged.rows.astype(np.float16), "starts": ragged.starts.astype(np.int64)}

    settings = {
        "mfcc": mfcc.SETTINGS, "endpointing": config.model_dump(include=ENDPOINTING), "vad": sha256(model),
        "version": VERSION, "items": fingerprint(items, labels=False),
    }  # fmt: skip
    return Ragged(**cached(cache, "audio", settings, make))


def _rows(path: Path, vad: SileroVad, config: Speech) -> np.ndarray:
    """MFCC rows of a recording, at least one. Raises SourceError or CorpusError."""
    sound = read_sound(path, "mfcc")
    if sound is None:
        raise CorpusError(f"{path}: has no sound")
    if not sound.blocks:
        raise CorpusError(f"{path}: shorter than one frame of voice activity, 32 ms")
    bounds = utterances(sound, vad, config)
    rows = sound.rows(bounds[0][0], bounds[-1][1]) if bounds else sound.rows()
    return rows if len(rows) else sound.rows()[:1]
