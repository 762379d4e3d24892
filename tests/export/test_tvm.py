"""The target `tvm-cpu`: a real compiler that is right about one program and wrong about another, and says so of neither."""

from pathlib import Path

import numpy as np
import pytest
import torch

from seatrial.registry import ModelVersion
from seatrial.settings import Settings
from seatrial.tensors import DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export.build import Built, Workshop, building
from seatrial_export.candidate import CANDIDATES, TVM_CPU, Lost, Verdict
from seatrial_export.child import child_limits
from seatrial_export.source import Source
from seatrial_export.trial import Verified, ask_source, examine
from seatrial_models.program import to_program
from seatrial_training.retrainable import NotRetrainable

pytestmark = pytest.mark.slow

[TVM] = [each for each in CANDIDATES if each.target == TVM_CPU]
STEPS, WIDTH, CLASSES = 5, 8, 3
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, STEPS, WIDTH)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, CLASSES)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=16),),
)


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.nn.LSTM(WIDTH, 16, batch_first=True)
        self.head = torch.nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.memory(x)
        answer: torch.Tensor = self.head(states[:, -1])
        return answer


class Averaging(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(WIDTH, 16)
        self.head = torch.nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(torch.relu(self.wide(x)).mean(1))
        return answer


def examined(module: torch.nn.Module, place: Path) -> Verified | Lost:
    """Built in a child by TVM, and asked by our exam."""
    pytest.importorskip("tvm")
    program = place / "program.pt2"
    torch.export.save(to_program(module.eval(), {"x": torch.randn(3, STEPS, WIDTH)}, SIGNATURE), program)
    rows = {"x": np.random.default_rng(7).normal(size=(32, STEPS, WIDTH)).astype(np.float32)}
    source = Source(
        version=ModelVersion(name="steps", version="1", run_id="", source=""),
        files=place,
        program=program,
        signature=SIGNATURE,
        rows=rows,
        calibration=rows,
        held_out=None,
        dataset=None,
        retrainable=NotRetrainable(reason="it was written by hand"),
        text=None,
        notes=(),
    )
    settings = Settings(home=place / "home")
    workshop = Workshop(
        source=source, folder=place, settings=settings, limits=child_limits(settings), tell=lambda *_: None
    )
    with building([TVM], workshop) as underway:
        questions = ask_source(source)
        built = underway[TVM].result()
    assert isinstance(built, Built), built
    return examine(built, source, questions, store=place / "bundles", threads=1)


def test_what_tvm_gets_right_is_verified_and_bound_to_this_kind_of_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = examined(Averaging(), tmp_path)
    assert isinstance(found, Verified), found
    assert found.proof.agreement.max_absolute < 1e-5
    hardware = found.bundle.manifest.hardware
    assert hardware is not None
    assert hardware.library.startswith("tvm 0.")


@pytest.mark.filterwarnings("ignore:The tensor attributes self.memory")
def test_an_lstm_that_tvm_compiles_without_a_word_and_answers_wrongly_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = examined(Recurrent(), tmp_path)
    assert isinstance(found, Lost)
    assert found.verdict is Verdict.UNFAITHFUL, found
    assert "'y'" in found.reason
