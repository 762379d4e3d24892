"""What zeros among the weights brought: nothing, unless the variant is proved to be faster than the same without them."""

from collections.abc import Sequence

from seatrial_export.choose import ALIKE, Variant
from seatrial_export.measure import ratio


def remark(variant: Variant, variants: Sequence[Variant]) -> str:
    """The end of a sentence about `variant`, which was timed in turn with `variants`; empty where it has no such zeros."""
    dense = next((each for each in variants if each.candidate == variant.candidate.dense), None)
    if not variant.candidate.sparse or dense is None:
        return ""
    found = ratio(variant.rounds, dense.rounds)
    measured = f"it takes {found.low:.2f} to {found.high:.2f} of the time of {dense.candidate.name}, round by round"
    faster = found.high < 1 / ALIKE
    return f"; its zeros make it faster: {measured}" if faster else f"; its zeros make nothing faster: {measured}"
