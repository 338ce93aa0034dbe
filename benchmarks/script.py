"""A scripted conversation: utterances whose ends are known, in a media file that plays in real time.

Speech comes from the demo clip or from RAVDESS clips. It is put on a timeline with pauses in between, and the noise of
a quiet room is added throughout. Where an utterance ends is known by construction:

- demo clip: a sentence is cut where ``demo.json`` says that the voice ends, so the cut is its end.
- RAVDESS: a clip ends with its last 10 ms whose level is within 30 dB of its loudest 10 ms. Half a second of what
  follows is kept. Clips with a pause of more than 0.25 s are skipped: two labels for one of them would not be a fault.

The file's packets are as long as a microphone's blocks (``audio.block_ms``), because a sample waits until its block is
complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from emostream.errors import ConfigError
from emostream.stream.config import Config
from emostream.stream.sources import DEMO

RATE_HZ = 16_000
BLOCK = RATE_HZ * Config().audio.block_ms // 1000  # samples in a packet
LEAD_IN_S = 0.5
NOISE = 10 ** (-55 / 20)  # root mean square, of full scale
TAIL_S = 0.5  # how much of a real recording is kept after its end
LEVEL_FRAME = 160  # samples, 10 ms
_BELOW_LOUDEST_DB = 30.0
_LONGEST_PAUSE_S = 0.25
_LONGEST_S = 12.0  # below speech.max_utterance_s, which would cut
_SEED = 11


@dataclass(frozen=True)
class Segment:
    """``samples``: (n,) float32 in [-1, 1] at 16 kHz; those from ``start`` to ``end`` are speech."""

    name: str
    samples: np.ndarray
    start: int
    end: int

    def after_silence(self, count: int) -> Segment:
        """The same with ``count`` samples of silence in front."""
        samples = np.concatenate([np.zeros(count, np.float32), self.samples])
        return replace(self, samples=samples, start=self.start + count, end=self.end + count)


@dataclass(frozen=True)
class Utterance:
    """What is said when, in nanoseconds of media time."""

    name: str
    start_ns: int
    end_ns: int

    @property
    def place(self) -> str:
        """Its name and times, for messages."""
        return f"{self.name}, {self.start_ns / 1e9:.2f} to {self.end_ns / 1e9:.2f} s"


@dataclass(frozen=True)
class Script:
    """A file and what is said in it. ``source``: where the speech is from, in words."""

    path: Path
    utterances: list[Utterance]
    length_s: float
    source: str


def demo_segments() -> list[Segment]:
    """The sentences of the demo clip."""
    sound = read_sound(DEMO)
    sentences = json.loads(DEMO.with_suffix(".json").read_text(encoding="utf-8"))["sentences"]
    segments = []
    for i, sentence in enumerate(sentences):
        cut = sound[round(sentence["start_s"] * RATE_HZ) : round(sentence["end_s"] * RATE_HZ)]
        segments.append(Segment(f"demo {i + 1} ({sentence['mood']})", cut, 0, len(cut)))
    return segments


def ravdess_clips(folder: Path) -> list[Path]:
    """RAVDESS speech clips below ``folder``, sorted. Raises ConfigError if there are none."""
    paths = sorted(p for p in folder.rglob("03-01-*") if p.suffix.lower() in (".wav", ".flac"))
    if not paths:
        raise ConfigError(f"{folder}: no RAVDESS speech clips there (such as 03-01-05-01-02-01-12.wav); set --data")
    return paths


def ravdess_segments(folder: Path, limit: int) -> list[Segment]:
    """Up to ``limit`` RAVDESS speech clips below ``folder``, spread over the actors. Raises ConfigError."""
    paths = ravdess_clips(folder)
    segments = []
    for i in np.random.default_rng(_SEED).permutation(len(paths)):
        segment = find_speech(paths[i].stem, read_sound(paths[i]))
        if segment is not None:
            segments.append(segment)
        if len(segments) == limit:
            break
    if not segments:
        raise ConfigError(f"{folder}: every clip there has a pause of more than {_LONGEST_PAUSE_S} s")
    return segments


def find_speech(name: str, samples: np.ndarray) -> Segment | None:
    """Where a recording's speech starts and ends, by the rule above; None if it is silent, has a pause or is too long.

    ``samples``: (n,) float32 at 16 kHz.
    """
    level = levels(samples)
    if not level.max(initial=0) > 0:
        return None
    loud = np.flatnonzero(level > level.max() * 10 ** (-_BELOW_LOUDEST_DB / 20))
    start, end = int(loud[0]) * LEVEL_FRAME, int(loud[-1] + 1) * LEVEL_FRAME
    pause_s = (np.diff(loud).max(initial=1) - 1) * LEVEL_FRAME / RATE_HZ
    if pause_s > _LONGEST_PAUSE_S or end - start > _LONGEST_S * RATE_HZ:
        return None
    first = max(0, start - round(0.1 * RATE_HZ))
    cut = samples[first : end + round(TAIL_S * RATE_HZ)]
    return Segment(name, cut, start - first, end - first)


def levels(samples: np.ndarray) -> np.ndarray:
    """Root mean square of each whole 10 ms of (n,) samples at 16 kHz: (n // 160,)."""
    frames = samples[: len(samples) // LEVEL_FRAME * LEVEL_FRAME].reshape(-1, LEVEL_FRAME)
    level: np.ndarray = np.sqrt(np.mean(frames**2, axis=1))
    return level


def make_script(
    path: Path, segments: Sequence[Segment], count: int, pause_s: float, video: bool, source: str
) -> Script:
    """Write ``count`` utterances, taken cyclically from ``segments``, to ``path`` (.mkv with 16-bit PCM sound).

    With ``video`` it also has the demo clip's picture, which loops and does not follow the words. The silence after an
    utterance is ``pause_s`` and up to 0.25 s more, so that ends fall anywhere between the steps of 32 ms, 100 ms and
    250 ms in which the pipeline works.
    """
    rng = np.random.default_rng(_SEED)
    parts, utterances = [np.zeros(round(LEAD_IN_S * RATE_HZ), np.float32)], []
    position = len(parts[0])
    for i in range(count):
        segment = segments[i % len(segments)]
        bounds = (_ns(position + segment.start), _ns(position + segment.end))
        utterances.append(Utterance(segment.name, *bounds))
        silence = round((pause_s + rng.uniform(0, 0.25)) * RATE_HZ)
        rest = max(0, silence - (len(segment.samples) - segment.end))  # the recording's own tail is part of the pause
        parts += [segment.samples, np.zeros(rest, np.float32)]
        position += len(segment.samples) + rest
    track = np.concatenate(parts)
    track = track + rng.normal(0, NOISE, len(track)).astype(np.float32)
    pcm = np.round(np.clip(track, -1, 1) * 32767).astype(np.int16)
    _write(path, pcm, video)
    return Script(path, utterances, len(pcm) / RATE_HZ, source)


def _ns(samples: int) -> int:
    return samples * 1_000_000_000 // RATE_HZ


def read_sound(path: Path) -> np.ndarray:
    """A file's sound: (n,) float32 mono at 16 kHz."""
    resampler = av.AudioResampler("flt", "mono", RATE_HZ)
    with av.open(str(path)) as container:
        frames = [*container.decode(audio=0), None]
        return np.concatenate([piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)])


def _write(path: Path, pcm: np.ndarray, video: bool) -> None:
    with av.open(str(path), "w", format="matroska") as container, av.open(str(DEMO)) as demo:
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        picture = demo.streams.video[0]
        pictures: Iterator[av.Packet[av.VideoStream]] = iter(())
        if video:
            track = container.add_stream_from_template(picture)
            pictures = _loop(demo, picture, track, len(pcm) / RATE_HZ)
        next_picture = next(pictures, None)
        for start in range(0, len(pcm), BLOCK):
            while next_picture is not None and _due(next_picture) <= Fraction(start, RATE_HZ):
                container.mux(next_picture)
                next_picture = next(pictures, None)
            frame = av.AudioFrame.from_ndarray(pcm[None, start : start + BLOCK], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def _due(packet: av.Packet[av.VideoStream]) -> Fraction:
    """When the packet has to be decoded, in seconds."""
    assert packet.dts is not None and packet.time_base is not None
    return packet.dts * packet.time_base


def _loop(
    demo: av.container.InputContainer, picture: av.VideoStream, track: av.VideoStream, length_s: float
) -> Iterator[av.Packet[av.VideoStream]]:
    """The demo clip's encoded pictures, over and over. That works because the clip begins with a key frame."""
    assert picture.duration is not None and picture.time_base is not None
    begin = 0
    while begin * picture.time_base < length_s:
        demo.seek(0)
        for packet in demo.demux(picture):
            if packet.pts is None or packet.dts is None:  # the empty packet that ends a stream
                continue
            packet.pts += begin
            packet.dts += begin
            packet.stream = track
            yield packet
        begin += picture.duration
