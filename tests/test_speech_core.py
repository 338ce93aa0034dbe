"""stream/nodes/speech.py, with a scripted voice detector and a recogniser that records its input."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.emotion import Word
from emostream.stream.messages import Message, Pcm, SpeechEvent
from emostream.stream.speech.searching import Searching
from emostream.stream.speech.vad import FRAME_NS

_S = 1_000_000_000
_T0 = 1_700_000_000 * _S
_FINISH_NS = 7_000_000  # the recogniser's time at the end of a segment


class FakeVad:
    """A voice activity detector that reads the probability, in thousandths, from each block's first sample."""

    def __init__(self) -> None:
        self.resets = 0

    def push_all(self, frames: np.ndarray) -> np.ndarray:
        return frames[:, 0] / 1000

    def reset(self) -> None:
        self.resets += 1


@dataclass
class FakeRecognizer(Searching):
    """A recogniser that hears one word per block, named by the block's number (its second sample)."""

    clock: VirtualClock
    name: str = "fake"
    segments: list[list[int]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)  # samples before each word of the open segment
    samples: int = 0
    open: bool = False
    resets: int = 0

    def begin(self) -> None:
        assert not self.open
        self.open = True
        self.segments.append([])
        self.at, self.samples = [], 0

    def push(self, samples: np.ndarray) -> None:
        assert self.open
        if len(samples) == 512:  # otherwise the samples represent a gap
            self.segments[-1].append(int(samples[1]))
            self.at.append(self.samples)
        self.samples += len(samples)

    def partial(self) -> list[Word]:
        assert self.open
        pairs = zip(self.segments[-1], self.at, strict=True)
        return [Word(str(n), at / 16_000, (at + 512) / 16_000, 0.9) for n, at in pairs]

    def finish(self) -> list[Word]:
        self.clock.advance_ns(_FINISH_NS)
        words = self.partial()
        self.open = False
        return words

    def reset(self) -> None:
        self.resets += 1


class SlowRecognizer(FakeRecognizer):
    """It is ready ``takes`` blocks of 32 ms after it first expected the end of a segment."""

    takes = 0
    expected_ns: int | None = None

    def push(self, samples: np.ndarray) -> None:
        super().push(samples)
        if samples[0] > 500:  # speech goes on
            self.expected_ns = None

    def expect_end(self, silence_s: float) -> None:
        if self.expected_ns is None:
            self.expected_ns = self.clock.now_ns()

    def ready(self) -> bool:
        return self.expected_ns is not None and self.clock.now_ns() - self.expected_ns >= self.takes * FRAME_NS

    def finish(self) -> list[Word]:
        assert self.expected_ns is not None
        self.clock.advance_ns(max(0, self.expected_ns + self.takes * FRAME_NS - self.clock.now_ns()))
        self.expected_ns = None
        return super().finish()


class Run:
    """A core and all its events. Blocks are numbered consecutively; ``skip`` leaves a gap in time."""

    def __init__(self, recognizer: bool = True, live: bool = True, takes: int | None = None, **config) -> None:
        self.clock = VirtualClock(_T0)
        self.vad = FakeVad()
        kind = FakeRecognizer if takes is None else SlowRecognizer
        self.recognizer = kind(self.clock) if recognizer else None
        if isinstance(self.recognizer, SlowRecognizer):
            self.recognizer.takes = takes or 0
        self.core = SpeechCore("a", self.vad, self.recognizer, Speech(**config), self.clock)  # type: ignore[arg-type]
        self.live = live
        self.events: list[SpeechEvent] = []
        self.starts: list[int] = []  # media time of each block
        self.media_ns = 0

    def push(self, *runs: tuple[float, int]) -> Run:
        """Push blocks given as (probability, number)."""
        for probability, n in runs:
            for _ in range(n):
                start, self.media_ns = self.media_ns, self.media_ns + FRAME_NS
                samples = np.zeros(512, np.int16)
                samples[:2] = round(probability * 1000), len(self.starts)
                self.starts.append(start)
                self.clock.advance_ns(max(0, _T0 + self.media_ns - self.clock.now_ns()))
                captured = _T0 + self.media_ns if self.live else 0
                self.take(
                    self.core.push(
                        Pcm(
                            stream="a",
                            media_start_ns=start,
                            media_end_ns=self.media_ns,
                            captured_ns=captured,
                            samples=samples,
                        )
                    )
                )
        return self

    def take(self, messages: list[Message]) -> None:
        for message in messages:
            assert isinstance(message, SpeechEvent)
            self.events.append(message)

    def skip(self, ns: int) -> Run:
        self.media_ns += ns
        return self

    def finish(self) -> Run:
        self.take(self.core.finish())
        return self

    def of(self, *kinds: str) -> list[SpeechEvent]:
        return [event for event in self.events if event.event in kinds]

    def kinds(self) -> list[str]:
        """Events other than the regular ``words`` and ``progress``."""
        return [event.event for event in self.of("started", "paused", "ended", "dropped")]


def _block(ns: int) -> int:
    return ns // FRAME_NS


_runs = st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.95]), st.integers(1, 30)), max_size=14)


@pytest.mark.slow
@settings(max_examples=80)
@given(_runs, st.booleans(), st.sampled_from([1.0, 15.0]))
def test_events_come_in_order(runs, recognizer, longest):
    run = Run(recognizer, max_utterance_s=longest).push(*runs).finish()
    open_, utterance, time = False, 0, 0
    for event in run.events:
        assert (event.stream, event.media_end_ns >= time) == ("a", True)
        time = event.media_end_ns
        if event.event == "started":
            assert not open_
            open_, utterance = True, utterance + 1
        elif event.event != "progress":
            assert open_
        assert event.utterance == utterance
        if event.event != "progress":
            assert event.start_ns < event.end_ns <= event.media_end_ns
            assert event.speech_captured_ns == _T0 + event.end_ns
            assert event.captured_ns == _T0 + event.media_end_ns
        if event.event == "ended":
            open_ = False
    assert not open_
    assert run.core.utterances == utterance == len(run.of("ended"))


@pytest.mark.slow
@settings(max_examples=80)
@given(_runs, st.sampled_from([1.0, 15.0]))
@example([(0.95, 3), (0.0, 4), (0.4, 8), (0.95, 1)], 1.0)  # a pause that is longer than the preroll
def test_every_block_of_an_utterance_is_recognised_once_and_in_order(runs, longest):
    run = Run(max_utterance_s=longest).push(*runs).finish()
    assert run.recognizer is not None
    heard = [n for segment in run.recognizer.segments for n in segment]
    assert heard == sorted(set(heard))
    for segment in run.recognizer.segments:
        assert segment == list(range(segment[0], segment[-1] + 1))
    for event in run.of("ended"):
        spoken = range(_block(event.start_ns), _block(event.end_ns))
        assert set(spoken) <= set(heard)
    assert not run.recognizer.open


@settings(max_examples=80)
@given(_runs, st.sampled_from([1.0, 15.0]))
def test_words_have_the_times_of_their_sound(runs, longest):
    run = Run(max_utterance_s=longest).push(*runs).finish()
    for event in run.events:
        numbers = [int(word.word) for word in event.words]
        assert numbers == sorted(set(numbers))
        assert [word.start_s for word in event.words] == [round(run.starts[n] / 1e9, 3) for n in numbers]
    ended = [word.word for event in run.of("ended") for word in event.words]
    assert len(ended) == len(set(ended)) == sum(map(len, run.recognizer.segments))  # no word twice, none lost


@given(_runs)
def test_progress_is_reported_four_times_a_second(runs):
    run = Run().push((0.0, 8), *runs)
    times = [0, *(event.media_end_ns for event in run.events), run.media_ns]
    assert max(np.diff(times)) < 0.25 * _S + FRAME_NS


def test_a_sentence_with_a_pause():
    run = Run().push((0.0, 20), (0.9, 10), (0.1, 7), (0.9, 5), (0.0, 20))
    assert run.kinds() == ["started", "paused", "paused", "ended"]
    started, paused, again, ended = run.of("started", "paused", "ended")
    assert _block(started.start_ns) == _block(ended.start_ns) == 20
    assert started.words == []
    assert _block(paused.end_ns) == 30
    assert _block(ended.end_ns) == _block(again.end_ns) == 42
    first, second = run.recognizer.segments
    assert first == list(range(15, 34))  # 256 ms before the start was known, and until the pause was
    assert second == list(range(34, 46))
    assert [word.word for word in paused.words] == [str(n) for n in first]
    assert ended.words == again.words
    assert [word.word for word in ended.words] == [str(n) for n in first + second]


def test_words_before_a_pause_stay_when_speech_resumes():
    run = Run().push((0.9, 10), (0.1, 6), (0.9, 20))
    later = [event for event in run.of("words") if event.media_end_ns > run.of("paused")[0].media_end_ns]
    first = [str(n) for n in run.recognizer.segments[0]]
    assert len(later) >= 2
    for event in later:
        assert [word.word for word in event.words][: len(first)] == first
    assert len(later[-1].words) > len(first)


def test_a_forced_cut_loses_nothing_between_two_utterances():
    run = Run(max_utterance_s=1).push((0.95, 70)).finish()
    ends = run.of("ended")
    assert len(ends) == 3
    assert [event.start_ns for event in run.of("started")][1:] == [event.end_ns for event in ends[:-1]]
    assert run.recognizer.segments[0][-1] + 1 == run.recognizer.segments[1][0]
    assert [n for segment in run.recognizer.segments for n in segment] == list(range(70))


def test_silence_never_reaches_the_recogniser():
    run = Run().push((0.0, 200))
    assert run.recognizer.segments == []
    assert {event.event for event in run.events} == {"progress"}


def test_a_short_noise_never_reaches_the_recogniser():
    run = Run(min_speech_ms=96).push((0.0, 10), (0.9, 2), (0.0, 20))
    assert run.recognizer.segments == []
    assert run.kinds() == []


def test_the_core_is_at_rest_unless_someone_speaks_or_may_have_begun_to():
    run = Run(min_speech_ms=96)
    assert run.core.at_rest
    assert run.push((0.0, 10)).core.at_rest
    assert not run.push((0.9, 1)).core.at_rest
    assert run.push((0.0, 1)).core.at_rest  # it was a short noise
    assert not run.push((0.9, 10)).core.at_rest
    assert not run.push((0.0, 5)).core.at_rest  # a pause
    assert run.push((0.0, 20)).core.at_rest


def test_finish_ends_the_open_utterance_with_its_words():
    run = Run().push((0.9, 10)).finish()
    assert run.kinds() == ["started", "ended"]
    assert len(run.events[-1].words) == 10
    assert run.finish().kinds() == ["started", "ended"]  # once


def test_finish_in_a_pause_keeps_the_words():
    run = Run().push((0.9, 10), (0.0, 8)).finish()
    assert run.kinds() == ["started", "paused", "ended"]
    assert run.events[-1].words == run.of("paused")[0].words
    assert len(run.events[-1].words) > 0


def test_finish_without_any_sound():
    assert Run().finish().events == []


# Time


def test_the_time_of_recognition_is_measured():
    run = Run().push((0.9, 10), (0.0, 20))
    paused, ended = run.of("paused", "ended")
    assert paused.recognition_ns == _FINISH_NS
    assert ended.recognition_ns == 0  # recognition was finished at the pause
    assert paused.received_ns == paused.captured_ns


def test_a_file_has_no_capture_times():
    run = Run(live=False).push((0.9, 10), (0.0, 20))
    assert {(event.captured_ns, event.speech_captured_ns) for event in run.events} == {(0, 0)}


# Without a recogniser


def test_without_a_recogniser_there_are_utterances_but_no_words():
    run = Run(recognizer=False).push((0.0, 5), (0.9, 10), (0.1, 7), (0.9, 5), (0.0, 20)).finish()
    assert run.kinds() == ["started", "paused", "paused", "ended"]
    assert all(event.words == [] for event in run.events)


def test_without_a_recogniser_speech_is_still_reported():
    run = Run(recognizer=False).push((0.9, 100))
    words = run.of("words")
    assert len(words) > 8
    assert words[-1].end_ns > 2 * _S


# Gaps in the sound


@pytest.mark.parametrize("gap_s", [0.4, 5.0])
def test_a_long_gap_ends_the_utterance_where_the_sound_ended(gap_s):
    run = Run().push((0.9, 20)).skip(int(gap_s * _S)).push((0.9, 13)).finish()
    assert run.kinds() == ["started", "ended", "started", "ended"]
    assert run.core.sound_lost_ns == int(gap_s * _S)
    first, second = run.of("ended")
    assert first.end_ns == 20 * FRAME_NS
    assert first.media_end_ns == 20 * FRAME_NS  # known as of the last sound before the gap
    assert second.start_ns == 20 * FRAME_NS + int(gap_s * _S)
    assert run.vad.resets == 1
    assert [len(segment) for segment in run.recognizer.segments] == [20, 13]


def test_scraps_beside_missing_sound_are_dropped_and_short_utterances_are_not():
    run = Run().push((0.0, 20), (0.9, 12)).skip(_S).push((0.9, 12), (0.0, 20), (0.9, 12), (0.0, 20)).finish()
    ends = [kind for kind in run.kinds() if kind in ("ended", "dropped")]
    assert ends == ["dropped", "dropped", "ended"]  # 384 ms each
    assert (run.core.utterances, run.core.utterances_ended, run.core.scraps) == (3, 3, 2)


def test_what_is_left_of_an_utterance_is_labelled_if_it_is_long_enough():
    run = Run().push((0.9, 13)).skip(_S).push((0.0, 4), (0.9, 12)).finish()
    assert [event.event for event in run.of("ended", "dropped")] == ["ended", "ended"]  # 128 ms after: no onset is lost
    assert run.core.scraps == 0


def test_a_long_gap_in_silence():
    run = Run().push((0.0, 10), (0.9, 2)).skip(3 * _S).push((0.9, 2), (0.0, 5))
    assert run.kinds() == []  # two frames before and two after are not four in a row
    assert run.vad.resets == 1


def test_a_short_gap_is_silence():
    run = Run().push((0.9, 20)).skip(100_000_000).push((0.9, 10)).finish()
    assert run.kinds() == ["started", "ended"]
    assert run.of("ended")[0].end_ns == run.media_ns
    assert run.vad.resets == 0


def test_sound_before_a_gap_is_no_preroll_of_speech_after_it():
    run = Run().push((0.0, 20)).skip(_S).push((0.9, 10)).finish()
    assert run.recognizer.segments == [list(range(20, 30))]


def test_words_after_a_short_gap_have_the_right_times():
    run = Run().push((0.9, 20)).skip(200_000_000).push((0.9, 10)).finish()
    word = run.of("ended")[0].words[-1]
    assert word.word == "29"
    assert word.start_s == pytest.approx(run.starts[29] / 1e9, abs=0.001)


@pytest.mark.parametrize(("gap_s", "told"), [(0.1, False), (0.4, True), (5.0, True)])
def test_missing_sound_is_told_with_its_time(caplog, gap_s, told):
    Run().push((0.9, 20)).skip(int(gap_s * _S)).push((0.9, 10)).finish()
    start_s = 20 * FRAME_NS / 1e9
    line = f"sound is missing from {start_s:.2f} to {start_s + gap_s:.2f} s"
    assert (line in caplog.text) == told


# A recogniser that takes long to finish


@pytest.mark.parametrize(("takes", "paused_at"), [(1, 4), (2, 4), (3, 5), (4, 6)])
def test_a_pause_waits_for_its_words_and_nothing_waits_for_a_pause(takes, paused_at):
    """Its run begins with the second silent block; the pause is the fourth, and the end the thirteenth."""
    run = Run(takes=takes).push((0.0, 10), (0.9, 20), (0.1, 20)).finish()
    assert run.kinds() == ["started", "paused", "ended"]
    paused, ended = run.of("paused", "ended")
    assert _block(paused.media_end_ns) == 30 + paused_at and _block(ended.media_end_ns) == 30 + 13
    assert paused.end_ns == ended.end_ns == 30 * FRAME_NS and paused.words == ended.words
    assert [word.word for word in paused.words] == [str(n) for n in range(5, 34)]
    assert ended.recognition_ns == 0
    assert (paused.speech_captured_ns, ended.speech_captured_ns) == (_T0 + 30 * FRAME_NS,) * 2


def test_an_end_waits_for_the_words_of_its_pause():
    run = Run(takes=20).push((0.0, 10), (0.9, 20), (0.1, 13))
    assert run.kinds() == ["started", "paused", "ended"]
    paused, ended = run.of("paused", "ended")
    assert paused.words == ended.words != [] and paused.media_end_ns == ended.media_end_ns
    assert ended.recognition_ns == 9 * FRAME_NS + _FINISH_NS  # counts from its own block: none of it is lost


@given(runs=_runs, takes=st.integers(0, 12))
@settings(deadline=None, max_examples=40)
@pytest.mark.slow
def test_a_slow_recogniser_hears_and_tells_what_a_fast_one_does(runs, takes):
    slow, fast = Run(takes=takes).push(*runs).finish(), Run().push(*runs).finish()
    assert slow.kinds() == fast.kinds()
    for one, other in zip(slow.of("paused", "ended"), fast.of("paused", "ended"), strict=True):
        assert (one.event, one.start_ns, one.end_ns, one.words) == (
            other.event,
            other.start_ns,
            other.end_ns,
            other.words,
        )
    assert slow.recognizer.segments == fast.recognizer.segments  # type: ignore[union-attr]
