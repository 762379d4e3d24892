"""A program traced once more: other bounds, another layout of its inputs, the same answers."""

from pathlib import Path

import pytest
import torch
from torch.export import Dim, ExportedProgram

from seatrial.errors import ConversionFailed
from seatrial_export.program import program_signature
from seatrial_export.retrace import retraced, row_after_row
from tests.serving.engine_bundles import packaged


def pictures(network: torch.nn.Module, given: torch.Tensor) -> ExportedProgram:
    return torch.export.export(network.eval(), (given,), dynamic_shapes=({0: Dim.DYNAMIC},))


def test_a_bound_that_torch_wrote_into_a_trace_is_not_the_program_s() -> None:
    """torch takes another convolution from 16 rows on, and its trace of 3 says that there are always fewer."""
    [bounds] = retraced(
        pictures(torch.nn.Conv2d(2, 4, 3), torch.randn(3, 2, 8, 12)), [{0: 64}]
    ).range_constraints.values()
    assert bounds.upper == 64


def test_sizes_that_go_together_are_bounded_together() -> None:
    class Joined(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y[1:]

    rows = Dim("rows", max=500)
    traced = torch.export.export(
        Joined(), (torch.ones(3, 4), torch.ones(4, 4)), dynamic_shapes=({0: rows}, {0: rows + 1})
    )
    bounded = retraced(traced, [{0: 64}, {}])
    assert [bound.upper for bound in bounded.range_constraints.values()] == [64, 65]
    x, y = torch.randn(7, 4), torch.randn(8, 4)
    assert torch.equal(bounded.module()(x, y), x + y[1:])
    with pytest.raises(ConversionFailed, match=r"the size s\d+ has no bound"):
        retraced(traced, [{}, {}])


def test_named_inputs_stay_named() -> None:
    class Scaled(torch.nn.Module):
        def forward(self, *, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
            return x * by[:, None]

    shapes = {"x": {0: Dim.AUTO, 1: Dim.AUTO}, "by": {0: Dim.AUTO}}
    given = {"x": torch.randn(3, 5), "by": torch.randn(3)}
    bounded = retraced(torch.export.export(Scaled(), (), given, dynamic_shapes=shapes), [{0: 64, 1: 12}, {0: 64}])
    assert {int(bound.upper) for bound in bounded.range_constraints.values()} == {64, 12}
    x, by = torch.randn(20, 7), torch.randn(20)
    assert torch.equal(bounded.module()(x=x, by=by), x * by[:, None])


def of_one_channel() -> ExportedProgram:
    """Traced with rows as NumPy makes them of an array without a channel, whose strides torch takes for channels last."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 5, padding=2), torch.nn.Flatten(), torch.nn.Linear(16 * 64, 3))
    return pictures(network, torch.randn(3, 64).as_strided((3, 1, 8, 8), (64, 1, 8, 1)))


def test_rows_that_lie_otherwise_in_memory_are_found_and_told_apart() -> None:
    program = of_one_channel()
    again = retraced(program, [{0: 64}])
    assert (row_after_row(program), row_after_row(again)) == (False, True)
    rows = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(again.module()(rows), program.module()(rows))


@pytest.mark.slow
def test_machine_code_is_for_rows_as_engines_give_them(tmp_path: Path) -> None:
    """With AVX-512, torch 2.13 compiled this program for channels last, and its answers were wrong by whole units."""
    program = of_one_channel()
    signature = program_signature(program, inputs=("pixels",), outputs=("logits",), max_batch=8)
    torch.export.save(program, tmp_path / "program.pt2")
    model = packaged(tmp_path / "program.pt2", tmp_path, engine="aotinductor", signature=signature)
    rows = torch.randn(5, 1, 8, 8)
    answer = torch._inductor.aoti_load_package(str(model))(rows)
    torch.testing.assert_close(answer, program.module()(rows))
