"""Golden requests: recorded inputs, the two recorded answers, and whether a new answer keeps within their bounds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seatrial.bundle.manifest import MAIN, Bound
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """`source` is what the source model answered, `rerun` what this variant answered where it was built."""

    request: InferRequest
    source: tuple[Tensor, ...]
    rerun: tuple[Tensor, ...]
    graph: str = MAIN


def describe_violation(got: Sequence[Tensor], recorded: Sequence[Tensor], bounds: dict[str, Bound]) -> str | None:
    """One sentence on the first output that leaves its bound, and by how much; None if all keep within.

    An output without a bound must be equal. NaN is outside every bound, unless it was recorded in the same place.
    """
    by_name = {tensor.name: tensor for tensor in got}
    for expected in recorded:
        answer = by_name.get(expected.name)
        if answer is None:
            return f"output '{expected.name}' is missing"
        if answer.datatype is not expected.datatype or answer.array.shape != expected.array.shape:
            return (
                f"output '{expected.name}' is {answer.datatype}{list(answer.array.shape)}, "
                f"recorded was {expected.datatype}{list(expected.array.shape)}"
            )
        bound = bounds.get(expected.name, Bound(absolute=0.0))
        if violation := _outside(answer.array, expected.array, bound):
            return f"output '{expected.name}' {violation}"
    return None


def _outside(got: Array, recorded: Array, bound: Bound) -> str | None:
    if recorded.dtype.kind != "f":
        differing = int(np.count_nonzero(got != recorded))
        if differing and bound.absolute == 0:
            return f"differs from the recorded one in {differing} of {recorded.size} elements"
    wide, wide_recorded = got.astype(np.float64), recorded.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide - wide_recorded)
        allowed = bound.absolute + bound.relative * np.abs(wide_recorded)
        within = (distance <= allowed) | (wide == wide_recorded) | (np.isnan(wide) & np.isnan(wide_recorded))
    if not within.all():
        worst = np.unravel_index(
            int(np.argmax(np.where(within, -np.inf, np.nan_to_num(distance, nan=np.inf)))), got.shape
        )
        place = [int(index) for index in worst]
        return (
            f"is {wide[worst]:.6g} at {place}, recorded was {wide_recorded[worst]:.6g}: "
            f"{distance[worst]:.3g} apart, {allowed[worst]:.3g} allowed"
        )
    if bound.top1 and recorded.ndim and recorded.size:
        flipped = int(np.count_nonzero(wide.argmax(-1) != wide_recorded.argmax(-1)))
        if flipped:
            return f"has another largest element in {flipped} of {recorded.size // recorded.shape[-1]} rows"
    return None
