"""Figures from several rounds: a median, how sure it is, and whether it holds what was promised."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from benchmarks.tables import table
from seatrial.intervals import Interval, ratio

__all__ = ["Interval", "Promise", "promises", "ratio"]


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
