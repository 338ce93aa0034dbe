"""stream-train fit: a bundle, from public corpora (--preset) or from your own recordings (--corpus manifest)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from emostream.errors import ConfigError
from emostream.train.bundle.presets import PRESETS
from emostream.train.commands.options import add_cache, add_data, need_data


def add_arguments(fit: argparse.ArgumentParser) -> None:
    what = fit.add_mutually_exclusive_group(required=True)
    what.add_argument("--preset", choices=PRESETS, help="train a shipped bundle again, from public corpora")
    what.add_argument("--corpus", choices=("manifest",), help="train a shipped bundle further, on your own recordings")
    add_data(fit, "PATH", "folder of the corpora (docs/corpora.md); with --corpus manifest, your .csv or .parquet file")
    fit.add_argument("--out", type=Path, metavar="DIR", help="the bundle's folder (default: bundles/NAME)")
    add_cache(fit, "features and finished parts")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--portable", action="store_true",
        help="leave out the hand-written fast graphs, for a network that they do not fit",
    )  # fmt: skip
    fit.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    own = fit.add_argument_group("with --corpus manifest")
    own.add_argument("--base", default="ekman7", metavar="BUNDLE", help="bundle to start from (default: %(default)s)")
    own.add_argument("--steps", type=int, default=150, help="of training (default: %(default)s)")
    own.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that extract features (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Make the bundle and print its figures. Raises CorpusError, ModelError, BundleError or ExportError."""
    data = need_data(arguments.data, "where is the data", "PATH")
    if arguments.corpus and arguments.portable:
        raise ConfigError("--portable is for --preset")
    if min(arguments.steps, arguments.jobs, arguments.threads) < 1:
        raise ConfigError("--steps, --jobs and --threads must be at least 1")

    import torch  # heavy imports, once the arguments are right

    torch.set_num_threads(arguments.threads)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return _own(arguments, data) if arguments.corpus else _preset(arguments, data)


def _preset(arguments: argparse.Namespace, data: Path) -> int:
    from emostream.train.bundle.recipe import make_bundle
    from emostream.train.progress import ProgressBars

    with ProgressBars() as progress:
        manifest, folder = make_bundle(
            arguments.preset,
            data,
            arguments.out,
            arguments.cache,
            arguments.seed,
            progress.stage,
            arguments.portable,
        )
    for name, figures in manifest.metrics["validation"].items():
        shown = (f"{key} {figures[key]}" for key in ("items", "accuracy", "balanced_accuracy", "macro_f1"))
        print(f"{name:<34}", *shown)
    print(f"bundle: {folder}")
    return 0


def _own(arguments: argparse.Namespace, data: Path) -> int:
    from emostream.engines.bundle import open_bundle
    from emostream.train.bundle.own import make_own
    from emostream.train.corpora.recorded import read_corpus
    from emostream.train.progress import ProgressBars

    base = open_bundle(arguments.base)
    corpus = read_corpus("manifest", data, least=2)
    out = arguments.out or Path("bundles") / data.stem
    with ProgressBars() as progress:
        manifest = make_own(
            corpus.clips, corpus.label_names, data, base, out, arguments.cache, arguments.steps, arguments.seed,
            arguments.jobs, progress.stage,
        )  # fmt: skip
    print(f"{len(corpus.clips)} clips, labels: {', '.join(manifest.labels)}; {manifest.metrics['how']}")
    for note in manifest.metrics["notes"]:
        print(f"note: {note}")
    for name, figures in manifest.metrics["validation"].items():
        shown = (
            f"{title} {figures[key]:.3f} ({low:.3f} to {high:.3f})"
            for key, title in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced"), ("macro_f1", "macro F1"))
            for low, high in [figures["intervals"][key]]
        )
        print(f"{name:<18} clips {figures['items']}", *shown)
    calibration = manifest.metrics["calibration"]
    for name in manifest.metrics["validation"]:
        print(f"temperature for {name}: {manifest.temperature[name]} ({calibration['temperature'][name]})")
    print(f"uncertain below {manifest.uncertain_below} ({calibration['uncertain_below']})")
    print(f"bundle: {out}")
    print(f"use it: stream-run --config config.toml --set fusion.bundle={out}")
    return 0
