"""Live sources that FFmpeg reads: cameras and network URLs. A source that goes away is opened again."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
from av.error import FFmpegError

from emostream.errors import SourceError
from emostream.stream.clock import Clock
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import joined
from emostream.stream.sources.access import input_options
from emostream.stream.sources.arrival import Arrival, Smoother
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import OPEN_OPTIONS, decode
from emostream.stream.sources.file import Bytes, open_bytes
from emostream.stream.sources.tracks import choose, timeline_of
from emostream.stream.sources.web import Body, Web, format_of
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)

_QUEUE = 200  # items between the reading thread and the node, a second or two; beyond it the oldest are dropped
_LONGEST_QUEUE = 3000  # the same, while items are held back
_SETTLE_NS = 1_000_000_000  # everything that comes this soon after opening is discarded
_IDLE_S = 0.1
_FULL_S = 0.02
_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_UNDECODABLE_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # the same, for one of which nothing can be decoded
_LASTED_NS = 10_000_000_000  # a source that lasted this long is reopened without back-off
_BY_ARRIVAL = ("mpjpeg", "mjpeg")  # their pictures have no times: FFmpeg assumes 1/25 s for each


class LiveSource:
    """A camera or a URL. Media times are Unix times of capture, estimated from the source's time stamps and their
    arrival times. It is back when something of it was decoded again, not when it could be opened.

    A thread of its own reads, so that a blocking read (up to ``timeout_s``) does not block the node. Data of the first
    second after opening is stale, since FFmpeg and servers buffer, and is discarded; its item with the least delay sets
    the offset between the source's clock and ours. So capture times of a network source are estimates: they ignore the
    least delay of the transport and may contain its jitter.

    Not everything at a URL is live: a file on a server, or a playlist that has ended, is read once from start to end
    like a file; ``live`` is then False after opening. The same holds for a pipe (``Pipe``).

    Data that comes in bursts, such as HLS segments, is delivered at an even pace, ``delay_ns`` late; otherwise a gap
    between two bursts would look like the end of a sentence.

    ``allowed_hosts``: other hosts that an ``http`` or ``https`` source may lead to, by a redirect or a playlist.
    ``tracks``: which tracks to use, as in ``tracks.choose``.
    """

    def __init__(
        self,
        spec: SourceSpec,
        media: frozenset[Medium],
        fps: float,
        clock: Clock,
        timeout_s: float,
        allowed_hosts: Collection[str] = (),
        tracks: str = "",
    ) -> None:
        self.name = str(spec)
        self.live = True
        self._spec, self._allowed_hosts, self._wanted = spec, allowed_hosts, tracks
        self._web: Web | None = None  # of an http or https source
        self._media, self._fps, self._clock, self._timeout_s = media, fps, clock, timeout_s
        self._queue: deque[AudioChunk | VideoFrame | NoTrack] = deque()
        self._arrived = threading.Event()
        self._closing = threading.Event()
        self._ended = threading.Event()
        self._failure: SourceError | None = None  # why a recording ended early
        self._later: Iterator[Any] = iter(())  # of a recording: those that were joined to it, as files for PyAV
        self._down = ""  # why a live source is away, as the log says; empty while it delivers
        self._decoded = False  # something of it, since it was opened
        self._smoother = Smoother()
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        container = self._open()
        threading.Thread(target=self._read, args=(container,), name=f"read {self.name}", daemon=True).start()

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack | None]:
        while not self._closing.is_set():
            if self._queue:
                if (early_ns := self._early_ns(self._queue[0])) > 0:
                    self._closing.wait(min(early_ns / 1e9, _IDLE_S))
                    yield None
                else:
                    yield self._queue.popleft()
                continue
            if self._ended.is_set() and not self._queue:
                if self._failure is not None:
                    raise self._failure
                return
            self._arrived.clear()
            if not self._queue and not self._ended.is_set() and not self._arrived.wait(_IDLE_S):
                yield None

    @property
    def delay_ns(self) -> int:
        """How long items are held back at present."""
        return self._smoother.delay_ns

    def _early_ns(self, item: AudioChunk | VideoFrame | NoTrack) -> int:
        """How much longer to hold an item back."""
        if not self.live or not self.delay_ns or isinstance(item, NoTrack):
            return 0
        return item.media_end_ns + self.delay_ns - self._clock.now_ns()

    def close(self) -> None:
        self._closing.set()

    def _open(self) -> av.container.InputContainer:
        hint = "is its server running?"
        try:
            if self._spec.kind == "camera":
                hint = "list devices with: stream-doctor"
                path, container_format = _camera(self._spec.location or "0")
                return self._opened(path, container_format, {})
            if self._spec.scheme in ("http", "https"):
                return self._opened_web(self._spec.address)
            options = {"fflags": "nobuffer"} | input_options(self._spec.scheme)
            if self._spec.scheme == "rtsp":  # UDP only if the server refuses TCP
                options |= {"rtsp_flags": "prefer_tcp"}
            elif self._spec.scheme == "rtsps":  # which would not be encrypted over UDP
                options |= {"rtsp_transport": "tcp"}
            return self._opened(self._spec.address, None, options)
        except (FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"{self.name} cannot be opened ({reason}); {hint}") from error

    def _opened(
        self, file: Any, container_format: str | None, options: dict[str, str], **more: Any
    ) -> av.container.InputContainer:
        container: av.container.InputContainer = av.open(
            file, format=container_format, options=options, timeout=self._timeout_s, **more, **OPEN_OPTIONS
        )
        return container

    def _opened_web(self, url: str, whole: bool = False) -> av.container.InputContainer:
        """``whole``: keep the data that FFmpeg reads to probe the format, which is discarded for live sources."""
        self._web = web = Web(url, self.name, self._allowed_hosts, self._timeout_s)
        web.limit_time(self._timeout_s)
        body = Body(web, web.url)
        options = {"http_persistent": "0", "http_multiple": "0"} | input_options(self._spec.scheme)
        if not (whole or body.is_file):
            options["fflags"] = "nobuffer"
        try:
            file = self._first_of(body) if body.is_file else body
            container = self._opened(file, format_of(body), options, io_open=web.open)
        except BaseException as error:
            body.close()
            raise web.failure or error from error
        web.limit_time(None)
        is_playlist = container.format.name.startswith(("hls", "applehttp"))
        self.live = container.duration is None if is_playlist else not body.is_file
        if is_playlist and not (self.live or whole):
            container.close()
            return self._opened_web(url, whole=True)
        return container

    def _first_of(self, body: Body) -> Any:
        """The first recording in a file at a URL, for PyAV; others may follow."""
        kind = joined.format_of(body.peek(joined.HEAD))
        if not kind:
            return body
        if not body.seekable() or kind in joined.SEARCHED:
            return self._split(body)
        parts = joined.linked_parts(cast(BinaryIO, body), body.length, kind)
        body.seek(0)
        if not parts:
            return body
        first, *later = (Bytes(Path(body.name), cast(BinaryIO, body), part) for part in parts)
        self._later = iter(later)
        first.seek(0)
        return first

    def _split(self, file: Any) -> joined.Splitter:
        splitter = joined.Splitter(file, self.name)
        self._later = (splitter for _ in iter(splitter.next, False))
        return splitter

    def _read(self, container: av.container.InputContainer) -> None:
        if self.live:
            self._follow(container)
        else:
            self._read_once(container)

    def _read_once(self, container: av.container.InputContainer) -> None:
        """Read a recording, and those that were joined to it, no faster than the node takes them."""
        try:
            base_ns = self._read_part(container, 0)
            while not self._closing.is_set() and (file := next(self._later, None)) is not None:
                if base_ns:
                    log.info("%s: another recording follows at %.2f s; it is read too", self.name, base_ns / 1e9)
                container.close()
                try:
                    container = av.open(file, options=input_options(self._spec.scheme), **OPEN_OPTIONS)
                except FFmpegError as error:
                    log.warning(
                        "%s: what follows at %.2f s cannot be read (%s)", self.name, base_ns / 1e9, error.strerror
                    )
                    continue
                base_ns = self._read_part(container, base_ns)
            failure: Exception | None = self._web.failure if self._web is not None else None
        except (FFmpegError, OSError, SourceError) as error:
            failure = error
        except Exception as error:  # otherwise nobody would notice the end of this thread
            log.debug("%s", traceback.format_exc())
            failure = OSError(None, f"{type(error).__name__}: {error}")
        if failure is not None:
            why = getattr(failure, "strerror", None) or str(failure)
            self._failure = SourceError(f"{self.name}: reading ended early ({why.removeprefix(f'{self.name}: ')})")
        container.close()
        self._ended.set()
        self._arrived.set()

    def _read_part(self, container: av.container.InputContainer, base_ns: int) -> int:
        """Read one recording, which begins at this media time. Returns where it ends."""
        start_s, end_ns = (container.start_time or 0) / av.time_base, base_ns

        def media_ns(seconds: float | None) -> int:
            return base_ns + round(((seconds or 0.0) - start_s) * 1e9)

        tracks = choose(container, self._media, self._wanted, self.name, tell=not base_ns)
        timeline = timeline_of(container, self.name)
        for item in decode(container, tracks, self._fps, media_ns, self.name, timeline):
            if isinstance(item, NoTrack) and base_ns:
                continue
            while len(self._queue) >= _QUEUE and not self._closing.wait(_FULL_S):
                pass
            if not isinstance(item, NoTrack):
                end_ns = max(end_ns, item.media_end_ns)
            self._queue.append(item)
            self._arrived.set()
            if self._closing.is_set():
                break
        return end_ns

    def _follow(self, container: av.container.InputContainer | None) -> None:
        """Read a live source, and open it again whenever it goes away."""
        attempt, waits_s = 0, _BACKOFF_S
        while not self._closing.is_set():
            if container is None:
                self._closing.wait(waits_s[min(attempt, len(waits_s) - 1)])
                attempt += 1
                try:
                    container = self._open()
                except SourceError as error:
                    log.debug("%s", error)
                    continue
                self.live = True  # as before
            opened_ns, self._decoded = self._clock.now_ns(), False
            why, came = self._deliver(container, opened_ns)
            container.close()
            container = None
            if self._web is not None and self._web.failure is not None:
                why, came = getattr(self._web.failure, "strerror", None) or str(self._web.failure), False
            undecodable = came and not self._decoded
            if undecodable == (waits_s is _BACKOFF_S) or (
                self._decoded and self._clock.now_ns() - opened_ns > _LASTED_NS
            ):
                attempt, waits_s = 0, _UNDECODABLE_S if undecodable else _BACKOFF_S
            text = f"went away ({why}); opening it again"
            if undecodable:
                text = f"nothing of it can be decoded ({why}); trying again, less and less often"
            if not self._closing.is_set() and text != self._down:  # once, if it never comes back in between
                log.warning("%s%s %s", self.name, ":" * undecodable, text)
                self._down = text

    def _deliver(self, container: av.container.InputContainer, opened_ns: int) -> tuple[str, bool]:
        """Queue items until the source goes away; returns the reason, and False if no data came."""
        arrival, self._smoother = Arrival(self._clock), Smoother()
        by_arrival = container.format.name in _BY_ARRIVAL
        earlier_jumps = self.counters["time_jumps"]

        def media_ns(seconds: float | None) -> int:
            return arrival.media_ns(None if by_arrival else seconds)

        try:
            tracks = choose(container, self._media, self._wanted, self.name, tell=not self._down)
            if not any(tracks.values()):
                return f"it has no {' and no '.join(sorted(tracks))} track that FFmpeg can decode", True
            timeline = timeline_of(container, self.name, live=True)
            for item in decode(container, tracks, self._fps, media_ns, self.name, timeline, live=True):
                self.counters["time_jumps"] = earlier_jumps + timeline.jumps
                self._decoded = self._decoded or not isinstance(item, NoTrack)
                if not isinstance(item, NoTrack) and self._clock.now_ns() < opened_ns + _SETTLE_NS:
                    if not by_arrival:
                        arrival.arrived(item.media_end_ns)
                    continue
                if not isinstance(item, NoTrack):
                    self._is_back()
                    self._smoother.push(self._clock.now_ns() - item.media_end_ns, self._clock.now_ns())
                while len(self._queue) >= (_LONGEST_QUEUE if self.delay_ns else _QUEUE):
                    self._queue.popleft()
                    self.counters["source_dropped"] += 1
                self._queue.append(item)
                self._arrived.set()
                if self._closing.is_set():
                    break
        except av.error.ExitError:  # PyAV's time-out
            return f"nothing came for {self._timeout_s:g} s", self._decoded
        except (FFmpegError, OSError) as error:
            return error.strerror or str(error), not isinstance(error, OSError)
        except SourceError as error:
            return str(error).removeprefix(f"{self.name}: "), True
        except Exception as error:  # nobody would notice the end of this thread
            log.debug("%s", traceback.format_exc())
            return f"{type(error).__name__}: {error}", True
        return "it ended", True

    def _is_back(self) -> None:
        """The source delivers. Say so if it was away."""
        if self._down:
            self._down = ""
            self.counters["reopened"] += 1
            log.warning("%s is back", self.name)


class Pipe(LiveSource):
    """A FIFO, a device or another path that is not a regular file: read once, never opened twice."""

    WAIT_S = 30.0  # for somebody to write into it

    def __init__(self, path: Path, media: frozenset[Medium], fps: float, clock: Clock, tracks: str = "") -> None:
        super().__init__(SourceSpec(str(path), "file", str(path)), media, fps, clock, 0.0, (), tracks)
        self._path = path

    def _open(self) -> av.container.InputContainer:
        self.live = False
        try:
            file = self._split(open_bytes(self._path, self.WAIT_S))
            container: av.container.InputContainer = av.open(file, options=input_options(), **OPEN_OPTIONS)
        except (FFmpegError, OSError) as error:
            raise SourceError(f"{self.name}: cannot be read ({error.strerror})") from error
        return container


def _camera(index: str) -> tuple[str, str]:
    """Device name and input format with which FFmpeg opens a camera on this system."""
    if sys.platform == "darwin":
        return f"{index}:none", "avfoundation"
    if sys.platform == "win32":
        return f"video={index}", "dshow"
    return (f"/dev/video{index}" if index.isdigit() else index), "v4l2"
