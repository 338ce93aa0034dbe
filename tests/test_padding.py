"""Padding keeps the newest rows and adds only zeros after the end."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from emostream.stream.features.padding import pad


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 9))
def test_each_sequence_keeps_its_newest_rows(lengths, max_rows):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(n, 3)) for n in lengths]
    padded, kept = pad(sequences, max_rows)
    assert padded.dtype == np.float32 and kept.dtype == np.int64
    assert padded.shape == (len(lengths), max(1, *(min(n, max_rows) for n in lengths), 1), 3)
    for row, n, x in zip(padded, kept, sequences, strict=True):
        assert n == min(len(x), max_rows)
        assert np.array_equal(row[:n], x[len(x) - n :].astype(np.float32)) and not row[n:].any()
