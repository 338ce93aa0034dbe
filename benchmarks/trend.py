"""Whether a quantity stays flat over hours: a robust slope, its confidence interval, and the bound for it.

The slope is Theil's and Sen's (Sen 1968, "Estimates of the regression coefficient based on Kendall's tau"): the median
of the slopes between all pairs of points, which a few wild values do not move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOUR_S = 3600.0
FEWEST = 10  # fewest values for which a slope is computed
_POINTS = 1000  # most points of a series, since the slopes of all their pairs are computed
_CONFIDENCE = 0.99  # some twenty slopes are judged: at 0.95, one is often steep by chance


@dataclass(frozen=True)
class Quantity:
    """``bound``: a slope per hour below which it is flat; ``both``: falling is as bad as rising."""

    unit: str
    bound: float
    both: bool = False


QUANTITIES = {
    "memory": Quantity("MiB", 1.0),
    "descriptors": Quantity("", 1.0),
    "threads": Quantity("", 1.0),
    "latency": Quantity("ms", 1.0),
    "drift": Quantity("ms", 1.0, both=True),
}


@dataclass(frozen=True)
class Series:
    """Values of one quantity over time. ``what``: the thing measured, such as a process; times in seconds since go."""

    quantity: str
    what: str
    times_s: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Slope:
    """The change per hour with its 99 % interval; ``first`` and ``last``: medians of the first and last tenth of the
    values."""

    n: int
    first: float
    last: float
    slope: float
    low: float
    high: float
    flat: bool


def slope(series: Series, from_s: float) -> Slope | None:
    """The Theil–Sen slope of a series of one of QUANTITIES from ``from_s`` on; None for fewer than 10 values.

    It is flat if its interval contains 0 or it is below the quantity's bound. A long series is reduced to the medians
    of neighbouring values.
    """
    from scipy.stats import theilslopes

    quantity = QUANTITIES[series.quantity]
    kept = [(t, v) for t, v in zip(series.times_s, series.values, strict=True) if t >= from_s]
    if len(kept) < FEWEST:
        return None
    blocks = np.array_split(np.array(kept), min(_POINTS, len(kept)))
    hours, values = np.array([np.median(block, axis=0) for block in blocks]).T / [[HOUR_S], [1.0]]
    fit = theilslopes(values, hours, _CONFIDENCE)
    size = abs(fit.slope) if quantity.both else fit.slope
    tenth = max(1, len(kept) // 10)
    first, last = (float(np.median([v for _, v in part])) for part in (kept[:tenth], kept[-tenth:]))
    low, high = float(fit.low_slope), float(fit.high_slope)
    flat = bool(low <= 0 <= high or size < quantity.bound)
    return Slope(len(kept), first, last, float(fit.slope), low, high, flat)
