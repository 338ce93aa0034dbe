"""Valence and arousal of labels: how pleasant and how active the named emotions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Mean ratings of pleasure and arousal, each in [-1, 1], of "angry", "disgusted", "fearful", "joyful", "sad" and
# "surprised": Russell and Mehrabian, "Evidence for a three-factor theory of emotions", Journal of Research in
# Personality 11, 1977, table 4. They did not rate "neutral"; it is the middle of both scales.
COORDINATES = {
    "anger": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "joy": (0.76, 0.48),
    "neutral": (0.0, 0.0),
    "sadness": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
}


def valence_and_arousal(
    labels: Sequence[str], probabilities: np.ndarray, learnt: Mapping[str, tuple[float, float]] | None = None
) -> tuple[float, float] | None:
    """The mean of the labels' coordinates under their probabilities, (labels,); None if a label has none.

    ``learnt``: a bundle's own coordinates, in place of the published ones.
    """
    coordinates = learnt or COORDINATES
    if any(label not in coordinates for label in labels):
        return None
    valence, arousal = probabilities @ np.array([coordinates[label] for label in labels])  # (labels, 2)
    return float(valence), float(arousal)
