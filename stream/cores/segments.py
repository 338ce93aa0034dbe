"""What the speech core's recogniser hears, and the words that it returns."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from emostream.stream.emotion import Word
from emostream.stream.messages import Pcm
from emostream.stream.speech.endpoint import EndpointEvent
from emostream.stream.speech.recognizer import Recognizer
from emostream.stream.speech.vad import RATE_HZ


class Segments:
    """The open utterance as segments of speech between pauses. ``recognizer``: None if no words are wanted.

    ``words``: of the segments that are finished, with times on the stream's timeline; ``pause``: the one whose words
    are not ready yet, and when its frame was received.
    """

    def __init__(self, recognizer: Recognizer | None) -> None:
        self._recognizer = recognizer
        self.words: list[Word] = []
        self.pause: tuple[EndpointEvent, int] | None = None
        self._fed_ns = 0  # the recogniser has everything before this media time
        self._start_ns: int | None = None  # media time of the open segment's first sample

    def begin(self, blocks: Iterable[Pcm]) -> None:
        """Begin a segment with those of the last blocks that no segment has had."""
        if self._recognizer is not None:
            self._recognizer.begin()
            self._start_ns = next(block.media_start_ns for block in blocks if block.media_end_ns > self._fed_ns)
            self.feed(blocks)

    def feed(self, blocks: Iterable[Pcm]) -> None:
        """Let the open segment have the blocks that it does not have yet."""
        if self._recognizer is None or self._start_ns is None or self.pause is not None:
            return
        for block in blocks:
            if block.media_end_ns > self._fed_ns:
                self._recognizer.push(block.samples)
                self._fed_ns = block.media_end_ns

    def skip(self, missing_ns: int) -> None:
        """Sound is missing in the open segment: the recogniser counts samples to time its words."""
        if self._recognizer is not None and self._start_ns is not None and self.pause is None:
            self._recognizer.push(np.zeros(missing_ns * RATE_HZ // 1_000_000_000, np.int16))

    def awaits(self, block: Pcm) -> bool:
        """Whether the recogniser needs this block if speech goes on."""
        return self._recognizer is not None and block.media_end_ns > self._fed_ns

    def so_far(self) -> list[Word]:
        """All words of the utterance; the last ones may still change."""
        return self.words if self._recognizer is None else self.words + self._timed(self._recognizer.partial())

    def ready(self, silence_ns: int) -> bool:
        """Tell of silence since the last speech, which may be the end of the segment. Returns whether ``finish`` would
        return at once."""
        if self._recognizer is None or self._start_ns is None:
            return True
        if self.pause is None:
            self._recognizer.expect_end(silence_ns / 1e9)
        return self._recognizer.ready()

    def finish(self, silence_ns: int) -> None:
        """End the open segment, if there is one; ``words`` then has its words too."""
        if self._recognizer is not None and self._start_ns is not None:
            self._recognizer.expect_end(silence_ns / 1e9)
            self.words = self.words + self._timed(self._recognizer.finish())
            self._start_ns = None

    def _timed(self, words: list[Word]) -> list[Word]:
        """Words with times on the stream's timeline."""
        assert self._start_ns is not None
        offset_s = self._start_ns / 1e9
        return [
            Word(
                word.word,
                round(word.start_s + offset_s, 3),
                round(word.end_s + offset_s, 3),
                round(word.confidence, 3),
            )
            for word in words
        ]
