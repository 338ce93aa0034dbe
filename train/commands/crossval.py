"""stream-train crossval --corpus NAME --data PATH --out DIR: the study, from features to the report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emostream.commands import STOPPED
from emostream.errors import ConfigError
from emostream.train.commands.options import add_cache, add_data, add_encoders, need_data

if TYPE_CHECKING:  # heavy imports, made in ``run``
    from emostream.engines.bundle import Bundle
    from emostream.train.progress import Stage
    from emostream.train.study.dataset import Folds
    from emostream.train.study.trial import Result, Spec

CORPORA = ("label-paired", "manifest", "iemocap", "iemocap_folds")


@dataclasses.dataclass(frozen=True)
class Size:
    systems: str
    folds: int
    seeds: int
    max_epochs: int
    limit: int | None  # items per label and corpus, where they are label-paired


PRESETS = {
    "full": Size("paper-table", folds=5, seeds=3, max_epochs=40, limit=None),
    # shows in a minute or two that everything works together; its figures mean nothing
    "tiny": Size("trimodal", folds=3, seeds=1, max_epochs=2, limit=24),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    add_data(
        parser, "PATH",
        "the corpus's folder, the manifest, or for label-paired the folder with ravdess/, fer2013/ and goemotions/",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where finished runs are kept")
    parser.add_argument(
        "--systems", metavar="A,B,…",
        help="such as avt-cross, a-self, at-both-nosp, or groups: unimodal, bimodal, trimodal, ablation, paper-table "
        "(default: by preset, paper-table)",
    )  # fmt: skip
    parser.add_argument("--preset", choices=PRESETS, default="full", help="sizes (default: %(default)s)")
    parser.add_argument(
        "--folds", type=int, metavar="N", help="default: by preset, 5; a corpus with its own keeps them"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each system and fold (default: by preset, 3)")
    parser.add_argument("--max-epochs", type=int, metavar="N", help="default: by preset, 40")
    parser.add_argument("--variant", choices=("default", "paper"), default="default", help="default: %(default)s")
    parser.add_argument(
        "--modality-dropout", type=float, default=0.0, metavar="P",
        help="how often a modality is left out of a training example (default: 0, as in the paper)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help='send the runs to this Ray cluster; "local" starts one here, with --jobs CPUs'
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="where the report goes (default: OUT/report)")
    add_encoders(parser)
    add_cache(parser, "features")


def sized(arguments: argparse.Namespace) -> Size:
    """The preset's sizes, overridden by the options. Raises ConfigError for numbers that make no study."""
    preset = PRESETS[arguments.preset]
    options = {name: getattr(arguments, name) for name in ("systems", "folds", "seeds", "max_epochs")}
    size = dataclasses.replace(preset, **{name: value for name, value in options.items() if value is not None})
    if size.folds < 3:
        raise ConfigError(f"--folds {size.folds}: at least 3, one to test, one to select by, one to train on")
    for name in ("seeds", "max_epochs"):
        if getattr(size, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(size, name)}: at least 1")
    if arguments.jobs < 1:
        raise ConfigError(f"--jobs {arguments.jobs}: at least 1")
    if not 0 <= arguments.modality_dropout < 1:
        raise ConfigError(f"--modality-dropout {arguments.modality_dropout}: a probability below 1")
    if arguments.modality_dropout and arguments.variant == "paper":
        raise ConfigError("--modality-dropout: the paper's network has no masks; use --variant default")
    return size


def command_line(arguments: argparse.Namespace, size: Size) -> str:
    """The command that gives these results, with DIR and PATH instead of this machine's paths."""
    words = [f"python -m train crossval --corpus {arguments.corpus} --data PATH --out DIR"]
    if arguments.preset != "full":
        words.append(f"--preset {arguments.preset}")
    words.append(f"--systems {size.systems} --folds {size.folds} --seeds {size.seeds} --max-epochs {size.max_epochs}")
    if arguments.variant != "default":
        words.append(f"--variant {arguments.variant}")
    if arguments.modality_dropout:
        words.append(f"--modality-dropout {arguments.modality_dropout:g}")
    return " ".join(words)


def run(arguments: argparse.Namespace) -> int:
    """Complete the study and write its report; exit code 1 if a run failed.

    However it ends, finished runs are kept, and the same command continues from there. Raises ConfigError, CorpusError,
    ModelError, BundleError or BackendError.
    """
    try:
        return _study(arguments)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return STOPPED


def _study(arguments: argparse.Namespace) -> int:
    from emostream.engines.bundle import open_bundle
    from emostream.train.progress import ProgressBars
    from emostream.train.study.crossval import check, complete, finished, grid, systems
    from emostream.train.study.report import write
    from emostream.train.study.trial import Training

    size = sized(arguments)
    names = systems(size.systems.split(","))
    data = need_data(arguments.data, "where is the corpus", "PATH")
    # an hour: a run may take minutes, and the time left is estimated from the runs within this period
    with ProgressBars(speed_estimate_period=3600) as progress:
        folds = read_folds(arguments, data, size, open_bundle(arguments.bundle), progress.stage)
        specs = grid(names, arguments.variant, folds.folds, size.seeds)
        check(specs, folds)
        # processed arrays are what the paper's network was trained on; all other features are standardised for it
        training = Training(
            size.max_epochs, arguments.modality_dropout, standardise=arguments.corpus != "iemocap_folds"
        )
        before = len(finished(specs, training, folds, arguments.out))
        task = progress.add_task("runs", total=len(specs), completed=before, loss="")

        def done(spec: Spec, outcome: Result | str) -> None:
            progress.advance(task)
            if isinstance(outcome, str):
                progress.console.print(f"[red]failed:[/red] {_place(spec)}", highlight=False)
            else:
                best = outcome.dev[outcome.best_epoch]["accuracy"]
                figures = f"dev accuracy {best:.3f}, {len(outcome.dev)} epochs, {outcome.seconds:.0f} s"
                progress.console.print(f"{_place(spec)}: {figures}", highlight=False)

        failures = complete(specs, training, folds, arguments.out, arguments.jobs, arguments.ray, done)
    for spec, why in failures.items():
        print(f"failed: {_place(spec)}: {why}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(specs)} runs failed; call again to repeat them", file=sys.stderr)
    results = finished(specs, training, folds, arguments.out)
    report = arguments.report or arguments.out / "report"
    for path in write(report, folds, results, specs, training, command_line(arguments, size)):
        print(path)
    return 1 if failures else 0


def _place(spec: Spec) -> str:
    return f"{spec.system}, fold {spec.fold}, seed {spec.seed}"


# --- corpora ---------------------------------------------------------------------------------------------------------


def read_folds(arguments: argparse.Namespace, data: Path, size: Size, bundle: Bundle, stage: Stage) -> Folds:
    """The corpus, its features extracted or from the cache. Raises CorpusError, ModelError or BackendError."""
    if arguments.corpus == "label-paired":
        from emostream.train.study.study import label_paired

        return label_paired(data, bundle, arguments.cache, size.folds, size.limit, stage)
    if arguments.corpus == "iemocap_folds":
        from emostream.train.corpora import iemocap_folds

        return iemocap_folds.load(data, fixed=arguments.variant == "paper")
    return _extracted(arguments, data, size, bundle, stage)


def _extracted(arguments: argparse.Namespace, data: Path, size: Size, bundle: Bundle, stage: Stage) -> Folds:
    """A corpus of recordings. Its features are read into memory, since each run goes through them many times."""
    import numpy as np

    from emostream.train.bundle.features import Ragged
    from emostream.train.corpora.recorded import read_corpus
    from emostream.train.study.extract import dataset, extract

    corpus = read_corpus(arguments.corpus, data)
    for warning in corpus.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    files = extract(corpus.clips, bundle, arguments.cache, arguments.jobs, stage("features"))
    folds = dataset(corpus.name, corpus.clips, corpus.label_names, files, size.folds)
    held = {m: Ragged.of([rows[i].astype(np.float16) for i in range(len(rows))]) for m, rows in folds.features.items()}
    return dataclasses.replace(folds, features=held)
