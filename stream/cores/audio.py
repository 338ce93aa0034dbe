"""Core of the audio node: sound at any rate in, 16 kHz mono blocks and log-mel rows out."""

from __future__ import annotations

import logging
from typing import Protocol

import av
import numpy as np

from emostream.stream.cores.channels import Channels
from emostream.stream.features.logmel import HOP_NS, LogMel
from emostream.stream.features.mfcc import to_int16
from emostream.stream.messages import AudioRows, Message, Pcm
from emostream.stream.sources.base import GAP_NS, AudioChunk
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES, RATE_HZ

log = logging.getLogger(__name__)

_ROWS_BLOCKS = 2  # 64 ms: the rows of an utterance exist when its pause is detected
_REST_BLOCKS = 5  # where nobody speaks
_DELAY_SAMPLES = 16  # of the resampler, at the lower of its two rates


class Features(Protocol):
    """Computes rows of features, one every 10 ms, as samples arrive."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take (n,) int16 samples at 16 kHz; returns the rows that they complete, (m, D) float32."""
        ...

    def flush(self) -> np.ndarray:
        """Return the rows still held back; the next samples begin a new signal."""
        ...


class AudioCore:
    """Cuts sound into ``Pcm`` messages of 512 samples. After every second one comes an ``AudioRows`` message with the
    rows that the two completed.

    Features are not computed more often because a call costs the same for 160 samples as for 1024. They do not depend
    on how the source chunks its sound. Resampled sound begins with one or two milliseconds of silence, the delay of the
    resampler, so that a block is complete as soon as the source's samples for it have arrived.

    ``t0_ns``: Unix time of media time 0, or None if nothing is captured live (a file read at full speed). ``features``
    computes the rows, log-mel values by default; training has others. ``channels``: see ``Channels``. A gap in the
    source's time stamps ends the run of samples: features do not reach across it, and the timeline shows it. Samples
    that are no numbers count as silence. ``gaps`` and ``late_chunks`` count gaps and chunks that were left out because
    their time had passed. ``at_rest``: nobody speaks, so that rows may come later, more at a time.
    """

    def __init__(
        self, stream: str, t0_ns: int | None, features: Features | None = None, channels: str = "auto"
    ) -> None:
        self._stream, self._t0_ns = stream, t0_ns
        self._channels = Channels(channels, stream)
        self._told_numbers = False  # that some samples are none
        self._features = features or LogMel()
        self._resampler: av.AudioResampler | None = None
        self._rate_hz = 0
        self._held = np.zeros(0, np.int16)  # less than a block
        self._blocks: list[np.ndarray] = []  # whose features are not computed yet
        self._pcm_ns = self._rows_ns = 0  # media time of the next block and of the next row
        self._expected_ns: int | None = None
        self.delay_ns = 0  # of the source: what counts as captured later
        self.at_rest = False
        self.gaps = 0
        self.late_chunks = 0

    def push(self, chunk: AudioChunk) -> list[Message]:
        """Take a chunk; returns the messages that it completes."""
        if not len(chunk.samples):
            return []
        messages: list[Message] = []
        if self._expected_ns is not None:
            off = chunk.media_ns - self._expected_ns
            if off < -GAP_NS:  # its time has passed: a duplicate, or the source's clock was set back
                self.late_chunks += 1
                return []
            if off > GAP_NS or chunk.rate_hz != self._rate_hz:
                self.gaps += off > GAP_NS
                messages += self.flush()
        if self._expected_ns is None:
            self._begin(chunk)
        assert self._expected_ns is not None
        self._expected_ns += len(chunk.samples) * 1_000_000_000 // chunk.rate_hz
        samples = chunk.samples
        if not np.isfinite(samples).all():
            samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
            if not self._told_numbers:
                log.warning("%s: some samples are no numbers (NaN, infinite); taken as silence", self._stream)
            self._told_numbers = True
        mono = self._channels.mono(samples, chunk.rate_hz)
        return messages + self._cut(self._resampled(mono) if self._resampler is not None else mono)

    def flush(self) -> list[Message]:
        """End the run of samples; returns everything still held back, except an incomplete last ``Pcm`` block."""
        messages: list[Message] = []
        if self._expected_ns is None:
            return messages
        if self._resampler is not None:
            messages += self._cut(self._resampled(None))
        rest = np.concatenate([*self._blocks, self._held])
        messages += self._rows(np.concatenate([self._features.push(rest), self._features.flush()]))
        self._expected_ns = None
        return messages

    def _begin(self, chunk: AudioChunk) -> None:
        self._rate_hz = chunk.rate_hz
        self._resampler, start_ns = None, chunk.media_ns
        self._held, self._blocks = np.zeros(0, np.int16), []
        self._expected_ns = chunk.media_ns
        if chunk.rate_hz != RATE_HZ:
            self._resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE_HZ)
            late = round(_DELAY_SAMPLES * max(1, chunk.rate_hz / RATE_HZ))
            start_ns -= late * 1_000_000_000 // chunk.rate_hz
            self._held = to_int16(self._resampled(np.zeros(late, np.float32)))
        self._pcm_ns = self._rows_ns = start_ns

    def _resampled(self, mono: np.ndarray | None) -> np.ndarray:
        """(n,) float32 at the source's rate → (m,) at 16 kHz; None: what the resampler still holds.

        FFmpeg's own resampler has a delay of one millisecond. soxr has a steeper filter but works in blocks of its own:
        sound at 48 kHz came 21 ms late on average, and up to 37 ms.
        """
        assert self._resampler is not None
        frame = None
        if mono is not None:
            frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
            frame.sample_rate = self._rate_hz
        frames = self._resampler.resample(frame)
        return np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in frames)])

    def _cut(self, mono: np.ndarray) -> list[Message]:
        """The messages that these (n,) float32 samples at 16 kHz complete."""
        messages: list[Message] = []
        held = np.concatenate([self._held, to_int16(mono)])
        whole = len(held) // FRAME_SAMPLES * FRAME_SAMPLES
        self._held = held[whole:]
        for block in held[:whole].reshape(-1, FRAME_SAMPLES):
            end_ns = self._pcm_ns + FRAME_NS
            messages.append(
                Pcm(
                    stream=self._stream,
                    media_start_ns=self._pcm_ns,
                    media_end_ns=end_ns,
                    captured_ns=self._captured(end_ns),
                    samples=block,
                )
            )
            self._pcm_ns = end_ns
            self._blocks.append(block)
            if len(self._blocks) >= (_REST_BLOCKS if self.at_rest else _ROWS_BLOCKS):
                messages += self._rows(self._features.push(np.concatenate(self._blocks)))
                self._blocks = []
        return messages

    def _rows(self, rows: np.ndarray) -> list[Message]:
        if not len(rows):
            return []
        start_ns = self._rows_ns
        self._rows_ns += len(rows) * HOP_NS
        return [
            AudioRows(
                stream=self._stream,
                media_start_ns=start_ns,
                media_end_ns=self._rows_ns,
                captured_ns=self._captured(self._rows_ns),
                rows=rows,
            )
        ]

    def _captured(self, media_ns: int) -> int:
        return 0 if self._t0_ns is None else self._t0_ns + media_ns + self.delay_ns
