"""Where samples and frames come from: ``demo``, ``file:PATH``, ``microphone[:NAME or INDEX]``, ``camera[:N]``, URLs."""

from __future__ import annotations

from pathlib import Path

from emostream.stream.clock import Clock
from emostream.stream.config import Config
from emostream.stream.sources.base import Source

DEMO = Path(__file__).parent / "demo.mp4"


def file_path(text: str) -> Path:
    """The file that ``demo`` or ``file:PATH`` names."""
    return DEMO if text == "demo" else Path(text.removeprefix("file:")).expanduser()


def make_source(text: str, media: frozenset[str], fps: float, clock: Clock, config: Config) -> Source:
    """The source that ``text`` names, giving the ``media`` asked for (``audio``, ``video`` or both). Not opened yet.

    At most ``fps`` frames a second are turned into images, and decoded where pictures do not need each other.
    """
    if text == "demo" or text.startswith("file:"):
        from emostream.stream.sources.file import FileSource

        return FileSource(file_path(text), media, fps)
    if text.startswith("microphone"):
        from emostream.stream.sources.microphone import Microphone

        return Microphone(text.partition(":")[2], config.audio.block_ms, clock)
    from emostream.stream.sources.network import LiveSource

    return LiveSource(text, media, fps, clock, config.video.open_timeout_s)
