"""Labelled features in folds: what the study trains and tests on, whatever corpus they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from emostream.errors import CorpusError


class Sequences(Protocol):
    """Item i is (T, D) floats; T ≥ 1 where the item has this modality, 0 where it has not."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """Items of one split. Modality m has ``features[m]`` and ``labels[m]`` (N,) int64.

    ``together``: item i of each modality is the same utterance, and the modalities' labels are equal. Otherwise
    the modalities have items of their own, and an example is made of items of equal label ("label-paired").
    """

    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    together: bool


class Folds(Protocol):
    """A corpus cut into folds. ``settings``: all that the features depend on, as JSON has it, for a hash."""

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
    """Some of the items of ``whole``, by number."""

    whole: Sequences
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return self.whole[int(self.numbers[i])]


@dataclass(frozen=True)
class Grouped:
    """Folds that never split a group: fold f tests on part f of the groups, selects on the next, trains on the rest.

    ``groups[m]`` (N,) str: the speaker or session of each item; items of no known group are their own. Parts are
    balanced by label (scikit-learn's StratifiedGroupKFold). Where items are ``together``, the modalities share groups.
    """

    name: str
    label_names: Sequence[str]
    features: Mapping[str, Sequences]
    labels: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    together: bool
    folds: int = 5
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for m, groups in self.groups.items():
            if len(set(groups)) < self.folds:
                raise CorpusError(f"{self.name}: {m} has {len(set(groups))} groups, too few for {self.folds} folds")

    @cached_property
    def _parts(self) -> dict[str, list[np.ndarray]]:
        """The numbers of the items of each part, by modality."""

        def cut(m: str) -> list[np.ndarray]:
            splitter = StratifiedGroupKFold(self.folds, shuffle=True, random_state=0)
            labels = self.labels[m]
            return [np.sort(test) for _, test in splitter.split(np.zeros(len(labels)), labels, self.groups[m])]

        if self.together:
            return dict.fromkeys(self.features, cut(next(iter(self.features))))
        return {m: cut(m) for m in self.features}

    def split(self, fold: int) -> dict[str, Part]:
        def part(at: set[int]) -> Part:
            numbers = {m: np.sort(np.concatenate([parts[i] for i in sorted(at)])) for m, parts in self._parts.items()}
            return Part(
                {m: Chosen(self.features[m], n) for m, n in numbers.items()},
                {m: self.labels[m][n] for m, n in numbers.items()},
                self.together,
            )

        dev = (fold + 1) % self.folds
        return {"train": part(set(range(self.folds)) - {fold, dev}), "dev": part({dev}), "test": part({fold})}
