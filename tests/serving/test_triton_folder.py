"""A Triton model repository on disk: what is in it, which of it is served, what is refused; and its models in an engine."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from numpy.testing import assert_array_equal

from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable, InvalidSource, WrongInput
from seatrial.settings import Serving
from seatrial.tensors import Array
from seatrial_serving.engines import Engine
from seatrial_serving.engines.stateful import Stateful
from seatrial_serving.ensemble import Plan
from seatrial_serving.sources import describe, fetch, parse, plan
from seatrial_serving.triton.engine import _filled, open_model
from seatrial_serving.triton.folder import MOST_CONFIG_BYTES, TritonModel, TritonRepository
from tests.serving.models import SIGNATURE, WEIGHTS, linear, linear_onnx, pair_onnx, purse_onnx
from tests.serving.triton_models import CNN, LINEAR, RESHAPED, cnn_onnx, leaky_onnx, model, row_onnx, shout_onnx

BATCHED = "max_batch_size: 8 " + LINEAR % ""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return linear_onnx(tmp_path / "linear.onnx")


def opened(place: Path, digest: str = "") -> Engine:
    return open_model(place, digest=digest, threads=1, spinning=False)


def versions(repository: Path, name: str) -> list[str]:
    return [each.version for each in TritonRepository(repository).versions(name)]


# What is there


def test_a_directory_is_a_repository_if_there_are_models_in_it(repository: Path, onnx: Path) -> None:
    model(repository, "with_config", BATCHED)
    model(repository, "with_version", None, v1=onnx)
    for other in (".git/1", "docs", "names with spaces/1"):
        (repository / other).mkdir(parents=True)
    (repository / "README.md").write_text("a file")
    source = parse(str(repository))
    assert isinstance(source, TritonRepository)
    assert source.models() == ["with_config", "with_version"]
    with pytest.raises(InvalidSource, match="no Triton model repository"):
        parse(str(repository / "docs"))
    with pytest.raises(InvalidSource, match="this takes bundles"):
        fetch(source, settings=None)  # type: ignore[arg-type] # it comes to no setting


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", ["10"]),
        ("version_policy { latest { num_versions: 2 } }", ["3", "10"]),
        ("version_policy { latest { num_versions: 99 } }", ["1", "2", "3", "10"]),
        ("version_policy { all { } }", ["1", "2", "3", "10"]),
        ("version_policy { specific { versions: [3, 1, 3, 77] } }", ["1", "3"]),
    ],
)
def test_the_policy_chooses_versions_by_number(repository: Path, onnx: Path, policy: str, expected: list[str]) -> None:
    place = model(repository, "m", BATCHED + policy, v1=onnx, v2=onnx, v3=onnx, v10=onnx)
    for name in ("03", "-1", "1.5", "latest", "9" * 30):
        (place / name).mkdir()
    (place / "4").write_text("a file")
    assert versions(repository, "m") == expected


@pytest.mark.parametrize("policy", ["", "version_policy { specific { versions: 7 } }"])
def test_without_a_version_to_serve_there_is_no_model(repository: Path, onnx: Path, policy: str) -> None:
    place = model(repository, "m", policy, v1=onnx)
    if not policy:
        shutil.rmtree(place / "1")
    with pytest.raises(InvalidSource, match="none that its version_policy wants"):
        versions(repository, "m")


def test_what_is_left_out_is_warned_about(repository: Path, onnx: Path, caplog: pytest.LogCaptureFixture) -> None:
    model(repository, "m", BATCHED + "response_cache { enable: true }", v1=onnx)
    assert versions(repository, "m") == ["1"]
    assert "'m' sets what is not done here: response_cache" in caplog.text


# Who a version is


def test_a_version_is_described_by_its_files(repository: Path, onnx: Path) -> None:
    place = model(repository, "m", BATCHED.replace("dims: [3]", 'dims: [3] label_filename: "names"'), v5=onnx)
    (place / "names").write_bytes(b"cat\r\ndog\n\nship\n")
    identity, serving = describe(place / "5", Serving(), alias="")
    assert (identity.name, identity.version, identity.verified) == ("m", "5", False)
    assert identity.labels == ("cat", "dog", "", "ship")
    assert (serving.batching.max_size, serving.batching.together) == (8, False)
    assert identity.digest == describe(place / "5", Serving(), alias="")[0].digest
    for path in ("config.pbtxt", "names", "5/model.onnx", "5/weights"):
        before = TritonModel.at(place / "5").digest()
        (place / path).write_bytes((place / path).read_bytes() + b"\n" if (place / path).exists() else b"")
        assert TritonModel.at(place / "5").digest() != before, path


def test_outputs_with_different_labels_are_refused(repository: Path, onnx: Path) -> None:
    outputs = 'output { name: "a" label_filename: "a" } output { name: "b" label_filename: "b" }'
    place = model(repository, "m", outputs, v1=onnx)
    (place / "a").write_text("cat")
    (place / "b").write_text("dog")
    with pytest.raises(InvalidSource, match="different labels"):
        TritonModel.at(place / "1").identity()


# Hostile


@pytest.mark.parametrize("what", ["config.pbtxt", "1", "1/model.onnx", "1/weights", "names"])
def test_a_link_that_leads_out_is_refused(repository: Path, onnx: Path, tmp_path: Path, what: str) -> None:
    place = model(repository, "m", BATCHED.replace("dims: [3]", 'dims: [3] label_filename: "names"'), v1=onnx)
    (place / "names").write_text("cat")
    outside = tmp_path / "outside"
    if what == "1":
        (place / "1").rename(outside)
    else:
        outside.write_bytes((place / what).read_bytes() if (place / what).exists() else b"secret")
        (place / what).unlink(missing_ok=True)
    (place / what).symlink_to(outside)
    with pytest.raises(InvalidSource, match="leads out of the repository"):
        TritonModel.at(place / "1").identity()


def test_links_inside_are_followed(repository: Path, onnx: Path) -> None:
    """As a mounted ConfigMap has them."""
    place = model(repository, "m", BATCHED, v1=onnx)
    (repository / "..data").mkdir()
    for name in ("1", "config.pbtxt"):
        (place / name).rename(repository / "..data" / name)
        (place / name).symlink_to(Path("..") / "..data" / name)
    assert versions(repository, "m") == ["1"]
    assert opened(place / "1", TritonModel.at(place / "1").digest()).signature.batch is not None


@pytest.mark.parametrize("name", ["../../outside.onnx", "/etc/passwd", "a\\000b", "missing.onnx", "."])
def test_a_file_name_stays_in_the_repository(repository: Path, onnx: Path, tmp_path: Path, name: str) -> None:
    shutil.copyfile(onnx, tmp_path / "outside.onnx")
    place = model(repository, "m", f'default_model_filename: "../{name}"', v1=onnx)
    with pytest.raises(InvalidSource, match=r"leads|missing|cannot be read"):
        TritonModel.at(place / "1").identity()


def test_a_pipe_is_no_file(repository: Path) -> None:
    place = model(repository, "m", BATCHED)
    (place / "1").mkdir()
    os.mkfifo(place / "1" / "model.onnx")
    with pytest.raises(InvalidSource, match="not a plain file"):
        TritonModel.at(place / "1").identity()


def test_a_huge_configuration_is_not_read(repository: Path, onnx: Path) -> None:
    model(repository, "m", "# " + "x" * MOST_CONFIG_BYTES, v1=onnx)
    with pytest.raises(InvalidSource, match="more than"):
        versions(repository, "m")


@pytest.mark.parametrize("location", ["../outside", "{outside}", "link"])
def test_weights_from_outside_are_not_read(repository: Path, location: str) -> None:
    place = model(repository, "m", None)
    (place / "1").mkdir()
    outside = place / "outside"
    outside.write_bytes(WEIGHTS.tobytes())
    (place / "1" / "link").symlink_to(outside)
    leaky_onnx(place / "1" / "model.onnx", location.format(outside=outside))
    with pytest.raises(BundleCorrupt, match="xternal data path"):
        opened(place / "1")


def test_weights_beside_the_model_are(repository: Path) -> None:
    place = model(repository, "m", None)
    (place / "1").mkdir()
    (place / "1" / "weights").write_bytes(WEIGHTS.tobytes())
    leaky_onnx(place / "1" / "model.onnx", "weights")
    assert opened(place / "1").predict({"x": np.eye(4, dtype=np.float32)})["y"].tolist() == WEIGHTS.tolist()


def test_a_truncated_model_is_refused(repository: Path, onnx: Path) -> None:
    place = model(repository, "m", BATCHED, v1=onnx)
    whole = (place / "1" / "model.onnx").read_bytes()
    (place / "1" / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleCorrupt, match="cannot load"):
        opened(place / "1")


def test_a_file_that_changes_while_it_is_loaded_is_noticed(repository: Path, onnx: Path) -> None:
    place = model(repository, "m", BATCHED, v1=onnx)
    digest = TritonModel.at(place / "1").digest()
    opened(place / "1", digest).close()
    (place / "config.pbtxt").write_text(BATCHED.replace("8", "4"))
    with pytest.raises(BundleCorrupt, match="was changed while it was loaded"):
        opened(place / "1", digest)


# In an engine


def test_what_is_declared_is_what_callers_see(repository: Path, onnx: Path) -> None:
    engine = opened(model(repository, "m", BATCHED, v1=onnx) / "1")
    assert engine.signature.batch is not None
    assert engine.signature.batch.max == 8
    assert engine.signature.inputs[0].shape == (-1, 4)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert engine.predict({"x": x})["y"].tolist() == linear(x).tolist()


def test_what_is_not_declared_is_taken_from_the_graph(repository: Path, tmp_path: Path, onnx: Path) -> None:
    plain = opened(model(repository, "plain", None, v1=onnx) / "1").signature
    assert plain.batch is not None
    assert [spec.shape for spec in (*plain.inputs, *plain.outputs)] == [(-1, 4), (-1, 3)]
    sums = opened(model(repository, "sums", None, v1=row_onnx(tmp_path / "row.onnx")) / "1")
    assert sums.signature.outputs[0].shape == (-1, 1), "one number a row is a row of one, as Triton states it"
    assert sums.predict({"row": np.ones((3, 5, 2), np.float32)})["sum"].tolist() == [[5], [5], [5]]


def test_without_max_batch_size_a_complete_configuration_has_no_batch(repository: Path, onnx: Path) -> None:
    config = (LINEAR % "").replace("[4]", "[2, 4]").replace("[3]", "[-1, 3]")
    signature = opened(model(repository, "m", config, v1=onnx) / "1").signature
    assert signature.batch is None
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(2, 4), (-1, 3)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BATCHED.replace('"x"', '"z"'), r"declares 'z', the graph has \['x'\]"),
        (BATCHED.replace('"y"', '"z"'), r"declares 'z', the graph has \['y'\]"),
        (BATCHED.replace("TYPE_FP32 dims: [4]", "TYPE_INT64 dims: [4]"), "'x' is INT64, in the graph it is FP32"),
        (BATCHED.replace("data_type: TYPE_FP32 dims: [4]", "dims: [4]"), "'x' is nothing"),
        (BATCHED.replace("[4]", "[5]"), r"'x' has dims \[5\]"),
        (BATCHED.replace("[4]", "[-1]"), r"'x' has dims \[-1\]"),
        (BATCHED.replace("[4]", "[4, 4]"), r"'x' has dims \[4, 4\]"),
        (BATCHED.replace("[4]", "[0]"), "each is -1 or at least 1"),
        (BATCHED.replace("[4]", "[]"), "each is -1 or at least 1"),
        (BATCHED.replace("dims: [4]", "dims: [4] reshape { shape: [2, 3] }"), "cannot be reshaped"),
        (BATCHED.replace("dims: [4]", "dims: [2, -1] reshape { shape: [-1, 2] }"), "cannot be reshaped"),
        (LINEAR % "", r"'x' has dims \[4\]"),
    ],
)
def test_a_configuration_that_does_not_fit_the_graph_is_refused(
    repository: Path, onnx: Path, config: str, words: str
) -> None:
    with pytest.raises(InvalidSource, match=words):
        opened(model(repository, "m", config, v1=onnx) / "1")


def test_every_input_of_the_graph_is_declared(repository: Path, tmp_path: Path) -> None:
    config = """max_batch_size: 4 input { name: "a" data_type: TYPE_FP32 dims: 2 }
        output { name: "twice" data_type: TYPE_INT64 dims: 1 }"""
    place = model(repository, "m", config, v1=pair_onnx(tmp_path / "pair.onnx"))
    with pytest.raises(InvalidSource, match=r"does not declare the inputs \['n'\]"):
        opened(place / "1")
    (place / "config.pbtxt").write_text(config + 'input { name: "n" data_type: TYPE_INT64 dims: 1 }')
    engine = opened(place / "1")
    assert [spec.name for spec in engine.signature.outputs] == ["twice"], "an output may be left out"
    assert engine.predict({"a": np.ones((1, 2), np.float32), "n": np.array([[4]])})["twice"].tolist() == [[8]]


def test_tensors_are_reshaped_on_the_way(repository: Path, tmp_path: Path) -> None:
    place = model(repository, "m", f"max_batch_size: 4 {RESHAPED}", v1=row_onnx(tmp_path / "row.onnx"))
    engine = opened(place / "1")
    assert [spec.shape for spec in (*engine.signature.inputs, *engine.signature.outputs)] == [(-1, -1, 2, 1), (-1, 1)]
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2, 1)
    assert engine.predict({"row": x})["sum"].tolist() == [[0 + 2 + 4], [6 + 8 + 10]]
    assert engine.predict({"row": x[:0]})["sum"].shape == (0, 1)


@given(some.lists(some.integers(1, 5), max_size=4), some.data())
def test_reshaping_moves_no_element(sizes: list[int], data: some.DataObject) -> None:
    """Open axes keep their order, fixed ones may be split, joined or moved between them."""
    is_open = data.draw(some.lists(some.booleans(), min_size=len(sizes), max_size=len(sizes)))
    source = tuple(-1 if here else size for size, here in zip(sizes, is_open, strict=True))
    fixed = int(np.prod([size for size in source if size > 0], dtype=int))
    target = (*[size for size in source if size < 0], fixed)
    array: Array = np.arange(np.prod(sizes, dtype=int)).reshape(sizes)
    there = array.reshape(_filled(source, target, array.shape))
    assert_array_equal(there.reshape(_filled(target, source, there.shape)), array)


def test_a_model_that_takes_no_zeros_is_served_all_the_same(repository: Path, tmp_path: Path) -> None:
    place = model(repository, "m", f"max_batch_size: 4 {CNN}", v1=cnn_onnx(tmp_path / "cnn.onnx"))
    engine = opened(place / "1")
    with pytest.raises(WrongInput):
        engine.predict({"image": np.zeros((1, 1, 1, 1), np.float32)})
    assert engine.predict({"image": np.ones((1, 1, 3, 3), np.float32)})["score"].tolist() == [[36, 117]]


# Warm-up


def warm(repository: Path, tmp_path: Path, inputs: str, *, batch_size: int = 2) -> Engine:
    sample = f'model_warmup {{ name: "first" batch_size: {batch_size} inputs {{ {inputs} }} }}'
    place = model(repository, "m", f"max_batch_size: 4 {CNN} {sample}", v1=cnn_onnx(tmp_path / "cnn.onnx"))
    (place / "warmup").mkdir()
    (place / "warmup" / "image").write_bytes(np.ones((2, 1, 3, 4), np.float32).tobytes())
    return opened(place / "1")


@pytest.mark.parametrize("data", ["zero_data: true", "random_data: true", 'input_data_file: "image"'])
def test_samples_are_run_before_anybody_asks(repository: Path, tmp_path: Path, data: str) -> None:
    warm(repository, tmp_path, f'key: "image" value {{ data_type: TYPE_FP32 dims: [1, 3, 4] {data} }}').close()


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ('key: "image" value { data_type: TYPE_FP32 dims: [1, 2, 2] zero_data: true }', EngineFailed, "refused the batch"),
        ('key: "image" value { data_type: TYPE_FP32 dims: [3, 3, 3] zero_data: true }', InvalidSource, "no request"),
        ('key: "image" value { data_type: TYPE_INT64 dims: [1, 3, 3] zero_data: true }', InvalidSource, "no request"),
        ('key: "picture" value { data_type: TYPE_FP32 dims: [1, 3, 3] zero_data: true }', InvalidSource, "no request"),
        ('key: "image" value { data_type: TYPE_FP32 dims: [1, 9, 4] input_data_file: "image" }', InvalidSource, "takes 288"),
        ('key: "image" value { data_type: TYPE_FP32 dims: [1, 3, 4] input_data_file: "../../../x" }', InvalidSource, "leads out"),
        ('key: "image" value { data_type: TYPE_FP32 dims: [1, 99999999, 99999999] zero_data: true }', InvalidSource, "no size"),
        ('key: "image" value { data_type: TYPE_FP32 dims: [1, -3, 3] zero_data: true }', InvalidSource, "no size"),
    ],
)  # fmt: skip
def test_a_sample_that_is_no_request_is_refused(
    repository: Path, tmp_path: Path, inputs: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        warm(repository, tmp_path, inputs)


def test_text_warms_up_too(repository: Path, tmp_path: Path) -> None:
    place = model(repository, "m", None, v1=shout_onnx(tmp_path / "text.onnx"))
    for version, data in (
        ("zero", "zero_data: true"),
        ("random", "random_data: true"),
        ("file", 'input_data_file: "t"'),
    ):
        sample = f'inputs {{ key: "said" value {{ data_type: TYPE_STRING dims: 2 {data} }} }}'
        (place / "config.pbtxt").write_text(f'model_warmup {{ name: "{version}" {sample} }}')
        (place / "warmup").mkdir(exist_ok=True)
        (place / "warmup" / "t").write_bytes(b"\x02\0\0\0ab\x01\0\0\0c")
        engine = opened(place / "1")
        assert engine.predict({"said": np.array([[b"ab", b"c"]], object)})["loud"].tolist() == [["AB", "C"]]


def test_another_backend_is_named_with_its_model(repository: Path, onnx: Path) -> None:
    model(repository, "m", 'backend: "tensorrt"', v1=onnx)
    with pytest.raises(EngineUnavailable, match="'m' is for Triton's backend 'tensorrt'"):
        versions(repository, "m")


# Ensembles and sequences


STEP = 'step { model_name: "linear" input_map { key: "x" value: "in" } output_map { key: "y" value: "out" } }'
DECLARED = 'input { name: "in" data_type: TYPE_FP32 dims: [4] } output { name: "out" data_type: TYPE_FP32 dims: [3] }'


def planned(repository: Path, config: str) -> Plan:
    place = model(repository, "e", 'platform: "ensemble" ' + config)

    def find(*_: str) -> Any:
        return SimpleNamespace(signature=SIGNATURE, stateful=False, identity="linear/1")

    found = plan(TritonModel(path=place, version="1").place, find)
    assert found is not None
    return found


@pytest.mark.parametrize(("rows", "shape", "batch"), [(8, (-1, 4), 8), (100, (-1, 4), 64)])
def test_an_ensemble_is_what_it_declares(repository: Path, rows: int, shape: tuple[int, ...], batch: int) -> None:
    made = planned(repository, f"max_batch_size: {rows} {DECLARED} ensemble_scheduling {{ {STEP} }}")
    assert [(spec.name, spec.shape) for spec in made.signature.inputs] == [("in", shape)]
    assert made.signature.batch is not None
    assert made.signature.batch.max == batch


def test_an_ensemble_without_batches_takes_each_request_as_it_is(repository: Path) -> None:
    declared = DECLARED.replace("[4]", "[-1, 4]").replace("[3]", "[2, 3]")
    made = planned(repository, f"{declared} ensemble_scheduling {{ {STEP} }}")
    assert [spec.shape for spec in (*made.signature.inputs, *made.signature.outputs)] == [(-1, 4), (2, 3)]
    assert made.signature.batch is None


def test_an_output_that_is_not_mapped_is_nobodys(repository: Path) -> None:
    unmapped = STEP.replace('output_map { key: "y" value: "out" }', "")
    made = planned(repository, f"max_batch_size: 8 {DECLARED} ensemble_scheduling {{ {unmapped} {STEP} }}")
    assert [step.outputs for step in made.ensemble.steps] == [{"y": "0/y"}, {"y": "out"}]


@pytest.mark.parametrize(
    ("declared", "step", "words"),
    [
        (DECLARED.replace('"in"', '"other"'), STEP, r"declares \['other'\]; its steps leave \['in'\]"),
        (DECLARED.replace('"out"', '"other"'), STEP, r"no step of 'e' answers \['other'\]"),
        (DECLARED.replace("[4]", "[5]"), STEP, r"'in' is FP32 \[-1, 5\]; for its models it is FP32 \[-1, 4\]"),
        (DECLARED.replace("[4]", "[4, 1]"), STEP, "'in' is FP32"),
        (DECLARED.replace("FP32", "INT64"), STEP, "'in' is INT64"),
        (DECLARED.replace("[4]", "[4] reshape { shape: [4] }"), STEP, "nothing is reshaped"),
        (DECLARED, STEP.replace('key: "x"', 'key: "z"'), r"maps nothing to the inputs \['x'\]"),
        (DECLARED, STEP.replace('key: "y"', 'key: "z"'), r"has no output \['z'\]"),
        (DECLARED, STEP.replace('"linear"', '"../x"'), "expected NAME"),
    ],
)
def test_an_ensemble_that_is_not_what_it_declares_is_refused(
    repository: Path, declared: str, step: str, words: str
) -> None:
    with pytest.raises(InvalidSource, match=words):
        planned(repository, f"max_batch_size: 8 {declared} ensemble_scheduling {{ {step} }}")


def test_models_come_before_what_is_made_of_them(repository: Path, onnx: Path) -> None:
    def ensemble(name: str, *parts: str) -> None:
        steps = "".join(f'step {{ model_name: "{part}" }}' for part in parts)
        model(repository, name, f'platform: "ensemble" ensemble_scheduling {{ {steps} }}')

    ensemble("a", "c", "z", "nobody")
    ensemble("c", "z")
    ensemble("round", "about")
    ensemble("about", "round")
    model(repository, "z", None, v1=onnx)
    model(repository, "b", "no configuration")
    assert TritonRepository(repository).in_order() == ["z", "c", "a", "round", "about", "b"]


STATE = 'state {{ input_name: "purse" output_name: "purse_after" data_type: TYPE_FP32 dims: [{dims}] {more} }}'
COIN_ALONE = (
    'input { name: "coin" data_type: TYPE_INT64 dims: [1] } output { name: "total" data_type: TYPE_FP32 dims: [1] }'
)


def purse(repository: Path, config: str) -> Stateful:
    place = model(repository, "purse", config, v1=purse_onnx(repository.parent / "purse.onnx"))
    engine = opened(place / "1")
    assert isinstance(engine, Stateful)
    return engine


@pytest.mark.parametrize("declared", [f"max_batch_size: 4 {COIN_ALONE}", "max_batch_size: 4", ""])
def test_a_state_goes_round(repository: Path, declared: str) -> None:
    engine = purse(repository, f"{declared} sequence_batching {{ {STATE.format(dims=1, more='')} }}")
    assert [spec.name for spec in engine.signature.inputs] == ["coin"]
    assert [spec.name for spec in engine.signature.outputs] == ["total"]
    coins = {"coin": np.array([[0], [0], [2]])}
    assert engine.advance(coins, [engine.whole(coins)])["total"].tolist() == [[1], [2], [102]]


def test_a_state_may_be_shown_and_begin_with_what_a_file_has(repository: Path) -> None:
    shown = COIN_ALONE + ' output { name: "purse_after" data_type: TYPE_FP32 dims: [1] }'
    initial = 'initial_state { name: "n" data_type: TYPE_FP32 dims: [1] data_file: "begin" }'
    place = model(repository, "purse", None, v1=purse_onnx(repository.parent / "purse.onnx"))
    (place / "initial_state").mkdir()
    (place / "initial_state" / "begin").write_bytes(np.float32(5).tobytes())
    config = f"max_batch_size: 4 {shown} sequence_batching {{ {STATE.format(dims=1, more=initial)} }}"
    (place / "config.pbtxt").write_text(config)
    before = TritonModel(path=place, version="1").digest()
    engine = opened(place / "1")
    assert isinstance(engine, Stateful)
    coins = {"coin": np.array([[0], [0]])}
    answer = engine.advance(coins, [engine.whole(coins)])
    assert answer["total"].tolist() == answer["purse_after"].tolist() == [[6], [7]]
    (place / "initial_state" / "begin").write_bytes(np.float32(6).tobytes())
    assert TritonModel(path=place, version="1").digest() != before
    (place / "initial_state" / "begin").write_bytes(b"123")
    with pytest.raises(InvalidSource, match="does not hold the state 'purse'"):
        opened(place / "1")


def begins(datatype: str = "TYPE_FP32", file: str = "") -> str:
    data = f'data_file: "{file}"' if file else ""
    return STATE.format(dims=1, more=f'initial_state {{ name: "n" data_type: {datatype} dims: [1] {data} }}')


def told(control: str, name: str = "START") -> str:
    return STATE.format(dims=1, more="") + f' control_input {{ name: "{name}" {control} }}'


@pytest.mark.parametrize(
    ("sequence", "words"),
    [
        (STATE.format(dims=-1, more=""), "each must be said"),
        (STATE.format(dims=2, more=""), "'purse' has dims"),
        (STATE.format(dims=1, more="").replace("FP32", "FP64"), "says that 'purse' is FP64"),
        (STATE.format(dims=1, more="").replace("purse_after", "nothing"), "declares 'nothing'"),
        (begins("TYPE_INT32"), "data_type"),
        (begins(file="begin"), "missing or not a plain file"),
        (begins(file="../config.pbtxt"), "does not hold"),
        (begins(file="../../../purse.onnx"), "leads out of the repository"),
        (told(""), "tells 0 things"),
        (told("control { kind: CONTROL_SEQUENCE_START }"), "in one way"),
        (told("control { fp32_false_true: [0, 1, 2] }"), "in one way"),
        (told("control { fp32_false_true: [0, 1] int32_false_true: [0, 1] }"), "in one way"),
        (told("control { fp32_false_true: [0, 1] }"), "declares 'START'"),
        (told("control { fp32_false_true: [0, 1] }", "coin"), "says that 'coin' is FP32"),
        (told("control { fp32_false_true: [0, 1] }", "purse"), "declares an input twice"),
    ],
)
def test_a_memory_that_does_not_fit_the_graph_is_refused(repository: Path, sequence: str, words: str) -> None:
    with pytest.raises(InvalidSource, match=words):
        purse(repository, f"max_batch_size: 4 {COIN_ALONE} sequence_batching {{ {sequence} }}")
