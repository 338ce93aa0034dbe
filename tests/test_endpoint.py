"""stream/speech/endpoint.py, and the rules that benchmarks/endpoint.py compares."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import endpoint
from emostream.stream.config import Speech
from emostream.stream.speech.endpoint import SURE, SURE_FRAMES, Endpointer, EndpointEvent
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES, RATE_HZ, SileroVad
from tests import media

_MS = 1_000_000

RULES = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.1, 0.5, 0.9]),
        "min_speech_ms": st.sampled_from([32, 96, 250]),
        "pause_ms": st.sampled_from([32, 160, 250]),
        "hangover_ms": st.sampled_from([264, 400, 800]),
        "max_utterance_s": st.sampled_from([1.0, 2.5, 15.0]),
    }
)
# runs of speech and silence, so that whole utterances are likely, and some frames of any probability
_RUN = st.tuples(st.sampled_from([0.0, 0.4, 0.97]) | st.floats(0, 1), st.integers(1, 40))
probabilities = st.lists(_RUN, max_size=12).map(lambda runs: [p for p, n in runs for _ in range(n)])


def utterances(samples: np.ndarray, vad: SileroVad, endpointer: Endpointer) -> Iterator[tuple[int, int]]:
    """(start_ns, end_ns) of each utterance in a whole (n,) int16 recording at 16 kHz. Resets both objects first."""
    vad.reset()
    endpointer.reset()
    for i in range(0, len(samples) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        start_ns = i * 1_000_000_000 // RATE_HZ
        for event in endpointer.push(vad.push(samples[i : i + FRAME_SAMPLES]), start_ns):
            if event.kind == "ended":
                yield event.start_ns, event.end_ns
    if endpointer.speaking:
        event = endpointer.end()
        yield event.start_ns, event.end_ns


def _endpointer(**changes: float) -> Endpointer:
    """With the settings that this file's figures assume; the shortest hangover is the hangover unless a test changes
    it."""
    rules = {
        "threshold": 0.5,
        "min_speech_ms": 96,
        "pause_ms": 160,
        "hangover_ms": 400,
        "max_utterance_s": 15,
    } | changes
    return Endpointer(**({"min_hangover_ms": rules["hangover_ms"]} | rules))


def _all(endpointer: Endpointer, values: list[float]) -> list[EndpointEvent]:
    events = [event for i, p in enumerate(values) for event in endpointer.push(p, i * FRAME_NS)]
    return events + ([endpointer.end()] if endpointer.speaking else [])


@given(RULES, probabilities)
def test_events_come_in_order(options, values):
    endpointer = _endpointer(**options)
    state, begun, last_end = "ended", -1, 0
    after = {"ended": {"started"}, "started": {"paused", "ended"}, "paused": {"resumed", "ended"}}
    after["resumed"] = after["started"]
    for i, p in enumerate(values):
        for event in endpointer.push(p, i * FRAME_NS):
            assert event.kind in after[state]
            state = event.kind
            if event.kind == "started":
                assert event.start_ns >= last_end  # utterances do not overlap
                begun = event.start_ns
            assert event.start_ns == begun
            assert event.start_ns < event.end_ns <= (i + 1) * FRAME_NS
            last_end = event.end_ns
        assert endpointer.speaking == (state != "ended")
        so_far = endpointer.so_far()
        assert (so_far is not None) == endpointer.speaking
        if so_far is not None:
            assert so_far.kind == ("paused" if state == "paused" else "resumed")
            assert so_far.start_ns == begun
    if endpointer.speaking:
        event = endpointer.end()
        assert (event.kind, event.start_ns) == ("ended", begun)
        assert not endpointer.speaking


@given(RULES, probabilities)
def test_speech_is_as_long_as_configured(options, values):
    for event in _all(_endpointer(**options), values):
        length_ms = (event.end_ns - event.start_ns) / _MS
        assert length_ms >= options["min_speech_ms"]
        if event.kind == "started":
            assert length_ms < options["min_speech_ms"] + 32


@given(RULES, probabilities)
@example(
    {"threshold": 0.5, "min_speech_ms": 96, "pause_ms": 160, "hangover_ms": 400, "max_utterance_s": 1.0},
    [0.9] * 30 + [0.0] * 11 + [0.9],
)
def test_no_utterance_is_longer_than_the_longest_allowed(options, values):
    for event in _all(_endpointer(**options), values):
        assert event.end_ns - event.start_ns <= options["max_utterance_s"] * 1e9 + FRAME_NS


@given(RULES, probabilities)
def test_an_utterance_begins_and_ends_with_speech(options, values):
    off = max(options["threshold"] - 0.15, 0.01)
    for event in _all(_endpointer(**options), values):
        assert values[event.start_ns // FRAME_NS] >= options["threshold"]
        assert values[event.end_ns // FRAME_NS - 1] >= off


@given(RULES, st.lists(st.floats(0, 1), max_size=200))
def test_below_the_threshold_nothing_starts(options, values):
    assert _all(_endpointer(**options), [p * options["threshold"] * 0.999 for p in values]) == []


@given(RULES, probabilities, probabilities)
def test_reset_forgets(options, before, values):
    endpointer = _endpointer(**options)
    for p in before:
        endpointer.push(p, 0)
    endpointer.reset()
    assert _all(endpointer, values) == _all(_endpointer(**options), values)


def test_only_frames_in_a_row_start_an_utterance():
    noises = ([0.9] * 2 + [0.0]) * 30
    assert _all(_endpointer(min_speech_ms=96), noises) == []
    assert _all(_endpointer(min_speech_ms=96), [*noises, 0.9, 0.9, 0.9])[0].start_ns == 90 * FRAME_NS


def test_one_sentence_with_a_pause():
    values = [0.0] * 5 + [0.9] * 20 + [0.0] * 8 + [0.9] * 10 + [0.0] * 20
    events = _all(_endpointer(), values)
    assert [event.kind for event in events] == ["started", "paused", "resumed", "paused", "ended"]
    assert events[0].start_ns == 5 * FRAME_NS
    assert events[0].end_ns == 8 * FRAME_NS  # 96 ms in, it is certain
    assert events[1].end_ns == 25 * FRAME_NS
    assert events[-1].end_ns == 43 * FRAME_NS
    assert not events[-1].forced


def test_pause_and_end_come_as_soon_as_the_silence_is_long_enough():
    endpointer = _endpointer(pause_ms=160, hangover_ms=400)
    silence_ns = {}
    for i, p in enumerate([0.9] * 10 + [0.0] * 30):
        for event in endpointer.push(p, i * FRAME_NS):
            silence_ns[event.kind] = (i + 1) * FRAME_NS - 10 * FRAME_NS
    assert 160 * _MS <= silence_ns["paused"] < 192 * _MS
    assert 400 * _MS <= silence_ns["ended"] < 432 * _MS


def test_doubtful_frames_keep_speech_going_but_do_not_start_it():
    assert _all(_endpointer(threshold=0.5), [0.4] * 50) == []
    assert [event.kind for event in _all(_endpointer(threshold=0.5), [0.9] * 5 + [0.4] * 50)] == ["started", "ended"]


def test_a_monologue_is_cut_without_losing_a_frame():
    events = _all(_endpointer(max_utterance_s=2), [0.9] * 200)
    ends = [event for event in events if event.kind == "ended"]
    starts = [event for event in events if event.kind == "started"]
    assert [event.forced for event in ends] == [True] * (len(ends) - 1) + [False]
    assert [event.start_ns for event in starts[1:]] == [event.end_ns for event in ends[:-1]]
    assert ends[-1].end_ns == 200 * FRAME_NS


# The adaptive hangover

PROBABILITIES = st.lists(st.sampled_from([0.0, 0.04, 0.2, 0.34, 0.4, 0.6, 1.0]), max_size=150)


def ends(probabilities: list[float], **changes: float) -> list[tuple[int, int, int]]:
    """(start, end, confirmed) of each utterance, in frames."""
    endpointer = _endpointer(**changes)
    return [
        (event.start_ns // FRAME_NS, event.end_ns // FRAME_NS, i + 1)
        for i, probability in enumerate(probabilities)
        for event in endpointer.push(probability, i * FRAME_NS)
        if event.kind == "ended"
    ]


SPEECH = [1.0] * 10


def test_certain_silence_ends_early_and_doubtful_silence_does_not():
    assert ends(SPEECH + [0.0] * 20, min_hangover_ms=256) == [(0, 10, 18)]
    assert ends(SPEECH + [0.2] * 20, min_hangover_ms=256) == [(0, 10, 23)]
    assert ends(SPEECH + [0.0] * 20) == [(0, 10, 23)]


def test_a_breath_delays_the_end_until_the_silence_is_certain_again():
    assert ends(SPEECH + [0.0] * 5 + [0.2] + [0.0] * 20, min_hangover_ms=256) == [(0, 10, 16 + SURE_FRAMES)]


def test_speech_after_a_short_pause_goes_on():
    assert ends(SPEECH + [0.0] * 7 + SPEECH + [0.0] * 20, min_hangover_ms=256) == [(0, 27, 35)]


@given(PROBABILITIES)
def test_a_shortest_hangover_as_long_as_the_hangover_is_the_fixed_rule(probabilities):
    assert ends(probabilities, min_hangover_ms=400) == ends(probabilities)
    assert ends(probabilities, min_hangover_ms=5000) == ends(probabilities)


@given(PROBABILITIES, st.sampled_from([192, 256, 320]))
def test_the_wait_lies_between_both_and_is_short_only_in_certain_silence(probabilities, shortest):
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
    """One ordinary clip, one with a pause of 320 ms inside, one in which voice activity detection finds no speech."""
    quiet = [0.0] * 20
    clips = [
        endpoint.Clip("plain", np.array(quiet + SPEECH + quiet), 20 * 0.032, 30 * 0.032),
        endpoint.Clip("pause", np.array(quiet + SPEECH + [0.0] * 10 + SPEECH + quiet), 20 * 0.032, 50 * 0.032),
        endpoint.Clip("whispered", np.array(quiet * 4), 0.8, 1.5),
    ]
    fixed = endpoint.judge(clips, (400, 400))
    adaptive = endpoint.judge(clips, (400, 256))
    assert (fixed["cut"], adaptive["cut"]) == (0, 1)
    assert fixed["unheard"] == adaptive["unheard"] == 1
    assert fixed["wait"]["p50"] == 416 and adaptive["wait"]["p50"] == 256
    assert fixed["cut_early"] == 0 and adaptive["cut_early"] == 0.5


def test_the_benchmark_judges_ends_in_talk_by_who_goes_on():
    """She continues after 320 ms; he answers at once and is the last to speak; his turn ends before his breath does."""
    frames = [0.0] * 20 + SPEECH + [0.0] * 10 + SPEECH + [0.0] * 10 + SPEECH + [0.0] * 60
    ends_s = [(20 + 10 + 20 * i) * 0.032 for i in range(3)]
    turns = ((0.64, ends_s[0], "her"), (ends_s[0] + 0.3, ends_s[1], "her"), (ends_s[1] + 0.3, ends_s[2] - 0.1, "him"))
    clip = endpoint.Clip("talk", np.array(frames), 0.0, len(frames) * 0.032, turns)
    hasty = endpoint.judge_talk([clip], (192, 192))
    assert (hasty["utterances"], hasty["cut"]) == (3, 1) and hasty["delay"]["n"] == 1
    assert hasty["delay"]["p50"] == pytest.approx(192 + 100, abs=1)
    patient = endpoint.judge_talk([clip], (512, 512))
    assert (patient["utterances"], patient["cut"]) == (1, 0)


# As configured


def test_the_rules_are_those_of_the_configuration():
    """Pause and shortest hangover, whose defaults differ from those above, and every changed setting."""
    events = Endpointer.from_config(Speech())
    kinds = {event.kind: i + 1 for i, p in enumerate(SPEECH + [0.0] * 20) for event in events.push(p, i * FRAME_NS)}
    assert kinds == {"started": 3, "paused": 10 + 4, "ended": 10 + 6}  # 96 ms; 128 and 192 ms of silence
    changed = Speech(
        threshold=0.9, min_speech_ms=64, pause_ms=64, hangover_ms=300, min_hangover_ms=96, max_utterance_s=1
    )
    expected = Endpointer(
        threshold=0.9, min_speech_ms=64, pause_ms=64, hangover_ms=300, min_hangover_ms=96, max_utterance_s=1
    )
    values = [*SPEECH, 0.8, 0.0, 0.0, *SPEECH, *[0.2] * 12, *SPEECH * 4, *[0.0] * 10]
    assert _all(Endpointer.from_config(changed), values) == _all(expected, values) != _all(_endpointer(), values)


# Whole recordings


def test_the_demos_sentences_are_found(vad):
    sentences = json.loads(media.DEMO.with_suffix(".json").read_text())["sentences"]
    steps = [
        (start / 1e9, end / 1e9)
        for start, end in utterances(media.speech_samples(26.5), vad, Endpointer.from_config(Speech()))
    ]
    assert len(steps) == len(sentences) == 5
    np.testing.assert_allclose(steps, [(s["start_s"], s["end_s"]) for s in sentences], atol=0.35)


@pytest.mark.parametrize("sound", ["silence", "hiss", "hum", "clicks"])
def test_other_sounds_start_nothing(vad, sound):
    rng = np.random.default_rng(0)
    t = np.arange(16_000 * 6)
    samples = {
        "silence": np.zeros(len(t)),
        "hiss": rng.normal(0, 100, len(t)),
        "hum": 1000 * np.sin(2 * np.pi * 50 * t / 16_000),
        "clicks": 8000.0 * (t % 4000 == 0),
    }[sound].astype(np.int16)
    assert list(utterances(samples, vad, Endpointer.from_config(Speech()))) == []


def test_a_recording_shorter_than_a_frame_has_no_utterance(vad):
    assert list(utterances(np.zeros(511, np.int16), vad, Endpointer.from_config(Speech()))) == []
