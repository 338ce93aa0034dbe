"""Tries a microphone or a camera for some seconds and reports what it hears or sees."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from emostream.errors import SourceError
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.cores.audio import AudioCore
from emostream.stream.messages import Pcm
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import make_source
from emostream.stream.sources.base import AudioChunk, Source, VideoFrame
from emostream.stream.topics import Medium

_SILENT_DBFS, _QUIET_DBFS, _LOUD_DBFS = -90.0, -45.0, -0.5
_OPEN_S = 10.0  # a source has to deliver something within this time


def hear(source: str, seconds: float, config: Config) -> Iterator[str]:
    """Record some seconds of sound and yield lines that say what was heard. Raises SourceError or ModelError."""
    from emostream.stream.speech.recognizer import make_recognizer
    from emostream.stream.speech.vad import load_vad

    vad, recognizer = load_vad(config.speech.vad_model), make_recognizer(config.speech)
    core = AudioCore("", None, channels=config.audio.channels)
    blocks: list[np.ndarray] = []
    rate_hz = channels = 0
    opened = _opened(source, "audio", config)
    yield f"{opened.name}: recording {seconds:g} s; say something"
    for item in _items(opened, seconds):
        if isinstance(item, AudioChunk):
            rate_hz, channels = item.rate_hz, item.samples.shape[1]
            blocks += [message.samples for message in core.push(item) if isinstance(message, Pcm)]
    if not blocks:
        raise SourceError(f"{opened.name}: gave no sound in {_OPEN_S:g} s")
    sound = np.concatenate(blocks)
    peak_dbfs = 20 * np.log10(max(int(np.abs(sound.astype(np.int32)).max()), 0.03) / 32768)
    likely = [vad.push(block) for block in blocks]
    yield f"{len(sound) / 16_000:.1f} s at {rate_hz} Hz, {channels} channel{'s' * (channels > 1)}"
    yield f"loudest: {peak_dbfs:.0f} dBFS{_judged(peak_dbfs)}"
    spoken_s = sum(probability >= config.speech.threshold for probability in likely) * len(blocks[0]) / 16_000
    yield f"speech: {spoken_s:.1f} s of it (highest probability {max(likely):.0%})"
    if recognizer is not None and spoken_s:
        recognizer.begin()
        recognizer.push(sound)
        words = " ".join(word.word for word in recognizer.finish())
        yield f"words ({recognizer.name}): {words or 'none'}"


def _judged(peak_dbfs: float) -> str:
    if peak_dbfs <= _SILENT_DBFS:
        return ": silence; is it muted, or another device?"
    if peak_dbfs < _QUIET_DBFS:
        return ": very quiet; raise its gain, or come closer"
    return ": clipped; lower its gain" if peak_dbfs > _LOUD_DBFS else ""


def see(source: str, seconds: float, config: Config) -> Iterator[str]:
    """Look for some seconds and yield lines that say what was seen. Raises SourceError or ModelError."""
    from emostream.stream.cores.video import VideoCore, make_detector
    from emostream.stream.messages import Face

    core = VideoCore("", make_detector(config.video), None)
    opened = _opened(source, "video", config)
    yield f"{opened.name}: looking for {seconds:g} s"
    faces: list[Face] = []
    shape, light = (0, 0), 0.0
    for item in _items(opened, seconds):
        if isinstance(item, VideoFrame):
            shape, light = item.image.shape[:2], float(item.image.mean())
            faces += [message for message in core.push(item) if isinstance(message, Face)]
    if not faces:
        raise SourceError(f"{opened.name}: gave no picture in {_OPEN_S:g} s")
    found = [face for face in faces if face.found and face.box is not None]
    yield f"{len(faces)} pictures of {shape[1]}x{shape[0]}, mean brightness {light / 255:.0%}{_lit(light)}"
    yield f"a face in {len(found)} of {len(faces)}"
    if found and (box := found[-1].box) is not None:
        x, y, width, height = box
        across = ("left", "middle", "right")[min(2, int(3 * (x + width / 2)))]
        down = ("top", "middle", "bottom")[min(2, int(3 * (y + height / 2)))]
        small = "; come closer" if width * shape[1] < 32 else ""
        where = "middle" if across == down else f"{down} {across}"
        yield f"at last in the {where}, {width * shape[1]:.0f} pixels wide{small}"


def _lit(light: float) -> str:
    return ": dark" if light < 30 else ": too bright" if light > 235 else ""


def _opened(source: str, medium: Medium, config: Config) -> Source:
    try:
        spec = SourceSpec.parse(source)
    except ValueError as error:
        raise SourceError(f"{source}: {error}") from error
    if medium not in spec.media:
        raise SourceError(f"{source}: gives no {'sound' if medium == 'audio' else 'pictures'}")
    opened = make_source(spec, frozenset({medium}), SystemClock(), config)
    opened.open()
    return opened


def _items(source: Source, seconds: float) -> Iterator[object]:
    """The items of a source's first ``seconds``; fewer if they do not come in time."""
    until, first_ns = time.monotonic() + _OPEN_S + seconds, None
    try:
        for item in source.items():
            if isinstance(item, AudioChunk | VideoFrame):
                first_ns = item.media_ns if first_ns is None else first_ns
                if item.media_end_ns - first_ns > seconds * 1e9:
                    return
                yield item
            if time.monotonic() > until:
                return
    finally:
        source.close()
