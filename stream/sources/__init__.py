"""Where samples and frames come from: files, microphones, cameras and network URLs (named by a SourceSpec)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from emostream.errors import SourceError
from emostream.files import user_path
from emostream.stream.clock import Clock
from emostream.stream.config import Config
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources.base import Source
from emostream.stream.topics import Medium

DEMO = Path(__file__).parent / "demo.mp4"
DEMO_TWO = DEMO.with_name("demo_two.mp4")  # two people who speak in turn


def make_source(spec: SourceSpec, media: frozenset[Medium], clock: Clock, config: Config, tracks: str = "") -> Source:
    """The source that ``spec`` names, not yet opened. It delivers the ``media`` asked for.

    At most ``video.fps`` frames a second become images; if frames do not depend on each other, the others are not even
    decoded. ``tracks``: which tracks to use, as in ``tracks.choose``.
    """
    if spec.kind == "replay":
        from emostream.stream.sources.replay import ReplaySource

        return ReplaySource(spec.location, media, config.record.identity)
    if not spec.is_live:
        from emostream.stream.sources.file import FileSource

        path = file_path(spec)
        if not is_regular(path):
            from emostream.stream.sources.network import Pipe

            return Pipe(path, media, config.video.fps, clock, tracks)
        return FileSource(path, media, config.video.fps, tracks)
    if spec.kind == "microphone":
        from emostream.stream.sources.microphone import Microphone

        return Microphone(spec, config.audio.block_ms, clock)
    if spec.kind == "zmq":
        from emostream.stream.sources.external import ExternalSource

        return ExternalSource(spec, media, config.video.fps, clock)
    from emostream.stream.sources.network import LiveSource

    timeout_s, allowed_hosts = config.video.open_timeout_s, config.network.allowed_hosts
    return LiveSource(spec, media, config.video.fps, clock, timeout_s, allowed_hosts, tracks)


def file_path(spec: SourceSpec) -> Path:
    """The file that ``demo``, ``demo:two`` or ``file:PATH`` names; ``file:-`` is standard input."""
    if spec.kind == "demo":
        return DEMO_TWO if spec.location else DEMO
    return Path("/dev/stdin") if spec.location == "-" else user_path(spec.location)


def is_regular(path: Path) -> bool:
    """Whether to treat a path as a file, which can be opened twice: it is no FIFO, pipe or device. Folders and missing
    files count as well; they are refused later."""
    return os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)


def of_this_process(spec: SourceSpec) -> SourceSpec:
    """The same source as another process must name it, since its standard input and open files differ.

    Raises SourceError if the system has no name for them."""
    path = file_path(spec) if spec.kind == "file" else None
    match = path and re.fullmatch(r"/dev/stdin|/(?:dev|proc/self)/fd/([0-9]+)", str(path))
    if not match:
        return spec
    there = f"/proc/{os.getpid()}/fd/{match[1] or 0}"
    if not os.path.exists(there):
        raise SourceError(f"{spec}: standard input and open files are sources on Linux alone; make a FIFO: mkfifo")
    return SourceSpec(f"file:{there}", "file", there)


def file_tracks(spec: SourceSpec, identity: str) -> frozenset[Medium]:
    """Media of a file or recording. ``identity``: the key file of an encrypted recording. Raises SourceError if it
    cannot be opened, and ConfigError if the key is not valid."""
    from emostream.stream.sources.file import FileSource
    from emostream.stream.sources.replay import ReplaySource

    file: ReplaySource | FileSource
    if spec.kind == "replay":
        file = ReplaySource(spec.location, frozenset(), identity)
    else:
        file = FileSource(file_path(spec), frozenset(), 1.0)
    file.open()
    try:
        return file.tracks()
    finally:
        file.close()
