"""Capture process: a source, followed by the audio core, the video core or both."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from emostream.errors import ModelError, SourceError, UnreadableError
from emostream.stream.emotion import Word
from emostream.stream.messages import End, Face, Message, Words, within
from emostream.stream.nodes.runtime import REST_S, NodeRuntime, Stopped
from emostream.stream.sources import make_source
from emostream.stream.sources.base import AudioChunk, HeardWords, NoTrack, SeenFaces, Source, VideoFrame
from emostream.stream.sources.file import FileSource
from emostream.stream.sources.replay import ReplaySource
from emostream.stream.topics import PUBLISHED, Medium, media_topics, stream_topic

if TYPE_CHECKING:
    from emostream.stream.features.face import Detector

log = logging.getLogger(__name__)

_TICK_NS = 200_000_000
_SKIP_NS = 500_000_000


def main(runtime: NodeRuntime) -> None:
    """Open the source, wait until everyone is ready, then publish its samples and frames until it ends or ``stop``
    comes.

    Raises SourceError or ModelError if it cannot begin, after ending its topics, and UnreadableError if the source was
    opened and nothing in it can be decoded. A crash ends no topic, since the node
    is started again, nor does a live source that was there before and is away when it is.
    """
    spec = runtime.spec
    assert spec.source is not None
    source = make_source(spec.source, spec.media, runtime.clock, spec.config, spec.tracks)
    topics = media_topics(spec.media, spec.stream)
    cores: Cores | None = None
    failure: SourceError | ModelError | None = None
    reason = "end of source"
    started_again = spec.t0_ns is not None
    try:
        detector = None
        if "video" in spec.media:  # before the source opens: its thread would import OpenCV at the same time
            from emostream.stream.cores.video import make_detector

            detector = make_detector(spec.config.video)
        source.open()
        runtime.wait_for_subscribers(topics)
        t0_ns = runtime.wait_for_go()
        # face ids must be unique in a run: after a restart they continue from the tenths of a second since its start
        first = (runtime.clock.now_ns() - t0_ns) // 100_000_000 if started_again and t0_ns is not None else 0
        cores = Cores(spec.stream, spec.media, detector, t0_ns, spec.config.audio.channels, first)
        runtime.counters = lambda: cores.counters() | source.counters
        runtime.senses = cores.take_senses
        _run(runtime, source, cores, t0_ns, started_again)
    except Stopped:
        reason = "stopped"
    except (SourceError, ModelError) as error:
        failure, reason = error, str(error)
    except Exception as error:  # from a library that does not understand the source
        if runtime.has_run:
            raise
        failure = SourceError(f"{source.name}: cannot be used ({type(error).__name__}: {error})")
        reason = str(failure)
    source.close()
    for message in cores.flush() if cores is not None else []:
        runtime.send_last(message)
    if failure is not None and cores is None:
        if started_again and source.live:  # it may come back
            raise failure
        runtime.wait_for_subscribers(topics)
    runtime.send_ends(end for medium in sorted(spec.media) for end in _ends(spec.stream, medium, reason))
    if failure is not None and cores is None:
        raise failure
    if failure is not None and cores is not None and cores.is_unused and not started_again:
        raise UnreadableError(str(failure)) from failure
    if failure is not None:  # a damaged file: what came before the damage counts
        log.error("%s", failure)


def _run(runtime: NodeRuntime, source: Source, cores: Cores, t0_ns: int | None, started_again: bool) -> None:
    if started_again and t0_ns is not None and isinstance(source, (FileSource, ReplaySource)):
        source.seek(runtime.clock.now_ns() - t0_ns)  # skip the time during which the node was away
    stream = runtime.spec.stream
    pictures = _pictures(runtime)
    delay_ns: int | None = None
    missing: set[Medium] = set()
    is_away = started_again  # until it has reached what is due now
    if source.live:
        runtime.heard_ns = runtime.clock.now_ns()
    for item in source.items():
        runtime.tick()
        if runtime.stopping:
            raise Stopped
        if item is None:
            continue
        if isinstance(item, NoTrack):
            if item.medium not in missing:  # a live source says so at each opening
                log.warning("%s has no %s track", source.name, item.medium)
                missing.add(item.medium)
            for end in _ends(runtime.spec.stream, item.medium, f"no {item.medium} track"):
                runtime.send_last(end)
            continue
        if t0_ns is not None:
            if source.live:
                # not the arrival time: a decoder only outputs its last picture when the source is closed
                runtime.heard_ns = max(runtime.heard_ns or 0, min(item.media_end_ns, runtime.clock.now_ns()))
                item = dataclasses.replace(item, media_ns=item.media_ns - t0_ns)
                if item.media_ns < 0:  # captured before the run began
                    continue
            else:
                if delay_ns is None:  # a pipe or a server may only have begun to send now
                    late_ns = runtime.clock.now_ns() - t0_ns - item.media_end_ns
                    is_file = isinstance(source, (FileSource, ReplaySource))
                    delay_ns = max(0, late_ns) if not (started_again or is_file) else 0
                if delay_ns:
                    item = dataclasses.replace(item, media_ns=item.media_ns + delay_ns)
                if is_away and runtime.clock.now_ns() - t0_ns - item.media_end_ns > _SKIP_NS:
                    continue  # what came meanwhile is lost
                is_away = False
                _wait(runtime, t0_ns + item.media_end_ns)
            steered = _steered(item, t0_ns, runtime.orders.muted.get(stream, ()), runtime.orders.paused.get(stream, ()))
            if steered is None:
                continue
            item = steered
        if isinstance(item, HeardWords):
            if runtime.spec.config.speech.recognizer == "external":
                runtime.send(Words(stream=stream, words=_on_timeline(item.words, t0_ns or 0)))
            continue
        for message in cores.push(item, getattr(source, "delay_ns", 0), runtime.at_rest):
            runtime.send(message)
            if pictures is not None and isinstance(message, Face) and isinstance(item, VideoFrame):
                pictures(item, message)
        if source.live:
            runtime.flush_seldom()


def _pictures(runtime: NodeRuntime) -> Callable[[VideoFrame, Face], None] | None:
    """A function that sends pictures while they are being recorded or looked at; None if the configuration allows
    neither."""
    spec = runtime.spec
    record, page = spec.config.record, spec.config.page
    wanted = (record.video and record.folder) or (page.picture and page.on)
    if not (wanted and spec.realtime and "video" in spec.media):
        return None
    from emostream.stream.cores.picture import PictureCore

    core, topics = PictureCore(), [stream_topic("picture", spec.stream)]

    def send(frame: VideoFrame, face: Face) -> None:
        if runtime.publisher.has_subscribers(topics) and (picture := core.push(frame.image, face)) is not None:
            runtime.send(picture)

    return send


def _on_timeline(words: Sequence[Word], t0_ns: int) -> list[Word]:
    """Convert the words' Unix times to the stream's timeline."""
    t0_s = t0_ns / 1e9
    return [
        msgspec.structs.replace(word, start_s=round(word.start_s - t0_s, 3), end_s=round(word.end_s - t0_s, 3))
        for word in words
    ]


def _steered(
    item: AudioChunk | VideoFrame | SeenFaces | HeardWords,
    t0_ns: int,
    muted: Sequence[tuple[int, int]],
    paused: Sequence[tuple[int, int]],
) -> AudioChunk | VideoFrame | SeenFaces | HeardWords | None:
    """The item, silenced or left out (None) as the stream's muted and paused spans demand."""
    if isinstance(item, AudioChunk):
        return silenced(item, t0_ns, [*muted, *paused]) if muted or paused else item
    unheard = [*muted, *paused] if isinstance(item, HeardWords) else paused
    return None if within(unheard, t0_ns + item.media_ns) else item


def silenced(chunk: AudioChunk, t0_ns: int, spans: Sequence[tuple[int, int]]) -> AudioChunk:
    """The same sound, but 0 wherever it was captured within one of ``spans`` (Unix times in ns)."""
    begin_ns, end_ns = t0_ns + chunk.media_ns, t0_ns + chunk.media_end_ns
    hit = [span for span in spans if span[0] < end_ns and span[1] > begin_ns]
    if not hit:
        return chunk
    samples = chunk.samples.copy()
    for start_ns, stop_ns in hit:
        first, last = (max(0, at_ns - begin_ns) * chunk.rate_hz // 1_000_000_000 for at_ns in (start_ns, stop_ns))
        samples[first:last] = 0
    return dataclasses.replace(chunk, samples=samples)


def _wait(runtime: NodeRuntime, due_ns: int) -> None:
    """Wait until a file's sample is due. Raises Stopped."""
    if due_ns > runtime.clock.now_ns():
        runtime.flush()
        due_ns += int(REST_S * 1e9) if runtime.at_rest else 0
    while (left_ns := due_ns - runtime.clock.now_ns()) > 0:
        runtime.clock.wait_until_ns(runtime.clock.now_ns() + min(left_ns, _TICK_NS), runtime.stop_event)
        runtime.tick()
        if runtime.stopping:
            raise Stopped


class Cores:
    """The cores for the media that a process captures. Each is imported, with its libraries, only if it is used."""

    def __init__(
        self,
        stream: str,
        media: frozenset[Medium],
        detector: Detector | None,
        t0_ns: int | None,
        channels: str,
        first: int = 0,
    ) -> None:
        self._audio = self._video = None
        if "audio" in media:
            from emostream.stream.cores.audio import AudioCore

            self._audio = AudioCore(stream, t0_ns, channels=channels)
        if "video" in media:
            assert detector is not None
            from emostream.stream.cores.video import VideoCore

            self._video = VideoCore(stream, detector, t0_ns, first)
        self._count = {"chunks": 0, "frames": 0}
        self._seen = (0, 0)  # pictures and faces at the last ``take_senses``

    def push(self, item: AudioChunk | VideoFrame | SeenFaces, delay_ns: int, at_rest: bool = False) -> list[Message]:
        """``delay_ns``: how long the source held it back; it counts as captured when it was given. ``at_rest``: see
        ``AudioCore``."""
        if self._audio is not None:
            self._audio.at_rest = at_rest
        for core in (self._audio, self._video):
            if core is not None:
                core.delay_ns = delay_ns
        if isinstance(item, AudioChunk):
            self._count["chunks"] += 1
            return self._audio.push(item) if self._audio is not None else []
        self._count["frames"] += 1
        if self._video is None:
            return []
        return self._video.repeat(item) if isinstance(item, SeenFaces) else self._video.push(item)

    @property
    def is_unused(self) -> bool:
        """Whether nothing has been pushed yet."""
        return not any(self._count.values())

    def flush(self) -> list[Message]:
        return self._audio.flush() if self._audio is not None else []

    def take_senses(self) -> dict[str, float]:
        """The share of pictures with a face since the last call."""
        if self._video is None:
            return {}
        (frames, faces), self._seen = self._seen, (self._count["frames"], self._video.faces)
        return {"face": round((self._seen[1] - faces) / max(1, self._seen[0] - frames), 2)}

    def counters(self) -> dict[str, int]:
        counted = dict(self._count)
        if self._audio is not None:
            counted |= {"capture_gaps": self._audio.gaps, "late_chunks": self._audio.late_chunks}
        if self._video is not None:
            counted |= {"faces": self._video.faces, "late_frames": self._video.late_frames}
        return counted


def _ends(stream: str, medium: Medium, reason: str) -> list[End]:
    return [End(stream=stream, content=content, reason=reason) for content in PUBLISHED[medium]]
