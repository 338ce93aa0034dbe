"""stream-train evaluate --data mine.csv --bundle A --bundle B: bundles on your own recordings, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from emostream.errors import ConfigError
from emostream.train.commands.options import add_cache, add_data, need_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "FILE", "your .csv or .parquet file (docs/corpora.md)")
    parser.add_argument(
        "--bundle", action="append", metavar="BUNDLE", help="name or folder; several to compare (default: ekman7)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where a report with pictures goes")
    add_cache(parser, "features")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the bundles, print their figures, and write the report. Raises Problems, CorpusError,
    ConfigError or BundleError."""
    data = need_data(arguments.data, "where are the recordings", "FILE")
    if arguments.jobs < 1:
        raise ConfigError("--jobs must be at least 1")

    from emostream.engines.bundle import open_bundle
    from emostream.train.bundle.judge import difference, judge, report
    from emostream.train.corpora.recorded import read_corpus
    from emostream.train.progress import ProgressBars

    bundles = [open_bundle(name) for name in arguments.bundle or ["ekman7"]]
    corpus = read_corpus("manifest", data)
    with ProgressBars() as progress:
        judged = [
            judge(bundle, corpus.clips, arguments.cache, arguments.jobs, progress.stage, data) for bundle in bundles
        ]
    for one in judged:
        print(one.line())
    for other in judged[1:]:
        print(difference(judged[0], other))
    if arguments.out is not None:
        print(f"report: {report(judged, corpus.name, arguments.out)}")
    return 0
