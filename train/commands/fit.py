"""python -m train fit --preset ekman7 --data DIR [--out DIR]: corpora → features → face, words, fusion → a bundle."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from emostream.train.bundle.presets import PRESETS


def add_fit_command(subparsers: argparse._SubParsersAction) -> None:
    fit = subparsers.add_parser("fit", help="make a bundle from the corpora")
    fit.add_argument("--preset", choices=PRESETS, required=True)
    fit.add_argument(
        "--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="DIR",
        help="folder with ravdess/, emodb/, fer2013/, goemotions/ and meld/ (or set EMOSTREAM_DATA)",
    )  # fmt: skip
    fit.add_argument("--out", type=Path, metavar="DIR", help="the bundle's folder (default: bundles/<preset>)")
    fit.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(platformdirs.user_cache_dir("emostream")) / "train",
        help="folder where features and finished parts are kept (default: %(default)s)",
    )  # fmt: skip
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument(
        "--portable", action="store_true",
        help="leave out the hand-written fast graphs, for a network that they do not fit",
    )  # fmt: skip
    fit.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")


def run_fit(arguments: argparse.Namespace) -> int:
    """The exit status: 0 with the figures printed, 1 with what is wrong."""
    if arguments.data is None:
        print("error: where are the corpora? give --data DIR or set EMOSTREAM_DATA", file=sys.stderr)
        return 1
    import torch  # heavy imports, once the arguments are right

    from emostream.errors import BundleError, CorpusError, ExportError, ModelError
    from emostream.train.bundle.recipe import make_bundle

    torch.set_num_threads(arguments.threads)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def stage(name: str):
            task = None  # a part that is kept from before never begins

            def step_done(done: int, total: int, loss: float | None = None) -> None:
                nonlocal task
                task = progress.add_task(name, loss="") if task is None else task
                progress.update(task, completed=done, total=total, loss="" if loss is None else f"loss {loss:.3f}")

            return step_done

        try:
            manifest, folder = make_bundle(
                arguments.preset,
                arguments.data,
                arguments.out,
                arguments.cache,
                arguments.seed,
                stage,
                arguments.portable,
            )
        except (CorpusError, ModelError, ExportError, BundleError) as error:
            console.print(f"[red]error:[/red] {error}", soft_wrap=True)
            return 1
    for name, figures in manifest.metrics["validation"].items():
        shown = (f"{key} {figures[key]}" for key in ("items", "accuracy", "balanced_accuracy", "macro_f1"))
        print(f"{name:<34}", *shown)
    print(f"bundle: {folder}")
    return 0
