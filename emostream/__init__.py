"""Streaming, real-time, multimodal emotion recognition on an edge device.

    import emostream

    for emotion in emostream.Labeller().label("talk.mp4"):  # a file, as fast as the machine goes
        print(emotion.start_s, emotion.label, emotion.text)

    for emotion in emostream.listen():                      # whatever stream-run publishes on this machine
        print(emotion.stream, emotion.label)

    with emostream.Control() as control:                    # steer that run
        control.mute(for_s=2)

    emostream.run(emostream.load_config("config.toml"), on_emotion=print)   # a live run inside your program

The names here are the public API; everything else may change between versions. Every error that a caller can expect is
an ``EmostreamError`` (subclasses: see ``emostream.errors``).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emostream.errors import EmostreamError
    from emostream.stream.config import Config, load_config
    from emostream.stream.control import Control
    from emostream.stream.emotion import Emotion
    from emostream.stream.label import Labeller
    from emostream.stream.listen import listen
    from emostream.stream.run import run

__version__ = "0.2.0"

__all__ = ["Config", "Control", "EmostreamError", "Emotion", "Labeller", "__version__", "listen", "load_config", "run"]

# Loaded on first use, so that importing this package costs next to nothing.
_HOMES = {
    "Config": "emostream.stream.config",
    "Control": "emostream.stream.control",
    "Emotion": "emostream.stream.emotion",
    "EmostreamError": "emostream.errors",
    "Labeller": "emostream.stream.label",
    "listen": "emostream.stream.listen",
    "load_config": "emostream.stream.config",
    "run": "emostream.stream.run",
}

# Nothing may leave the machine. Unless this is set before its import, ONNX Runtime sends facts about machine, paths and
# models to its maker (its own call to turn that off comes too late); Ray sends usage statistics. Children inherit this.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'emostream' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
