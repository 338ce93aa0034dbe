"""stream/cores/audio.py"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.stream.cores.audio import AudioCore
from emostream.stream.features.logmel import logmel
from emostream.stream.features.mfcc import Mfcc, mfcc
from emostream.stream.messages import AudioRows, Message, Pcm
from emostream.stream.sources.base import AudioChunk
from tests import media

_S = 1_000_000_000
RATES = [8000, 16_000, 22_050, 44_100, 48_000, 192_000]


def _speech() -> np.ndarray:
    """The demo's neutral sentence: the others are too bright for straight lines between samples."""
    return media.speech_samples(26.0)[22_500 * 16 :]


def _sound(rate: int, seconds: float = 1.5) -> np.ndarray:
    """Speech at any rate, (n,) float32."""
    samples = _speech()
    positions = np.arange(round(seconds * rate)) * (16_000 / rate)
    return (np.interp(positions, np.arange(len(samples)), samples) / 32768).astype(np.float32)


def _chunks(samples: np.ndarray, rate: int, cuts: list[int], start_ns: int = 0) -> list[AudioChunk]:
    """The samples, (n,) or (n, channels), as timed chunks that end at ``cuts``."""
    wide = samples if samples.ndim == 2 else samples[:, None]
    bounds = [0, *sorted(cuts), len(wide)]
    return [AudioChunk(wide[a:b], rate, start_ns + a * _S // rate) for a, b in pairwise(bounds)]


def _run(chunks: list[AudioChunk], core: AudioCore | None = None) -> list[Message]:
    core = core or AudioCore("a", None)
    return [message for chunk in chunks for message in core.push(chunk)] + core.flush()


def _pcm(messages: list[Message]) -> list[Pcm]:
    return [message for message in messages if isinstance(message, Pcm)]


def _samples(messages: list[Message]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int16), *(message.samples for message in _pcm(messages))])


def _start_ns(rate: int, media_ns: int) -> int:
    """Start of the first block of sound that begins at ``media_ns``: earlier by the resampler's delay."""
    late = 0 if rate == 16_000 else round(16 * max(1, rate / 16_000))
    return media_ns - late * _S // rate


def _rows(messages: list[Message]) -> tuple[np.ndarray, np.ndarray]:
    """Times and rows."""
    parts = [message for message in messages if isinstance(message, AudioRows)]
    times = [part.media_start_ns + 10_000_000 * np.arange(len(part.rows)) for part in parts]
    return np.concatenate([[], *times]), np.concatenate([np.zeros((0, 32)), *(part.rows for part in parts)])


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=12)
@given(data=st.data())
def test_messages_do_not_depend_on_the_chunks(rate, data):
    sound = _sound(rate, 0.8)
    cuts = data.draw(st.lists(st.integers(0, len(sound)), max_size=20))
    whole, cut = _run(_chunks(sound, rate, [])), _run(_chunks(sound, rate, cuts))
    assert [(m.media_start_ns, m.media_end_ns) for m in _pcm(whole)] == [
        (m.media_start_ns, m.media_end_ns) for m in _pcm(cut)
    ]
    assert np.abs(_samples(whole).astype(int) - _samples(cut)).max() <= 1  # one step of rounding
    (times, rows), (cut_times, cut_rows) = _rows(whole), _rows(cut)
    np.testing.assert_array_equal(times, cut_times)
    np.testing.assert_allclose(rows, cut_rows, atol=0.05 if rate != 16_000 else 1e-3)


@pytest.mark.slow
@given(cuts=st.lists(st.integers(0, 16_000), max_size=40))
def test_at_16_khz_messages_are_identical_for_any_chunks(cuts):
    sound = _sound(16_000, 1.0)
    whole, cut = _run(_chunks(sound, 16_000, [])), _run(_chunks(sound, 16_000, cuts))
    assert [(type(m), m.media_start_ns, m.media_end_ns) for m in whole] == [
        (type(m), m.media_start_ns, m.media_end_ns) for m in cut
    ]
    np.testing.assert_array_equal(_samples(whole), _samples(cut))
    np.testing.assert_array_equal(_rows(whole)[1], _rows(cut)[1])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_rates_and_channels(rate, channels):
    sound = np.repeat(_sound(rate)[:, None], channels, axis=1)
    messages = _run(_chunks(sound, rate, list(range(0, len(sound), rate // 50))))
    expected = _speech()[:24_000]
    output = _samples(messages)[-_start_ns(rate, 0) * 16_000 // _S :]
    assert len(expected) - 512 <= len(output) <= len(expected)
    error = output / 32768 - expected[: len(output)] / 32768
    # straight lines between samples make the sound at other rates duller, and 8 kHz holds half of it
    assert np.std(error) < np.std(expected / 32768) * (0.5 if rate == 8000 else 0.35)
    assert np.corrcoef(output, expected[: len(output)])[0, 1] > (0.85 if rate == 8000 else 0.95)


def test_at_16_khz_samples_and_features_are_untouched():
    samples = media.speech_samples(2.0)
    messages = _run(_chunks(samples.astype(np.float32) / 32768, 16_000, [5000]))
    np.testing.assert_array_equal(_samples(messages), samples[: 62 * 512])
    _, rows = _rows(messages)
    np.testing.assert_allclose(rows, logmel(samples), atol=1e-5)  # BLAS may add in another order for fewer rows


def test_at_rest_the_same_rows_come_in_fewer_messages():
    chunks = _chunks(media.speech_samples(3.0).astype(np.float32) / 32768, 16_000, list(range(512, 48_000, 512)))
    core, messages = AudioCore("a", None), []
    for number, chunk in enumerate(chunks):
        core.at_rest = 30 <= number < 60
        messages += core.push(chunk)
    often = _run(chunks)
    for ours, theirs in zip(_rows(messages + core.flush()), _rows(often), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    count = [sum(isinstance(message, AudioRows) for message in each) for each in (messages, often)]
    assert count[0] < count[1] - 7


def test_training_may_have_other_features():
    samples = media.speech_samples(1.0)
    messages = _run(_chunks(samples.astype(np.float32) / 32768, 16_000, [5000]), AudioCore("a", None, Mfcc()))
    rows = np.concatenate([message.rows for message in messages if isinstance(message, AudioRows)])
    np.testing.assert_allclose(rows, mfcc(samples), atol=1e-3)


@pytest.mark.parametrize("rate", RATES)
def test_the_timeline_has_no_gaps_and_begins_with_the_sound(rate):
    messages = _run(_chunks(_sound(rate), rate, [100, 5000], start_ns=3 * _S))
    blocks = _pcm(messages)
    start_ns = _start_ns(rate, 3 * _S)
    assert blocks[0].media_start_ns == start_ns > 2.997 * _S
    for block, following in pairwise(blocks):
        assert block.media_end_ns == following.media_start_ns == block.media_start_ns + 32_000_000
    assert all(block.samples.shape == (512,) and block.samples.dtype == np.int16 for block in blocks)
    times, rows = _rows(messages)
    np.testing.assert_array_equal(times, start_ns + 10_000_000 * np.arange(len(rows)))
    assert len(rows) in (146, 147, 148)
    parts = [message for message in messages if isinstance(message, AudioRows)]
    assert all(part.media_end_ns == part.media_start_ns + 10_000_000 * len(part.rows) for part in parts)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("hz", [200, 1000, 3000])
def test_a_tone_keeps_its_frequency_level_and_phase(rate, hz):
    t = np.arange(2 * rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * hz * t).astype(np.float32)
    output = _samples(_run(_chunks(tone, rate, list(range(0, len(tone), 777))))) / 32768
    expected = 0.5 * np.sin(2 * np.pi * hz * (np.arange(len(output)) / 16_000 + _start_ns(rate, 0) / _S))
    np.testing.assert_allclose(output[400:-400], expected[400:-400], atol=0.01)  # its phase too: nothing is delayed


@pytest.mark.parametrize("rate", [8000, 32_000, 48_000, 96_000])
def test_a_block_comes_as_soon_as_its_sound(rate):
    """32 ms of samples make a block of 32 ms at once: none waits for later samples."""
    sound = _sound(rate)
    core = AudioCore("a", None)
    for number, chunk in enumerate(_chunks(sound, rate, [rate * 16 * n // 1000 for n in range(1, 80)])[:-1], start=1):
        blocks = _pcm(core.push(chunk))
        assert len(blocks) == (number % 2 == 0)
        assert all(chunk.media_end_ns - block.media_end_ns <= 2_100_000 for block in blocks)


def test_frequencies_above_8_khz_do_not_alias():
    t = np.arange(48_000) / 48_000
    output = _samples(_run(_chunks(0.5 * np.sin(2 * np.pi * 11_000 * t).astype(np.float32), 48_000, [])))
    assert np.abs(output[400:-400].astype(int)).max() < 100


def test_channels_are_averaged():
    left, right = np.full(1600, 0.5, np.float32), np.full(1600, 0.25, np.float32)
    output = _samples(_run(_chunks(np.stack([left, right], axis=1), 16_000, [])))
    assert set(output) == {12288}


def test_too_loud_a_sound_is_clipped():
    wave = np.array([2.0, -2.0, 1.0, -1.0, 0.5], np.float32).repeat(512)
    output = _samples(_run(_chunks(wave, 16_000, []))).reshape(5, 512)
    assert output[:, 0].tolist() == [32767, -32768, 32767, -32768, 16384]
    assert (output == output[:, :1]).all()


@pytest.mark.parametrize(("value", "step"), [(0.4, 0), (0.6, 1), (-0.4, 0), (-0.6, -1), (100.6, 101)])
def test_samples_are_rounded_to_the_nearest_step(value, step):
    assert set(_samples(_run(_chunks(np.full(1024, value / 32768, np.float32), 16_000, [])))) == {step}


# Capture time


def test_captured_is_t0_plus_media_time():
    for message in _run(_chunks(_sound(16_000), 16_000, [700]), AudioCore("a", 1_700_000_000 * _S)):
        assert message.captured_ns == 1_700_000_000 * _S + message.media_end_ns


def test_captured_is_zero_without_live_capture():
    assert {message.captured_ns for message in _run(_chunks(_sound(16_000), 16_000, []))} == {0}


# Gaps


def _with_gap(rate: int, gap_s: float) -> list[AudioChunk]:
    sound = _sound(rate)
    half = len(sound) // 2
    later = [
        AudioChunk(chunk.samples, rate, chunk.media_ns + round(gap_s * _S))
        for chunk in _chunks(sound[half:], rate, [], half * _S // rate)
    ]
    return _chunks(sound[:half], rate, [1000]) + later


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_gap_is_counted_and_the_timeline_shows_it(rate):
    core = AudioCore("a", None)
    chunks = _with_gap(rate, 2.0)
    messages = _run(chunks, core)
    assert core.gaps == 1
    starts = np.array([block.media_start_ns for block in _pcm(messages)])
    steps = np.diff(starts)
    assert (steps[steps != 32_000_000] >= 2 * _S).all()
    assert (steps != 32_000_000).sum() == 1
    later_ns = _start_ns(rate, chunks[-1].media_ns)
    assert later_ns in starts  # the sound after the gap is at the place that its time stamp says
    times, _ = _rows(messages)
    steps = np.diff(times)
    assert (steps > 0).all()
    assert (steps > 10_000_000).sum() == 1
    assert not ((times >= chunks[1].media_end_ns) & (times < later_ns)).any()  # no features of no sound


def test_features_do_not_reach_across_a_gap():
    chunks = _with_gap(16_000, 2.0)
    times, rows = _rows(_run(chunks))
    after = logmel(np.rint(chunks[-1].samples[:, 0] * 32768).astype(np.int16))
    np.testing.assert_allclose(rows[times >= chunks[-1].media_ns], after, atol=1e-3)


@pytest.mark.parametrize("jitter_ms", [-50, -1, 1, 50])
def test_small_errors_in_time_stamps_are_no_gap(jitter_ms):
    core = AudioCore("a", None)
    messages = _run(_with_gap(16_000, jitter_ms / 1000), core)
    assert (core.gaps, core.late_chunks) == (0, 0)
    np.testing.assert_array_equal(_samples(messages), _samples(_run(_chunks(_sound(16_000), 16_000, []))))


def test_jitter_does_not_add_up():
    """Time stamps that jitter around the true time for minutes."""
    core = AudioCore("a", None)
    rng = np.random.default_rng(0)
    for n in range(3000):
        core.push(
            AudioChunk(np.zeros((320, 1), np.float32), 16_000, n * 20_000_000 + int(rng.integers(-30, 30)) * 10**6)
        )
    assert (core.gaps, core.late_chunks) == (0, 0)


def test_a_chunk_that_comes_twice_is_left_out():
    core = AudioCore("a", None)
    sound = _sound(16_000)
    chunks = _chunks(sound, 16_000, [8000, 16_000])
    messages = _run([chunks[0], chunks[1], chunks[1], chunks[0], chunks[2]], core)
    assert core.late_chunks == 2
    np.testing.assert_array_equal(_samples(messages), _samples(_run(chunks)))


def test_a_gap_that_is_filled_later_stays_a_gap():
    """Time never goes backwards: late chunks are dropped."""
    chunks = _chunks(_sound(16_000), 16_000, [6000, 12_000, 18_000])
    core = AudioCore("a", None)
    messages = _run([chunks[0], chunks[2], chunks[1], chunks[3]], core)
    assert (core.gaps, core.late_chunks) == (1, 1)
    starts = [block.media_start_ns for block in _pcm(messages)]
    assert starts == sorted(starts)


def test_a_change_of_rate_in_mid_stream():
    """As from a microphone that was reopened as another device."""
    core = AudioCore("a", None)
    first = _chunks(_sound(48_000), 48_000, [])
    second = _chunks(_sound(44_100), 44_100, [], start_ns=first[0].media_end_ns)
    messages = _run(first + second, core)
    assert core.gaps == 0
    assert len(_samples(messages)) >= 2 * (24_000 - 512)
    times, _ = _rows(messages)
    assert (np.diff(times) > 0).all()


# Empty input


def test_chunks_without_samples_change_nothing():
    empty = AudioChunk(np.zeros((0, 1), np.float32), 16_000, 5 * _S)
    core = AudioCore("a", None)
    chunks = _chunks(_sound(16_000), 16_000, [4000])
    messages = _run([empty, chunks[0], empty, chunks[1]], core)
    np.testing.assert_array_equal(_samples(messages), _samples(_run(chunks)))
    assert core.gaps == 0


def test_no_input_gives_no_output():
    core = AudioCore("a", None)
    assert core.flush() == []
    assert core.flush() == []


def test_after_flush_a_new_run_begins():
    core = AudioCore("a", None)
    first = _run(_chunks(_sound(16_000), 16_000, []), core)
    again = _run(_chunks(_sound(16_000), 16_000, [], start_ns=60 * _S), core)
    np.testing.assert_array_equal(_samples(first), _samples(again))
    assert _pcm(again)[0].media_start_ns == 60 * _S
    assert core.gaps == 0
