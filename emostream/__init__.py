"""Streaming, real-time, multimodal emotion recognition on an edge device."""

from __future__ import annotations

import os
from importlib.metadata import version

# ONNX Runtime reports machine, paths and models to its maker unless this is set before it is imported. Child processes
# inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = version("emostream")
