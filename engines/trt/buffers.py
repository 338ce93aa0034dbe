"""Bookkeeping for a backend with fixed buffers: shapes, checks, and the layout of arrays in a buffer.

This is pure Python and NumPy, so that little code needs the device. An array of any shape that the profile allows is
padded to one of a few shapes (a *ladder* for each axis), because a GPU backend prepares again for every new shape. The
batch is padded with copies of its last row, whose results are dropped; every other axis with zeros. That is exact for
graphs that mask by length, as a bundle's do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from emostream.engines.trt.profiles import Profile
from emostream.errors import BackendError

Shape = tuple[int, ...]
_BATCH = (1, 2.0)  # rungs 1, 2, 4, 8 …: rows of a batch run side by side, so a padded one costs little
_LENGTH = (8, 1.25)  # a recurrent layer takes time for every step, so at most a quarter (or 8) is added


def ladder(low: int, high: int, step: int, growth: float) -> Shape:
    """Lengths from ``low`` to ``high``: both ends, and between them multiples of ``step`` that grow by about
    ``growth``."""
    rungs = [low]
    while rungs[-1] < high:
        rungs.append(min(high, math.ceil(max(rungs[-1] * growth, rungs[-1] + 1) / step) * step))
    return tuple(rungs)


def ladders(profile: Profile) -> dict[str, tuple[Shape, ...]]:
    """The ladder of each axis of each input; axis 0 is the batch.

    Raises BackendError if the inputs do not share one batch axis.
    """
    if len({(smallest[0], largest[0]) for smallest, _, largest in profile.values()}) != 1:
        raise BackendError(f"the profile's inputs differ in the range of axis 0, which must be the batch: {profile}")
    return {
        name: tuple(
            ladder(low, high, *(_LENGTH if axis else _BATCH))
            for axis, (low, high) in enumerate(zip(smallest, largest, strict=True))
        )
        for name, (smallest, _, largest) in profile.items()
    }


def padded(shape: Shape, rungs: tuple[Shape, ...]) -> Shape:
    """The shape to which an array of ``shape`` is padded: on each axis the first rung that is not smaller."""
    return tuple(next(rung for rung in axis if rung >= size) for size, axis in zip(shape, rungs, strict=True))


def check(inputs: Mapping[str, np.ndarray], profile: Profile, dtypes: Mapping[str, np.dtype]) -> int:
    """Number of rows in the batch of ``inputs``, which may exceed the profile's largest: see ``split``.

    Raises BackendError if a name, type or size is not what the engine was built for.
    """
    if set(inputs) != set(profile):
        raise BackendError(f"the graph takes {', '.join(sorted(profile))}; it was given {', '.join(sorted(inputs))}")
    for name, array in inputs.items():
        smallest, _, largest = profile[name]
        if array.dtype != dtypes[name]:
            raise BackendError(f"{name} is {array.dtype}; the engine takes {dtypes[name]}")
        fits = array.ndim == len(largest) and all(
            low <= size and (axis == 0 or size <= high)
            for axis, (low, size, high) in enumerate(zip(smallest, array.shape, largest, strict=True))
        )
        if not fits:
            raise BackendError(f"{name} has shape {array.shape}; the engine was built for {smallest} to {largest}")
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) != 1:
        raise BackendError(f"inputs differ in the rows of their batch: {rows}")
    return next(iter(rows.values()))


def split(rows: int, largest: int) -> list[slice]:
    """Slices of at most ``largest`` rows that together cover a batch, in order."""
    return [slice(start, min(start + largest, rows)) for start in range(0, rows, largest)]


def place(buffer: np.ndarray, values: np.ndarray, shape: Shape) -> np.ndarray:
    """Copy ``values`` into the flat ``buffer``, padded to ``shape``; returns the filled view of the buffer."""
    view = buffer[: math.prod(shape)].reshape(shape)
    rows = len(values)
    if values.shape[1:] != shape[1:]:
        view[:rows] = 0
    view[tuple(slice(size) for size in values.shape)] = values
    view[rows:] = view[rows - 1]
    return view
