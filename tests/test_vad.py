"""stream/speech/vad.py"""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emostream.stream import models
from emostream.stream.config import Speech
from emostream.stream.nodes.speech import load_vad
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES, Endpointer, utterances
from tests import media

_MS = 1_000_000

settings_ = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.1, 0.5, 0.9]),
        "min_speech_ms": st.sampled_from([32, 96, 250]),
        "pause_ms": st.sampled_from([32, 160, 250]),
        "hangover_ms": st.sampled_from([264, 400, 800]),
        "max_utterance_s": st.sampled_from([1.0, 2.5, 15.0]),
    }
)
# runs of speech and silence, so that whole utterances are likely, and some frames of any probability
_run = st.tuples(st.sampled_from([0.0, 0.4, 0.97]) | st.floats(0, 1), st.integers(1, 40))
probabilities = st.lists(_run, max_size=12).map(lambda runs: [p for p, n in runs for _ in range(n)])


def _endpointer(**options) -> Endpointer:
    """A fixed hangover of 400 ms, unless the options say otherwise."""
    fixed = {"threshold": 0.5, "min_speech_ms": 96, "pause_ms": 160, "hangover_ms": 400, "max_utterance_s": 15}
    return Endpointer(**{**fixed, "min_hangover_ms": None, **options})


def _all(endpointer: Endpointer, values: list[float]) -> list:
    bounds = [bound for i, p in enumerate(values) for bound in endpointer.push(p, i * FRAME_NS)]
    return bounds + ([endpointer.end()] if endpointer.speaking else [])


@given(settings_, probabilities)
def test_bounds_come_in_order(options, values):
    endpointer = _endpointer(**options)
    state, begun, last_end = "ended", -1, 0
    after = {"ended": {"started"}, "started": {"paused", "ended"}, "paused": {"resumed", "ended"}}
    after["resumed"] = after["started"]
    for i, p in enumerate(values):
        for bound in endpointer.push(p, i * FRAME_NS):
            assert bound.kind in after[state]
            state = bound.kind
            if bound.kind == "started":
                assert bound.start_ns >= last_end  # utterances do not overlap
                begun = bound.start_ns
            assert bound.start_ns == begun
            assert bound.start_ns < bound.end_ns <= (i + 1) * FRAME_NS
            last_end = bound.end_ns
        assert endpointer.speaking == (state != "ended")
        so_far = endpointer.so_far()
        assert (so_far is not None) == endpointer.speaking
        if so_far is not None:
            assert so_far.kind == ("paused" if state == "paused" else "resumed")
            assert so_far.start_ns == begun
    if endpointer.speaking:
        bound = endpointer.end()
        assert (bound.kind, bound.start_ns) == ("ended", begun)
        assert not endpointer.speaking


@given(settings_, probabilities)
def test_speech_is_as_long_as_configured(options, values):
    for bound in _all(_endpointer(**options), values):
        length_ms = (bound.end_ns - bound.start_ns) / _MS
        assert length_ms >= options["min_speech_ms"]
        if bound.kind == "started":
            assert length_ms < options["min_speech_ms"] + 32


@given(settings_, probabilities)
@example(
    {"threshold": 0.5, "min_speech_ms": 96, "pause_ms": 160, "hangover_ms": 400, "max_utterance_s": 1.0},
    [0.9] * 30 + [0.0] * 11 + [0.9],
)
def test_no_utterance_is_longer_than_the_longest_allowed(options, values):
    for bound in _all(_endpointer(**options), values):
        assert bound.end_ns - bound.start_ns <= options["max_utterance_s"] * 1e9 + FRAME_NS


@given(settings_, probabilities)
def test_an_utterance_begins_and_ends_with_speech(options, values):
    off = max(options["threshold"] - 0.15, 0.01)
    for bound in _all(_endpointer(**options), values):
        assert values[bound.start_ns // FRAME_NS] >= options["threshold"]
        assert values[bound.end_ns // FRAME_NS - 1] >= off


@given(settings_, st.lists(st.floats(0, 1), max_size=200))
def test_below_the_threshold_nothing_starts(options, values):
    assert _all(_endpointer(**options), [p * options["threshold"] * 0.999 for p in values]) == []


@given(settings_, probabilities, probabilities)
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
    bounds = _all(_endpointer(), values)
    assert [bound.kind for bound in bounds] == ["started", "paused", "resumed", "paused", "ended"]
    assert bounds[0].start_ns == 5 * FRAME_NS
    assert bounds[0].end_ns == 8 * FRAME_NS  # known after 96 ms
    assert bounds[1].end_ns == 25 * FRAME_NS
    assert bounds[-1].end_ns == 43 * FRAME_NS
    assert not bounds[-1].forced


def test_an_end_is_told_as_soon_as_the_silence_is_long_enough():
    endpointer = _endpointer(pause_ms=160, hangover_ms=400)
    told = {}
    for i, p in enumerate([0.9] * 10 + [0.0] * 30):
        for bound in endpointer.push(p, i * FRAME_NS):
            told[bound.kind] = (i + 1) * FRAME_NS - 10 * FRAME_NS  # silence by then
    assert 160 * _MS <= told["paused"] < 192 * _MS
    assert 400 * _MS <= told["ended"] < 432 * _MS


def test_doubtful_frames_keep_speech_going_but_do_not_start_it():
    assert _all(_endpointer(threshold=0.5), [0.4] * 50) == []
    assert [bound.kind for bound in _all(_endpointer(threshold=0.5), [0.9] * 5 + [0.4] * 50)] == ["started", "ended"]


def test_a_monologue_is_cut_without_losing_a_frame():
    bounds = _all(_endpointer(max_utterance_s=2), [0.9] * 200)
    ends = [bound for bound in bounds if bound.kind == "ended"]
    starts = [bound for bound in bounds if bound.kind == "started"]
    assert [bound.forced for bound in ends] == [True] * (len(ends) - 1) + [False]
    assert [bound.start_ns for bound in starts[1:]] == [bound.end_ns for bound in ends[:-1]]
    assert ends[-1].end_ns == 200 * FRAME_NS


def test_settings_of_a_live_stream_come_from_its_configuration():
    values = [0.9] * 10 + [0.0] * 30
    live = {"pause_ms": 128, "hangover_ms": 400, "min_hangover_ms": 192}
    assert _all(Endpointer.from_config(Speech()), values) == _all(_endpointer(**live), values)
    changed = {"threshold": 0.95, "min_speech_ms": 64, "max_utterance_s": 1.0, "pause_ms": 64, "min_hangover_ms": 96}
    for key, value in changed.items():
        values = [0.9, 0.9, *[0.97] * 40, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9]
        configured = _all(Endpointer.from_config(Speech(**{key: value})), values)
        assert configured == _all(_endpointer(**live | {key: value}), values)


# With the network


def test_the_demos_sentences_are_found(vad):
    sentences = json.loads(media.DEMO.with_suffix(".json").read_text())["sentences"]
    found = [(start / 1e9, end / 1e9) for start, end in utterances(media.speech_samples(27.0), vad, _endpointer())]
    assert len(found) == len(sentences) == 5
    np.testing.assert_allclose(found, [(s["start_s"], s["end_s"]) for s in sentences], atol=0.35)


@pytest.mark.parametrize("sound", ["silence", "hiss", "hum", "clicks"])
def test_what_is_not_speech_starts_nothing(vad, sound):
    rng = np.random.default_rng(0)
    t = np.arange(16_000 * 6)
    samples = {
        "silence": np.zeros(len(t)),
        "hiss": rng.normal(0, 100, len(t)),
        "hum": 1000 * np.sin(2 * np.pi * 50 * t / 16_000),
        "clicks": 8000.0 * (t % 4000 == 0),
    }[sound].astype(np.int16)
    assert list(utterances(samples, vad, _endpointer())) == []


def test_the_networks_state_is_forgotten_by_reset(vad, speech_samples):
    def probabilities_of(samples):
        return [vad.push(samples[i : i + FRAME_SAMPLES]) for i in range(0, len(samples) - 511, FRAME_SAMPLES)]

    vad.reset()
    first = probabilities_of(speech_samples[:32_000])
    vad.reset()
    again = probabilities_of(speech_samples[:32_000])
    assert first == again
    assert all(0 <= p <= 1 for p in first)
    assert max(first) > 0.9
    assert probabilities_of(speech_samples[:512]) != first[:1]


def test_each_frame_is_seen_with_the_end_of_the_one_before(speech_samples):
    """The network's own way of being fed: 64 samples of context, then the frame, and its state handed on."""
    session = onnxruntime.InferenceSession(str(models.find("silero-vad")), providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(16_000, np.int64)
    sound = np.concatenate([np.zeros(64, np.int16), speech_samples[:32_000]]).astype(np.float32) / 32768
    expected = []
    for at in range(0, 32_000 - 511, FRAME_SAMPLES):
        p, state = session.run(None, {"input": sound[None, at : at + 64 + 512], "state": state, "sr": rate})
        expected.append(float(p[0, 0]))
    vad = load_vad()
    found = [vad.push(speech_samples[at : at + FRAME_SAMPLES]) for at in range(0, 32_000 - 511, FRAME_SAMPLES)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_recording_shorter_than_a_frame_has_no_utterance(vad):
    assert list(utterances(np.zeros(511, np.int16), vad, _endpointer())) == []
