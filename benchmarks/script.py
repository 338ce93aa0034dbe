"""A scripted conversation: utterances whose ends are known, in a media file that plays in real time.

Speech comes from the demo clip, or from RAVDESS clips. It is put on a timeline with pauses between; over all of it
lies the noise of a quiet room. Where an utterance ends is known by construction:

- demo clip: a sentence is cut where ``demo.json`` says that its voice ends, so its end is the cut.
- RAVDESS: a clip's end is that of its last 10 ms whose level is above −30 dB of its loudest 10 ms. What the clip has
  after that (half a second of it) stays. Clips with a pause of over 0.25 s inside are passed over: two labels for one
  of them would be no fault.

Its packets are as long as a microphone's blocks (``audio.block_ms``), since what is read waits for its block's end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from emostream.stream.config import Config
from emostream.stream.sources import DEMO

RATE_HZ = 16_000
BLOCK = RATE_HZ * Config().audio.block_ms // 1000  # samples in a packet
LEAD_IN_S = 0.5
NOISE = 10 ** (-55 / 20)  # root mean square, of full scale
TAIL_S = 0.5  # of a real recording after its end
_FRAME = 160  # samples, 10 ms
_BELOW_LOUDEST_DB = 30.0
_LONGEST_PAUSE_S = 0.25
_LONGEST_S = 12.0  # below speech.max_utterance_s, which would cut
_SEED = 11


class ScriptError(RuntimeError):
    """There is no speech to make a script of; the message says why."""


@dataclass(frozen=True)
class Segment:
    """``samples``: (n,) float32 in [-1, 1] at 16 kHz, of which ``start`` to ``end`` are speech."""

    name: str
    samples: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class Utterance:
    """What is said where, in nanoseconds of media time."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Script:
    path: Path
    utterances: list[Utterance]
    length_s: float
    source: str


def demo_segments() -> list[Segment]:
    """The sentences of the demo clip."""
    sound = _read(DEMO)
    sentences = json.loads(DEMO.with_suffix(".json").read_text(encoding="utf-8"))["sentences"]
    segments = []
    for i, sentence in enumerate(sentences):
        cut = sound[round(sentence["start_s"] * RATE_HZ) : round(sentence["end_s"] * RATE_HZ)]
        segments.append(Segment(f"demo {i + 1} ({sentence['mood']})", cut, 0, len(cut)))
    return segments


def ravdess_segments(folder: Path, limit: int) -> list[Segment]:
    """Up to ``limit`` RAVDESS speech clips below ``folder``, spread over the actors. Raises ScriptError."""
    paths = sorted(p for p in folder.rglob("03-01-*") if p.suffix.lower() in (".wav", ".flac"))
    if not paths:
        raise ScriptError(f"{folder}: no RAVDESS speech clips there (03-01-05-01-02-01-12.wav); set --data")
    segments = []
    for i in np.random.default_rng(_SEED).permutation(len(paths)):
        segment = find_speech(paths[i].stem, _read(paths[i]))
        if segment is not None:
            segments.append(segment)
        if len(segments) == limit:
            break
    if not segments:
        raise ScriptError(f"{folder}: no clip there is free of pauses over {_LONGEST_PAUSE_S} s")
    return segments


def find_speech(name: str, samples: np.ndarray) -> Segment | None:
    """Where a recording's speech starts and ends, by the rule above; None if it has a pause inside or is too long.

    ``samples``: (n,) float32 at 16 kHz.
    """
    whole = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    level = np.sqrt(np.mean(whole**2, axis=1)) if len(whole) else np.zeros(1)
    if not level.max() > 0:
        return None
    loud = np.flatnonzero(level > level.max() * 10 ** (-_BELOW_LOUDEST_DB / 20))
    start, end = int(loud[0]) * _FRAME, int(loud[-1] + 1) * _FRAME
    pause_s = (np.diff(loud).max(initial=1) - 1) * _FRAME / RATE_HZ
    if pause_s > _LONGEST_PAUSE_S or end - start > _LONGEST_S * RATE_HZ:
        return None
    first = max(0, start - round(0.1 * RATE_HZ))
    cut = samples[first : end + round(TAIL_S * RATE_HZ)]
    return Segment(name, cut, start - first, end - first)


def make_script(
    path: Path, segments: Sequence[Segment], count: int, pause_s: float, video: bool, source: str
) -> Script:
    """Write ``count`` utterances, ``segments`` over and over, to ``path`` (.mkv: sound as 16-bit PCM; with ``video``
    the demo clip's picture beside it, which loops and does not follow the words).

    The silence after an utterance is ``pause_s`` and up to 0.25 s more, so that ends fall anywhere between the steps
    of 32 ms, 100 ms and 250 ms in which the pipeline works.
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


def _read(path: Path) -> np.ndarray:
    """A file's sound, (n,) float32 mono at 16 kHz."""
    resampler = av.AudioResampler("flt", "mono", RATE_HZ)
    with av.open(str(path)) as container:
        frames = [*container.decode(audio=0), None]
        return np.concatenate([piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)])


def _write(path: Path, pcm: np.ndarray, video: bool) -> None:
    with av.open(str(path), "w", format="matroska") as container, av.open(str(DEMO)) as demo:
        audio = container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        picture = demo.streams.video[0]
        pictures: Iterator[av.Packet] = iter(())
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


def _due(packet: av.Packet) -> Fraction:
    """When it has to be decoded, in seconds."""
    assert packet.dts is not None and packet.time_base is not None
    return packet.dts * packet.time_base


def _loop(
    demo: av.container.InputContainer, picture: av.VideoStream, track: av.VideoStream, length_s: float
) -> Iterator[av.Packet]:
    """The demo clip's pictures over and over, as they are encoded: it begins with a key frame."""
    assert picture.duration is not None and picture.time_base is not None
    begin = 0
    while begin * picture.time_base < length_s:
        demo.seek(0)
        for packet in demo.demux(picture):
            if packet.pts is None or packet.dts is None:  # the empty packet at the end
                continue
            packet.pts += begin
            packet.dts += begin
            packet.stream = track
            yield packet
        begin += picture.duration
