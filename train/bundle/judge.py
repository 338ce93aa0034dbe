"""Bundles on labelled recordings: how often they are right, how certain that figure is, and which of two is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emostream.engines.bundle import MODALITIES, Bundle
from emostream.errors import Problems
from emostream.files import sha256, write_atomically
from emostream.stream.cores.classifier import Classifier, Features
from emostream.train.bundle.card import table
from emostream.train.corpora import Clip
from emostream.train.metrics import calibration_error, interval, recalls, reliability, resampled, scores
from emostream.train.progress import Stage
from emostream.train.study.extract import Stored, extract

BATCH = 32
METRICS = (("accuracy", "accuracy"), ("balanced_accuracy", "balanced"), ("macro_f1", "macro F1"))


@dataclass(frozen=True)
class Judged:
    """``labels``: the bundle's labels that occur among the clips; ``left_out``: its others, which cannot be answers;
    ``truth`` (N,): index in ``labels``; ``probabilities`` (N, labels), rows sum to 1. ``known``: the bundle was trained
    on these very recordings."""

    bundle: str
    labels: list[str]
    truth: np.ndarray
    probabilities: np.ndarray
    speakers: np.ndarray
    uncertain_below: float
    left_out: list[str]
    known: bool

    @property
    def predicted(self) -> np.ndarray:
        best: np.ndarray = self.probabilities.argmax(axis=1)
        return best

    def right(self) -> np.ndarray:
        """(N,) bool: which answers are right."""
        correct: np.ndarray = self.predicted == self.truth
        return correct

    def figures(self) -> dict[str, float]:
        """Scores with their intervals, calibration, and the error of the answers that are not uncertain."""
        ends: dict[str, float] = {}
        for name, values in self.resampled().items():
            ends[f"{name}_low"], ends[f"{name}_high"] = interval(values)
        sure = self.probabilities.max(axis=1) >= self.uncertain_below
        return {
            **scores(self.truth, self.predicted), **ends,
            "ece": calibration_error(self.probabilities, self.truth),
            "sure": float(sure.mean()), "error_of_sure": float(1 - self.right()[sure].mean()) if sure.any() else 0.0,
        }  # fmt: skip

    def resampled(self) -> dict[str, np.ndarray]:
        """See ``metrics.resampled``."""
        return resampled(self.truth, self.predicted, self.speakers)

    def line(self) -> str:
        """The figures in words."""
        f = self.figures()
        with_ends = ", ".join(f"{title} {_with_ends(f, m)}" for m, title in METRICS)
        text = (
            f"{self.bundle}: {f['items']:.0f} clips, {with_ends}, ECE {f['ece']:.3f}; "
            f"sure of {f['sure']:.0%}, of which {f['error_of_sure']:.0%} are wrong"
        )
        if self.left_out:
            text += f"; never asked for: {', '.join(self.left_out)}"
        return text + ("; IT WAS TRAINED ON THESE RECORDINGS, so this is no measure" if self.known else "")


def _with_ends(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.3f} ({figures[f'{name}_low']:.3f} to {figures[f'{name}_high']:.3f})"


def judge(
    bundle: Bundle, clips: Sequence[Clip], cache: Path, jobs: int, stage: Stage, table_of_clips: Path | None = None
) -> Judged:
    """Evaluate one bundle on all clips, each with the modalities that it has; only labels that occur can be answers.

    ``table_of_clips``: the file that lists them, to know whether the bundle was trained on it. Raises Problems for
    labels that the bundle does not have and for clips that cannot be used."""
    labels = list(bundle.manifest.labels)
    if strange := sorted({clip.label for clip in clips} - set(labels)):
        raise Problems(f"bundle {bundle.id}", [f"it does not know the label {label!r}" for label in strange])
    files = extract(clips, bundle, cache, jobs, stage(f"features for {bundle.manifest.name}"), "voice")
    classifier = Classifier(bundle, "onnxruntime")
    stored = {m: Stored(files, m) for m in MODALITIES}
    items = [Features(*(stored[m][i] for m in MODALITIES)).only(classifier.modalities) for i in range(len(files))]
    if empty := [clips[i].where for i, item in enumerate(items) if not item.present()]:
        raise Problems(f"bundle {bundle.id}", [f"{where}: has none of its modalities" for where in empty])
    probabilities = []
    for first in range(0, len(items), BATCH):
        part = items[first : first + BATCH]
        probabilities += [result.probabilities for result in classifier.classify(part, [False] * len(part))]
    classifier.close()
    asked = [label for label in labels if label in {clip.label for clip in clips}]
    among = np.stack(probabilities)[:, [labels.index(label) for label in asked]]
    trained_on = bundle.manifest.training.get("data_sha256")
    return Judged(
        bundle.id, asked, np.array([asked.index(clip.label) for clip in clips], np.int64),
        among / np.maximum(among.sum(axis=1, keepdims=True), 1e-12), np.array([clip.speaker for clip in clips]),
        bundle.manifest.uncertain_below, [label for label in labels if label not in asked],
        table_of_clips is not None and trained_on == sha256(table_of_clips),
    )  # fmt: skip


def difference(first: Judged, second: Judged) -> str:
    """How much better the second is on the same clips, with 95 % intervals by speakers."""
    before, after = first.resampled(), second.resampled()
    old, new = first.figures(), second.figures()
    parts = []
    for name, title in METRICS:
        low, high = interval(after[name] - before[name])
        parts.append(f"{title} {new[name] - old[name]:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"{second.bundle} against {first.bundle}: {', '.join(parts)}"


def report(judged: Sequence[Judged], corpus: str, out: Path) -> Path:
    """Write ``evaluation.md`` with a confusion matrix and a reliability diagram of each bundle; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    names = ("ece", "sure", "error_of_sure")
    rows = [
        (
            one.bundle,
            *(_with_ends(f, m) for m, _ in METRICS),
            *(f[name] for name in names),
        )
        for one in judged
        for f in [one.figures()]
    ]
    parts = [
        f"# {corpus}",
        "Each clip by all the modalities that it has, its bounds given; answers are among the labels that occur. In "
        "brackets: 95 % intervals by speakers, or by clips where there are fewer than three speakers. `sure`: share of "
        "the answers that are not marked uncertain, and how many of these are wrong.",
        table(["bundle", *(title for _, title in METRICS), *names], rows),
        *(one.line() for one in judged if one.left_out or one.known),
        *(difference(judged[0], other) for other in judged[1:]),
    ]
    for number, one in enumerate(judged, start=1):
        matrix = np.zeros((len(one.labels), len(one.labels)), np.int64)
        np.add.at(matrix, (one.truth, one.predicted), 1)
        recall = recalls(one.truth, one.predicted, len(one.labels))
        occurring = np.unique(one.truth)
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
        left.imshow(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        for i, j in zip(*np.nonzero(matrix), strict=True):
            left.text(j, i, str(matrix[i, j]), ha="center", va="center")
        left.set(xlabel="answer", ylabel="label", title=f"{one.bundle}: clips")
        left.set_xticks(range(len(one.labels)), one.labels, rotation=45, ha="right")
        left.set_yticks(range(len(one.labels)), one.labels)
        confidence, accuracy, share = reliability(one.probabilities.max(axis=1), one.right(), 10)
        right.plot([0, 1], [0, 1], "--", color="grey")
        right.scatter(confidence, accuracy, s=20 + 400 * np.asarray(share) / max(np.sum(share), 1e-9))
        right.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title="reliability")
        picture = out / f"bundle-{number}.png"
        figure.savefig(picture, dpi=100)
        plt.close(figure)
        parts += [
            f"## {one.bundle}",
            table(
                ["label", "clips", "recall"],
                [(one.labels[k], int(matrix[k].sum()), float(recall[k])) for k in occurring],
            ),
            f"![confusion and reliability]({picture.name})",
        ]
    path = out / "evaluation.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path
