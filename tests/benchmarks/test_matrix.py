"""The support matrix: what does not convert is said, and what agrees is not taken for what it is not."""

from benchmarks.matrix import MUST, SHOWN, Cell, report


def test_each_target_that_must_hold_is_in_the_matrix() -> None:
    assert [each.name for each in MUST] == [
        "onnx-cpu-fp32", "openvino-cpu-fp32", "pt2-cpu-fp32", "torchscript-cpu-fp32", "executorch-cpu-fp32",
    ]  # fmt: skip
    assert set(MUST) < set(SHOWN)


def test_what_does_not_agree_is_a_no_with_its_reason() -> None:
    row = {each: Cell(distance=3.2e-8, alone=0.5, together=1.25) for each in SHOWN}
    row[MUST[-1]] = Cell(why="not built: a reason")
    said = report({"mlp": row})
    assert "| 4 of 5 agree, of 1 it is said | holds |" in said
    assert "| mlp | 3e-08, 0.50, 1.25 |" in said
    assert said.endswith("- mlp, executorch-cpu: not built: a reason")
    row[MUST[-1]] = Cell()
    assert "| 4 of 5 agree, of 0 it is said | does not hold |" in report({"mlp": row})
