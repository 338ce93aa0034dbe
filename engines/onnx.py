"""ONNX Runtime: the default backend, which always works; on a GPU if the installed build can use one."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime

from emostream.engines import signature
from emostream.errors import BackendError

_log = logging.getLogger(__name__)
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntime:
    """One ONNX graph on ONNX Runtime. ``threads``: for one operator; they do not spin while they wait.

    Raises BackendError if the graph cannot be loaded.
    """

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # or it would keep a memory plan for each new set of shapes, and memory would grow with each new length
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        has_cuda = _CUDA in onnxruntime.get_available_providers()
        # without TF32, whose mantissa of 10 bits would change results by more than 1e-4
        providers = [(_CUDA, {"use_tf32": "0"}), _CPU] if has_cuda else [_CPU]
        try:
            self._session: onnxruntime.InferenceSession | None = onnxruntime.InferenceSession(
                str(path), options, providers=providers
            )
        except Exception as error:  # the library's exceptions have no common base class
            raise BackendError(f"{path}: ONNX Runtime cannot load this graph ({error})") from error
        on_cuda = _CUDA in self._session.get_providers()
        if has_cuda and not on_cuda:
            _log.warning("ONNX Runtime has CUDA but cannot use it on this machine (see nvidia-smi); it runs on the CPU")
        self.name = "onnxruntime/cuda" if on_cuda else "onnxruntime/cpu"
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._signature = {
            entry.name: (
                np.dtype(_TYPES[entry.type]),
                tuple(size if isinstance(size, int) else None for size in entry.shape),
            )
            for entry in self._session.get_inputs()
        }

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        if self._session is None:
            raise BackendError(f"{self.name} is closed; load the graph again")
        signature.check(inputs, self._signature)
        try:
            values = self._session.run(self._outputs, inputs)
        except Exception as error:  # see above
            raise BackendError(f"{self.name} failed: {error}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """See ``Backend.close``."""
        self._session = None
