"""Labelling recordings as fast as the machine goes: the cores of all nodes in one process, without sockets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from emostream import __version__
from emostream.engines.bundle import open_bundle
from emostream.errors import EmostreamError, SourceError
from emostream.files import printable, user_path
from emostream.stream.clock import SystemClock
from emostream.stream.config import Config, as_config, check_tracks
from emostream.stream.cores.audio import AudioCore
from emostream.stream.cores.classifier import Classifier
from emostream.stream.cores.fusion import FusionCore
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.cores.video import VideoCore, make_detector
from emostream.stream.emotion import Emotion
from emostream.stream.messages import End, Message, Pcm
from emostream.stream.profile import Profile
from emostream.stream.sheet.collect import Sheet
from emostream.stream.sources.arrays import ArraySource
from emostream.stream.sources.base import AudioChunk, NoTrack, SeenFaces
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.replay import ReplaySource
from emostream.stream.speech.overlap import load_overlap
from emostream.stream.speech.recognizer import make_recognizer
from emostream.stream.speech.speaker import load_speaker
from emostream.stream.speech.vad import load_vad
from emostream.stream.topics import FUSED

log = logging.getLogger(__name__)

Progress = Callable[[float], None]


class Labeller:
    """Labels one recording after another; the models are loaded once.

    ``config``: as ``load_config`` returns it, or the path of such a file; its streams are not used. The labels are
    those that a live run would publish for the recording, with ``latency_ms`` None. A profile (``fusion.profile``) is
    read, for a stream of the recording's name, and never written. Use it in one thread; ``close`` it, or use it in a
    ``with`` statement.

    ``media_s``: how many seconds of the present (or last) recording have been read.

    Raises BundleError, BackendError or ModelError if something that the configuration asks for cannot be loaded, and
    ConfigError if its prior does not match the bundle's labels or its profile is not valid.
    """

    def __init__(self, config: Config | str | Path | None = None) -> None:
        self._config, self._clock = as_config(config), SystemClock()
        fusion = self._config.fusion
        bundle = open_bundle(fusion.bundle)
        self._profile = Profile(user_path(fusion.profile), bundle) if fusion.profile else None
        self._classifier = Classifier(bundle, fusion.backend, fusion.threads, fusion.prior)
        self._vad = load_vad(self._config.speech.vad_model)
        self._recognizer = make_recognizer(self._config.speech)
        self._detector = make_detector(self._config.video)
        self._speaker = load_speaker(self._config.speech)
        self._overlap = load_overlap(self._config.speech)
        self.media_s = 0.0

    @property
    def facts(self) -> dict[str, str]:
        """What labels depend on besides the configuration: what was found on this machine. Empty text: not found."""
        parts = {
            "recogniser": self._recognizer, "face detector": self._detector, "speaker network": self._speaker,
            "overlap network": self._overlap,
        }  # fmt: skip
        return {"emostream": __version__, "bundle": self._classifier.bundle_id} | {
            name: "" if part is None else type(part).__name__ for name, part in parts.items()
        }

    def label(
        self,
        path: str | Path,
        progress: Progress = lambda part: None,
        *,
        tracks: str = "",
        sheet: Sheet | None = None,
    ) -> Iterator[Emotion]:
        """Yield the label of each utterance of a media file, as it becomes known.

        ``path``: anything that FFmpeg reads. ``progress`` is called with the fraction of the file that is done, 0 to 1.
        ``tracks``: which tracks to use if there are several: "audio:2,video:1", or by language, "audio:deu".
        ``sheet``: receives all that a contact sheet shows, including running estimates, which take longer; labels stay
        the same.

        Raises ConfigError for ``tracks`` of another form, and SourceError if the file cannot be opened or nothing in it
        can be decoded. A file that turns out to be damaged yields the labels up to there, and a warning in the log.
        """
        if not str(path):
            raise SourceError("the path of the file to label is empty")
        path = Path(path)
        check_tracks(tracks)
        source = FileSource(path, frozenset({"audio", "video"}), self._config.video.fps, tracks)
        source.open()
        try:
            for emotion in self._label(source, printable(path.name), progress, sheet):
                emotion.source = printable(path)
                yield emotion
        finally:
            source.close()

    def label_arrays(
        self,
        samples: np.ndarray | None = None,
        rate_hz: int | None = None,
        frames: np.ndarray | None = None,
        fps: float | None = None,
        *,
        name: str = "array",
        progress: Progress = lambda part: None,
    ) -> Iterator[Emotion]:
        """Yield the label of each utterance in sound, pictures or both held in memory.

        ``samples``: (n,) or (n, channels), int16 or floating point in [-1, 1], at any ``rate_hz``. ``frames``: (m,
        height, width) gray or (m, height, width, 3) RGB uint8, at ``fps`` frames a second. Both begin at time 0.
        ``name`` is the ``stream`` of the labels.

        Raises SourceError if the arrays do not have this form.
        """
        yield from self._label(ArraySource(samples, rate_hz, frames, fps, self._config.video.fps, name), name, progress)

    def close(self) -> None:
        """Release the networks; the labeller cannot be used afterwards."""
        self._classifier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def label_recording(self, location: str, progress: Progress = lambda part: None) -> Iterator[Emotion]:
        """Yield the labels that this configuration gives to a run's recording, from its sound and faces.

        ``location``: the file's path, with ``#NAME`` for a stream other than the first; ``record.identity`` names the
        key file of an encrypted one. Raises SourceError if it is not a recording, ConfigError if the key is not valid,
        and ModelError if the package that reads recordings is missing.
        """
        source = ReplaySource(location, frozenset({"audio", "video"}), self._config.record.identity)
        source.open()
        yield from self._label(source, source.stream, progress)

    def _label(
        self,
        source: FileSource | ArraySource | ReplaySource,
        name: str,
        progress: Progress,
        sheet: Sheet | None = None,
    ) -> Iterator[Emotion]:
        self.media_s = 0.0
        tracks = source.tracks()
        if not tracks:
            raise SourceError(f"{source.name}: has neither sound nor picture")
        self._vad.reset()
        if self._recognizer is not None:
            self._recognizer.reset()
        expected = tracks | ({"speech"} if "audio" in tracks else set())
        audio, video = (
            AudioCore(name, None, channels=self._config.audio.channels),
            VideoCore(name, self._detector, None),
        )
        quiet_vad = self._vad.twin() if self._config.audio.level == "auto" else None
        voice = None if self._speaker is None else self._speaker.new_vector()
        overlap = None if self._overlap is None else self._overlap.new_meter()
        speech = SpeechCore(
            name, self._vad, self._recognizer, self._config.speech, self._clock, quiet_vad, voice, overlap
        )
        fusion = FusionCore(
            {name: expected}, self._classifier, self._config, self._clock, realtime=False, estimates=sheet is not None
        )
        if self._profile is not None:
            self._profile.restore(fusion.baselines)

        def labels() -> Iterator[Emotion]:
            for emotion in fusion.step():
                if sheet is not None:
                    sheet.add(emotion)
                if emotion.kind == "utterance":
                    yield emotion
            if sheet is not None:
                sheet.forget_before(fusion.needed_from_ns(name))

        def take(messages: list[Message]) -> Iterator[Emotion]:
            for message in messages:
                if sheet is not None:
                    sheet.take(message)
                if isinstance(message, Pcm):
                    yield from take(speech.push(message))
                else:
                    fusion.push(message)
            yield from labels()

        is_read = False
        try:
            for item in source.items():
                if isinstance(item, NoTrack):
                    continue
                is_read = True
                if isinstance(item, AudioChunk):
                    yield from take(audio.push(item))
                else:
                    yield from take(video.repeat(item) if isinstance(item, SeenFaces) else video.push(item))
                self.media_s = max(self.media_s, item.media_end_ns / 1e9)
                if source.length_s:
                    progress(min(1.0, self.media_s / source.length_s))
        except SourceError as error:
            if not is_read:
                raise
            log.warning("%s", error)
        yield from take(audio.flush())
        yield from take(speech.finish())
        for content in FUSED:
            fusion.push(End(stream=name, content=content, reason="end"))
        yield from labels()


def error_line(path: Path, error: Exception) -> str:
    """One line that says why a file has no further labels. The traceback goes to the log at level debug."""
    text = printable(str(error) if isinstance(error, EmostreamError) else f"{path}: {type(error).__name__}: {error}")
    log.debug("%s", text, exc_info=error)
    return text
