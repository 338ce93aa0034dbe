"""Sequences of unequal length as one array, as the fusion network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad(sequences: Sequence[np.ndarray], max_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack the newest ``max_rows`` rows of each (T, D) sequence; T = 0 if a modality is absent.

    Returns (B, T, D) float32, T ≥ 1, with zeros after each sequence's end, and the lengths (B,) int64.
    """
    newest = [x[-max_rows:] for x in sequences]
    lengths = np.array([len(x) for x in newest], np.int64)
    padded = np.zeros((len(newest), max(1, int(lengths.max())), newest[0].shape[1]), np.float32)
    for row, x in zip(padded, newest, strict=True):
        row[: len(x)] = x
    return padded, lengths
