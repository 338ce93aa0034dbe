"""Labelling files as fast as the machine goes: the cores of all nodes in one process, without sockets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from emostream.engines.bundle import open_bundle
from emostream.errors import SourceError
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.fusion import FusionCore
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.messages import Emotion, End, Message, Pcm
from emostream.stream.sources.base import AudioChunk, NoTrack
from emostream.stream.sources.file import FileSource
from emostream.stream.speech.recognizer import make_recognizer
from emostream.stream.speech.vad import load_vad
from emostream.stream.topics import FUSED

log = logging.getLogger(__name__)


class Labeller:
    """Labels one file after another; the models are loaded once.

    The messages are those that a live run publishes for the file, with ``latency_ms`` null.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._clock = config, SystemClock()
        bundle = open_bundle(config.fusion.bundle)
        self._classifier = Classifier(bundle, config.fusion.backend, config.fusion.threads)
        self._vad = load_vad(config.speech.vad_model)
        self._recognizer = make_recognizer(config.speech)
        self._detector = make_detector(config.video)

    def label(self, path: Path, progress: Callable[[float], None] = lambda part: None) -> Iterator[Emotion]:
        """Utterance labels of a media file, as they become known; ``progress`` is told how much of
        the file is done, from 0 to 1.

        Raises SourceError if the file cannot be opened; one that is damaged later on gives the labels up to there,
        and a warning in the log.
        """
        source = FileSource(path, frozenset({"audio", "video"}), self._config.video.fps)
        source.open()
        try:
            yield from self._label(source, path.name, progress)
        finally:
            source.close()

    def _label(self, source: FileSource, name: str, progress: Callable[[float], None]) -> Iterator[Emotion]:
        tracks = source.tracks()
        if not tracks:
            raise SourceError(f"{source.name}: has neither sound nor picture")
        self._vad.reset()
        if self._recognizer is not None:
            self._recognizer.reset()
        expected = tracks | ({"speech"} if "audio" in tracks else set())
        audio, video = AudioCore(name, None), VideoCore(name, self._detector, None)
        speech = SpeechCore(name, self._vad, self._recognizer, self._config.speech, self._clock)
        fusion = FusionCore(
            {name: expected}, self._classifier, self._config, self._clock, realtime=False, estimates=False
        )

        def take(messages: list[Message]) -> Iterator[Emotion]:
            for message in messages:
                if isinstance(message, Pcm):
                    yield from take(speech.push(message))
                else:
                    fusion.push(message)
            yield from fusion.step()

        try:
            for item in source.items():
                if isinstance(item, NoTrack):
                    continue
                yield from take(audio.push(item) if isinstance(item, AudioChunk) else video.push(item))
                if source.length_s:
                    progress(min(1.0, item.media_end_ns / 1e9 / source.length_s))
        except SourceError as error:
            log.warning("%s", error)
        yield from take(audio.flush())
        yield from take(speech.finish())
        for content in FUSED:
            fusion.push(End(stream=name, content=content, reason="end"))
        yield from fusion.step()
