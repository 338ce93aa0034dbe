"""stream-train fit --preset NAME --data DIR [--out DIR]: corpora → features → face, words, fusion → a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from emostream.train.bundle.presets import PRESETS
from emostream.train.commands.options import add_cache, add_data, need_data


def add_arguments(fit: argparse.ArgumentParser) -> None:
    fit.add_argument("--preset", choices=PRESETS, required=True)
    add_data(fit, "DIR", "folder with ravdess/, emodb/, fer2013/, goemotions/ and meld/")
    fit.add_argument("--out", type=Path, metavar="DIR", help="the bundle's folder (default: bundles/<preset>)")
    add_cache(fit, "features and finished parts")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--portable", action="store_true",
        help="leave out the hand-written fast graphs, for a network that they do not fit",
    )  # fmt: skip
    fit.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Make the bundle and print its figures. Raises CorpusError, ModelError or ExportError."""
    data = need_data(arguments.data, "where are the corpora", "DIR")

    import torch  # heavy imports, once the arguments are right

    from emostream.train.bundle.recipe import make_bundle
    from emostream.train.progress import ProgressBars

    torch.set_num_threads(arguments.threads)
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
