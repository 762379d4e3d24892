"""A program as TensorFlow runs it: a SavedModel with a few fixed sizes, and nothing in it that export did not write."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seatrial.bundle import Bundle, EngineSpec
from seatrial.engines import obstacle
from seatrial.errors import BundleCorrupt, EngineFailed
from seatrial.machine import resident_bytes
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_export import package
from seatrial_export.candidate import CANDIDATES, TENSORFLOW_CPU
from seatrial_export.fixed_sizes import name_of, sizes_of
from seatrial_models import ARCHITECTURES, architecture
from seatrial_serving.engines import Engine, open_engine
from tests.export.zoo import CONFIG, SIGNATURE, TRANSFORMER, greatest_distance, program_of
from tests.serving.engine_bundles import bare_bundle, belonging, packaged

[TENSORFLOW] = [candidate for candidate in CANDIDATES if candidate.target == TENSORFLOW_CPU]
slow = pytest.mark.slow


def test_without_its_runtime_or_its_converter_it_is_told_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seatrial.engines.find_spec", lambda _: None)
    monkeypatch.setattr("seatrial_export.package.find_spec", lambda _: None)
    why = "the Python package 'tensorflow' is not installed; pip install 'seatrial[tensorflow]' brings it"
    assert obstacle(EngineSpec(name="tensorflow")) == why
    why = "the Python package 'litert_torch' is not installed; pip install 'seatrial[litert-torch]' brings it"
    assert package.obstacle("tensorflow") == why


# In its runtime


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of(tmp_path_factory.mktemp("program") / "model.pt2")


def converted(program: Path, folder: Path, signature: Signature) -> Path:
    pytest.importorskip("tensorflow", exc_type=ImportError)
    pytest.importorskip("litert_torch", exc_type=ImportError)
    return packaged(program, folder, engine="tensorflow", signature=signature)


@pytest.fixture(scope="module")
def model(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(program, tmp_path_factory.mktemp("converted"), SIGNATURE)


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Path:
    """A copy of the SavedModel, to be spoiled."""
    folder = tmp_path / "changed" / model.parent.name
    shutil.copytree(model.parent, folder)
    return folder / model.name


def bundle_of(model: Path, store: Path, signature: Signature = SIGNATURE) -> Bundle:
    return bare_bundle(model, store, engine="tensorflow", signature=signature, beneath=model.parent.parent)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with closing(open_engine(bundle_of(model, tmp_path_factory.mktemp("bundles")), threads=1)) as opened:
        yield opened


@slow
def test_tensorflow_answers_as_the_program_at_every_size_and_in_company(engine: Engine, program: Path) -> None:
    assert greatest_distance(TENSORFLOW, engine, program) < 5e-6


@slow
def test_a_size_that_it_has_not_got_is_refused_and_the_next_batch_is_answered(engine: Engine) -> None:
    one = engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"]
    with pytest.raises(EngineFailed, match=r"has no program for the shapes \{'token_ids': \(2, 13\)\}"):
        engine.predict({"token_ids": np.ones((2, 13), np.int64)})
    with pytest.raises(EngineFailed, match="TensorFlow refused the batch"):
        engine.predict({"token_ids": np.ones((1, 3), np.float32)})
    assert engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"].tolist() == one.tolist()


@slow
def test_an_index_beyond_its_table_has_no_number_for_an_answer(engine: Engine) -> None:
    """XLA checks no index; what the converter makes of a table says so, and the rows beside it keep their answers."""
    alone = engine.predict({"token_ids": np.ones((1, 3), np.int64)})["logits"]
    both = engine.predict({"token_ids": np.array([[1, 10**6, 1], [1, 1, 1]])})["logits"]
    assert np.isnan(both[0]).all()
    assert both[1].tolist() == alone[0].tolist()


@slow
def test_others_find_each_size_by_its_name_and_the_largest_without_one(model: Path) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    [graph] = SavedModel.FromString(model.read_bytes()).meta_graphs
    told = {
        name: [size.size for size in signature.inputs["token_ids"].tensor_shape.dim]
        for name, signature in graph.signature_def.items()
        if signature.method_name == "tensorflow/serving/predict"
    }
    sizes = {name_of(each): list(each.values()) for each in sizes_of(SIGNATURE)}
    assert told == {**sizes, "serving_default": [32, CONFIG.max_tokens]}


@slow
def test_weights_are_there_once_for_all_sizes(model: Path, program: Path) -> None:
    numbers = sum(tensor.numel() for tensor in torch.export.load(program).state_dict.values())
    [data] = (model.parent / "variables").glob("variables.data-*")
    assert 4 * numbers <= data.stat().st_size < 2 * 4 * numbers + 10_000


@slow
def test_a_saved_model_says_nothing_of_where_it_was_made_and_is_the_same_when_made_again(
    program: Path, model: Path, tmp_path: Path
) -> None:
    def contents(model: Path) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in belonging(model, model.parent.parent)[1].items()}

    here = contents(model)
    assert {Path(name).name for name in here} == {
        "saved_model.pb", "variables.index", "variables.data-00000-of-00001",
    }  # fmt: skip
    assert not any(word in content for content in here.values() for word in (b"site-packages", bytes(program.parent)))
    assert contents(converted(program, tmp_path, SIGNATURE)) == here


@slow
def test_engines_that_are_opened_and_closed_leave_nothing_behind(tmp_path: Path) -> None:
    """Uncollected, each left its compiled programs, about 1 MiB."""
    lenet = architecture("lenet5")
    signature = lenet.signature(lenet.small[0])
    model = converted(program_of(tmp_path / "program.pt2", lenet), tmp_path, signature)
    bundle = bundle_of(model, tmp_path / "bundles", signature)
    batch = {name: tensor.numpy() for name, tensor in lenet.example(lenet.small[0], 41).items()}

    def opened_and_closed(times: int) -> int:
        for _ in range(times):
            with closing(open_engine(bundle, threads=1)) as opened:
                opened.predict(batch)
        return resident_bytes(os.getpid())

    before = opened_and_closed(10)  # until what TensorFlow keeps once is there
    assert opened_and_closed(40) - before < 10 * 2**20


# What is not loaded


def rewritten(folder: Path, compute: Callable[[Any], Any]) -> None:
    """Another SavedModel in `folder`, with tensors of the same names."""
    import tensorflow as tf

    call = tf.function(
        lambda token_ids: {"logits": compute(token_ids)},
        input_signature=[tf.TensorSpec((1, CONFIG.max_tokens), tf.int64, "token_ids")],
    )
    shutil.rmtree(folder)
    tf.saved_model.save(tf.Module(), str(folder), signatures={"1x12": call})


def reading(token_ids: Any) -> Any:
    import tensorflow as tf

    return tf.strings.length(tf.io.read_file(tf.strings.as_string(token_ids[0, 0])))


def writing(token_ids: Any) -> Any:
    import tensorflow as tf

    tf.io.write_file("written", tf.strings.as_string(token_ids[0, 0]))
    return token_ids


def calling_python(token_ids: Any) -> Any:
    import tensorflow as tf

    return tf.py_function(lambda given: given, [token_ids], tf.int64)


def saving(token_ids: Any) -> Any:
    """As the function that keeps weights does, which is the only one that may."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(prefix="written", tensor_names=["x"], shape_and_slices=[""], tensors=[token_ids])
    return token_ids


@slow
@pytest.mark.parametrize(
    ("compute", "operator"),
    [(reading, "ReadFile"), (writing, "WriteFile"), (calling_python, "EagerPyFunc"), (saving, "SaveV2")],
)
def test_a_graph_that_reaches_beyond_itself_is_refused(
    compute: Callable[[Any], Any], operator: str, changed: Path, tmp_path: Path
) -> None:
    rewritten(changed.parent, compute)
    with pytest.raises(
        BundleCorrupt, match=f"has the operators .*{operator}.*, which export writes into no SavedModel"
    ):
        open_engine(bundle_of(changed, tmp_path / "bundles"), threads=1)


@slow
def test_calling_it_the_function_that_keeps_weights_does_not_help(changed: Path, tmp_path: Path) -> None:
    rewritten(changed.parent, saving)
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel.FromString(changed.read_bytes())
    [graph] = model.meta_graphs
    graph.saver_def.restore_op_name = graph.signature_def["1x12"].outputs["logits"].name.partition(":")[0]
    [node] = (node for node in graph.graph_def.node if node.name == graph.saver_def.restore_op_name)
    assert "signature_wrapper" in node.attr["f"].func.name
    changed.write_bytes(model.SerializeToString())
    with pytest.raises(BundleCorrupt, match=r"has the operators .*SaveV2"):
        open_engine(bundle_of(changed, tmp_path / "bundles"), threads=1)


@slow
def test_a_file_that_the_manifest_does_not_list_is_refused(model: Path, tmp_path: Path) -> None:
    bundle = bundle_of(model, tmp_path)
    stray = bundle.path / model.parent.name / "fingerprint.pb"
    stray.write_bytes(b"")
    with pytest.raises(BundleCorrupt, match="lies in a SavedModel and is not in the bundle's manifest"):
        open_engine(bundle, threads=1)
    stray.unlink()
    open_engine(bundle, threads=1).close()


@slow
@pytest.mark.parametrize("kept", [0, 40, 5000])
@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_file_that_is_cut_off_is_corrupt(changed: Path, file: str, kept: int, tmp_path: Path) -> None:
    whole = (changed.parent / file).read_bytes()
    (changed.parent / file).write_bytes(whole[: min(kept, len(whole) - 1)])
    with pytest.raises(BundleCorrupt, match="TensorFlow cannot load"):
        open_engine(bundle_of(changed, tmp_path / "bundles"), threads=1)


@slow
def test_one_with_other_tensors_than_its_signature_is_corrupt(model: Path, tmp_path: Path) -> None:
    other = TensorSpec(name="token_ids", datatype=DataType.INT32, shape=(-1, -1))
    signature = Signature(inputs=(other,), outputs=SIGNATURE.outputs, dynamic_axes=SIGNATURE.dynamic_axes)
    with pytest.raises(BundleCorrupt, match="TensorFlow found the tensors"):
        open_engine(bundle_of(model, tmp_path, signature), threads=1)


@slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != TRANSFORMER.name])
def test_each_architecture_of_the_zoo_converts_and_agrees(name: str, tmp_path: Path) -> None:
    zoo = architecture(name)
    signature = zoo.signature(zoo.small[0])
    program = program_of(tmp_path / "program.pt2", zoo)
    model = converted(program, tmp_path, signature)
    with closing(open_engine(bundle_of(model, tmp_path / "bundles", signature), threads=1)) as opened:
        assert greatest_distance(TENSORFLOW, opened, program, zoo) < 1e-5
