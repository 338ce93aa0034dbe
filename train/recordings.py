"""Recordings as the live nodes take them: file → 16 kHz blocks, rows of features and utterances, by the live code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from emostream.errors import SourceError
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.cores.window import SlidingWindow
from emostream.stream.features import logmel, mfcc
from emostream.stream.messages import AudioRows, Message, Pcm, SpeechEvent
from emostream.stream.sources.base import AudioChunk, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.speech.vad import SileroVad
from emostream.stream.topics import Medium

FOREVER_NS = 1 << 62
Features = Literal["logmel", "mfcc"]


class Sound:
    """What the audio node publishes of a recording, on its timeline in nanoseconds.

    ``features``: "logmel", as in a live run, or "mfcc". ``blocks``: (512,) int16 at 16 kHz each; what follows the last
    whole block (less than 32 ms) is in no block, but is in the rows.
    """

    def __init__(self, features: Features = "logmel") -> None:
        self.blocks: list[Pcm] = []
        self._core = AudioCore("", None, mfcc.Mfcc() if features == "mfcc" else logmel.LogMel())
        self._frame_ns = mfcc.FRAME_NS if features == "mfcc" else logmel.FRAME_NS
        self._rows = SlidingWindow((mfcc.DIM if features == "mfcc" else logmel.DIM,), np.float32)

    @classmethod
    def from_samples(cls, samples: np.ndarray, features: Features = "logmel") -> Sound:
        """(n,) int16 at 16 kHz, from time 0 on."""
        sound = cls(features)
        sound.push(AudioChunk(samples[:, None].astype(np.float32) / 32768, mfcc.RATE_HZ, 0))
        sound.flush()
        return sound

    def push(self, chunk: AudioChunk) -> None:
        """Take the next chunk of the recording."""
        self._take(self._core.push(chunk))

    def flush(self) -> None:
        """Take the end of the recording."""
        self._take(self._core.flush())

    @property
    def start_ns(self) -> int:
        """Time of the first sample."""
        return self.blocks[0].media_start_ns if self.blocks else 0

    @property
    def end_ns(self) -> int:
        """Time of the last block's end."""
        return self.blocks[-1].media_end_ns if self.blocks else 0

    @property
    def samples(self) -> np.ndarray:
        """All blocks on an even timeline from ``start_ns`` on, gaps filled with zeros: (n,) int16 at 16 kHz."""

        def index(time_ns: int) -> int:
            return round((time_ns - self.start_ns) * mfcc.RATE_HZ / 1e9)

        samples = np.zeros(index(self.end_ns), np.int16)
        for block in self.blocks:
            first = index(block.media_start_ns)
            samples[first : first + len(block.samples)] = block.samples[: len(samples) - first]
        return samples

    def rows(self, start_ns: int = -FOREVER_NS, end_ns: int = FOREVER_NS) -> np.ndarray:
        """Rows whose frames lie within the bounds: (m, 32) log-mel, 32 ms each, or (m, 120) MFCC, 25 ms; float32."""
        return self._rows.cut(start_ns, end_ns - self._frame_ns + 1).copy()

    def row_times(self) -> np.ndarray:
        """When each row begins: (m,) int64."""
        return self._rows.times(-FOREVER_NS, FOREVER_NS).copy()

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Pcm):
                self.blocks.append(message)
            elif isinstance(message, AudioRows):
                times = message.media_start_ns + logmel.HOP_NS * np.arange(len(message.rows), dtype=np.int64)
                with contextlib.suppress(ValueError):  # rows that go back in time are dropped, as in a live run
                    self._rows.append(times, message.rows)


class Recording:
    """A file as the live nodes read it. ``sound`` is complete when ``frames`` has been exhausted."""

    def __init__(
        self, path: Path, media: frozenset[Medium] = frozenset({"audio"}), fps: float = 1, features: Features = "logmel"
    ) -> None:
        self.sound: Sound | None = None  # None without a sound track
        self._source = FileSource(path, media, fps)
        self._features: Features = features

    def frames(self) -> Iterator[VideoFrame]:
        """Read the whole file and yield its frames. Raises SourceError if it cannot be read or is not finite."""
        self._source.open()
        try:
            self.sound = Sound(self._features) if "audio" in self._source.tracks() else None
            for item in self._source.items():
                if isinstance(item, VideoFrame):
                    yield item
                elif isinstance(item, AudioChunk) and self.sound is not None:
                    if not np.isfinite(item.samples).all():
                        raise SourceError(f"{self._source.name}: sound at {item.media_ns / 1e9:.2f} s is not finite")
                    self.sound.push(item)
        finally:
            self._source.close()
        if self.sound is not None:
            self.sound.flush()


def read_sound(path: Path, features: Features = "logmel") -> Sound | None:
    """The sound of a file, None without a sound track. Raises SourceError if it cannot be read or is not finite."""
    recording = Recording(path, features=features)
    for _ in recording.frames():
        pass
    return recording.sound


def read_samples(path: Path) -> np.ndarray:
    """The sound of a file: (n,) int16 at 16 kHz. Raises SourceError if it cannot be read or has no sound."""
    sound = read_sound(path)
    if sound is None:
        raise SourceError(f"{path}: has no sound track")
    return sound.samples


def utterances(sound: Sound, vad: SileroVad, config: Speech) -> list[tuple[int, int]]:
    """(start_ns, end_ns) of each utterance, as the live speech node cuts them. ``vad`` is reset."""
    vad.reset()
    core = SpeechCore("", vad, None, config, VirtualClock(), vad.twin())
    messages = [message for block in sound.blocks for message in core.push(block)] + core.finish()
    return [
        (message.start_ns, message.end_ns)
        for message in messages
        if isinstance(message, SpeechEvent) and message.event == "ended"
    ]
