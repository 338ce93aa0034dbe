"""stream/window.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emostream.stream.cores.window import SlidingWindow


class AgainstAList(RuleBasedStateMachine):
    """The window behaves like a list of (time, row)."""

    @initialize()
    def begin(self):
        self.window = SlidingWindow((2,), np.float32)
        self.model: list[tuple[int, float]] = []
        self.now = 0

    @rule(gaps=st.lists(st.integers(1, 50), max_size=200))
    def append(self, gaps):
        times = self.now + np.cumsum(gaps, dtype=np.int64)
        rows = np.stack([times, -times], axis=1).astype(np.float32) if gaps else np.zeros((0, 2), np.float32)
        self.window.append(times, rows)
        self.model += [(int(time), float(time)) for time in times]
        self.now = int(times[-1]) if gaps else self.now

    @rule(back=st.integers(-10, 3000))
    def forget(self, back):
        self.window.forget_before(self.now - back)
        self.model = [entry for entry in self.model if entry[0] >= self.now - back]

    @precondition(lambda self: self.model)
    @rule(back=st.integers(0, 20), more=st.integers(0, 2))
    def append_out_of_order(self, back, more):
        times = self.now - back + np.arange(more + 1)
        with pytest.raises(ValueError, match="order"):
            self.window.append(times, np.zeros((more + 1, 2), np.float32))

    @rule(start=st.integers(-10, 3000), length=st.integers(-20, 3000))
    def cut(self, start, length):
        start = self.now - start
        expected = [entry for entry in self.model if start <= entry[0] < start + length]
        rows = self.window.cut(start, start + length)
        assert rows.shape == (len(expected), 2)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows[:, 0], [value for _, value in expected])
        np.testing.assert_array_equal(rows[:, 1], [-value for _, value in expected])
        np.testing.assert_array_equal(self.window.times(start, start + length), [time for time, _ in expected])

    @invariant()
    def same_length(self):
        assert len(self.window) == len(self.model)


TestAgainstAList = pytest.mark.slow(AgainstAList.TestCase)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(lambda times: min(np.diff(times)) <= 0))
def test_an_append_out_of_order_is_refused_as_a_whole(times):
    window = SlidingWindow((1,), np.uint8)
    with pytest.raises(ValueError, match="order"):
        window.append(np.array(times), np.zeros((len(times), 1), np.uint8))
    assert len(window) == 0


def test_images_keep_shape_and_type():
    window = SlidingWindow((4, 3), np.uint8)
    assert window.cut(0, 10).shape == (0, 4, 3)
    image = np.arange(12, dtype=np.uint8).reshape(4, 3)
    window.append(np.array([7]), image[None])
    assert window.cut(0, 10).dtype == np.uint8
    np.testing.assert_array_equal(window.cut(0, 10), image[None])


@pytest.mark.slow
def test_memory_follows_the_held_rows_not_all_rows():
    window = SlidingWindow((1,), np.float32)
    for i in range(20_000):
        window.append(np.array([i]), np.zeros((1, 1), np.float32))
        window.forget_before(i - 99)
    assert len(window) == 100
    assert window._rows.nbytes < 4 * 1000


def test_appended_rows_are_copied():
    window = SlidingWindow((1,), np.float32)
    row = np.ones((1, 1), np.float32)
    window.append(np.array([1]), row)
    row[:] = 5
    assert window.cut(0, 2)[0, 0] == 1
