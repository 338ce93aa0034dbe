"""The last seconds of a run's sound and pictures for a problem report, if the user asks for them."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from emostream.errors import ConfigError, EmostreamError
from emostream.stream.config import Config
from emostream.stream.run_folder import RunFolder

_FILES = 3  # files to keep: the one being written, and those before it
_PICTURE_NS = 500_000_000  # between two pictures


class ReportMedia:
    """Records a run into its own folder, keeps only the last ``seconds``, and removes the folder on ``close``. The next
    start removes what a killed run left, as it does with sockets.

    Raises ConfigError if the run is already recorded or not in real time, and BusError like ``RunFolder``."""

    def __init__(self, config: Config, seconds: float) -> None:
        if not 1 <= seconds <= 60:
            raise ConfigError("--report-media must be from 1 to 60 seconds")
        if config.record.folder:
            raise ConfigError("--report-media: the run is recorded already; send its recording, if you want to")
        if config.pace == "fast":
            raise ConfigError("--report-media is for runs in real time; a file that is read at full speed is at hand")
        self.seconds = seconds
        self._folder = RunFolder(config.bus.run_dir)
        changes = {"folder": str(self._folder.path), "video": True, "public_key": "", "minutes": seconds / 60}
        self.config = config.model_copy(update={"record": config.record.model_copy(update=changes)})

    @property
    def _files(self) -> list[Path]:
        return sorted(self._folder.path.glob("emostream-*.mcap"))

    def tick(self) -> None:
        """Remove what is older than the last seconds. Call this about once a second."""
        for path in self._files[:-_FILES]:
            path.unlink(missing_ok=True)

    def parts(self) -> dict[str, bytes]:
        """Files for the report: a WAV file and JPEG pictures of each stream, named by time in seconds as in the labels.
        Raises EmostreamError if there is no recording, and ImportError if a package is missing."""
        from emostream.stream.recorded import Recording

        if not (paths := self._files):
            raise EmostreamError("nothing was recorded")
        last_ns = int(self.seconds * 1e9)
        parts: dict[str, bytes] = {}
        for stream, (_, end_ns) in Recording.of(paths).spans_ns.items():
            parts |= _sound(paths, stream, end_ns - last_ns)
            parts |= dict(_pictures(paths, stream, end_ns - last_ns))
        return parts

    def close(self) -> None:
        self._folder.remove()


def _sound(paths: list[Path], stream: str, from_ns: int) -> dict[str, bytes]:
    """The sound from a given time on, as a WAV file with silence where sound is missing."""
    from emostream.stream.recorded import sound_and_faces
    from emostream.stream.recording import RATE_HZ

    blocks = [item for item in sound_and_faces(paths, stream) if isinstance(item, tuple) and item[0] >= from_ns]
    if not blocks:
        return {}
    begin_ns = blocks[0][0]
    places = [round((at_ns - begin_ns) * RATE_HZ / 1e9) for at_ns, _ in blocks]
    samples = np.zeros(max(place + len(block) for place, (_, block) in zip(places, blocks, strict=True)), "<i2")
    for place, (_, block) in zip(places, blocks, strict=True):
        samples[place : place + len(block)] = block
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.tobytes())
    return {f"{stream}-from-{begin_ns / 1e9:.2f}s.wav": out.getvalue()}


def _pictures(paths: list[Path], stream: str, from_ns: int) -> Iterator[tuple[str, bytes]]:
    from emostream.stream.recorded import pictures

    next_ns = from_ns
    for at_ns, jpeg in pictures(paths, stream):
        if at_ns >= next_ns:
            next_ns = at_ns + _PICTURE_NS
            yield f"{stream}-{at_ns / 1e9:.2f}s.jpg", jpeg
