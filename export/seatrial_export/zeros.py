"""What zeros among the weights brought: nothing, unless the variant is proved to be faster than the same without them."""

from collections.abc import Sequence

from seatrial_export.choose import Variant


def remark(variant: Variant, variants: Sequence[Variant]) -> str:
    """The end of a sentence about `variant`, which was timed in turn with `variants`; empty where it has no such zeros."""
    dense = next((each for each in variants if each.candidate == variant.candidate.dense), None)
    if not variant.candidate.sparse or dense is None:
        return ""
    name, times = dense.candidate.name, dense.row_ms / variant.row_ms
    if variant.throughput.high_ms < dense.throughput.low_ms:
        return f"; its zeros make it {times:.2f} times as fast as {name}"
    return f"; its zeros make nothing faster: {times:.2f} times as fast as {name}, which has none"
