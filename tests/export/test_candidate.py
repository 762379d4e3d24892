"""What a candidate's name says, and what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.errors import InvalidSettings
from seatrial_export.candidate import CANDIDATES, ON_REQUEST, OPENVINO_CPU, PERCENT, Precision, PruningKind, named

PRUNED = [
    "onnx-cpu-fp32-pruned-{}", "onnx-cpu-int8-pruned-{}-static", "openvino-cpu-fp32-pruned-{}",
    "openvino-cpu-int8-pruned-{}-static", "onnx-cpu-fp32-heads-{}", "onnx-cpu-fp32-sparse-{}", "onnx-cpu-fp32-gated-{}",
]  # fmt: skip


def test_every_candidate_has_a_name_of_its_own() -> None:
    every = (*CANDIDATES, *ON_REQUEST)
    names = [each.name for each in every]
    assert len(set(names)) == len(names)
    assert named(names) == every


@given(st.sampled_from(PRUNED), st.sampled_from(PERCENT))
def test_the_number_in_a_name_is_how_much_goes(pattern: str, percent: int) -> None:
    [found] = named([pattern.format(percent)])
    assert found.name == pattern.format(percent)
    assert found.pruning is not None
    assert found.pruning.percent == percent
    assert found.lossy
    assert not found.dense.pruning


def test_a_pruned_one_is_its_target_s_own_and_made_with_the_others() -> None:
    onnx, openvino = named(["onnx-cpu-int8-pruned-25-static", "openvino-cpu-int8-pruned-25-static"])
    assert (openvino.target, openvino.precision, openvino.static) == (OPENVINO_CPU, Precision.INT8, True)
    assert openvino.steps == ("pruned-25", "static")
    assert onnx.pruning == openvino.pruning
    assert onnx.pruning is not None
    assert onnx.pruning.kind is PruningKind.CHANNELS


@pytest.mark.parametrize("number", ["4", "91", "025", "25.5", "2of4"])
def test_other_numbers_are_refused(number: str) -> None:
    with pytest.raises(InvalidSettings, match=f"there is no candidate 'onnx-cpu-fp32-pruned-{number}'; did you mean"):
        named([f"onnx-cpu-fp32-pruned-{number}"])
