"""Small fusion models and inputs for them."""

from __future__ import annotations

import numpy as np
import torch

from emostream.train.graphs import portable as export
from emostream.train.model import Fusion, build

SMALL = {"audio": 10, "video": 6, "text": 4}  # features of a row


def small(attention: str = "self", **options) -> Fusion:
    """The default variant, small enough to run in milliseconds, in eval mode; always with the same weights."""
    torch.manual_seed(0)
    return build(attention=attention, dims=SMALL, hidden=12, heads=3, **options).eval()


def inputs(lengths: dict[str, list[int]], padding: int = 0) -> dict[str, torch.Tensor]:
    """Arguments of ``forward`` for a batch of these lengths; rows beyond them are random."""
    arrays = export.fusion_inputs(SMALL, lengths, np.random.default_rng(0), padding)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
