"""How good a variant is at its task, beside the source model on the same rows; and whether that is evidence enough.

With labels: the recipe's metric on held-out rows, and a paired interval of what was lost. Without: agreement with the
source's own answers. Source of the interval: R. G. Newcombe, "Improved confidence intervals for the difference between
binomial proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from seatrial.bundle.evidence import Agreement, Quality
from seatrial_export.samples import Predict
from seatrial_export.verify import Unfaithful
from seatrial_training.data import Split
from seatrial_training.evaluation import Score, score

Z95 = 1.959963984540054
ENOUGH_ROWS = 256
"""Without labels: rows that it takes to believe an agreement."""
SCORING_BATCH = 64

Right = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Labelled rows that nothing was fitted to, and how the source model did on them, `batch_size` at a time."""

    split: Split
    source: Score
    batch_size: int


def hold_out(split: Split, predict: Predict, *, max_batch: int) -> HeldOut:
    size = min(SCORING_BATCH, max_batch)
    return HeldOut(split=split, source=score(predict, split, batch_size=size), batch_size=size)


def by_labels(predict: Predict, held_out: HeldOut) -> Quality:
    """Raises `Unfaithful` where it does not answer a row that the source answers."""
    found = score(predict, held_out.split, batch_size=held_out.batch_size)
    lost = int(np.sum((found.predicted < 0) & (held_out.source.predicted >= 0)))
    if lost:
        raise Unfaithful(f"held-out rows: its answers to {lost} of {found.rows} hold NaN or infinity")
    return Quality(
        metric=found.metric,
        basis="labels",
        rows=found.rows,
        value=found.value,
        source_value=held_out.source.value,
        drop_upper=paired_drop(held_out.source.correct, found.correct).high,
    )


def least_cosine(accuracy_drop: float) -> float:
    """Without labels: how alike outputs must be, on average, for a budget of `accuracy_drop`; 0.999 for 0.01."""
    return 1 - accuracy_drop / 10


def by_agreement(agreement: Agreement, *, rows: int, embeds: bool = False) -> Quality:
    """`value` is how often the largest element, or of embeddings the nearest other row, is the source's; the drop is what is
    missing to 1."""
    same = round(agreement.top1 * rows)
    return Quality(
        metric="nearest-neighbour agreement" if embeds else "top-1 agreement",
        basis="agreement",
        rows=rows,
        value=agreement.top1,
        source_value=1.0,
        drop_upper=1 - wilson(same, rows).low,
    )


def paired_drop(before: Right, after: Right, *, among: int = 1) -> Interval:
    """The 95 % interval of how much smaller the part of right answers became, row paired with row.

    Of `among` intervals that are looked at together, all hold the truth with that probability (Bonferroni).
    """
    n = len(before)
    both, lost = int(np.sum(before & after)), int(np.sum(before & ~after))
    gained, neither = int(np.sum(~before & after)), int(np.sum(~before & ~after))
    z = Z95 if among == 1 else NormalDist().inv_cdf(1 - 0.025 / among)
    old, new = wilson(both + lost, n, z=z), wilson(both + gained, n, z=z)
    p, q = (both + lost) / n, (both + gained) / n
    correlation = _correlation(both, lost, gained, neither)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    return Interval(low=p - q - reach(p - old.low, new.high - q), high=p - q + reach(old.high - p, q - new.low))


def _correlation(both: int, lost: int, gained: int, neither: int) -> float:
    """Between the two right-or-wrong columns, with Newcombe's continuity correction."""
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if margins == 0:
        return 0.0
    excess: float = both * neither - lost * gained
    if excess > 0:
        excess = max(0.0, excess - (both + lost + gained + neither) / 2)
    return excess / math.sqrt(margins)


def wilson(successes: int, n: int, *, z: float = Z95) -> Interval:
    """Wilson's score interval of a proportion, of 95 % unless `z` says otherwise."""
    p = successes / n
    middle, spread = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(low=(middle - spread) / (1 + z**2 / n), high=(middle + spread) / (1 + z**2 / n))
