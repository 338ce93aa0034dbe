"""ONNX Runtime on the CPU: the default backend, which always works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from engines.backend import BackendError


class OnnxRuntime:
    """One ONNX graph on ONNX Runtime. ``threads``: of one operator; nodes never spin while they wait."""

    name = "onnxruntime/cpu"

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base class of their own
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph ({error})") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.inputs = {entry.name: entry.shape for entry in self._session.get_inputs()}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def close(self) -> None:
        self.__dict__.pop("_session", None)
