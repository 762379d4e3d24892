"""Figures from several rounds: a median, and how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median, and the range that holds 90 % of the medians drawn from the rounds again. NaN without a round."""

    middle: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Interval":
        if not values:
            return Interval(middle=math.nan, low=math.nan, high=math.nan)
        drawn = np.random.default_rng(0).choice(np.array(values), (DRAWS, len(values)))
        low, high = np.percentile(np.median(drawn, axis=1), (5, 95))
        return Interval(middle=float(np.median(values)), low=float(low), high=float(high))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})" if math.isfinite(self.middle) else "-"


def ratio(these: Sequence[float], those: Sequence[float]) -> Interval:
    """Round by round, so that what disturbs a round disturbs both."""
    return Interval.of([this / that for this, that in zip(these, those, strict=True)])
