"""The study's report: study.md, study.json and figures, from the finished runs and nothing else.

A system's figure for a fold is that of the test part, averaged over the seeds; the report gives mean and standard
deviation over the folds.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from emostream.errors import CorpusError
from emostream.files import write_atomically
from emostream.train.metrics import figures, recalls
from emostream.train.study import plots
from emostream.train.study.crossval import ABLATION, BIMODAL, TRIMODAL, UNIMODAL
from emostream.train.study.dataset import Folds, GroupedFolds
from emostream.train.study.stats import Comparison, compare, interval
from emostream.train.study.trial import PROTOCOL, Result, Spec, Training

PAPERS_GRID = (5, 10)  # folds, seeds
METRICS = {
    "balanced_accuracy": 'balanced accuracy (the paper\'s "WA")',
    "accuracy": 'accuracy (the paper\'s "UWA")',
    "macro_f1": "macro F1",
    "ece": "ECE",
    "brier": "Brier",
}
ABLATION_NAMES = dict(zip(ABLATION, ("Cross-noSP", "Cross", "Self-noSP", "Self", "Cross+Self"), strict=True))
# b is compared with a
PAIRS = (
    ("av-self", "av-cross"), ("at-self", "at-cross"), ("vt-self", "vt-cross"), ("avt-self", "avt-cross"),
    ("avt-self", "avt-both"), ("avt-self-nosp", "avt-self"), ("avt-cross-nosp", "avt-cross"),
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """One system: ``figures[name]`` (folds, seeds), ``recall`` (folds, seeds, labels) with NaN where a label does not
    occur, and the ``results`` of all its runs."""

    figures: dict[str, np.ndarray]
    recall: np.ndarray
    results: list[Result]
    test_to_train: float


def summarise(results: Mapping[Spec, Result], folds: int, seeds: int, labels: int) -> dict[str, Summary]:
    """The systems with all their runs, in the order of ``results``."""
    summaries: dict[str, Summary] = {}
    for name in dict.fromkeys(spec.system for spec in results):
        by_place = {(spec.fold, spec.seed): r for spec, r in results.items() if spec.system == name}
        if len(by_place) < folds * seeds:
            continue
        runs = [[by_place[f, s] for s in range(seeds)] for f in range(folds)]
        each = [[figures(softmax(r.logits.astype(float), axis=1), r.truth) for r in row] for row in runs]
        recall = np.array([[recalls(r.truth, r.logits.argmax(1), labels) for r in row] for row in runs])
        flat = [r for row in runs for r in row]
        summaries[name] = Summary(
            {m: np.array([[f[m] for f in row] for row in each]) for m in METRICS},
            recall,
            flat,
            sum(r.test_items for r in flat) / sum(r.train_items for r in flat),
        )
    return summaries


def comparisons(systems: Mapping[str, Summary]) -> dict[str, dict[str, Comparison]]:
    """``"avt-cross against avt-self"`` → metric → comparison, for those PAIRS of which both systems are summarised."""
    return {
        f"{b} against {a}": {
            m: compare(systems[a].figures[m], systems[b].figures[m], systems[a].test_to_train)
            for m in ("balanced_accuracy", "accuracy")
        }
        for a, b in PAIRS
        if a in systems and b in systems
    }


def title(system: str) -> str:
    """``avt-cross-nosp`` → ``A+V+T cross, no SP``."""
    letters, attention, *rest = system.split("-")
    how = "" if len(letters) == 1 and attention == "self" else f" {attention.replace('both', 'cross+self')}"
    return "+".join(letters.upper()) + how + (", no SP" if rest else "")


def _mean_deviation(values: np.ndarray) -> tuple[float, float]:
    by_fold = values.mean(1)
    return float(by_fold.mean()), float(by_fold.std(ddof=1))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figures_table(systems: Mapping[str, Summary], names: Mapping[str, Sequence[str]], first: Sequence[str]) -> str:
    rows = []
    for system, cells in names.items():
        if system in systems:
            shown = (_mean_deviation(systems[system].figures[m]) for m in METRICS)
            size = f"{systems[system].results[0].parameters / 1e6:.2f} M"
            rows.append([*cells, *(f"{mean:.3f} ({deviation:.3f})" for mean, deviation in shown), size])
    return _table([*first, *METRICS.values(), "parameters"], rows) if rows else "(none of these was run)"


def _limits(folds: Folds, aligned: bool, n_folds: int, seeds: int, systems: Mapping[str, Summary]) -> str:
    parts = ["**Limits.**"]
    if not aligned:
        parts.append(
            "The examples are label-paired: no corpus used here has informative sound, face and words of the same "
            "moment, so an example is a clip, a face and a text of three corpora that have the same label. That is "
            "synthetic. It makes the modalities independent given the label, so nothing in one can explain anything in "
            "another, which is what cross-attention looks for; and it makes fusion look better than it is on "
            "recordings of one moment. Each face is a still, its video jittered crops of one image. The speech is "
            "acted. The face and word encoders are frozen and were trained on other items of the same corpora. The "
            "paper's question, whether self- or cross-attention is better on real conversations, is therefore not "
            "answered here."
        )
    if n_folds < PAPERS_GRID[0] or seeds < PAPERS_GRID[1]:
        parts.append(
            f"The grid is {n_folds} folds × {seeds} seed{'s' if seeds > 1 else ''}; the paper's is "
            f"{PAPERS_GRID[0]} × {PAPERS_GRID[1]}."
        )
    parts.append(
        f"With {n_folds} folds a t-test has {n_folds - 1} degrees of freedom: only large differences can be "
        "detected, and one that is not detected may still exist. The p values are not corrected for their number."
    )
    return " ".join(parts)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-0.000", "+0.000").replace("-", "−")


def _verdict(name: str, c: Comparison) -> str:
    b, a = (title(s) for s in name.split(" against "))
    sure = c.low > 0 or c.high < 0
    return (
        f"{b} minus {a}, balanced accuracy: {_signed(c.difference)}, 95 % interval {_signed(c.low)} to "
        f"{_signed(c.high)} ({'which does not contain 0' if sure else 'which contains 0: no difference is shown'})."
    )


def _markdown(
    folds: Folds, systems: Mapping[str, Summary], compared: Mapping[str, dict[str, Comparison]], facts: dict[str, Any]
) -> str:
    training: Training = facts["training"]
    variant = facts["variant"]
    main = {s: [title(s).split(" ")[0], s.split("-")[1]] for s in (*UNIMODAL, *BIMODAL, *TRIMODAL)}
    ablation = {s: [name] for s, name in ABLATION_NAMES.items()}
    others = {s: [title(s)] for s in systems if s not in main and s not in ablation}
    rows = [
        [f"{title(b)} − {title(a)}", METRICS[m], _signed(c.difference), f"{_signed(c.low)} to {_signed(c.high)}",
         f"{c.t:.2f}", f"{c.p:.3f}"]
        for name, by_metric in compared.items() for b, a in [name.split(" against ")] for m, c in by_metric.items()
    ]  # fmt: skip
    verdict = [
        _verdict(name, c["balanced_accuracy"]) for name, c in compared.items() if name == "avt-cross against avt-self"
    ]
    ratio = next(iter(systems.values())).test_to_train
    sections = [
        "# The study: self- and cross-attention",
        _limits(folds, facts["aligned"], facts["folds"], facts["seeds"], systems),
        f"Corpus: {folds.name}. Made with:\n\n    {facts['command']}",
        *verdict,
        "## One, two and three modalities",
        f"Mean (standard deviation) over the {facts['folds']} folds of each fold's test figure, which is the mean over "
        f"its {facts['seeds']} seed{'s' if facts['seeds'] > 1 else ''}. The paper's column names "
        "are the reverse of its field's: its \"UWA\" is plain accuracy, its \"WA\" the class-balanced one. ECE and "
        "Brier: lower is better.",
        _figures_table(systems, main, ["modalities", "attention"]),
        "![Balanced accuracy of each system](study-accuracy.png)",
        "## Ablation, three modalities",
        "SP is statistical pooling, mean and deviation over the attentions' vectors; without it (noSP) they are "
        "concatenated.",
        _figures_table(systems, ablation, ["system"]),
        *(["## Other systems", _figures_table(systems, others, ["system"])] if others else []),
        "## Differences",
        "Seeds are averaged within a fold and systems paired by fold. Corrected resampled t-test (Nadeau and Bengio, "
        f"2003) with a test-to-train ratio of {ratio:.3f}; 95 % intervals.",
        _table(["difference", "figure", "mean", "95 % interval", "t", "p"], rows) if rows else "(nothing to compare)",
        "## Errors",
        f"All test answers of all folds and seeds, of {' and '.join(title(s) for s in facts['shown'])}.",
        "![Confusion matrices](study-confusion.png)",
        "![Recall of each label](study-recall.png)",
        "Accuracy against confidence, in ten bins of confidence; bins with less than 1 % of the answers are left out. "
        "No temperature was fitted.",
        "![Reliability diagram](study-reliability.png)",
        "## How it was done",
        f"- Network: the `{variant}` variant of `train/model.py`. Adam at {PROTOCOL['learning_rate']:g}, batches of "
        f"{PROTOCOL['batch']}, cross-entropy, rate × {PROTOCOL['plateau_factor']} after "
        f"{PROTOCOL['plateau_patience']} epochs without a better dev loss, stopped after {PROTOCOL['stop_after']} "
        f"epochs without a better dev accuracy or after {training.max_epochs} epochs, with the weights of the best dev "
        "accuracy. "
        + ("No modality was left out in training, as in the paper." if not training.modality_dropout else
           f"A modality was left out of a training example with probability {training.modality_dropout:g}."),
        f"- {facts['folds']} folds, "
        + ("none of which splits a group (speaker or session): one part is tested, the next selects the epoch, the "
           "others train. " if isinstance(folds, GroupedFolds) else "the corpus's own. ")
        + ("Normalisation is from the training part. " if variant == "default" or training.standardise else
           "The arrays are taken as they are. ")
        + "The test part is used once, after selection.",
        *([] if facts["aligned"] else [
            "- An epoch takes each training clip once, with a face and a text of its label drawn afresh. Each test "
            f"clip is in {PROTOCOL['test_draws']} examples, drawn once per fold: all systems and seeds are tested on "
            "the same examples, and a system of fewer modalities on its modalities of them."
        ]),
        f"- Bars and recalls: 95 % intervals of the mean, with the same correction. {facts['runs']} runs, "
        f"{facts['hours']:.1f} hours of computing; {facts['mean_epochs']:.0f} epochs per run on average. "
        f"torch {torch.__version__}, Python {platform.python_version()}.",
        "## The paper's own figures",
        "For orientation only, since they are of another corpus (IEMOCAP, real pairs, 7 classes) and cannot be "
        "compared: cross-attention 0.578 class-balanced and 0.636 plain accuracy, self-attention 0.587 and 0.642 "
        "(Rajan, Brutti and Cavallaro, ICASSP 2022).",
    ]  # fmt: skip
    if facts["missing"]:
        sections.insert(3, f"Not shown, since some of their runs are missing: {', '.join(facts['missing'])}.")
    return "\n\n".join(sections) + "\n"


def _recall(x: Summary, label: int) -> tuple[float, float, float]:
    """Mean and interval over the folds in which the label occurs; NaN if there are fewer than two."""
    values = x.recall[:, :, label]
    values = values[~np.isnan(values).any(1)]
    return interval(values, x.test_to_train)[:3] if len(values) > 1 else (np.nan, np.nan, np.nan)


def _draw(out: Path, systems: Mapping[str, Summary], shown: Sequence[str], labels: Sequence[str]) -> None:
    values = {title(s): interval(x.figures["balanced_accuracy"], x.test_to_train)[:3] for s, x in systems.items()}
    plots.bars(out / "study-accuracy.png", values, "balanced accuracy, mean and 95 % interval", 1 / len(labels))
    matrices, curves, recall = {}, {}, {}
    for s in shown:
        logits = np.concatenate([r.logits for r in systems[s].results]).astype(float)
        truth = np.concatenate([r.truth for r in systems[s].results])
        predicted = logits.argmax(1)
        matrices[title(s)] = confusion_matrix(truth, predicted, labels=np.arange(len(labels)), normalize="true")
        curves[title(s)] = softmax(logits, axis=1).max(1), predicted == truth
        recall[title(s)] = np.clip([_recall(systems[s], k) for k in range(len(labels))], 0, 1).T
    plots.confusion(out / "study-confusion.png", matrices, labels)
    plots.reliability_diagram(out / "study-reliability.png", curves)
    plots.recall_bars(out / "study-recall.png", recall, labels)


def write(
    out: Path, folds: Folds, results: Mapping[Spec, Result], wanted: Sequence[Spec], training: Training, command: str
) -> list[Path]:
    """Write the report of the ``wanted`` grid into ``out``; returns its files. Systems with a missing run are left out.

    Raises CorpusError if no system is complete.
    """
    n_folds, seeds = (1 + max(getattr(spec, field) for spec in wanted) for field in ("fold", "seed"))
    systems = summarise({s: results[s] for s in wanted if s in results}, n_folds, seeds, len(folds.label_names))
    if not systems:
        raise CorpusError("no system has all its runs; call again to make the missing ones")
    compared = comparisons(systems)
    flat = [r for x in systems.values() for r in x.results]
    shown = [s for s in TRIMODAL if s in systems] or list(systems)[-2:]
    facts = {
        "command": command, "variant": wanted[0].variant, "folds": n_folds, "seeds": seeds, "training": training,
        "aligned": folds.split(0)["test"].aligned, "shown": shown, "runs": len(flat),
        "hours": sum(r.seconds for r in flat) / 3600, "mean_epochs": float(np.mean([len(r.dev) for r in flat])),
        "missing": sorted({spec.system for spec in wanted} - set(systems)),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    _draw(out, systems, shown, folds.label_names)
    write_atomically(out / "study.md", _markdown(folds, systems, compared, facts))
    record = {
        **facts, "training": dataclasses.asdict(training), "protocol": PROTOCOL, "corpus": folds.name,
        "labels": list(folds.label_names), "features": folds.settings,
        "systems": {s: _record(x) for s, x in systems.items()},
        "comparisons": {n: {m: dataclasses.asdict(c) for m, c in by.items()} for n, by in compared.items()},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__},
    }  # fmt: skip
    write_atomically(out / "study.json", json.dumps(_rounded(record), indent=1) + "\n")
    names = ("study.md", "study.json", *(f"study-{p}.png" for p in ("accuracy", "confusion", "recall", "reliability")))
    return [out / name for name in names]


def _record(x: Summary) -> dict[str, Any]:
    """A system's entry in study.json."""
    by_fold = {m: values.mean(1) for m, values in x.figures.items()}
    return {
        "parameters": x.results[0].parameters,
        "mean": {m: float(v.mean()) for m, v in by_fold.items()},
        "standard_deviation": {m: float(v.std(ddof=1)) for m, v in by_fold.items()},
        "by_fold_and_seed": {m: v.tolist() for m, v in x.figures.items()},
        "recall": np.nanmean(x.recall, axis=(0, 1)).tolist(),
        "epochs": [len(r.dev) for r in x.results],
        "seconds": [r.seconds for r in x.results],
    }


def _rounded(value: Any) -> Any:
    """Round floats to five digits after the point, and make NaN and infinity null, since JSON has neither."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return round(value, 5) if np.isfinite(value) else None
    return value
