"""engines/trt/buffers.py"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.engines.trt import buffers
from emostream.errors import BackendError

PROFILE = {"x": ((1, 1, 3), (2, 10, 3), (8, 40, 3)), "x_len": ((1,), (2,), (8,))}
DTYPES = {"x": np.dtype("float32"), "x_len": np.dtype("int64")}


@given(st.integers(1, 40), st.integers(0, 2000), st.integers(1, 16), st.floats(1, 3))
def test_ladder_climbs_from_low_to_high(low: int, more: int, step: int, growth: float):
    rungs = buffers.ladder(low, low + more, step, growth)
    assert rungs[0] == low and rungs[-1] == low + more
    assert all(a < b <= max(a * growth, a + 1) + step for a, b in itertools.pairwise(rungs))
    assert all(rung % step == 0 for rung in rungs[1:-1])


def test_a_ladder_has_few_rungs():
    time, batch = buffers.ladders({"audio": ((1, 1, 120), (1, 300, 120), (8, 1500, 120))})["audio"][1::-1]
    assert batch == (1, 2, 4, 8)
    assert len(time) < 24


@given(st.integers(1, 8), st.integers(1, 40))
def test_padded_shape_is_the_smallest_rung_that_fits(rows: int, steps: int):
    rungs = buffers.ladders(PROFILE)["x"]
    shape = buffers.padded((rows, steps, 3), rungs)
    assert shape[0] >= rows and shape[1] >= steps and shape[2] == 3
    assert buffers.padded(shape, rungs) == shape
    assert not [rung for rung in rungs[1] if steps <= rung < shape[1]]
    assert shape[1] <= max(1.25 * steps, steps + 1) + 8


@given(st.integers(0, 100), st.integers(1, 20))
def test_split_covers_in_order(rows: int, largest: int):
    parts = buffers.split(rows, largest)
    assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
    assert all(0 < part.stop - part.start <= largest for part in parts)
    assert len(parts) == math.ceil(rows / largest)


@given(st.tuples(st.integers(1, 4), st.integers(1, 5)), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_place_pads_time_with_zeros_and_batch_with_copies(size: tuple[int, int], more: tuple[int, int]):
    values = np.arange(1, 1 + math.prod(size), dtype=np.float32).reshape(size)
    shape = (size[0] + more[0], size[1] + more[1])
    buffer = np.full(100, np.nan, np.float32)  # what an earlier run left
    view = buffers.place(buffer, values, shape)
    assert view.shape == shape and np.shares_memory(view, buffer)
    np.testing.assert_array_equal(view[: size[0], : size[1]], values)
    assert not view[:, size[1] :].any()
    np.testing.assert_array_equal(view[size[0] :], np.broadcast_to(view[size[0] - 1], (more[0], shape[1])))
    assert np.isnan(buffer[math.prod(shape) :]).all()


def inputs(rows: int = 2, steps: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, steps, 3), np.float32), "x_len": np.zeros(rows, np.int64)}


@given(st.integers(1, 50), st.integers(1, 40))
def test_check_returns_the_number_of_rows(rows: int, steps: int):
    assert buffers.check(inputs(rows, steps), PROFILE, DTYPES) == rows


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": np.zeros((2, 5, 3))}, "x is float64; the engine takes float32"),
        ({"x_len": np.zeros(2, np.int32)}, "x_len is int32; the engine takes int64"),
        ({"x": np.zeros((2, 41, 3), np.float32)}, r"x has shape \(2, 41, 3\); .* \(8, 40, 3\)"),
        ({"x": np.zeros((2, 0, 3), np.float32)}, r"x has shape \(2, 0, 3\)"),
        ({"x": np.zeros((2, 5, 4), np.float32)}, r"x has shape \(2, 5, 4\)"),
        ({"x": np.zeros((2, 5), np.float32)}, r"x has shape \(2, 5\)"),
        ({"x": np.zeros((0, 5, 3), np.float32)}, r"x has shape \(0, 5, 3\)"),
        ({"x_len": np.zeros(3, np.int64)}, "differ in the rows"),
        ({"y": np.zeros(2, np.int64)}, "the graph takes x, x_len; it was given x, x_len, y"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str):
    with pytest.raises(BackendError, match=message):
        buffers.check(inputs() | changed, PROFILE, DTYPES)


def test_inputs_share_the_batch():
    with pytest.raises(BackendError, match="axis 0"):
        buffers.ladders(PROFILE | {"y": ((1,), (1,), (4,))})
