"""The interface of every backend: named arrays in, named arrays out."""

from __future__ import annotations

from typing import Protocol

import numpy as np

BACKENDS = ("auto", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt_rtx")


class Backend(Protocol):
    """One loaded graph. ``name``: library and device, such as ``onnxruntime/cpu``."""

    name: str

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once on its inputs by name; returns its outputs by name.

        Raises BackendError if the arrays do not fit the graph or the device fails.
        """
        ...

    def close(self) -> None:
        """Free the graph's memory; it cannot run afterwards. Closing twice does nothing."""
        ...
