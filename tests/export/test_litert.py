"""A program as LiteRT runs it: a file with a few fixed sizes, and batches of any size that are put together from them."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from seatrial.bundle import EngineSpec
from seatrial.engines import obstacle
from seatrial.errors import BundleCorrupt, EngineFailed, WrongInput
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_export import package
from seatrial_export.candidate import CANDIDATES, LITERT_CPU
from seatrial_models import ARCHITECTURES, architecture
from seatrial_serving.engines import Engine, open_engine
from tests.export.zoo import CONFIG, SIGNATURE, TRANSFORMER, greatest_distance, program_of
from tests.serving.engine_bundles import bare_bundle, packaged

bundle_of = partial(bare_bundle, engine="litert", signature=SIGNATURE)
[LITERT] = [candidate for candidate in CANDIDATES if candidate.target == LITERT_CPU]
slow = pytest.mark.slow


def test_without_its_runtime_or_its_converter_it_is_told_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatrial.engines.find_spec", lambda _: None)
    monkeypatch.setattr("seatrial_export.package.find_spec", lambda _: None)
    why = "the Python package 'ai_edge_litert' is not installed; pip install 'seatrial[litert]' brings it"
    assert obstacle(EngineSpec(name="litert")) == why
    why = "the Python package 'litert_torch' is not installed; pip install 'seatrial[litert-torch]' brings it"
    assert package.obstacle("litert") == why
    assert package.obstacle("torchscript") is None


# In its runtime


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(tmp_path_factory.mktemp("program") / "model.pt2")


@pytest.fixture(scope="module")
def model(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("litert_torch", exc_type=ImportError)
    return packaged(program, tmp_path_factory.mktemp("converted"), engine="litert", signature=SIGNATURE)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with closing(open_engine(bundle_of(model, tmp_path_factory.mktemp("bundles")), threads=1)) as opened:
        yield opened


@slow
def test_litert_answers_as_the_program_at_every_size_and_in_company(engine: Engine, program: Path) -> None:
    assert greatest_distance(LITERT, engine, program) < 5e-6


@slow
def test_a_size_that_the_file_has_not_got_is_refused_and_the_next_batch_is_answered(engine: Engine) -> None:
    """The runtime would take it, and answer with what it computed from other sizes."""
    one = engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"]
    with pytest.raises(EngineFailed, match=r"has no program for the shapes \{'token_ids': \(2, 13\)\}"):
        engine.predict({"token_ids": np.ones((2, 13), np.int64)})
    with pytest.raises(EngineFailed, match="have other axes than the signature"):
        engine.predict({"token_ids": np.ones(3, np.int64)})
    with pytest.raises(EngineFailed, match="refused the batch"):
        engine.predict({"token_ids": np.ones((1, 3), np.float32)})
    assert engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"].tolist() == one.tolist()


@slow
def test_an_index_beyond_its_table_is_its_sender_s_fault_and_no_one_else_is_told_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's errors have all earlier ones in them, and grow until the file is opened anew."""
    monkeypatch.setattr("seatrial_serving.engines.litert.MOST_SAID", 500)
    said = []
    for beyond in range(1_000_000, 1_000_009):
        with pytest.raises(WrongInput, match=f"Got {beyond}") as caught:
            engine.predict({"token_ids": np.array([[1, beyond]])})
        said.append(str(caught.value))
    assert len({len(each) for each in said}) == 1
    assert engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"].shape == (1, CONFIG.classes)


@slow
def test_a_file_without_single_rows_says_what_it_cannot_put_together(model: Path, tmp_path: Path) -> None:
    with closing(open_engine(bundle_of(model, tmp_path), threads=1)) as opened:
        for programs in opened._file._programs.values():  # type: ignore[attr-defined] # the engine is LiteRt
            del programs[1]
        assert opened.predict({"token_ids": np.ones((40, 3), np.int64)})["logits"].shape == (40, CONFIG.classes)
        with pytest.raises(EngineFailed, match=r"programs for \[8, 32\] rows, which do not add up to 41"):
            opened.predict({"token_ids": np.ones((41, 3), np.int64)})


@slow
def test_a_file_says_nothing_of_where_it_was_made_and_is_the_same_when_made_again(
    program: Path, model: Path, tmp_path: Path
) -> None:
    content = model.read_bytes()
    assert b"site-packages" not in content
    assert str(program.parent).encode() not in content
    assert packaged(program, tmp_path, engine="litert", signature=SIGNATURE).read_bytes() == content


@slow
@pytest.mark.parametrize("kept", [0, 40, 5000])
def test_a_file_that_is_cut_off_is_corrupt(model: Path, kept: int, tmp_path: Path) -> None:
    cut = tmp_path / model.name
    cut.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(BundleCorrupt, match="LiteRT cannot load"):
        open_engine(bundle_of(cut, tmp_path / "bundles"), threads=1)


@slow
def test_a_file_with_other_tensors_than_its_signature_is_corrupt(model: Path, tmp_path: Path) -> None:
    other = TensorSpec(name="token_ids", datatype=DataType.INT32, shape=(-1, -1))
    signature = Signature(inputs=(other,), outputs=SIGNATURE.outputs, dynamic_axes=SIGNATURE.dynamic_axes)
    with pytest.raises(BundleCorrupt, match="LiteRT found the tensors"):
        open_engine(bundle_of(model, tmp_path, signature=signature), threads=1)


@slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != TRANSFORMER.name])
def test_each_architecture_of_the_zoo_converts_and_agrees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", exc_type=ImportError)
    zoo = architecture(name)
    signature = zoo.signature(zoo.small[0])
    program = program_of(tmp_path / "program.pt2", zoo)
    model = packaged(program, tmp_path, engine="litert", signature=signature)
    with closing(open_engine(bundle_of(model, tmp_path / "bundles", signature=signature), threads=1)) as opened:
        assert greatest_distance(LITERT, opened, program, zoo) < 1e-5
