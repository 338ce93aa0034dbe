"""Reads media files as a node does, in a process of its own with little memory, and reports the outcome of each.

    python -m tests.damage FILE…

Prints for each file, before reading it, its name, and then the seconds that it took and the outcome: ``read`` or the
class of the error.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from emostream.errors import SourceError
from emostream.stream.cores.audio import AudioCore
from emostream.stream.sources.base import AudioChunk, NoTrack
from emostream.stream.sources.file import FileSource

MEMORY_BYTES = 500_000_000  # limit in addition to what the process uses after its imports


def read(path: Path) -> str:
    source = FileSource(path, frozenset({"audio", "video"}), 10)
    audio = AudioCore("main", None)
    try:
        source.open()
        for item in source.items():
            if isinstance(item, AudioChunk):
                audio.push(item)
            elif not isinstance(item, NoTrack):
                assert item.image.ndim == 2
        audio.flush()
    except SourceError:
        return "SourceError"
    finally:
        source.close()
    return "read"


def main(paths: list[str]) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    for path in paths:
        print(path, end=" ", flush=True)
        begun = time.monotonic()
        outcome = read(Path(path))
        print(f"{time.monotonic() - begun:.2f} {outcome}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
