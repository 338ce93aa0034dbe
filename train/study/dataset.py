"""Labelled features in folds: what the study trains and tests on, whatever corpus they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from emostream.errors import CorpusError


class Sequences(Protocol):
    """Item i is (T, D) floats; T ≥ 1 where the item has this modality, else 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """Items of one split. Modality m has ``features[m]`` and ``labels[m]`` (N,) int64.

    ``aligned``: item i of each modality is the same utterance, and the modalities' labels are equal. Otherwise the
    modalities have separate items, and an example combines items of equal label ("label-paired").
    """

    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    aligned: bool


class Folds(Protocol):
    """A corpus cut into folds. ``settings``: all that the features depend on, as JSON values, for a hash."""

    @property
    def name(self) -> str: ...

    @property
    def label_names(self) -> Sequence[str]: ...

    @property
    def folds(self) -> int: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def split(self, fold: int) -> dict[str, Part]:
        """``train``, ``dev`` and ``test`` of one fold, 0 ≤ fold < folds."""
        ...


@dataclass(frozen=True)
class Chosen:
    """The items of ``whole`` with these numbers."""

    whole: Sequences
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return self.whole[int(self.numbers[i])]


@dataclass(frozen=True)
class PredefinedFolds:
    """Folds that the corpus itself assigns: fold f tests on the items with the f-th number, selects on those with the
    next and trains on the rest. The modalities are aligned.

    ``assigned`` (N,): the number of each item.
    """

    name: str
    label_names: Sequence[str]
    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    assigned: np.ndarray
    settings: dict[str, Any]

    @property
    def folds(self) -> int:
        return len(np.unique(self.assigned))

    def split(self, fold: int) -> dict[str, Part]:
        place = np.unique(self.assigned, return_inverse=True)[1]
        test, dev = place == fold, place == (fold + 1) % self.folds

        def part(chosen: np.ndarray) -> Part:
            return _part(self.features, self.labels, dict.fromkeys(self.features, np.flatnonzero(chosen)), aligned=True)

        return {"train": part(~test & ~dev), "dev": part(dev), "test": part(test)}


@dataclass(frozen=True)
class GroupedFolds:
    """Folds that never split a group: fold f tests on part f of the groups, selects on the next, trains on the rest.

    ``groups[m]`` (N,) str: the speaker or session of each item; an item without one is a group by itself. Parts are
    balanced by label (scikit-learn's StratifiedGroupKFold). Where items are ``aligned``, the modalities share groups.
    Raises CorpusError if there are fewer groups, or items of every label, than folds.
    """

    name: str
    label_names: Sequence[str]
    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    aligned: bool
    folds: int = 5
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for m, groups in self.groups.items():
            if len(set(groups)) < self.folds:
                raise CorpusError(f"{self.name}: {m} has {len(set(groups))} groups, too few for {self.folds} folds")
            most = max(Counter(self.labels[m].tolist()).values())
            if most < self.folds:
                raise CorpusError(
                    f"{self.name}: {m} has {most} items of its most frequent label, too few for {self.folds} folds"
                )

    @cached_property
    def _parts(self) -> dict[str, list[np.ndarray]]:
        """The numbers of the items of each part, by modality."""

        def cut(m: str) -> list[np.ndarray]:
            splitter = StratifiedGroupKFold(self.folds, shuffle=True, random_state=0)
            labels = self.labels[m]
            return [np.sort(test) for _, test in splitter.split(np.zeros(len(labels)), labels, self.groups[m])]

        if self.aligned:
            return dict.fromkeys(self.features, cut(next(iter(self.features))))
        return {m: cut(m) for m in self.features}

    def split(self, fold: int) -> dict[str, Part]:
        def part(chosen: set[int]) -> Part:
            numbers = {m: np.sort(np.concatenate([parts[i] for i in chosen])) for m, parts in self._parts.items()}
            return _part(self.features, self.labels, numbers, self.aligned)

        dev = (fold + 1) % self.folds
        return {"train": part(set(range(self.folds)) - {fold, dev}), "dev": part({dev}), "test": part({fold})}


def _part(
    features: Mapping[str, Sequences],
    labels: Mapping[str, np.ndarray],
    numbers: Mapping[str, np.ndarray],
    aligned: bool,
) -> Part:
    """The items with these numbers, by modality."""
    return Part(
        {m: Chosen(features[m], n) for m, n in numbers.items()}, {m: labels[m][n] for m, n in numbers.items()}, aligned
    )
