"""A program as ExecuTorch runs it: memory for the largest inputs, and every size below."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim, ExportedProgram

from seatrial.bundle import EngineSpec
from seatrial.engines import obstacle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_export.candidate import CANDIDATES, EXECUTORCH_CPU
from seatrial_export.pooling import pool_whole_images
from seatrial_serving.engines import Engine, open_engine
from tests.export.zoo import CONFIG, SIGNATURE, greatest_distance, program_of
from tests.serving.engine_bundles import bare_bundle, packaged

bundle_of = partial(bare_bundle, engine="executorch", signature=SIGNATURE)
[EXECUTORCH] = [candidate for candidate in CANDIDATES if candidate.target == EXECUTORCH_CPU]


def test_without_executorch_it_is_told_what_brings_it() -> None:
    if find_spec("executorch"):
        pytest.skip("it is installed")
    why = "the Python package 'executorch' is not installed; pip install 'seatrial[executorch]' brings it"
    assert obstacle(EngineSpec(name="executorch")) == why


# The program before ExecuTorch has it


def images(network: torch.nn.Module, *, rows: int) -> ExportedProgram:
    shapes = ({0: Dim.DYNAMIC},)
    return torch.export.export(network.eval(), (torch.randn(rows, 2, 8, 12),), dynamic_shapes=shapes)


@pytest.mark.parametrize(("into", "mended"), [((1, 1), True), ((4, 3), True), ((3, 1), False)])
def test_pooling_with_windows_that_are_all_alike_is_plain_pooling(into: tuple[int, int], mended: bool) -> None:
    network = torch.nn.AdaptiveMaxPool2d(into)
    program = images(network, rows=3)
    pool_whole_images(program)
    operators = {str(node.target) for node in program.graph.nodes}
    assert ("aten.adaptive_max_pool2d.default" not in operators) is mended
    pixels = torch.randn(5, 2, 8, 12)
    assert torch.equal(program.module()(pixels), network(pixels))


# In its runtime


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(tmp_path_factory.mktemp("program") / "model.pt2")


@pytest.fixture(scope="module")
def model(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("executorch", exc_type=ImportError)
    return packaged(program, tmp_path_factory.mktemp("compiled"), engine="executorch", signature=SIGNATURE)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with closing(open_engine(bundle_of(model, tmp_path_factory.mktemp("bundles")), threads=1)) as opened:
        yield opened


@pytest.mark.slow
def test_executorch_answers_as_the_program_at_every_size_and_in_company(engine: Engine, program: Path) -> None:
    assert greatest_distance(EXECUTORCH, engine, program) < 2e-6


@pytest.mark.slow
def test_more_than_it_has_memory_for_is_refused_and_the_next_batch_is_answered(engine: Engine) -> None:
    one = engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"]
    with pytest.raises(
        EngineFailed, match=r"'token_ids' is \[65, 3\], and the program was compiled for at most \[64, 12\]"
    ):
        engine.predict({"token_ids": np.ones((65, 3), np.int64)})
    with pytest.raises(EngineFailed, match="refused the batch"):
        engine.predict({"token_ids": np.ones((1, 3), np.float32)})
    assert engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"].tolist() == one.tolist()


@pytest.mark.slow
def test_an_engine_that_opens_beside_another_leaves_its_threads_alone(
    engine: Engine, model: Path, tmp_path: Path
) -> None:
    """Anew they are made only when nobody holds them: made anew under a program, they break the heap."""
    from executorch.extension.pybindings import _C as runtime  # noqa: N811 - no constant

    with closing(open_engine(bundle_of(model, tmp_path), threads=3)):
        assert runtime._threadpool_get_thread_count() == 1
    assert engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"].shape == (1, CONFIG.classes)


@pytest.mark.slow
def test_a_file_says_nothing_of_where_it_was_made_and_is_the_same_when_made_again(
    program: Path, model: Path, tmp_path: Path
) -> None:
    content = model.read_bytes()
    assert b"site-packages" not in content
    assert packaged(program, tmp_path, engine="executorch", signature=SIGNATURE).read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 40, 5000])
def test_a_file_that_is_cut_off_is_corrupt(model: Path, kept: int, tmp_path: Path) -> None:
    cut = tmp_path / model.name
    cut.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(BundleCorrupt, match="ExecuTorch cannot load"):
        open_engine(bundle_of(cut, tmp_path / "bundles"), threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([("token_ids", DataType.INT32, (-1, -1))], r"'token_ids' int64\[64, 12\] in .*has 'token_ids' int32"),
        ([("token_ids", DataType.INT64, (-1, 7))], r"'token_ids' int64\[64, 12\] in .*has 'token_ids' int64\[-1, 7\]"),
        ([(name, DataType.INT64, (-1, -1)) for name in ("a", "b")], r"'a' int64\[64, 12\] in .*has 'a' .*, 'b' "),
    ],
)
def test_one_with_other_tensors_than_its_signature_is_corrupt(
    model: Path, inputs: list[tuple[str, DataType, tuple[int, ...]]], said: str, tmp_path: Path
) -> None:
    """It has no names, so what comes first is the first."""
    specs = tuple(TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs)
    bundle = bundle_of(model, tmp_path, signature=Signature(inputs=specs, outputs=SIGNATURE.outputs))
    with pytest.raises(BundleCorrupt, match=f"ExecuTorch found the tensors {said}"):
        open_engine(bundle, threads=1)
