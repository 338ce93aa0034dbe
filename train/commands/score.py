"""stream-train score LABELS.jsonl: how often ``stream-label`` gave each label; with ``--corpus``, how often it was
right."""

from __future__ import annotations

import argparse
from pathlib import Path

from emostream.errors import ConfigError
from emostream.train.commands.options import add_data, need_data

CORPORA = ("ravdess", "emodb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", type=Path, metavar="LABELS.jsonl")
    parser.add_argument(
        "--corpus", choices=CORPORA, help="compare with its held-out recordings; without it, only count the labels"
    )
    add_data(parser, "DIR", f"folder with {'/ or '.join(CORPORA)}/")
    parser.add_argument("--record", nargs=2, metavar=("BUNDLE", "RECOGNISER"), help="keep the figures in its manifest")


def run(arguments: argparse.Namespace) -> int:
    """Print the scores. Raises CorpusError, BundleError or ConfigError."""
    from emostream.engines.bundle import open_bundle, write_manifest
    from emostream.train.bundle.score import count, read_labels, score
    from emostream.train.corpora import emodb, in_split, ravdess

    if arguments.corpus is None:
        if arguments.record is not None:
            raise ConfigError("--record keeps scores; it needs --corpus")
        print(
            f"{arguments.labels}:", *(f"{key} {value}" for key, value in count(read_labels(arguments.labels)).items())
        )
        return 0
    data = need_data(arguments.data, "where are the corpora", "DIR")
    corpus = arguments.corpus
    module = {"ravdess": ravdess, "emodb": emodb}[corpus]
    figures = score(in_split(module.load(data / corpus), "val"), read_labels(arguments.labels))
    if arguments.record is not None:
        name, recogniser = arguments.record
        bundle = open_bundle(name)
        facts = {"recordings": f"{module.NAME}, held-out speakers", "recogniser": recogniser}
        bundle.manifest.metrics.setdefault("live", {})[f"{corpus}, {recogniser}"] = {**facts, **figures}
        write_manifest(bundle.folder, bundle.manifest)
    print(f"{corpus}, held-out speakers:", *(f"{key} {value}" for key, value in figures.items()))
    return 0
