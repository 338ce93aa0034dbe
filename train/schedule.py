"""The learning rate's way through training."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimiser: Optimizer, peak: float | Sequence[float], steps: int, warm_up: float) -> OneCycleLR:
    """Up to ``peak`` (one for all groups, or one each) in the share ``warm_up`` of the steps, then down to nothing
    (Smith and Topin, "Super-convergence", 2019). At least two steps go up: torch divides by their number less one.
    """
    rates = peak if isinstance(peak, float) else list(peak)
    return OneCycleLR(optimiser, rates, total_steps=steps + 1, pct_start=min(1.0, max(warm_up, 2 / (steps + 1))))
