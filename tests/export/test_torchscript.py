"""A program as TorchScript: every size that was dynamic still is."""

import zipfile
from collections.abc import Callable
from contextlib import chdir, closing
from pathlib import Path

import pytest
import torch

from seatrial.bundle import Draft, ModelName, write_bundle
from seatrial.errors import ConversionFailed
from seatrial_export import torchscript
from seatrial_export.candidate import CANDIDATES, TORCHSCRIPT_CPU
from seatrial_export.exam import set_exam
from seatrial_export.samples import Inputs, Outputs
from seatrial_export.verify import verify
from seatrial_models import architecture
from seatrial_models.program import to_program
from seatrial_serving.engines import open_engine
from tests.serving.engine_bundles import packaged

TRANSFORMER = architecture("text-transformer")
CONFIG = TRANSFORMER.small[0]
SIGNATURE = TRANSFORMER.signature(CONFIG)
[TORCHSCRIPT] = [candidate for candidate in CANDIDATES if candidate.target == TORCHSCRIPT_CPU]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that computes with its sizes: heads are cut out of, and put back into, batches of any size and length."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(to_program(TRANSFORMER.build(CONFIG).eval(), TRANSFORMER.example(CONFIG, 3), SIGNATURE), place)
    return place


def answer_of(program: Path) -> Callable[[Inputs], Outputs]:
    module = torch.export.load(program).module()

    def answer(inputs: Inputs) -> Outputs:
        with torch.inference_mode():
            return {"logits": module(token_ids=torch.from_numpy(inputs["token_ids"])).numpy()}

    return answer


def test_torchscript_answers_as_the_program_at_every_size_and_in_company(program: Path, tmp_path: Path) -> None:
    model = packaged(program, tmp_path, engine="torchscript", signature=SIGNATURE)
    draft = Draft(
        model=ModelName(name="transformer", version="1"),
        variant=TORCHSCRIPT.variant_name(()),
        signature=SIGNATURE,
        engine=TORCHSCRIPT.engine,
        graphs={"main": model.name},
        files={model.name: model},
        golden=(),
        source_bounds={},
        rerun_bounds={},
    )
    rows = {name: tensor.numpy() for name, tensor in TRANSFORMER.example(CONFIG, 24).items()}
    exam = set_exam(SIGNATURE, rows, answer_of(program))
    assert {axis.name for axis in SIGNATURE.dynamic_axes} == {case.axis for case in exam.cases if case.axis}
    with closing(open_engine(write_bundle(draft, tmp_path / "bundles"), threads=1)) as engine:
        assert verify(TORCHSCRIPT, engine.predict, exam).agreement.max_absolute < 1e-6


def test_torchscript_says_nothing_of_where_it_was_made(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packaged(program, tmp_path, engine="torchscript", signature=SIGNATURE)) as archive:
        assert "archive/data.pkl" in archive.namelist()
        for name in archive.namelist():
            assert "debug" not in name
            assert b"site-packages" not in archive.read(name)


def test_what_torchscript_has_no_words_for_is_refused(tmp_path: Path) -> None:
    """A trace would have taken one of the two ways, once for all."""

    class Either(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))
            return answer

    either = torch.export.export(Either().eval(), (torch.ones(2, 4),))
    with chdir(tmp_path), pytest.raises(ConversionFailed, match="the program has 'cond'"):
        torchscript.write(either)
