"""Corpora of clips with sound, picture or words, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emostream.train.corpora import LABELS, Clip, emodb, iemocap, manifest, ravdess

CORPORA = ("manifest", "iemocap", "ravdess", "emodb")


@dataclass(frozen=True)
class Corpus:
    """``warnings``: what is unusual but not an error."""

    name: str
    clips: list[Clip]
    label_names: tuple[str, ...]
    warnings: list[str]


def read_corpus(name: str, data: Path, labels: Sequence[str] | None = None, least: int = 1) -> Corpus:
    """The clips of one of CORPORA. ``labels``: those that a manifest may have; by default those that occur in it.
    ``least``: see ``manifest.load``.

    ``data``: the manifest, the corpus's folder, or the folder that has it under the corpus's name. Raises CorpusError.
    """
    if name == "manifest":
        clips = manifest.load(data, labels, least)
        return Corpus(data.name, clips, tuple(labels or sorted({clip.label for clip in clips})), [])
    folder = data / name if (data / name).is_dir() else data
    if name == "iemocap":
        clips = iemocap.load(folder)
        return Corpus(iemocap.NAME, clips, iemocap.LABELS, iemocap.check_counts(clips))
    module = {"ravdess": ravdess, "emodb": emodb}[name]
    clips = [
        Clip(item.content.name, item.label, item.speaker, item.speaker, media=item.content)
        for item in module.load(folder)
        if isinstance(item.content, Path)
    ]
    labels_used = {clip.label for clip in clips}
    return Corpus(module.NAME, clips, tuple(label for label in LABELS if label in labels_used), [])
