"""A sparsity that makes nothing faster is reported as such."""

from dataclasses import replace

from seatrial_export.candidate import CANDIDATES, HALF, Candidate, Precision, Pruning, PruningKind
from seatrial_export.choose import Budget, choose
from seatrial_export.report import rows
from tests.export.test_choose import variant

DENSE = CANDIDATES[0]
SPARSE = replace(DENSE, pruning=Pruning(kind=PruningKind.MAGNITUDE, percent=80))


def reason(*, dense_ms: float, sparse_ms: float, sparse: Candidate = SPARSE) -> str:
    judged = choose([variant(DENSE, row_ms=dense_ms, spread=0), variant(sparse, row_ms=sparse_ms, spread=0)], Budget())
    return rows([DENSE, sparse], judged, [])[1].reason


def test_zeros_are_held_against_the_same_without_them() -> None:
    said = reason(dense_ms=1, sparse_ms=1)
    assert said.endswith(
        "; its zeros make nothing faster: it takes 1.00 to 1.00 of the time of onnx-cpu-fp32, round by round"
    )
    assert "; its zeros make nothing faster: it takes 0.98 to 0.98" in reason(dense_ms=1, sparse_ms=0.98), (
        "not worth it"
    )
    assert "; its zeros make nothing faster: it takes 2.0" in reason(dense_ms=1, sparse_ms=2)
    assert "; its zeros make it faster: it takes 0.50 to 0.50 of the time" in reason(dense_ms=2, sparse_ms=1)


def test_nothing_is_said_of_what_has_no_zeros() -> None:
    assert "zeros" not in reason(dense_ms=1, sparse_ms=1, sparse=replace(DENSE, pruning=HALF))
    assert "zeros" not in reason(dense_ms=1, sparse_ms=1, sparse=replace(DENSE, precision=Precision.INT8))
