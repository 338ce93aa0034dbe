"""Bundles on labelled recordings: how often they are right, how sure they may be of it, and which of two is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emostream.engines.bundle import MODALITIES, Bundle
from emostream.errors import Problems
from emostream.files import write_atomically
from emostream.stream.cores.classifier import Classifier, Features
from emostream.train.bundle.card import table
from emostream.train.corpora import Clip
from emostream.train.metrics import calibration_error, interval, recalls, reliability, scores
from emostream.train.progress import Stage
from emostream.train.study.extract import Stored, extract

BATCH = 32


@dataclass(frozen=True)
class Judged:
    """``truth`` (N,): place in ``labels``, which are the bundle's; ``probabilities`` (N, labels)."""

    bundle: str
    labels: list[str]
    truth: np.ndarray
    probabilities: np.ndarray
    speakers: np.ndarray
    uncertain_below: float

    @property
    def predicted(self) -> np.ndarray:
        best: np.ndarray = self.probabilities.argmax(axis=1)
        return best

    def right(self) -> np.ndarray:
        """(N,) bool: which answers are."""
        correct: np.ndarray = self.predicted == self.truth
        return correct

    def figures(self) -> dict[str, float]:
        """Scores, the accuracy's interval, calibration, and the error of the answers that are not uncertain."""
        low, high = interval(self.right().astype(float), self.speakers)
        sure = self.probabilities.max(axis=1) >= self.uncertain_below
        return {
            **scores(self.truth, self.predicted), "low": low, "high": high,
            "ece": calibration_error(self.probabilities, self.truth),
            "sure": float(sure.mean()), "error_of_sure": float(1 - self.right()[sure].mean()) if sure.any() else 0.0,
        }  # fmt: skip

    def line(self) -> str:
        """The figures in words."""
        f = self.figures()
        return (
            f"{self.bundle}: {f['items']:.0f} clips, accuracy {f['accuracy']:.3f} ({f['low']:.3f} to {f['high']:.3f}), "
            f"balanced {f['balanced_accuracy']:.3f}, macro F1 {f['macro_f1']:.3f}, ECE {f['ece']:.3f}; "
            f"sure of {f['sure']:.0%}, of which {f['error_of_sure']:.0%} are wrong"
        )


def judge(bundle: Bundle, clips: Sequence[Clip], cache: Path, jobs: int, stage: Stage) -> Judged:
    """One bundle on all clips, each with the modalities that it has. Raises Problems for labels that the bundle does
    not have and for clips that cannot be used."""
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
    truth = np.array([labels.index(clip.label) for clip in clips], np.int64)
    speakers = np.array([clip.speaker for clip in clips])
    return Judged(bundle.id, labels, truth, np.stack(probabilities), speakers, bundle.manifest.uncertain_below)


def difference(first: Judged, second: Judged) -> str:
    """How much more accurate the second is on the same clips, with its 95 % interval by speakers."""
    gained = second.right().astype(float) - first.right().astype(float)
    low, high = interval(gained, first.speakers)
    return f"{second.bundle} against {first.bundle}: accuracy {gained.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def report(judged: Sequence[Judged], corpus: str, out: Path) -> Path:
    """Write ``evaluation.md`` with a confusion matrix and a reliability diagram of each bundle; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    names = ("accuracy", "low", "high", "balanced_accuracy", "macro_f1", "ece", "sure", "error_of_sure")
    parts = [
        f"# {corpus}",
        "Each clip by all the modalities that it has, its bounds given. `low` and `high`: 95 % interval of the "
        "accuracy, by speakers. `sure`: share of the answers that are not marked uncertain, and how many of these are "
        "wrong.",
        table(["bundle", *names], [(one.bundle, *(one.figures()[name] for name in names)) for one in judged]),
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
