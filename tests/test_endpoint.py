"""The adaptive endpoint of stream/speech/vad.py, and the rules that benchmarks/endpoint.py compares."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import endpoint
from emostream.stream.speech.vad import FRAME_NS, SURE, SURE_FRAMES, Endpointer

PROBABILITIES = st.lists(st.sampled_from([0.0, 0.04, 0.2, 0.34, 0.4, 0.6, 1.0]), max_size=150)


def ends(probabilities: list[float], **settings: float | None) -> list[tuple[int, int, int]]:
    """(start, end, confirmed) of each utterance, in frames."""
    fixed = {"threshold": 0.5, "min_speech_ms": 96, "pause_ms": 160, "hangover_ms": 400, "max_utterance_s": 15}
    endpointer = Endpointer(**{**fixed, "min_hangover_ms": None, **settings})  # type: ignore[arg-type]
    found = []
    for i, probability in enumerate(probabilities):
        for bound in endpointer.push(probability, i * FRAME_NS):
            if bound.kind == "ended":
                found.append((bound.start_ns // FRAME_NS, bound.end_ns // FRAME_NS, i + 1))
    return found


SPEECH = [1.0] * 10


def test_sure_silence_ends_early_and_doubtful_silence_does_not():
    assert ends(SPEECH + [0.0] * 20, min_hangover_ms=256) == [(0, 10, 18)]
    assert ends(SPEECH + [0.2] * 20, min_hangover_ms=256) == [(0, 10, 23)]
    assert ends(SPEECH + [0.0] * 20) == [(0, 10, 23)]


def test_a_breath_puts_it_off_until_the_silence_is_sure_again():
    assert ends(SPEECH + [0.0] * 5 + [0.2] + [0.0] * 20, min_hangover_ms=256) == [(0, 10, 16 + SURE_FRAMES)]


def test_speech_after_a_short_pause_goes_on():
    assert ends(SPEECH + [0.0] * 7 + SPEECH + [0.0] * 20, min_hangover_ms=256) == [(0, 27, 35)]


@given(PROBABILITIES)
def test_no_hangover_shorter_than_the_longest_is_the_fixed_rule(probabilities):
    assert ends(probabilities, min_hangover_ms=400) == ends(probabilities)
    assert ends(probabilities, min_hangover_ms=5000) == ends(probabilities)


@given(PROBABILITIES, st.sampled_from([192, 256, 320]))
def test_the_wait_lies_between_the_two_and_is_short_only_in_sure_silence(probabilities, shortest):
    for _, end, confirmed in ends(probabilities, min_hangover_ms=shortest):
        waited_ms = (confirmed - end) * 32
        assert shortest <= waited_ms <= 416
        if waited_ms < 400:
            assert all(probability < SURE for probability in probabilities[confirmed - SURE_FRAMES : confirmed])


@given(PROBABILITIES)
def test_the_first_utterance_never_ends_later_than_by_the_fixed_rule(probabilities):
    fixed, adaptive = ends(probabilities), ends(probabilities, min_hangover_ms=256)
    if fixed:
        assert adaptive and adaptive[0][0] == fixed[0][0] and adaptive[0][2] <= fixed[0][2]


def test_the_benchmark_judges_waits_splits_and_losses():
    """One clip as it should be, one with a pause of 320 ms inside, one that voice activity does not hear."""
    quiet = [0.0] * 20
    clips = [
        endpoint.Clip("plain", np.array(quiet + SPEECH + quiet), 20 * 0.032, 30 * 0.032),
        endpoint.Clip("pause", np.array(quiet + SPEECH + [0.0] * 10 + SPEECH + quiet), 20 * 0.032, 50 * 0.032),
        endpoint.Clip("whispered", np.array(quiet * 4), 0.8, 1.5),
    ]
    fixed = endpoint.judge(clips, 400, 400)
    adaptive = endpoint.judge(clips, 400, 256)
    assert (fixed["cut"], adaptive["cut"]) == (0, 1)
    assert fixed["unheard"] == adaptive["unheard"] == 1
    assert fixed["wait"]["p50"] == 416 and adaptive["wait"]["p50"] == 256
    assert fixed["cut_early"] == 0 and adaptive["cut_early"] == 0.5
