"""Corrects a bundle's probabilities for how often each label occurs where it is used.

A network learns the label frequencies of its training data. If they differ where it is used, each label's probability
is off by the ratio of the two, which can be corrected without training:

    p'(y | x) ∝ p(y | x) · new(y) / trained(y)

Saerens, Latinne and Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural
Computation 14(1), 2002, eq. 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from emostream.engines.bundle import SUBSETS, Manifest
from emostream.errors import ConfigError

PriorName = Literal["training", "balanced", "conversation", "drama"]
Prior = PriorName | Mapping[str, float]

# Everyday talk. Neutral as often as utterances of DailyDialog have "no emotion", 85,572 of 102,979 (Li et al., IJCNLP
# 2017). The others equally often: with that corpus's shares of them, down to one in six hundred, even clear anger is
# hardly ever found (accuracy on acted speech .40 instead of .65).
_OTHERS = 0.169 / 6
CONVERSATION = {
    "anger": _OTHERS, "disgust": _OTHERS, "fear": _OTHERS, "joy": _OTHERS, "neutral": 0.831, "sadness": _OTHERS,
    "surprise": _OTHERS,
}  # fmt: skip
# Acted dialogue: the 9,989 lines of MELD's training part (Poria et al., ACL 2019), scenes of a television series,
# labelled from sound and picture
DRAMA = {
    "anger": 0.1110, "disgust": 0.0271, "fear": 0.0268, "joy": 0.1745, "neutral": 0.4715, "sadness": 0.0684,
    "surprise": 0.1206,
}  # fmt: skip
_PUBLISHED = {"conversation": CONVERSATION, "drama": DRAMA}
_ROUNDING = 1e-6  # shares written with few digits may sum to a little more than 1


def check(prior: Any) -> Prior:
    """Return ``prior`` if it is a name, or a table of shares that some bundle could have. Raises ValueError."""
    if not isinstance(prior, Mapping):
        if prior not in (names := get_args(PriorName)):
            raise ValueError(f"is no prior; use one of: {', '.join(names)}, or a table such as {{joy = 0.2}}")
        return prior  # type: ignore[no-any-return]  # one of the names
    for label, share in prior.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not math.isfinite(share) or share < 0:
            raise ValueError(f"the share of {label} is {share!r}; it must be a number from 0 to 1")
    if (total := sum(prior.values())) > 1 + _ROUNDING:
        shares = " + ".join(f"{label} {share:g}" for label, share in prior.items())
        raise ValueError(f"the shares sum to {total:g}, more than 1: {shares}")
    return prior


def log_ratios(prior: Prior, manifest: Manifest) -> dict[str, np.ndarray]:
    """For each set of modalities, what to add to a bundle's logits after dividing them by the temperature:
    log(new / trained), (labels,) float64; -inf for a label that does not occur. All zeros for the prior "training".

    Raises ConfigError if the prior has labels that the bundle lacks, or says nothing about some that it has.
    """
    labels = manifest.labels
    if prior == "training":
        return {subset: np.zeros(len(labels)) for subset in SUBSETS}
    equal = dict.fromkeys(labels, 1 / len(labels))
    new = _array(equal if prior == "balanced" else _shares(prior, manifest), labels)
    with np.errstate(divide="ignore"):
        return {subset: np.log(new) - np.log(_array(manifest.label_shares.get(subset, equal), labels))
                for subset in SUBSETS}  # fmt: skip


def _shares(prior: Prior, manifest: Manifest) -> Mapping[str, float]:
    """The share of each of the bundle's labels."""
    where, known = "fusion.prior", ", ".join(manifest.labels)
    if isinstance(prior, str):
        published = _PUBLISHED[prior]
        if unknown := [label for label in manifest.labels if label not in published]:
            raise ConfigError(
                f"{where} = {prior!r}: it has no share for {', '.join(unknown)} of bundle {manifest.name}; give a table"
            )
        return published
    if unknown := [label for label in prior if label not in manifest.labels]:
        raise ConfigError(f"{where}: bundle {manifest.name} has no label {', '.join(unknown)}; it has {known}")
    others = [label for label in manifest.labels if label not in prior]
    rest = max(0.0, 1 - sum(prior.values()))
    shares = {**prior, **dict.fromkeys(others, rest / max(1, len(others)))}
    if not any(shares.values()):
        raise ConfigError(f"{where}: every share is 0; one of {known} must occur")
    return shares


def _array(shares: Mapping[str, float], labels: list[str]) -> np.ndarray:
    return np.array([shares[label] for label in labels], np.float64)
