"""A program as TorchScript: every size that was dynamic still is."""

import zipfile
from contextlib import chdir, closing
from pathlib import Path

import pytest
import torch

from seatrial.errors import ConversionFailed
from seatrial_export import torchscript
from seatrial_export.candidate import CANDIDATES, TORCHSCRIPT_CPU
from seatrial_serving.engines import open_engine
from tests.export.zoo import SIGNATURE, greatest_distance, program_of
from tests.serving.engine_bundles import bare_bundle, packaged

[TORCHSCRIPT] = [candidate for candidate in CANDIDATES if candidate.target == TORCHSCRIPT_CPU]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(tmp_path_factory.mktemp("program") / "model.pt2")


def test_torchscript_answers_as_the_program_at_every_size_and_in_company(program: Path, tmp_path: Path) -> None:
    model = packaged(program, tmp_path, engine="torchscript", signature=SIGNATURE)
    bundle = bare_bundle(model, tmp_path / "bundles", engine="torchscript", signature=SIGNATURE)
    with closing(open_engine(bundle, threads=1)) as engine:
        assert greatest_distance(TORCHSCRIPT, engine, program) < 1e-6


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
