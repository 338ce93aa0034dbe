"""stream-train features --corpus NAME --data PATH: the features of a corpus's clips, extracted once and kept."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emostream.commands import STOPPED
from emostream.stream.features.mfcc import HOP_NS
from emostream.train.commands.options import add_cache, add_encoders
from emostream.train.corpora.recorded import CORPORA, Corpus, read_corpus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="the corpus's folder, or the manifest (.csv, .parquet)"
    )
    parser.add_argument(
        "--labels", type=lambda text: tuple(text.split(",")), metavar="A,B,…",
        help="labels that a manifest may have (default: those that it has)",
    )  # fmt: skip
    add_encoders(parser)
    add_cache(parser, "features")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Extract all features and print a summary. Raises CorpusError, ModelError, BundleError or BackendError."""
    from emostream.engines.bundle import open_bundle
    from emostream.train.progress import ProgressBars
    from emostream.train.study.extract import extract

    try:
        bundle = open_bundle(arguments.bundle)
        corpus = read_corpus(arguments.corpus, arguments.data, arguments.labels)
        for warning in corpus.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        with ProgressBars() as progress:
            files = extract(corpus.clips, bundle, arguments.cache, max(1, arguments.jobs), progress.stage("features"))
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return STOPPED
    _print_summary(corpus, files)
    return 0


def _print_summary(corpus: Corpus, files: Sequence[Path]) -> None:
    from emostream.train.study.extract import lengths

    count = Counter(clip.label for clip in corpus.clips)
    speakers, groups = ({getattr(clip, name) for clip in corpus.clips} for name in ("speaker", "group"))
    print(f"{corpus.name}: {len(files)} clips, {len(speakers)} speakers, {len(groups)} groups that no fold splits")
    print("labels: " + ", ".join(f"{label} {count[label]}" for label in corpus.label_names))
    for m, rows in lengths(files).items():
        present = rows[rows > 0]
        mean = float(np.mean(present)) if len(present) else 0.0
        seconds = f" ({mean * HOP_NS / 1e9:.2f} s)" if m == "audio" else ""
        print(f"{m}: {len(present)} clips have it, {mean:.1f} rows{seconds} each on average")
    print(f"features: {files[0].parent.parent}")
