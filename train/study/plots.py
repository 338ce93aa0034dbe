"""The study's figures: bars with intervals, confusion, reliability, recall. The colours are Okabe and Ito's, which
colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files on machines without a display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from emostream.train.metrics import reliability

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#6b6b6b"
FEWEST = 0.01  # a bin of a reliability diagram with a smaller share of the answers shows only chance
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "figure.facecolor": "white", "savefig.facecolor": "white", "savefig.dpi": 150, "legend.frameon": False,
}  # fmt: skip


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def bars(path: Path, values: Mapping[str, tuple[float, float, float]], label: str, chance: float) -> None:
    """One horizontal bar per system, ``values[name]`` = (mean, low, high), coloured by its attention."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.3 * len(values)))
        names = list(values)
        mean, low, high = np.array(list(values.values())).T
        y = np.arange(len(names))
        colour = [GREEN if "cross+self" in name else ORANGE if "cross" in name else BLUE for name in names]
        axes.barh(y, mean, 0.65, color=colour)
        axes.errorbar(mean, y, xerr=[mean - low, high - mean], fmt="none", ecolor="black", elinewidth=1, capsize=3)
        axes.axvline(chance, color=GREY, linestyle=":", linewidth=1)
        axes.annotate("chance", (chance, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                      color=GREY, fontsize=9)  # fmt: skip
        axes.set_yticks(y, names)
        axes.invert_yaxis()
        axes.set_xlim(0, min(1.0, 1.05 * float(high.max())) if high.max() < 1 else 1.0)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9")
        _save(figure, path)


def confusion(path: Path, matrices: Mapping[str, np.ndarray], labels: Sequence[str]) -> None:
    """``matrices[name]`` (labels, labels): rows are the truth and sum to 1."""
    with plt.rc_context(STYLE):
        side = 1.3 + 0.42 * len(labels)
        figure, grid = plt.subplots(
            1, len(matrices), figsize=(side * len(matrices), side), squeeze=False, sharey=True, layout="constrained"
        )
        for axes, (name, matrix) in zip(grid[0], matrices.items(), strict=True):
            axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
            for row, column in np.ndindex(matrix.shape):
                share = matrix[row, column]
                if share >= 0.005:  # an empty cell says "never" more clearly than a zero
                    axes.text(column, row, f"{share:.2f}".lstrip("0") if share < 1 else "1", ha="center", va="center",
                              color="white" if share > 0.55 else "black", fontsize=9)  # fmt: skip
            axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.set_title(name)
            axes.set_xlabel("found")
        grid[0][0].set_ylabel("truth")
        _save(figure, path)


def reliability_diagram(path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 10) -> None:
    """``curves[name]`` = confidence and correctness of all answers, (N,) each. Bins with few answers are left out."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 4.2))
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1, label="perfectly calibrated")
        for (name, (confidence, right)), colour, mark in zip(curves.items(), (BLUE, ORANGE), ("o", "s"), strict=False):
            x, y, share = reliability(confidence, right, bins)
            full = share >= FEWEST
            axes.plot(x[full], y[full], color=colour, linewidth=1.5, marker=mark, markersize=5, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence (mean of a bin)", ylabel="accuracy", aspect="equal")
        axes.grid(color="0.9")
        axes.legend(loc="lower right")
        _save(figure, path)


def recall_bars(path: Path, values: Mapping[str, np.ndarray], labels: Sequence[str]) -> None:
    """``values[name]`` (3, labels): mean recall of each label and the ends of its interval."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.2))
        width = 0.8 / len(values)
        for i, ((name, (mean, low, high)), colour) in enumerate(zip(values.items(), (BLUE, ORANGE), strict=False)):
            x = np.arange(len(labels)) + (i - (len(values) - 1) / 2) * width
            axes.bar(x, mean, 0.92 * width, color=colour, label=name)
            axes.errorbar(x, mean, yerr=[mean - low, high - mean], fmt="none", ecolor="black", elinewidth=1, capsize=2)
        axes.set_xticks(range(len(labels)), labels)
        axes.tick_params(axis="x", length=0)
        axes.set(ylim=(0, 1), ylabel="recall")
        axes.grid(axis="y", color="0.9")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
        _save(figure, path)
