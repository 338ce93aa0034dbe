"""Live sources that FFmpeg reads: cameras and network URLs. One that goes away is opened again."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Collection, Iterator
from typing import Any

import av
from av.error import FFmpegError

from emostream.errors import SourceError
from emostream.stream.clock import Clock
from emostream.stream.config import SourceSpec
from emostream.stream.sources.access import input_options
from emostream.stream.sources.base import AudioChunk, NoTrack, VideoFrame
from emostream.stream.sources.decode import OPEN_OPTIONS, decode
from emostream.stream.sources.web import Body, Web, format_of
from emostream.stream.topics import Medium

log = logging.getLogger(__name__)

_QUEUE = 200  # items between the reading thread and the node: a second or two, then the oldest are dropped
_REANCHOR_NS = 1_000_000_000  # a source whose own clock jumps by more than this is anchored again
_SETTLE_NS = 1_000_000_000  # after opening, in which everything is thrown away
_IDLE_S = 0.1
_BACKOFF_S = (0.25, 0.5, 1.0, 2.0)


class LiveSource:
    """A camera or a URL. Media times are Unix times of capture, computed from the source's time stamps and the moments
    at which they arrive.

    A thread of its own reads, so that a read that blocks (up to ``timeout_s``) does not block the node. What arrives in
    the first second after opening is stale, since FFmpeg and servers buffer, and is thrown away; the sample or frame in
    it with the least delay sets the offset between the source's clock and ours. So capture times of a network source
    are estimates: they leave out the least delay of the transport, and may contain its jitter.

    ``allowed_hosts``: other hosts that an ``http`` or ``https`` source may lead to, by a redirect or a playlist.
    """

    live = True

    def __init__(
        self,
        spec: SourceSpec,
        media: frozenset[Medium],
        fps: float,
        clock: Clock,
        timeout_s: float,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self.name = str(spec)
        self._spec, self._allowed_hosts = spec, allowed_hosts
        self._web: Web | None = None  # of an http or https source
        self._media, self._fps, self._clock, self._timeout_s = media, fps, clock, timeout_s
        self._queue: deque[AudioChunk | VideoFrame | NoTrack] = deque(maxlen=_QUEUE)
        self._arrived = threading.Event()
        self._closing = threading.Event()
        self._offset_ns = 0  # our clock minus the source's
        self._anchored = False
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        container = self._open()
        threading.Thread(target=self._read, args=(container,), name=f"read {self.name}", daemon=True).start()

    def items(self) -> Iterator[AudioChunk | VideoFrame | NoTrack | None]:
        while not self._closing.is_set():
            if self._queue:
                yield self._queue.popleft()
                continue
            self._arrived.clear()
            if not self._queue and not self._arrived.wait(_IDLE_S):
                yield None

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
            if self._spec.scheme in ("rtsp", "rtsps"):
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

    def _opened_web(self, url: str) -> av.container.InputContainer:
        self._web = web = Web(url, self.name, self._allowed_hosts, self._timeout_s)
        web.limit_time(self._timeout_s)
        body = Body(web, web.url)
        options = {"fflags": "nobuffer", "http_persistent": "0", "http_multiple": "0"}
        options |= input_options(self._spec.scheme)
        try:
            container = self._opened(body, format_of(body), options, io_open=web.open)
        except BaseException as error:
            body.close()
            raise web.failure or error from error
        web.limit_time(None)
        return container

    def _read(self, container: av.container.InputContainer | None) -> None:
        attempt = 0
        while not self._closing.is_set():
            if container is None:
                self._closing.wait(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                attempt += 1
                try:
                    container = self._open()
                except SourceError as error:
                    log.debug("%s", error)
                    continue
                self.counters["reopened"] += 1
                log.warning("%s is back", self.name)
            self._anchored = False
            settled_ns = self._clock.now_ns() + _SETTLE_NS
            why = "it ended"
            try:
                for item in decode(container, self._media, self._fps, self._media_ns, self.name):
                    attempt = 0
                    now_ns = self._clock.now_ns()
                    if now_ns < settled_ns and not isinstance(item, NoTrack):
                        self._offset_ns += min(0, now_ns - item.media_end_ns)  # nothing arrives before it was captured
                        continue
                    self.counters["source_dropped"] += len(self._queue) == _QUEUE  # appending drops the oldest
                    self._queue.append(item)
                    self._arrived.set()
                    if self._closing.is_set():
                        break
            except av.error.ExitError:  # PyAV's time-out
                why = f"nothing came for {self._timeout_s:g} s"
            except (FFmpegError, OSError) as error:
                why = error.strerror or str(error)
            except Exception as error:  # nobody would notice the end of this thread
                why = f"{type(error).__name__}: {error}"
                log.debug("%s", traceback.format_exc())
            container.close()
            container = None
            if self._web is not None and self._web.failure is not None:
                why = getattr(self._web.failure, "strerror", None) or str(self._web.failure)
            if not self._closing.is_set():
                log.warning("%s went away (%s); opening it again", self.name, why)

    def _media_ns(self, seconds: float) -> int:
        stamp, now = round(seconds * 1e9), self._clock.now_ns()
        if not self._anchored or abs(now - self._offset_ns - stamp) > _REANCHOR_NS:
            self._offset_ns, self._anchored = now - stamp, True
        return stamp + self._offset_ns


def _camera(index: str) -> tuple[str, str]:
    """Device name and input format with which FFmpeg opens a camera on this system."""
    if sys.platform == "darwin":
        return f"{index}:none", "avfoundation"
    if sys.platform == "win32":
        return f"video={index}", "dshow"
    return (f"/dev/video{index}" if index.isdigit() else index), "v4l2"
