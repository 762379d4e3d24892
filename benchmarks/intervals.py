"""Figures from several rounds: a median, how sure it is, and whether it holds what was promised."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from benchmarks.tables import table

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


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold. It does where the interval does not exclude it and where, if `surely` is given, the whole of the
    interval is on the good side of that."""

    text: str
    found: Interval
    _: KW_ONLY
    at_least: float = -math.inf
    at_most: float = math.inf
    surely: float | None = None

    @property
    def verdict(self) -> str:
        found = self.found
        if not math.isfinite(found.middle):
            return "not measured"
        possible = found.high >= self.at_least and found.low <= self.at_most
        return "holds" if possible and self._sure else "does not hold"

    @property
    def _sure(self) -> bool:
        if self.surely is None:
            return True
        return self.found.low >= self.surely if self.at_least > -math.inf else self.found.high <= self.surely


def promises(made: Sequence[Promise]) -> str:
    return table(["must hold", "found", ""], [[each.text, str(each.found), each.verdict] for each in made])
