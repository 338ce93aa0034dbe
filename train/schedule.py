"""The learning rate during training."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimiser: Optimizer, peak: float | Sequence[float], steps: int, warm_up: float) -> OneCycleLR:
    """Rise to ``peak`` (one for all parameter groups, or one each) during the share ``warm_up`` of the steps, then fall
    to nothing (Smith and Topin, "Super-convergence", 2019). At least two steps rise: torch divides by their number less
    one.
    """
    rates = peak if isinstance(peak, float) else list(peak)
    return OneCycleLR(optimiser, rates, total_steps=steps + 1, pct_start=min(1.0, max(warm_up, 2 / (steps + 1))))
