"""Moonshine as an English recogniser that never makes its caller wait in mid-speech: the network runs in threads.

The network (see ``moonshine_network.py``) reads a whole piece of speech at a time, so words so far cost a run for
everything since the segment's start. They are computed twice a second at most, less often as the segment grows, and
at each short silence, where the words may be the last ones: ``expect_end`` begins with the final run before the end is
certain. If speech goes on, its tokens serve as a draft of the next run.

What is run depends on the sound alone, not on how fast the machine is, so that the words of a file are the same at any
pace; only a machine that is too slow for real time misses words so far.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxruntime import RunOptions

from emostream.stream.emotion import Word
from emostream.stream.speech.moonshine_network import RATE_HZ, Moonshine, Token

_HOP = RATE_HZ // 2  # samples after which the words so far are worth another run
_GROWTH = 0.25  # of what has been heard: it has grown by this much too
_LAG = RATE_HZ // 4  # a run's words are taken this much sound later, when it is done even on a busy machine
_LONGEST = 8 * RATE_HZ  # more of one segment is split
_SPLIT_FROM, _SPLIT_TO = 4 * RATE_HZ, 7 * RATE_HZ  # where its quietest moment is looked for
_QUIET = RATE_HZ // 10  # such a moment's length
_NICE = 10  # of the thread for words so far: where cores are scarce it gets a tenth of what others get
_AFTER = 1024  # samples of the silence after the last speech that are heard too: 64 ms


@dataclass
class _Run:
    """A run of the network on the samples [``start``, ``end``) of the segment. ``final``: not just for words so far."""

    start: int
    end: int
    final: bool
    options: RunOptions
    tokens: Future[list[Token]]
    taken: bool = False

    def drop(self) -> None:
        self.options.terminate = True
        self.tokens.cancel()


def _be_nice() -> None:
    """Give way to threads whose results somebody waits for, in this process and in others."""
    if sys.platform == "linux":  # elsewhere the number would be that of the process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class MoonshineRecognizer:
    """See ``recognizer.Recognizer``. Words are as written, with case and punctuation; their times are estimated.

    ``folder``: holds the model; ``patient``: wait for the words so far, as for a file, rather than do without the
    newest ones. Raises ModelError if the model cannot be loaded.
    """

    name = "moonshine"

    def __init__(self, folder: Path, patient: bool = True) -> None:
        self._network, self._patient = Moonshine(folder), patient
        self._final = ThreadPoolExecutor(1, "moonshine")
        self._so_far = ThreadPoolExecutor(1, "moonshine so far", _be_nice)  # words that may be late
        self._parts: list[_Run] = []
        self._newest: _Run | None = None
        self.begin()

    def begin(self) -> None:
        for run in [*self._parts, *filter(None, [self._newest])]:
            run.drop()
        self._sound = bytearray()
        self._parts = []  # runs on what was split off, in order
        self._words: list[Word] = []  # of the parts that are done
        self._start = 0  # samples in the parts
        self._newest = None  # the last run on what follows them
        self._end: int | None = None  # where speech has ended, if that has been told
        self._draft: list[Token] = []  # of what follows the parts
        self._known: list[Word] = []  # the words so far, of what follows the parts that are done

    def push(self, samples: np.ndarray) -> None:
        self._sound += samples.astype(np.int16, copy=False).tobytes()
        self._end = None

    def partial(self) -> list[Word]:
        self._collect()
        while self._count - self._start > _LONGEST:
            self._split()
        heard, before = self._count - self._start, 0 if self._newest is None else self._newest.end - self._start
        idle = self._newest is None or self._newest.tokens.done()  # a slow machine finishes what it has begun
        if idle and heard - before >= max(_HOP, _GROWTH * before):
            self._run_to(self._count)
        return self._words + self._known

    def expect_end(self, silence_s: float) -> None:
        self._collect()
        self._end = max(self._start, self._count - int(silence_s * RATE_HZ))
        if self._newest is None or self._newest.end < self._end or not self._newest.final:
            self._run_to(min(self._count, self._end + _AFTER))

    def ready(self) -> bool:
        return self._patient or all(run.tokens.done() for run in [*self._parts, *filter(None, [self._newest])])

    def finish(self) -> list[Word]:
        if self._end is None:
            while self._count - self._start > _LONGEST:
                self._split()
            self.expect_end(0.0)
        while self._parts:
            self._take_part()
        words = self._words + ([] if self._newest is None else self._words_of(self._newest))
        self.begin()
        return words

    def reset(self) -> None:
        self.begin()

    @property
    def _count(self) -> int:
        return len(self._sound) // 2

    def _submit(self, start: int, end: int, final: bool) -> _Run:
        thread = self._final if final else self._so_far
        options, samples = RunOptions(), self._samples(start, end)
        draft = [token.number for token in self._draft]
        return _Run(start, end, final, options, thread.submit(self._network.transcribe, samples, draft, options))

    def _run_to(self, end: int) -> None:
        """Begin a run on everything that follows the parts, in place of the last one."""
        if self._newest is not None:
            self._newest.drop()
        self._newest = self._submit(self._start, end, final=self._end is not None)

    def _split(self) -> None:
        """Split off a part at the quietest moment of a few seconds."""
        sound = self._samples(self._start + _SPLIT_FROM, self._start + _SPLIT_TO).astype(np.float32)
        power = np.square(sound).reshape(-1, _QUIET // 10).mean(axis=1)
        quietest = int(np.convolve(power, np.ones(10), "valid").argmin()) * (_QUIET // 10) + _QUIET // 2
        end = self._start + _SPLIT_FROM + quietest
        if self._newest is not None:
            self._newest.drop()
            self._newest = None
        self._parts.append(self._submit(self._start, end, final=True))
        self._start, self._draft = end, []

    def _collect(self) -> None:
        """Take the words of the runs that have been under way for long enough."""
        while self._parts and (self._patient or self._parts[0].tokens.done()):
            self._take_part()
        run = self._newest
        if run is None or run.taken or self._count - run.end < _LAG:
            return
        if self._patient or run.tokens.done():
            self._known, self._draft, run.taken = self._words_of(run), run.tokens.result(), True

    def _take_part(self) -> None:
        part = self._parts.pop(0)
        self._words += self._words_of(part)
        self._known = [word for word in self._known if word.start_s >= part.end / RATE_HZ]

    def _words_of(self, run: _Run) -> list[Word]:
        words = self._network.words(run.tokens.result(), self._samples(run.start, run.end))
        offset_s = run.start / RATE_HZ
        return [Word(word.word, word.start_s + offset_s, word.end_s + offset_s, word.confidence) for word in words]

    def _samples(self, start: int, end: int) -> np.ndarray:
        return np.frombuffer(bytes(self._sound[2 * start : 2 * end]), np.int16)
