"""Times of containers that jump: one continuous timeline."""

from __future__ import annotations

import itertools
import random

import pytest

from emostream.stream.sources.timeline import Timeline

AUDIO, VIDEO = 0, 1


def placed(times, jumps=True, length_s=0.02, track=AUDIO, timeline=None):
    """The times of one track's packets on the timeline."""
    timeline = timeline or Timeline("x", jumps)
    return [round(t + timeline.shift_s(track, t, length_s), 6) for t in times]


def steps(start_s: float, count: int, length_s: float = 0.02) -> list[float]:
    return [round(start_s + i * length_s, 6) for i in range(count)]


def test_times_that_do_not_jump_stay_as_they_are():
    times = [*steps(1.4, 100), *steps(8.0, 100)]  # with a gap
    timeline = Timeline("x", True)
    assert placed(times, timeline=timeline) == times and timeline.jumps == 0


@pytest.mark.parametrize("second_s", [0.0, 1.0, -5.0, 3600.0, 40_000.0, 95_443.7])
def test_a_second_recording_goes_on_where_the_first_ended(second_s):
    assert placed([*steps(0, 200), *steps(second_s, 200)]) == steps(0, 400)


@pytest.mark.parametrize("bad_s", [3600.0, -3600.0, 39_600.0, -2.0, 0.0])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_few_bad_times_are_passed_over(bad_s, count):
    times = steps(0, 400)
    times[150 : 150 + count] = [t + bad_s for t in times[150 : 150 + count]]
    assert placed(times) == pytest.approx(steps(0, 400), abs=1e-5)


def test_a_step_back_by_a_tracks_own_clock_is_closed_up_though_small():
    again = [t - 0.3 for t in steps(4.0, 200)]
    assert placed([*steps(0, 200), *again]) == pytest.approx(steps(0, 400), abs=1e-5)
    assert placed([*steps(0, 20)] * 10) == pytest.approx(steps(0, 200), abs=1e-5)  # a clock that stands still


def test_jitter_is_no_step():
    times = [t + 0.03 * random.Random(i).uniform(-1, 1) for i, t in enumerate(steps(1, 200))]
    assert placed(times) == pytest.approx(times, abs=1e-5)


@pytest.mark.parametrize("off_s", [8640.0, 30.0, -7200.0])
def test_a_track_whose_clock_has_nothing_to_do_with_the_others(off_s):
    timeline, found = Timeline("x", True, start_s=min(1.0, 1.0 + off_s)), {AUDIO: [], VIDEO: []}
    for i, t in enumerate(steps(1, 200, 0.04)):  # interleaved as they were recorded
        for track, there_s in ((VIDEO, t), (AUDIO, t + off_s)):
            found[track].append(there_s + timeline.shift_s(track, there_s, 0.04))
        assert abs(found[VIDEO][i] - found[AUDIO][i]) < 0.1


def test_many_jumps():
    times = [t for part in range(30) for t in steps(random.Random(part).uniform(-1e5, 1e5), 50)]
    assert placed(times) == pytest.approx(steps(times[0], 1500), abs=1e-3)


def both(parts, order=lambda part: sorted(part)):
    """The times of both tracks' packets; recordings are given as (start of sound, start of picture, seconds of
    each)."""
    timeline, out = Timeline("x", True), {AUDIO: [], VIDEO: []}
    for audio_s, video_s, audio_length_s, video_length_s in parts:
        packets = [(t - audio_s, AUDIO, t) for t in steps(audio_s, int(audio_length_s / 0.02))]
        packets += [(t - video_s, VIDEO, t) for t in steps(video_s, int(video_length_s / 0.04), 0.04)]
        for _, track, t in order(packets):
            shift_s = timeline.shift_s(track, t, 0.02 if track == AUDIO else 0.04)
            out[track].append((t, round(t + shift_s, 6)))
    return out


@pytest.mark.parametrize("second_s", [0.0, 1.4, 5000.0])
def test_sound_and_picture_of_a_second_recording_stay_together(second_s):
    out = both([(0, 0, 4, 4), (second_s, second_s, 4, 4)])
    for track in out.values():
        times = [at for _, at in track]
        assert times == sorted(times) and times[-1] == pytest.approx(8, abs=0.1)
    assert {round(at - t, 3) for t, at in out[AUDIO][200:]} == {round(at - t, 3) for t, at in out[VIDEO][101:]}


@pytest.mark.parametrize(("audio_length_s", "video_length_s"), [(6, 3), (3, 6), (4, 3.7), (3.7, 4)])
def test_one_track_of_the_first_recording_ended_early(audio_length_s, video_length_s):
    out = both([(0, 0, audio_length_s, video_length_s), (0, 0, 5, 5)])
    shifts = [{round(at - t, 3) for t, at in track[-50:]} for track in out.values()]
    assert shifts[0] == shifts[1]
    assert min(shifts[0]) == pytest.approx(max(audio_length_s, video_length_s), abs=0.5)
    for track in out.values():
        times = [at for _, at in track]
        assert all(b > a - 0.5 for a, b in itertools.pairwise(times))


def test_a_jump_of_one_track_alone_leaves_the_other_as_it_is():
    timeline = Timeline("x", True)
    for i in range(300):
        t = i * 0.02
        bad = t + 3600 if i == 150 else t
        assert bad + timeline.shift_s(AUDIO, bad, 0.02) == pytest.approx(t)
        assert t + timeline.shift_s(VIDEO, t, 0.02) == pytest.approx(t)


def test_a_picture_that_stands_still_for_long_is_no_jump_while_sound_goes_on():
    timeline = Timeline("x", True)
    timeline.shift_s(VIDEO, 0.0, 0.04)
    for t in steps(0, 2000):
        assert timeline.shift_s(AUDIO, t, 0.02) == 0
    assert timeline.shift_s(VIDEO, 40.0, 0.04) == 0


def test_tracks_that_do_not_interleave_keep_their_times():
    timeline = Timeline("x", True)
    assert placed(steps(0, 3000), timeline=timeline) == steps(0, 3000)
    assert placed(steps(0, 1500, 0.04), timeline=timeline, track=VIDEO, length_s=0.04) == steps(0, 1500, 0.04)
    assert timeline.jumps == 0


def test_a_track_that_only_the_second_recording_has_is_at_its_place():
    timeline = Timeline("x", True)
    placed([*steps(0, 200), *steps(0, 10)], timeline=timeline)
    assert placed(steps(0, 5, 0.04), timeline=timeline, track=VIDEO)[0] == pytest.approx(4)


def test_where_the_format_has_no_jumps_a_long_gap_is_one():
    assert placed([0.0, 0.02, 900.0], jumps=False) == [0.0, 0.02, 900.0]
    assert placed([0.0, 0.02, 900.0], jumps=True) == [0.0, 0.02, 0.04]


def test_jumps_are_told_but_not_for_ever(caplog):
    placed([t for part in range(40) for t in steps(part * 100, 10)])
    assert 1 <= len(caplog.records) <= 4 and "jump" in caplog.records[0].message


def test_what_would_be_a_gap():
    timeline = Timeline("x", True)
    timeline.shift_s(AUDIO, 1.0, 0.02)
    assert [timeline.is_gap(AUDIO, t, 0.5) for t in (1.02, 1.4, 1.6, 5.0, 20.0, 0.0)] == [0, 0, 1, 1, 0, 0]
    assert timeline.expected_s(AUDIO) == pytest.approx(1.02) and timeline.expected_s(VIDEO) is None
