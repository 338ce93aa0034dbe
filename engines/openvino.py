"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from emostream.engines import signature
from emostream.errors import BackendError

# On import OpenVINO reports to Google Analytics and stores an identifier in the user's home, unless its telemetry
# package cannot be imported. Nothing may leave the machine.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

_CONFIG = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 where the CPU has it, with other results
    "ENABLE_CPU_PINNING": False,  # it would pin threads of several processes to the same cores
}


class OpenVino:
    """One ONNX graph on OpenVINO; for one thread at a time.

    For each shape that it has not seen recently it prepares again, which takes longer than most runs, and keeps the
    result: varying lengths cost several hundred MB. Raises BackendError if the graph cannot be loaded.
    """

    name = "openvino/cpu"

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        core = openvino.Core()
        try:
            model = core.read_model(str(path))
            self._request: Any = core.compile_model(
                model, "CPU", {**_CONFIG, "INFERENCE_NUM_THREADS": threads}
            ).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"{path}: OpenVINO cannot load this graph ({_last_line(error)})") from error
        self._outputs = [output.get_any_name() for output in model.outputs]
        self._signature = {
            entry.get_any_name(): (
                entry.element_type.to_dtype(),
                tuple(size.get_length() if size.is_static else None for size in entry.partial_shape),
            )
            for entry in model.inputs
        }

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        if self._request is None:
            raise BackendError(f"{self.name} is closed; load the graph again")
        signature.check(inputs, self._signature)
        try:
            values = self._request.infer(inputs)  # copies inputs and outputs
        except RuntimeError as error:
            raise BackendError(f"{self.name} failed: {_last_line(error)}") from error
        return {name: values[name] for name in self._outputs}

    def close(self) -> None:
        """See ``Backend.close``."""
        self._request = None


def _last_line(error: RuntimeError) -> str:
    """The error's last line; the lines before it are locations in OpenVINO's source."""
    return str(error).strip().splitlines()[-1]
