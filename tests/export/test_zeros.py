"""A sparsity that makes nothing faster is reported as such."""

from dataclasses import replace

from seatrial_export.candidate import CANDIDATES, Candidate, Compression, Precision, named
from seatrial_export.choose import choose
from seatrial_export.report import rows
from tests.export.test_choose import variant

DENSE = CANDIDATES[0]
SPARSE = replace(DENSE, compression=(Compression.SPARSE,))


def reason(*, dense_ms: float, sparse_ms: float, sparse: Candidate = SPARSE) -> str:
    from seatrial_export.choose import Budget

    judged = choose([variant(DENSE, row_ms=dense_ms), variant(sparse, row_ms=sparse_ms)], Budget())
    return rows([DENSE, sparse], judged, [])[1].reason


def test_zeros_are_held_against_the_same_without_them() -> None:
    said = reason(dense_ms=1, sparse_ms=1)
    assert said.endswith("; its zeros make nothing faster: 1.00 times as fast as onnx-cpu-fp32, which has none")
    assert "its zeros make nothing faster: 0.50 times" in reason(dense_ms=1, sparse_ms=2)
    assert reason(dense_ms=2, sparse_ms=1).endswith("; its zeros make it 2.00 times as fast as onnx-cpu-fp32")


def test_nothing_is_said_of_what_has_no_zeros() -> None:
    assert "zeros" not in reason(dense_ms=1, sparse_ms=1, sparse=replace(DENSE, compression=(Compression.PRUNED,)))
    assert "zeros" not in reason(dense_ms=1, sparse_ms=1, sparse=replace(DENSE, precision=Precision.INT8))


def test_one_with_zeros_brings_the_one_without() -> None:
    names = [each.name for each in named(["onnx-cpu-fp32-sparse-2of4", "onnx-cpu-fp32-sparse-80", "onnx-cpu-fp16"])]
    assert names == ["onnx-cpu-fp32", "onnx-cpu-fp32-sparse-2of4", "onnx-cpu-fp32-sparse-80", "onnx-cpu-fp16"]
