"""python -m train fit | score | features | crossval: a bundle and what it is worth; features and studies of corpora."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def parser() -> argparse.ArgumentParser:
    from train.crossval_command import add_crossval_command
    from train.extract_command import add_features_command
    from train.presets import PRESETS

    top = argparse.ArgumentParser(prog="python -m train", description="Training of bundles and comparison of models.")
    commands = top.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="make a bundle from the corpora")
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
    fit.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    score = commands.add_parser("score", help="labels that stream-label wrote, against a corpus's held-out recordings")
    score.add_argument("labels", type=Path, metavar="LABELS.jsonl")
    score.add_argument("--corpus", choices=("ravdess", "emodb"), required=True)
    score.add_argument("--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="DIR")
    add_features_command(commands)
    add_crossval_command(commands)
    return top


def _score(labels: Path, corpus: str, data: Path) -> int:
    from importlib import import_module

    from train.corpora import CorpusError, of
    from train.score import read_labels, score

    try:
        held_out = of(import_module(f"train.corpora.{corpus}").load(data / corpus), "val")
        figures = score(held_out, read_labels(labels))
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{corpus}, held-out speakers:", *(f"{key} {value}" for key, value in figures.items()))
    return 0


def _fit(arguments: argparse.Namespace) -> int:
    import torch  # heavy imports, once the arguments are right

    from engines.bundle import BundleError
    from stream.models import ModelError
    from train.corpora import CorpusError
    from train.export import ExportError
    from train.recipe import make_bundle

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
                arguments.preset, arguments.data, arguments.out, arguments.cache, arguments.seed, stage
            )
        except (CorpusError, ModelError, ExportError, BundleError) as error:
            console.print(f"[red]error:[/red] {error}", soft_wrap=True)
            return 1
    for name, figures in manifest.metrics["validation"].items():
        shown = (f"{key} {figures[key]}" for key in ("items", "accuracy", "balanced_accuracy", "macro_f1"))
        print(f"{name:<34}", *shown)
    print(f"bundle: {folder}")
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.command == "features":
        from train.extract_command import run_features

        return run_features(arguments)
    if arguments.command == "crossval":
        from train.crossval_command import run_crossval

        return run_crossval(arguments)
    if arguments.data is None:
        parser().error("where are the corpora? give --data DIR or set EMOSTREAM_DATA")
    if arguments.command == "score":
        return _score(arguments.labels, arguments.corpus, arguments.data)
    return _fit(arguments)


if __name__ == "__main__":
    sys.exit(main())
