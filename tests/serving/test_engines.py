"""The contract that every engine keeps, and the replay of golden requests."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from seatrial.bundle import Bundle, Driver, EngineSpec, Evidence, open_bundle
from seatrial.bundle.evidence import Provenance
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable, GoldenMismatch, WrongInput
from seatrial.machine import Machine, resident_bytes
from seatrial.tensors import Array, DataType
from seatrial_export import web
from seatrial_serving.engines import OPENERS, Engine, open_engine
from seatrial_serving.engines.onnxruntime import LARGE_BYTES, OnnxRuntime, _open, _profile, read_signature
from seatrial_serving.engines.proof import replay, run, warm_up, zeros
from tests.serving.engine_bundles import HEAVY, LAYERS, SIZE, heavy_bundle, heavy_onnx, linear_bundle
from tests.serving.models import SIGNATURE, LinearBundle, everything_onnx, gather_onnx, linear, linear_onnx, save


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return LinearBundle().write(tmp_path_factory.mktemp("engines"))


MARKS = {
    "aotinductor": pytest.mark.slow,
    "executorch": pytest.mark.slow,
    "litert": pytest.mark.slow,
    "tensorflow": pytest.mark.slow,
    "tensorrt": pytest.mark.gpu,
    "onnxruntime-web": pytest.mark.slow,
    "tvm": pytest.mark.slow,
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in OPENERS])
def own_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The linear model, in the form that the engine reads."""
    page = web.beside(request.getfixturevalue("with_web")) if request.param == "onnxruntime-web" else None
    return linear_bundle(request.param, tmp_path_factory.mktemp("own"), beside=page)


@pytest.fixture(scope="module")
def engine(own_bundle: Bundle) -> Iterator[Engine]:
    opened = open_engine(own_bundle, threads=1)
    yield opened
    opened.close()


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A new shape may cost an engine a compilation, and the machine is shared."""

rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 64), st.just(4)), elements=st.integers(-100, 100).map(float))


@patient
@given(x=rows)
def test_an_engine_computes_the_model(engine: Engine, x: np.ndarray) -> None:
    assert engine.predict({"x": x})["y"].tolist() == linear(x).tolist()


@patient
@given(x=rows)
def test_each_row_is_answered_as_if_it_were_alone(engine: Engine, x: np.ndarray) -> None:
    together = engine.predict({"x": x})["y"]
    assert [engine.predict({"x": row[None]})["y"][0].tolist() for row in x] == together.tolist()


def test_outputs_are_the_callers_to_keep(engine: Engine) -> None:
    first = engine.predict({"x": np.ones((2, 4), np.float32)})["y"]
    kept = first.copy()
    engine.predict({"x": np.zeros((2, 4), np.float32)})
    assert first.tolist() == kept.tolist()


def test_inputs_that_may_not_be_written_to_are_taken(engine: Engine) -> None:
    x = np.ones((2, 4), np.float32)
    x.flags.writeable = False
    assert engine.predict({"x": x})["y"].tolist() == linear(x).tolist()


def test_what_does_not_fit_is_an_engine_failure_and_the_next_batch_is_answered(
    engine: Engine, own_bundle: Bundle
) -> None:
    if own_bundle.manifest.engine.name == "aotinductor":
        pytest.skip("compiled code takes the shapes on trust: they were checked against the signature")
    with pytest.raises(EngineFailed, match="refused the batch"):
        engine.predict({"x": np.ones((2, 5), np.float32)})
    x = np.ones((2, 4), np.float32)
    assert engine.predict({"x": x})["y"].tolist() == linear(x).tolist()


def test_its_golden_requests_are_answered_as_recorded(engine: Engine, own_bundle: Bundle) -> None:
    assert replay(engine, own_bundle) == 1


def test_two_of_them_work_at_the_same_time(engine: Engine, own_bundle: Bundle) -> None:
    with closing(open_engine(own_bundle, threads=2)) as other, ThreadPoolExecutor(2) as threads:
        x = np.arange(40, dtype=np.float32).reshape(10, 4)
        answers = threads.map(
            lambda asked: [asked.predict({"x": x[:rows]})["y"].tolist() for rows in range(1, 11)], (engine, other)
        )
        assert list(answers) == [[linear(x[:rows]).tolist() for rows in range(1, 11)]] * 2


def test_one_that_is_closed_leaves_the_others_alone(engine: Engine, own_bundle: Bundle) -> None:
    open_engine(own_bundle, threads=1).close()
    assert engine.predict({"x": np.ones((1, 4), np.float32)})["y"].tolist() == linear(np.ones((1, 4))).tolist()


def test_warm_up_runs_every_size(engine: Engine) -> None:
    warm_up(engine, batch_sizes=(1, 64))
    assert zeros(engine.signature, batch=3)["x"].shape == (3, 4)


# Threads and memory


@pytest.fixture(
    scope="module",
    params=[
        "onnxruntime",
        "openvino",
        "torch-export",
        "torchscript",
        pytest.param("aotinductor", marks=pytest.mark.slow),
        pytest.param("executorch", marks=pytest.mark.slow),
        pytest.param("litert", marks=pytest.mark.slow),
    ],
)
def heavy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return heavy_bundle(request.param, tmp_path_factory.mktemp("heavy"))


def ran_ns() -> dict[str, int]:
    """How long each thread of this process has had a core."""
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in Path("/proc/self/task").iterdir()}


def working(engine: Engine, x: dict[str, Array]) -> int:
    """How many threads had a share in some calls."""
    before = ran_ns()
    for _ in range(20):
        engine.predict(x)
    worked = [ran - before.get(thread, 0) for thread, ran in ran_ns().items()]
    return sum(took > sum(worked) / 10 for took in worked)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_with_the_threads_that_it_was_given(heavy: Bundle, threads: int) -> None:
    """One that asks the machine takes all its cores. On a busy machine one thread may do the work of two that steal it from each
    other: it is looked at several times."""
    x = {"x": np.ones((SIZE, SIZE), np.float32)}
    with closing(open_engine(heavy, threads=threads)) as engine:
        engine.predict(x)
        assert max(working(engine, x) for _ in range(5)) == threads


def test_an_engine_that_is_closed_gives_its_memory_back(heavy: Bundle) -> None:
    if heavy.manifest.engine.name == "aotinductor":
        pytest.skip("a compiled package stays loaded until its process ends, whatever torch is told")
    x = {"x": np.ones((8, SIZE), np.float32)}

    def opened_and_closed() -> None:
        with closing(open_engine(heavy, threads=1)) as engine:
            engine.predict(x)

    for _ in range(5):  # until what an engine keeps for the next one is there
        opened_and_closed()
    before = resident_bytes(os.getpid())
    times = 20
    for _ in range(times):
        opened_and_closed()
    weights = LAYERS * SIZE * SIZE * 4
    assert resident_bytes(os.getpid()) - before < times * weights / 2


# Golden requests


def test_a_bundle_that_answers_as_recorded_is_replayed(bundle: Bundle) -> None:
    assert replay(open_engine(bundle, threads=1), bundle) == 1


def test_a_bundle_that_answers_differently_says_which_bound_failed_and_where_it_was_built(tmp_path: Path) -> None:
    bundle = LinearBundle(golden_scale=1.01).write(tmp_path)
    bundle.replace_evidence(
        Evidence(
            bundle=bundle.digest,
            written_at="2026-01-01T00:00:00Z",
            machine=Machine(cpu="other", cores=2, features=("avx512_vnni",), memory_bytes=1),
            provenance=Provenance(source="models:/linear/1"),
        )
    )
    with pytest.raises(GoldenMismatch) as caught:
        replay(open_engine(bundle, threads=1), bundle)
    assert "golden request 0" in str(caught.value)
    assert "apart" in str(caught.value)
    assert "CPU features there: avx512_vnni" in str(caught.value)


# ONNX Runtime


def test_strings_reach_the_graph_as_text_and_come_back(tmp_path: Path) -> None:
    path = everything_onnx(tmp_path / "everything.onnx")
    engine = OnnxRuntime({"main": path}, signature=read_signature(path), options={}, threads=1)
    inputs = {spec.name: np.zeros((1, 2), spec.datatype.numpy) for spec in engine.signature.inputs}
    inputs["in_bytes"] = np.array([["naïve".encode(), b""]], dtype=object)
    outputs = engine.predict(inputs)
    assert outputs["out_bytes"].tolist() == [["naïve", ""]]
    assert {DataType.of(array.dtype) for array in outputs.values()} == set(DataType) - {DataType.BF16}
    inputs["in_bytes"] = np.array([[b"\xff", b""]], dtype=object)
    with pytest.raises(WrongInput, match="must be UTF-8"):
        engine.predict(inputs)


def test_a_value_that_the_graph_cannot_take_is_its_sender_s_fault_and_nothing_else_is(tmp_path: Path) -> None:
    path = gather_onnx(tmp_path / "gather.onnx")
    engine = OnnxRuntime({"main": path}, signature=read_signature(path), options={}, threads=1)
    assert engine.signature.dynamic_axes[1].name == "tokens"
    with pytest.raises(WrongInput, match="idx=9 must be within the inclusive range"):
        engine.predict({"ids": np.array([[9]])})
    with pytest.raises(EngineFailed, match="Invalid rank"):  # which the signature has let through: the model is broken
        engine.predict({"ids": np.array([9])})
    with pytest.raises(EngineFailed, match=r"which is its own: .* idx=9"):
        run(engine, {"ids": np.array([[9]])})


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a" * 100])
def test_a_file_that_is_no_model_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BundleCorrupt, match="cannot load"):
        read_signature(tmp_path / "model.onnx")


def test_a_truncated_model_is_corrupt(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BundleCorrupt):
        read_signature(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": EngineSpec(name="warp")}, "wants the engine warp: there is no engine of that name"),
        ({"driver": Driver.SAMPLER}, "wants the driver"),
    ],
)
def test_what_this_installation_lacks_is_named(bundle: Bundle, change: dict[str, object], words: str) -> None:
    opened = open_bundle(bundle.path)
    other = Bundle(path=opened.path, manifest=msgspec.structs.replace(opened.manifest, **change), digest="")
    with pytest.raises(EngineUnavailable, match=words):
        open_engine(other, threads=1)


def test_a_session_that_fell_back_to_the_cpu_by_itself_is_refused(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "model.onnx")
    wanted: list[tuple[str, dict[str, str]]] = [("DmlExecutionProvider", {})]  # of Windows alone
    with pytest.warns(UserWarning, match="not in available"), pytest.raises(EngineUnavailable, match="took CPUExec"):
        _open(path, options={}, threads=1, providers=wanted)


def test_tensorrt_is_told_the_sizes_that_were_verified() -> None:
    assert _profile(SIGNATURE) == {
        "trt_profile_min_shapes": "x:1x4", "trt_profile_opt_shapes": "x:64x4", "trt_profile_max_shapes": "x:64x4",
    }  # fmt: skip


def test_after_a_large_batch_the_memory_that_it_took_is_given_back(tmp_path: Path) -> None:
    path = heavy_onnx(tmp_path / "heavy.onnx")
    engine = OnnxRuntime({"main": path}, signature=HEAVY, options={}, threads=1)
    rows = LARGE_BYTES // (4 * SIZE)
    engine.predict({"x": np.ones((1, SIZE), np.float32)})
    before = resident_bytes(os.getpid())
    engine.predict({"x": np.ones((rows + 1, SIZE), np.float32)})
    engine.predict({"x": np.ones((1, SIZE), np.float32)})
    assert resident_bytes(os.getpid()) - before < LARGE_BYTES
    engine.close()


def test_open_axes_without_a_name_are_axes_of_their_own(tmp_path: Path) -> None:
    path = save(
        tmp_path / "open.onnx",
        [helper.make_node("Concat", ["a", "b"], ["y"], axis=1)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])],
    )
    axes = {axis.name: axis.at for axis in read_signature(path).dynamic_axes}
    assert axes == {"batch": {"a": 0, "b": 0, "y": 0}, "a.1": {"a": 1}, "b.1": {"b": 1}, "y.1": {"y": 1}}
