"""Voice activity of one stream: of the sound as it comes and, at a quiet microphone, amplified too."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from emostream.stream.speech.level import Level
from emostream.stream.speech.vad import SileroVad


@dataclass(frozen=True)
class Listened:
    """Of one block: its speech probability as it came; and, where the microphone is ``quiet``, amplified (512,) int16
    samples and theirs. ``peak_dbfs``: the recent peak."""

    probability: float
    peak_dbfs: float
    quiet: bool
    raised: np.ndarray | None = None
    raised_probability: float = 0.0


class Listener:
    """``quiet_vad``: hears amplified blocks; without it no microphone counts as quiet.

    Blocks that are known to come next (``expect``) are computed together with the first of them. That changes nothing,
    since whether a microphone is quiet follows from the sound alone while it is: an utterance that began in a normal
    voice is not amplified, so there blocks are taken one by one as soon as the level might say otherwise.
    """

    def __init__(self, vad: SileroVad, quiet_vad: SileroVad | None) -> None:
        self._vad, self._quiet_vad = vad, quiet_vad
        self._level = Level()
        self.quiet = quiet_vad is not None
        self._next: list[np.ndarray] = []
        self._known: deque[tuple[np.ndarray, Listened]] = deque()

    def expect(self, blocks: Sequence[np.ndarray]) -> None:
        """Tell of the blocks, (512,) int16 each, that are pushed next."""
        self._next = list(blocks)

    def reset(self) -> None:
        """Forget the sound so far: some is missing."""
        self._next = []
        self._known.clear()
        self._vad.reset()
        if self._quiet_vad is not None:
            self._quiet_vad.reset()

    def push(self, samples: np.ndarray, speaking: bool) -> Listened:
        """Take the next block. ``speaking``: it belongs to an open utterance."""
        if not (self._known and self._known[0][0] is samples):
            self._known.clear()
            blocks = self._next if self._next and self._next[0] is samples else [samples]
            self._next = []
            self._listen(blocks, speaking)
        _, listened = self._known.popleft()
        self.quiet = listened.quiet
        return listened

    def _listen(self, blocks: list[np.ndarray], speaking: bool) -> None:
        """Compute the first of these blocks, and those after it for which it is sure that they are heard alike."""
        if self._quiet_vad is None:
            for block, probability in zip(blocks, self._vad.push_all(np.stack(blocks)), strict=True):
                self._known.append((block, Listened(float(probability), 0.0, False)))
            return
        was_quiet = self.quiet
        self._level.push(blocks[0])
        quiet = self._level.quiet and (was_quiet or not speaking)
        peaks_dbfs = [self._level.peak_dbfs]
        raised = [self._level.raised(blocks[0])] if quiet else []
        for block in blocks[1:]:
            level = copy(self._level)
            level.push(block)
            if level.quiet != quiet:
                break
            self._level = level
            peaks_dbfs.append(level.peak_dbfs)
            if quiet:
                raised.append(level.raised(block))
        blocks = blocks[: len(peaks_dbfs)]
        if not quiet:
            probabilities = self._vad.push_all(np.stack(blocks))
            for block, probability, peak_dbfs in zip(blocks, probabilities, peaks_dbfs, strict=True):
                self._known.append((block, Listened(float(probability), peak_dbfs, False)))
            return
        if not was_quiet:
            self._quiet_vad.reset()
        both = self._vad.push_both(np.stack(blocks), self._quiet_vad, np.stack(raised))
        for block, (probability, of_raised), peak_dbfs, louder in zip(blocks, both, peaks_dbfs, raised, strict=True):
            self._known.append((block, Listened(float(probability), peak_dbfs, True, louder, float(of_raised))))
