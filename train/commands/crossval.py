"""python -m train crossval --corpus NAME --data PATH --out DIR: the study, from features to the report."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:  # heavy imports, made in ``run_crossval``
    from emostream.engines.bundle import Bundle
    from emostream.train.study.dataset import Folds
    from emostream.train.study.trial import Result, Spec

CORPORA = ("label-paired", "manifest", "iemocap", "iemocap_folds")
Stage = Callable[[str], Callable[[int, int], None]]


@dataclasses.dataclass(frozen=True)
class Size:
    systems: str
    folds: int
    seeds: int
    max_epochs: int
    most: int | None  # items of each label and corpus, where they are label-paired


PRESETS = {
    "full": Size("paper-table", folds=5, seeds=3, max_epochs=40, most=None),
    # shows in a minute or two that everything fits together; its figures mean nothing
    "tiny": Size("trimodal", folds=3, seeds=1, max_epochs=2, most=24),
}


def add_crossval_command(subparsers: argparse._SubParsersAction) -> None:
    command = subparsers.add_parser("crossval", help="compare systems by cross-validation and write the report")
    command.add_argument("--corpus", choices=CORPORA, required=True)
    command.add_argument(
        "--data", type=Path, default=os.environ.get("EMOSTREAM_DATA"), metavar="PATH",
        help="the corpus's folder, the manifest, or for label-paired the folder with ravdess/, fer2013/ and "
        "goemotions/ (or set EMOSTREAM_DATA)",
    )  # fmt: skip
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where finished runs are kept")
    command.add_argument(
        "--systems", metavar="A,B,…",
        help="such as avt-cross, a-self, at-both-nosp, or groups: unimodal, bimodal, trimodal, ablation, paper-table "
        "(default: by preset, paper-table)",
    )  # fmt: skip
    command.add_argument("--preset", choices=PRESETS, default="full", help="sizes (default: %(default)s)")
    command.add_argument(
        "--folds", type=int, metavar="N", help="default: by preset, 5; a corpus with its own keeps them"
    )
    command.add_argument("--seeds", type=int, metavar="N", help="runs of each system and fold (default: by preset, 3)")
    command.add_argument("--max-epochs", type=int, metavar="N", help="default: by preset, 40")
    command.add_argument("--variant", choices=("default", "paper"), default="default", help="default: %(default)s")
    command.add_argument(
        "--modality-dropout", type=float, default=0.0, metavar="P",
        help="how often a modality is left out of a training example (default: 0, as in the paper)",
    )  # fmt: skip
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    command.add_argument(
        "--ray", metavar="ADDRESS", help='send the runs to this Ray cluster; "local" starts one here, with --jobs CPUs'
    )
    command.add_argument("--report", type=Path, metavar="DIR", help="where the report goes (default: OUT/report)")
    command.add_argument("--bundle", default="ekman7", help="whose face network and word vectors (default: ekman7)")
    command.add_argument(
        "--cache", type=Path, metavar="DIR", default=Path(platformdirs.user_cache_dir("emostream")) / "train",
        help="folder where features are kept (default: %(default)s)",
    )  # fmt: skip


def sized(arguments: argparse.Namespace) -> Size:
    """The preset's sizes, where none were given. Raises ValueError for numbers that make no study."""
    preset = PRESETS[arguments.preset]
    given = {name: getattr(arguments, name) for name in ("systems", "folds", "seeds", "max_epochs")}
    size = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
    if size.folds < 3:
        raise ValueError(f"--folds {size.folds}: at least 3, one to test, one to select by, one to train on")
    for name in ("seeds", "max_epochs"):
        if getattr(size, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(size, name)}: at least 1")
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: at least 1")
    if not 0 <= arguments.modality_dropout < 1:
        raise ValueError(f"--modality-dropout {arguments.modality_dropout}: a probability below 1")
    if arguments.modality_dropout and arguments.variant == "paper":
        raise ValueError("--modality-dropout: the paper's network has no masks; use --variant default")
    return size


def told(arguments: argparse.Namespace, size: Size) -> str:
    """The command that gives these results, with DIR and PATH in place of this machine's places."""
    words = [f"python -m train crossval --corpus {arguments.corpus} --data PATH --out DIR"]
    if arguments.preset != "full":
        words.append(f"--preset {arguments.preset}")
    words.append(f"--systems {size.systems} --folds {size.folds} --seeds {size.seeds} --max-epochs {size.max_epochs}")
    if arguments.variant != "default":
        words.append(f"--variant {arguments.variant}")
    if arguments.modality_dropout:
        words.append(f"--modality-dropout {arguments.modality_dropout:g}")
    return " ".join(words)


def run_crossval(arguments: argparse.Namespace) -> int:
    """The exit status: 0 when all runs are there and the report is written, 1 with what is wrong, 130 if interrupted.

    Whatever the status, finished runs are kept, and the same command goes on from there.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from emostream.engines.bundle import open_bundle
    from emostream.errors import BackendError, BundleError, CorpusError, ModelError
    from emostream.train.study.crossval import check, complete, finished, grid, systems
    from emostream.train.study.report import write
    from emostream.train.study.trial import Training

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        size = sized(arguments)
        names = systems(size.systems.split(","))
        if arguments.data is None:
            raise ValueError("where is the corpus? give --data PATH or set EMOSTREAM_DATA")
        # an hour: a run may take minutes, and the time left is estimated from the runs of this period
        with Progress(*columns, console=console, speed_estimate_period=3600) as progress:

            def stage(name: str) -> Callable[[int, int], None]:
                task = None  # what is kept from before never begins

                def step_done(done: int, total: int) -> None:
                    nonlocal task
                    task = progress.add_task(name) if task is None else task
                    progress.update(task, completed=done, total=total)

                return step_done

            folds = read_folds(arguments, size, open_bundle(arguments.bundle), stage)
            specs = grid(names, arguments.variant, folds.folds, size.seeds)
            check(specs, folds)
            # processed arrays are what the paper's network read; any other features it gets standardised
            training = Training(
                size.max_epochs, arguments.modality_dropout, standardise=arguments.corpus != "iemocap_folds"
            )
            before = len(finished(specs, training, folds, arguments.out))
            task = progress.add_task("runs", total=len(specs), completed=before)

            def done(spec: Spec, outcome: Result | str) -> None:
                progress.advance(task)
                place = f"{spec.system}, fold {spec.fold}, seed {spec.seed}"
                if isinstance(outcome, str):
                    console.print(f"[red]failed:[/red] {place}", highlight=False)
                else:
                    best = outcome.dev[outcome.best_epoch]["accuracy"]
                    figures = f"dev accuracy {best:.3f}, {len(outcome.dev)} epochs, {outcome.seconds:.0f} s"
                    console.print(f"{place}: {figures}", highlight=False)

            failures = complete(specs, training, folds, arguments.out, arguments.jobs, arguments.ray, done)
        results = finished(specs, training, folds, arguments.out)
        for spec, why in failures.items():
            print(f"failed: {spec.system}, fold {spec.fold}, seed {spec.seed}: {why}", file=sys.stderr)
        if failures:
            print(f"{len(failures)} of {len(specs)} runs failed; call again to make them anew", file=sys.stderr)
        report = arguments.report or arguments.out / "report"
        for path in write(report, folds, results, specs, training, told(arguments, size)):
            print(path)
    except (CorpusError, ModelError, BundleError, BackendError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 1 if failures else 0


# --- corpora ---------------------------------------------------------------------------------------------------------


def read_folds(arguments: argparse.Namespace, size: Size, bundle: Bundle, stage: Stage) -> Folds:
    """The corpus asked for, its features extracted or from the cache. Raises CorpusError, ModelError, BackendError."""
    if arguments.corpus == "label-paired":
        from emostream.train.study.study import label_paired

        return label_paired(arguments.data, bundle, arguments.cache, size.folds, size.most, stage)
    if arguments.corpus == "iemocap_folds":
        from emostream.train.corpora import iemocap_folds

        return iemocap_folds.load(arguments.data, fixed=arguments.variant == "paper")
    return _extracted(arguments, size, bundle, stage)


def _extracted(arguments: argparse.Namespace, size: Size, bundle: Bundle, stage: Stage) -> Folds:
    """A corpus of recordings. Its features are read into memory: each run goes through them many times."""
    import numpy as np

    from emostream.train.bundle.features import Ragged
    from emostream.train.commands.features import read_corpus
    from emostream.train.study.extract import dataset, extract

    corpus = read_corpus(arguments.corpus, arguments.data)
    for warning in corpus.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    files = extract(corpus.clips, bundle, arguments.cache, arguments.jobs, stage("features"))
    folds = dataset(corpus.name, corpus.clips, corpus.label_names, files, size.folds)
    held = {m: Ragged.of([rows[i].astype(np.float16) for i in range(len(rows))]) for m, rows in folds.features.items()}
    return dataclasses.replace(folds, features=held)
