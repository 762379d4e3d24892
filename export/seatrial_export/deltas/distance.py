"""How far a variant's answers lie from the source's, row by row: a distribution, not only its largest."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from seatrial.tensors import Array
from seatrial_export.samples import Outputs

BARS = 24
PERCENTILES = (50, 90, 99, 100)


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """Of one output: the largest absolute difference in a row's answer, over all rows.

    `percentiles` are those of `PERCENTILES`, `histogram` counts the rows in `BARS` bars of equal width from 0 to the last
    of them. `scale` is how large the source's own answers get.
    """

    output: str
    rows: int
    scale: float
    percentiles: tuple[float, ...]
    histogram: tuple[int, ...]


def distances(source: Outputs, variant: Outputs) -> tuple[Distance, ...]:
    """Of every output that holds floats."""
    return tuple(_distance(name, array, variant[name]) for name, array in source.items() if array.dtype.kind == "f")


def apart(source: Array, variant: Array) -> NDArray[np.float64]:
    """For each row the largest absolute difference; where one of them has no numbers, 0 if the other has none there too."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(source.astype(np.float64) - variant.astype(np.float64))
    both = np.isnan(source) & np.isnan(variant) | (source == variant)
    found: NDArray[np.float64] = np.where(both, 0.0, difference).reshape(len(source), -1).max(axis=1, initial=0.0)
    return found


def _distance(output: str, source: Array, variant: Array) -> Distance:
    found = apart(source, variant)
    found = found[np.isfinite(found)]
    percentiles = np.percentile(found, PERCENTILES) if len(found) else np.zeros(len(PERCENTILES))
    histogram, _ = np.histogram(found, BARS, (0.0, float(percentiles[-1]) or 1.0))
    return Distance(
        output=output,
        rows=len(found),
        scale=float(np.abs(source[np.isfinite(source)]).max(initial=0.0)),
        percentiles=tuple(percentiles.tolist()),
        histogram=tuple(histogram.tolist()),
    )
