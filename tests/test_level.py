"""The automatic level: stream/speech/level.py and its use in the speech core."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from emostream.errors import ConfigError
from emostream.stream.clock import VirtualClock
from emostream.stream.config import Speech, load_config
from emostream.stream.cores.speech import SpeechCore
from emostream.stream.messages import Pcm, SpeechEvent
from emostream.stream.speech.level import FALL_DB_S, MAX_GAIN_DB, QUIET_DBFS, TARGET_DBFS, Level
from emostream.stream.speech.vad import FRAME_NS, FRAME_SAMPLES
from tests import media
from tests.processes import command, free_port

_MS = 1_000_000


def at_peak(dbfs: float, seconds: float = 10.0) -> np.ndarray:
    """The demo clip's first seconds at another peak: (n,) int16 at 16 kHz. It holds two sentences in the first 10 s."""
    samples = media.speech_samples(seconds).astype(np.float64)
    return np.rint(samples / np.abs(samples).max() * 32767 * 10 ** (dbfs / 20)).astype(np.int16)


def events(samples: np.ndarray, vad, automatic: bool = True, live: bool = False) -> list[SpeechEvent]:
    """The speech core's events for a recording."""
    vad.reset()
    core = SpeechCore("desk", vad, None, Speech(), VirtualClock(), vad.twin() if automatic else None)
    blocks = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    messages = []
    for i, block in enumerate(blocks):
        start, end = i * FRAME_NS, (i + 1) * FRAME_NS
        messages += core.push(
            Pcm(stream="desk", media_start_ns=start, media_end_ns=end, captured_ns=end if live else 0, samples=block)
        )
    return [event for event in messages + core.finish() if isinstance(event, SpeechEvent)]


def bounds(samples: np.ndarray, vad, automatic: bool = True) -> list[tuple[int, int]]:
    """(start_ns, end_ns) of each utterance."""
    heard = events(samples, vad, automatic)
    return [(event.start_ns, event.end_ns) for event in heard if event.event == "ended"]


# The level itself

_blocks = st.lists(st.integers(0, 32768), min_size=1, max_size=60)


def _block(peak: int) -> np.ndarray:
    return np.array([0, -peak, min(peak, 32767) // 2], np.int16)


@given(_blocks)
def test_a_block_is_never_made_quieter_nor_louder_than_the_target(peaks):
    level = Level()
    for peak in peaks:
        block = _block(peak)
        level.push(block)
        raised = level.raised(block)
        assert 0 <= level.gain_db <= MAX_GAIN_DB
        assert (np.abs(raised.astype(int)) >= np.abs(block.astype(int))).all()
        if level.quiet:
            assert np.abs(raised.astype(int)).max() <= 32768 * 10 ** (TARGET_DBFS / 20) + 1
        else:
            assert np.array_equal(raised, block)


@given(_blocks, st.floats(0, 1))
def test_the_quieter_microphone_gets_the_higher_gain(peaks, factor):
    loud, quiet = Level(), Level()
    for peak in peaks:
        loud.push(_block(peak))
        quiet.push(_block(int(peak * factor)))
        assert quiet.gain_db >= loud.gain_db


@given(_blocks)
def test_the_same_blocks_have_the_same_gain(peaks):
    first, second = Level(), Level()
    for peak in peaks:
        first.push(_block(peak))
        second.push(_block(peak))
    assert first.gain_db == second.gain_db


def test_a_normal_voice_is_forgotten_slowly():
    level = Level()
    level.push(_block(round(32768 * 10 ** ((QUIET_DBFS + 10) / 20))))
    seconds = 0.0
    while not level.quiet:
        level.push(_block(0))
        seconds += FRAME_NS / 1e9
    assert seconds == pytest.approx(10 / FALL_DB_S, abs=0.1)


# Utterances


@pytest.mark.slow
@pytest.mark.parametrize("dbfs", [-34, -40, -50, -60])
def test_a_quiet_microphone_has_the_utterances_of_a_normal_one(vad, dbfs):
    want = bounds(at_peak(-1), vad, automatic=False)
    have = bounds(at_peak(dbfs), vad)
    assert len(have) == len(want) > 1
    for ours, theirs in zip(have, want, strict=True):
        assert ours == pytest.approx(theirs, abs=64 * _MS)


@pytest.mark.slow
def test_without_it_a_quiet_microphone_loses_the_start_and_then_everything(vad):
    want = bounds(at_peak(-1), vad, automatic=False)
    have = bounds(at_peak(-50), vad, automatic=False)
    assert all(ours[0] - theirs[0] > 100 * _MS for ours, theirs in zip(have, want, strict=True))
    assert bounds(at_peak(-60), vad, automatic=False) == []


@pytest.mark.slow
@settings(max_examples=5)
@given(st.floats(-14, 0))
def test_a_normal_microphone_is_heard_as_it_is(vad, dbfs):
    samples = at_peak(dbfs)
    assert bounds(samples, vad) == bounds(samples, vad, automatic=False)


@pytest.mark.slow
def test_a_normal_voice_right_after_a_quiet_one(vad):
    quiet, loud = at_peak(-46, 4.5), at_peak(-1, 4.5)
    ((start_ns, end_ns),) = bounds(quiet, vad)
    offset_ns = len(quiet) * 62_500
    first, second = bounds(np.concatenate([quiet, loud]), vad)
    assert first == (start_ns, end_ns)
    assert second == pytest.approx((offset_ns + start_ns, offset_ns + end_ns), abs=64 * _MS)


@pytest.mark.slow
@pytest.mark.parametrize("dbfs", [-60, -50])
def test_noise_is_not_taken_for_speech(vad, dbfs):
    noise = np.random.default_rng(0).normal(0, 32768 * 10 ** (dbfs / 20), 60 * 16_000)
    assert bounds(np.rint(noise).astype(np.int16), vad) == []


class ScriptedVad:
    """The probability, in thousandths, is a block's second sample; its first one sets the level."""

    def push(self, samples: np.ndarray) -> float:
        return samples[1] / 1000

    def push_all(self, frames: np.ndarray) -> np.ndarray:
        return np.array([self.push(frame) for frame in frames])

    def push_both(self, frames: np.ndarray, twin: ScriptedVad, raised: np.ndarray) -> np.ndarray:
        return np.stack([self.push_all(frames), twin.push_all(raised)], axis=1)

    def reset(self) -> None:
        pass


class RaisedVad(ScriptedVad):
    """Hears speech in all but the first 20 blocks."""

    def __init__(self) -> None:
        self.blocks = 0

    def push(self, samples: np.ndarray) -> float:
        self.blocks += 1
        return 0.9 if self.blocks > 20 else 0.0


def _scripted(blocks: list[tuple[int, float]], quiet_vad) -> list[SpeechEvent]:
    """Events for blocks given as (peak, probability)."""
    core = SpeechCore("desk", ScriptedVad(), None, Speech(), VirtualClock(), quiet_vad)  # type: ignore[arg-type]
    messages = []
    for i, (peak, probability) in enumerate(blocks):
        samples = np.zeros(FRAME_SAMPLES, np.int16)
        samples[:2] = peak, round(1000 * probability)
        start, end = i * FRAME_NS, (i + 1) * FRAME_NS
        messages += core.push(Pcm(stream="", media_start_ns=start, media_end_ns=end, captured_ns=0, samples=samples))
    return [event for event in messages + core.finish() if isinstance(event, SpeechEvent)]


_PEAK = round(32768 * 10 ** ((QUIET_DBFS + 10) / 20))


def test_a_voice_that_becomes_loud_is_heard_as_it_came():
    blocks = [(1, 0.0)] * 20 + [(700, 0.2)] * 5 + [(_PEAK, 0.9)] * 20 + [(1, 0.0)] * 20
    plain, automatic = _scripted(blocks, None), _scripted(blocks, RaisedVad())
    assert [(e.event, e.start_ns, e.end_ns) for e in automatic if e.event in ("started", "ended")] == [
        ("started", 25 * FRAME_NS, 28 * FRAME_NS), ("ended", 25 * FRAME_NS, 45 * FRAME_NS),
    ] == [(e.event, e.start_ns, e.end_ns) for e in plain if e.event in ("started", "ended")]  # fmt: skip


def test_a_voice_that_stays_quiet_is_heard_from_its_first_block():
    heard = _scripted([(1, 0.0)] * 20 + [(100, 0.0)] * 30, RaisedVad())
    assert [(e.event, e.start_ns, e.end_ns) for e in heard if e.event in ("started", "ended")] == [
        ("started", 20 * FRAME_NS, 23 * FRAME_NS), ("ended", 20 * FRAME_NS, 50 * FRAME_NS),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_very_quiet_microphone_is_reported_once_a_minute(vad, caplog):
    with caplog.at_level(logging.WARNING):
        events(samples := at_peak(-48), vad, live=True)
        peak_dbfs = 20 * np.log10(np.abs(samples[: 4 * 16_000]).max() / 32768)  # the first of two sentences
        assert caplog.messages == [
            f"desk: speech is very quiet (peak {peak_dbfs:.0f} dBFS); raise the microphone's gain"
        ]
        caplog.clear()
        events(at_peak(-48), vad)  # a file read at full speed
        events(at_peak(-20), vad, live=True)
        assert caplog.messages == []


# End to end


@pytest.mark.long
@pytest.mark.process
def test_a_quiet_file_gets_the_labels_of_a_normal_one_also_live(tmp_path):
    for name, dbfs in (("normal", -10), ("quiet", -46)):
        soundfile.write(tmp_path / f"{name}.wav", at_peak(dbfs, 5.0), 16_000)
        done = command("stream-label", tmp_path / f"{name}.wav", "--out", tmp_path / f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
    live = command(
        "stream-run", "--stream", f"desk=file:{tmp_path / 'quiet.wav'}", "--jsonl", tmp_path / "live.jsonl", "--quiet",
        "--set", f"bus.emotion=tcp://127.0.0.1:{free_port()}",
    )  # fmt: skip
    assert live.returncode == 0
    assert "desk: speech is very quiet (peak -4" in live.stdout + live.stderr
    normal, quiet, live_quiet = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("normal", "quiet", "live")
    )
    assert len(normal) == len(quiet) == 1
    assert quiet[0]["label"] == normal[0]["label"]
    times = [(label["start_s"], label["end_s"]) for label in (normal[0], quiet[0])]
    assert times[1] == pytest.approx(times[0], abs=0.064)
    assert [(label["probabilities"], label["text"]) for label in live_quiet] == [
        (label["probabilities"], label["text"]) for label in quiet
    ]


def test_an_unknown_level_is_refused():
    with pytest.raises(ConfigError, match=r"audio.level = 'loud'"):
        load_config(changes=["audio.level=loud"])
