"""stream/sources/decode.py: which frames of a source are taken, so many a second"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.sources.decode import Sampler

_S = 1_000_000_000


@given(
    st.floats(0.5, 60),
    st.lists(st.integers(1, 300_000_000), min_size=1, max_size=60),
    st.integers(0, 10) | st.just(1_700_000_000),
)
def test_the_sampler_takes_one_frame_per_slot(fps, steps, begin_s):
    times = [begin_s * _S + int(t) for t in np.cumsum(steps)]
    sampler = Sampler(fps)
    taken = [t for t in times if sampler.wants(t)]
    assert taken[0] == times[0]
    slot_ns = _S / fps
    for k in (1, 3, 10):  # over any k slots on end, at most k + 1 begin
        for i, first in enumerate(taken):
            assert sum(t < first + k * slot_ns - 2000 for t in taken[i:]) <= k + 1
    # a picture is skipped only if another was taken less than a slot before
    for t in set(times) - set(taken):
        assert any(0 < t - other < slot_ns + 2000 for other in taken)


@given(st.sampled_from([1, 5, 10, 15, 25, 29.97, 30, 60]), st.sampled_from([1, 2, 3, 5, 10, 12.5]))
def test_the_sampler_keeps_the_rate_on_evenly_spaced_frames(source_fps, fps):
    sampler = Sampler(fps)
    n = sum(sampler.wants(round(i * _S / source_fps)) for i in range(round(10 * source_fps)))
    assert abs(n - 10 * min(fps, source_fps)) <= 1


@given(st.floats(1, 30))
def test_the_sampler_takes_all_of_a_slower_source(fps):
    sampler = Sampler(fps)
    gap = math.ceil(_S / fps) + 1_000_000  # time bases of whole milliseconds
    assert all(sampler.wants(i * gap) for i in range(100))


def test_the_sampler_does_not_go_back():
    sampler = Sampler(10)
    assert sampler.wants(_S)
    assert not sampler.wants(_S // 2)
    assert not sampler.wants(_S)
    assert sampler.wants(_S + _S // 10)


def test_a_slot_that_is_taken_is_over():
    sampler = Sampler(10)
    assert not sampler.is_over(_S)
    sampler.wants(_S)
    assert sampler.is_over(_S + _S // 20) and sampler.is_over(_S // 2)
    assert not sampler.is_over(_S + _S // 10)  # asking does not use up the slot
    assert sampler.wants(_S + _S // 10)


@pytest.mark.parametrize("fps", [10, 12.5, 25, 30])
def test_times_rounded_to_milliseconds_lose_no_frame(fps):
    sampler = Sampler(fps)
    assert all(sampler.wants(round(i * 1000 / fps) * 1_000_000) for i in range(200))
