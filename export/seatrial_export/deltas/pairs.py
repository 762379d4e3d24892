"""Right and wrong answers of two models to the same rows, and how sure it is that one is right less often."""

import math
from fractions import Fraction
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from seatrial_export.quality import paired_drop

Right: TypeAlias = NDArray[np.bool_]


class Pairs(msgspec.Struct, frozen=True, kw_only=True):
    """`lost` rows only the source has right, `gained` rows only the variant; `source` and `variant` are parts of `rows`.

    `drop_low` to `drop_high` is the 95 % interval of `source - variant`, wide enough for all that are looked at together.
    """

    rows: int
    source: float
    variant: float
    lost: int
    gained: int
    drop_low: float
    drop_high: float

    @property
    def worse(self) -> bool:
        """Whether chance is no explanation for what was lost."""
        return self.drop_low > 0

    @property
    def better(self) -> bool:
        return self.drop_high < 0


def pair(source: Right, variant: Right, *, among: int = 1) -> Pairs:
    """Of at least one row; one of `among` that are looked at together."""
    drop = paired_drop(source, variant, among=among)
    return Pairs(
        rows=len(source),
        source=float(source.mean()),
        variant=float(variant.mean()),
        lost=int(np.sum(source & ~variant)),
        gained=int(np.sum(~source & variant)),
        drop_low=drop.low,
        drop_high=drop.high,
    )


def mcnemar(lost: int, gained: int) -> float:
    """How probable it is that rows changed sides at least so unevenly, if both sides were alike: McNemar's exact test."""
    changed, fewer = lost + gained, min(lost, gained)
    ways = 2 * sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(ways, 2**changed)))
