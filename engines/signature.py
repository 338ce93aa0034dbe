"""The inputs of a graph, and whether arrays fit them.

Runtimes differ in what they accept: OpenVINO converts types, reshapes, and takes a missing input from the last run. So
each backend first checks its inputs against the graph's signature.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emostream.errors import BackendError

Signature = Mapping[str, tuple[np.dtype, tuple[int | None, ...]]]
"""Type and shape of each input; None in a shape allows any size. Axis 0 is the batch, the same for all."""


def check(inputs: Mapping[str, np.ndarray], signature: Signature) -> None:
    """Raises BackendError that names the first input that does not fit."""
    if inputs.keys() != signature.keys():
        raise BackendError(f"the graph takes {', '.join(sorted(signature))}; it was given {', '.join(sorted(inputs))}")
    for name, (dtype, shape) in signature.items():
        array = inputs[name]
        if array.dtype != dtype:
            raise BackendError(f"{name} is {array.dtype}; the graph takes {dtype}")
        if array.ndim != len(shape) or any(
            want not in (None, size) for want, size in zip(shape, array.shape, strict=True)
        ):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise BackendError(f"{name} has shape {array.shape}; the graph takes ({sizes})")
        if 0 in array.shape:
            raise BackendError(
                f"{name} has shape {array.shape}, which is empty; an absent modality is one row of length 0"
            )
    rows = {name: len(array) for name, array in inputs.items()}
    if len(set(rows.values())) != 1:
        raise BackendError(f"inputs differ in the rows of their batch: {rows}")
