"""Where samples and frames come from: files, microphones, cameras and network URLs (config.SourceSpec names them)."""

from __future__ import annotations

from pathlib import Path

from emostream.files import user_path
from emostream.stream.clock import Clock
from emostream.stream.config import Config, SourceSpec
from emostream.stream.sources.base import Source
from emostream.stream.topics import Medium

DEMO = Path(__file__).parent / "demo.mp4"


def make_source(spec: SourceSpec, media: frozenset[Medium], clock: Clock, config: Config) -> Source:
    """The source that ``spec`` names, not yet opened. It delivers the ``media`` asked for.

    At most ``video.fps`` frames a second become images; where frames do not depend on each other, the others are not
    even decoded.
    """
    if not spec.is_live:
        from emostream.stream.sources.file import FileSource

        return FileSource(file_path(spec), media, config.video.fps)
    if spec.kind == "microphone":
        from emostream.stream.sources.microphone import Microphone

        return Microphone(spec, config.audio.block_ms, clock)
    if spec.kind == "zmq":
        from emostream.stream.sources.external import ExternalSource

        return ExternalSource(spec, media, config.video.fps, clock)
    from emostream.stream.sources.network import LiveSource

    timeout_s, allowed_hosts = config.video.open_timeout_s, config.network.allowed_hosts
    return LiveSource(spec, media, config.video.fps, clock, timeout_s, allowed_hosts)


def file_path(spec: SourceSpec) -> Path:
    """The file that ``demo`` or ``file:PATH`` names."""
    return DEMO if spec.kind == "demo" else user_path(spec.location)


def file_tracks(spec: SourceSpec) -> frozenset[Medium]:
    """Media of a file. Raises SourceError if it cannot be opened."""
    from emostream.stream.sources.file import FileSource

    file = FileSource(file_path(spec), frozenset(), 1.0)
    file.open()
    try:
        return file.tracks()
    finally:
        file.close()
