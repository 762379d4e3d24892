"""Programs and packages of torch's in a bundle: what must not be in them is refused before torch sees them."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seatrial.bundle import EngineSpec
from seatrial.errors import BundleCorrupt, EngineUnavailable
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.pt2 import check_package, check_program, check_script
from tests.serving.engine_bundles import linear_program, packaged
from tests.serving.models import SIGNATURE, LinearBundle

Records = dict[str, bytes]


@pytest.fixture(scope="module")
def as_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_program(tmp_path_factory.mktemp("saved") / "linear.pt2")


@pytest.fixture(scope="module")
def as_packaged(as_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(as_saved, tmp_path_factory.mktemp("packaged"), engine="torch-export", signature=SIGNATURE)


def test_a_program_as_torch_saves_it_is_refused_and_as_export_packages_it_taken(
    as_saved: Path, as_packaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleCorrupt, match="example inputs, which torch would unpickle"):
        check_program(as_saved)
    check_program(as_packaged)
    bundle = LinearBundle(engine=EngineSpec(name="torch-export"), model=as_saved).write(tmp_path)
    with pytest.raises(BundleCorrupt, match="example inputs"):
        open_engine(bundle, threads=1)


CONFIG = "model/data/weights/model_weights_config.json"


def pickled(records: Records) -> Records:
    config = json.loads(records[CONFIG])
    next(iter(config["config"].values()))["use_pickle"] = True
    return records | {CONFIG: json.dumps(config).encode()}


@pytest.fixture(scope="module")
def as_script(as_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(as_saved, tmp_path_factory.mktemp("scripted"), engine="torchscript", signature=SIGNATURE)


def changed(archive: Path, change: Callable[[Records], Records], place: Path) -> Path:
    with zipfile.ZipFile(archive) as found:
        records = {name: found.read(name) for name in found.namelist()}
    path = place / f"changed{archive.suffix}"
    with zipfile.ZipFile(path, "w") as written:
        for name, content in change(records).items():
            written.writestr(name, content)
    return path


FAULTS: list[tuple[Callable[[Records], Records], str]] = [
    (pickled, "holds pickled tensors"),
    (lambda records: records | {CONFIG: b"[1"}, "holds pickled tensors"),
    (lambda records: records | {CONFIG: b'{"config": {"w": {}}}'}, "holds pickled tensors"),
    (lambda records: records | {"model/data/aotinductor/model/x.so": b"\x7fELF"}, r"x\.so', which has no place"),
    (lambda records: records | {"model/data/constants/custom_obj_0": b""}, "custom_obj_0', which has no place"),
    (lambda records: records | {"model/data/constants/opaque_obj_0": b""}, "opaque_obj_0', which has no place"),
    (lambda records: records | {"model/data/weights/model.pt": b""}, "has no place"),
    (lambda records: records | {"serialized_exported_program.json": b"{}"}, "has no place"),
    (lambda records: records | {"model/data/weights/../../x": b""}, "has no place"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
def test_what_torch_would_unpickle_or_load_is_refused(
    change: Callable[[Records], Records], words: str, as_packaged: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleCorrupt, match=words):
        check_program(changed(as_packaged, change, tmp_path))


@pytest.mark.parametrize("name", ["archive/data/x.so", "archive/extra/hook.py", "archive/code/../../x.py"])
def test_torchscript_holds_its_lines_and_nothing_besides(name: str, as_script: Path, tmp_path: Path) -> None:
    check_script(as_script)
    with pytest.raises(BundleCorrupt, match="has no place"):
        check_script(changed(as_script, lambda records: records | {name: b""}, tmp_path))


def test_a_pickle_that_would_run_python_is_not_read_as_one_by_torchscript(as_script: Path, tmp_path: Path) -> None:
    """torch reads a script's attributes with a reader of its own. This one would make a folder."""
    made = tmp_path / "made"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(made),)

    evil = pickle.dumps(Evil(), protocol=2)
    path = changed(as_script, lambda records: records | {"archive/data.pkl": evil}, tmp_path)
    bundle = LinearBundle(engine=EngineSpec(name="torchscript"), model=path).write(tmp_path / "bundles")
    with pytest.raises(BundleCorrupt, match="cannot load"):
        open_engine(bundle, threads=1)
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x05\x06" + bytes(18) + b"junk"])
def test_what_is_no_archive_is_corrupt(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    for engine in ("torch-export", "aotinductor", "torchscript"):
        bundle = LinearBundle(engine=EngineSpec(name=engine), model=path).write(tmp_path / engine)
        with pytest.raises(BundleCorrupt):
            open_engine(bundle, threads=1)


def test_a_program_is_no_package(as_packaged: Path) -> None:
    with pytest.raises(BundleCorrupt, match="has no place"):
        check_package(as_packaged)


def test_what_a_model_hands_through_is_a_copy_and_bf16_keeps_its_bits() -> None:
    """The input lies in memory that the next batch overwrites."""
    import torch

    from seatrial_serving.engines.torch import TorchEngine

    x_spec, y_spec = (TensorSpec(name=name, datatype=DataType.BF16, shape=(3,)) for name in ("x", "y"))
    signature = Signature(inputs=(x_spec,), outputs=(y_spec,))
    engine = TorchEngine({"main": lambda given: [given[0].view(3)]}, signature=signature, threads=1)
    x = torch.tensor([1.0, -2.5, 3e38]).to(torch.bfloat16).view(torch.uint16).numpy()
    y = engine.predict({"x": x})["y"]
    assert y.dtype == np.uint16
    assert y.tolist() == x.tolist()
    assert not np.shares_memory(x, y)


@pytest.mark.parametrize("engine", ["torch-export", "openvino"])
def test_text_is_refused_by_engines_that_have_none(engine: str, as_packaged: Path, tmp_path: Path) -> None:
    import msgspec

    from seatrial.bundle import Bundle

    bundle = LinearBundle(engine=EngineSpec(name=engine), model=as_packaged).write(tmp_path)
    [x] = bundle.manifest.signature.inputs
    signature = msgspec.structs.replace(
        bundle.manifest.signature, inputs=(msgspec.structs.replace(x, datatype=DataType.BYTES),)
    )
    texts = Bundle(
        path=bundle.path, manifest=msgspec.structs.replace(bundle.manifest, signature=signature), digest=bundle.digest
    )
    with pytest.raises(EngineUnavailable, match=r"'x', and .* takes no BYTES"):
        open_engine(texts, threads=1)


def test_each_engine_says_its_own_number_of_threads(as_packaged: Path, tmp_path: Path) -> None:
    """torch has one number for the process: what one engine said last must not be the other's."""
    import torch

    bundle = LinearBundle(engine=EngineSpec(name="torch-export"), model=as_packaged).write(tmp_path)
    narrow, wide = open_engine(bundle, threads=1), open_engine(bundle, threads=2)
    for engine, threads in ((narrow, 1), (wide, 2), (narrow, 1)):
        engine.predict({"x": np.ones((1, 4), np.float32)})
        assert torch.get_num_threads() == threads
