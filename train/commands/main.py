"""``stream-train``: bundles and their worth; features and studies of corpora."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emostream.commands import exit_code, make_parser


def parser() -> argparse.ArgumentParser:
    from emostream.train.commands.crossval import add_crossval_command
    from emostream.train.commands.features import add_features_command
    from emostream.train.commands.fit import add_fit_command

    top = make_parser("stream-train", "Train bundles and compare models.")
    commands = top.add_subparsers(dest="command", required=True)
    add_fit_command(commands)
    score = commands.add_parser("score", help="labels that stream-label wrote, against a corpus's held-out recordings")
    score.add_argument("labels", type=Path, metavar="LABELS.jsonl")
    score.add_argument("--corpus", choices=("ravdess", "emodb"), required=True)
    score.add_argument("--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="DIR")
    score.add_argument("--record", nargs=2, metavar=("BUNDLE", "RECOGNISER"), help="keep the figures in its manifest")
    card = commands.add_parser("card", help="write a bundle's model card to the output")
    card.add_argument("bundle", metavar="BUNDLE", help="a shipped bundle's name or a folder")
    add_features_command(commands)
    add_crossval_command(commands)
    return top


def _score(labels: Path, corpus: str, data: Path, record: list[str] | None) -> int:
    from importlib import import_module

    from emostream.engines.bundle import open_bundle, write_manifest
    from emostream.errors import BundleError, CorpusError
    from emostream.train.bundle.score import read_labels, score
    from emostream.train.corpora import of

    try:
        module = import_module(f"emostream.train.corpora.{corpus}")
        figures = score(of(module.load(data / corpus), "val"), read_labels(labels))
        if record is not None:
            name, recogniser = record
            bundle = open_bundle(name)
            facts = {"recordings": f"{module.NAME}, held-out speakers", "recogniser": recogniser}
            bundle.manifest.metrics.setdefault("live", {})[f"{corpus}, {recogniser}"] = {**facts, **figures}
            write_manifest(bundle.folder, bundle.manifest)
    except (CorpusError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{corpus}, held-out speakers:", *(f"{key} {value}" for key, value in figures.items()))
    return 0


def _card(name: str) -> int:
    from emostream.engines.bundle import open_bundle
    from emostream.errors import BundleError
    from emostream.train.bundle.card import card

    try:
        print(card(open_bundle(name)), end="")
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"error: the manifest of {name} has no {error}: was it made by `python -m train fit`?", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = parser().parse_args(argv)
    return exit_code(lambda: _command(arguments))


def run() -> None:
    """The console script."""
    sys.exit(main())


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "fit":
        from emostream.train.commands.fit import run_fit

        return run_fit(arguments)
    if arguments.command == "features":
        from emostream.train.commands.features import run_features

        return run_features(arguments)
    if arguments.command == "crossval":
        from emostream.train.commands.crossval import run_crossval

        return run_crossval(arguments)
    if arguments.command == "card":
        return _card(arguments.bundle)
    if arguments.data is None:
        parser().error("where are the corpora? give --data DIR or set EMOSTREAM_DATA")
    return _score(arguments.labels, arguments.corpus, arguments.data, arguments.record)
