"""A microphone through PortAudio (sounddevice)."""

from __future__ import annotations

import logging
import queue
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from emostream.errors import SourceError
from emostream.stream.clock import Clock
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources.base import AudioChunk

log = logging.getLogger(__name__)

_IDLE_S = 0.1
_SILENT_S = 2.0  # after so long without a callback the device was unplugged, which PortAudio does not report
_JUMP_NS = 100_000_000  # largest accepted difference between sample count and clock
_SETTLE_MS = 1000  # all blocks must be off by more than that for this long before times are corrected


class Microphone:
    """``spec.location``: part of a device's name, its index, or empty for the default; ``block_ms``: length of a chunk.

    Media times are Unix times at which samples were converted (PortAudio's ADC time). They follow the sample count,
    which does not jitter as callback times do. If all callbacks of a second are off by more than 100 ms (samples were
    lost, or the clocks drifted apart), they are corrected. ``overflows`` counts callbacks for which PortAudio reports
    lost samples, ``reopened`` how often the device came back.
    """

    live = True

    def __init__(self, spec: SourceSpec, block_ms: int, clock: Clock) -> None:
        self.name = spec.text
        device = spec.location
        self._device: str | int | None = int(device) if re.fullmatch(r"[0-9]{1,9}", device) else device or None
        self._block_ms, self._clock = block_ms, clock
        self._blocks: queue.SimpleQueue[tuple[np.ndarray, int]] = queue.SimpleQueue()
        self._stream: Any = None
        self._rate_hz = 0
        self._next_ns: int | None = None
        self._off_ns: deque[int] = deque()
        self.counters: Counter[str] = Counter()

    def open(self) -> None:
        try:
            import sounddevice as sd
        except OSError as error:  # the PortAudio library itself is missing
            raise SourceError(f"{self.name}: {error}; install it with: apt-get install libportaudio2") from error
        try:
            info = sd.query_devices(self._device, "input")
            self._rate_hz = int(info["default_samplerate"])
            self._stream = sd.InputStream(
                device=self._device,
                samplerate=self._rate_hz,
                channels=min(2, info["max_input_channels"]),
                blocksize=self._rate_hz * self._block_ms // 1000,
                dtype="float32",
                latency="low",
                callback=self._callback,
            )
            self._stream.start()
        except (sd.PortAudioError, ValueError) as error:
            self.close()
            reason = str(error).partition("\n")[0]
            raise SourceError(f"{self.name} cannot be opened ({reason}); list devices with: stream-doctor") from error

    def items(self) -> Iterator[AudioChunk | None]:
        silent_s = 0.0
        while True:
            try:
                samples, start_ns = self._blocks.get(timeout=_IDLE_S)
            except queue.Empty:
                silent_s += _IDLE_S
                if silent_s >= _SILENT_S:
                    log.warning("%s has stopped delivering sound; opening it again", self.name)
                    self._reopen()
                    silent_s = 0.0
                yield None
                continue
            silent_s = 0.0
            self._next_ns = self._follow(start_ns)
            chunk = AudioChunk(samples, self._rate_hz, self._next_ns)
            self._next_ns = chunk.media_end_ns
            yield chunk

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _follow(self, start_ns: int) -> int:
        """Media time of a block that began at ``start_ns`` according to PortAudio."""
        if self._next_ns is None:
            return start_ns
        self._off_ns.append(start_ns - self._next_ns)
        if len(self._off_ns) < _SETTLE_MS // self._block_ms:
            return self._next_ns
        off_ns = sorted(self._off_ns)
        if off_ns[0] > _JUMP_NS or off_ns[-1] < -_JUMP_NS:
            self._off_ns.clear()
            return self._next_ns + off_ns[len(off_ns) // 2]
        self._off_ns.popleft()
        return self._next_ns

    def _callback(self, data: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """Called by PortAudio's thread: copy the block, stamp it and return."""
        now_ns = self._clock.now_ns()
        age_s = time.currentTime - time.inputBufferAdcTime
        if not 0 < age_s < 1:  # some host APIs do not set the times; assume that the block has just ended
            age_s = frames / self._rate_hz
        if status.input_overflow:
            self.counters["overflows"] += 1
        self._blocks.put((data.copy(), now_ns - int(age_s * 1e9)))

    def _reopen(self) -> None:
        import sounddevice as sd

        self.close()
        sd._terminate()  # PortAudio looks for devices only during initialisation
        sd._initialize()
        try:
            self.open()
        except SourceError as error:
            log.debug("%s", error)
            return
        self._next_ns = None
        self._off_ns.clear()
        self.counters["reopened"] += 1
        log.warning("%s is back", self.name)
