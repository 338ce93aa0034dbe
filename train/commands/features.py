"""python -m train features --corpus NAME --data PATH: the features of a corpus's clips, extracted once and kept."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from emostream.errors import CorpusError
from emostream.stream.features.mfcc import HOP_NS
from emostream.train.corpora import LABELS, Clip, emodb, iemocap, manifest, ravdess

CORPORA = ("manifest", "iemocap", "ravdess", "emodb")


@dataclass(frozen=True)
class Corpus:
    """``warnings``: what is odd, though not wrong."""

    name: str
    clips: list[Clip]
    label_names: tuple[str, ...]
    warnings: list[str]


def read_corpus(name: str, data: Path, labels: Sequence[str] | None = None) -> Corpus:
    """The clips of one of CORPORA. ``labels``: all that a manifest may have, else they are those that it has.

    ``data``: the manifest, or the corpus's folder, or what holds that by the corpus's name. Raises CorpusError.
    """
    if name == "manifest":
        clips = manifest.load(data, labels)
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
    found = {clip.label for clip in clips}
    return Corpus(module.NAME, clips, tuple(label for label in LABELS if label in found), [])


def add_features_command(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("features", help="extract the features of a corpus with sound, picture or words")
    command.add_argument("--corpus", choices=CORPORA, required=True)
    command.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="the corpus's folder, or the manifest (.csv, .parquet)"
    )
    command.add_argument(
        "--labels", type=lambda text: tuple(text.split(",")), metavar="A,B,…",
        help="labels that a manifest may have (default: those that it has)",
    )  # fmt: skip
    command.add_argument("--bundle", default="ekman7", help="whose face network and word vectors (default: ekman7)")
    command.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(platformdirs.user_cache_dir("emostream")) / "train",
        help="folder where features are kept (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")


def run_features(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when all features are there, 1 with a list of what is wrong, 130 when interrupted."""
    from emostream.engines.bundle import open_bundle
    from emostream.errors import BackendError, BundleError, ModelError
    from emostream.train.study.extract import extract

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        bundle = open_bundle(arguments.bundle)
        corpus = read_corpus(arguments.corpus, arguments.data, arguments.labels)
        for warning in corpus.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("features")

            def done(finished: int, total: int) -> None:
                progress.update(task, completed=finished, total=total)

            files = extract(corpus.clips, bundle, arguments.cache, max(1, arguments.jobs), done)
    except (CorpusError, ModelError, BundleError, BackendError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    _summary(corpus, files)
    return 0


def _summary(corpus: Corpus, files: Sequence[Path]) -> None:
    from emostream.train.study.extract import lengths

    count = Counter(clip.label for clip in corpus.clips)
    speakers, groups = ({getattr(clip, name) for clip in corpus.clips} for name in ("speaker", "group"))
    print(f"{corpus.name}: {len(files)} clips, {len(speakers)} speakers, {len(groups)} groups that no fold splits")
    print("labels: " + ", ".join(f"{label} {count[label]}" for label in corpus.label_names))
    for m, rows in lengths(files).items():
        there = rows[rows > 0]
        mean = float(np.mean(there)) if len(there) else 0.0
        seconds = f" ({mean * HOP_NS / 1e9:.2f} s)" if m == "audio" else ""
        print(f"{m}: {len(there)} clips have it, {mean:.1f} rows{seconds} each on average")
    print(f"features: {files[0].parent.parent}")
