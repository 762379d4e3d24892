"""The target `tensorrt`, as far as it goes without a GPU; the last part wants one."""

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from seatrial.bundle import EngineSpec, Hardware
from seatrial.cuda import Device, NoDevice, first_device
from seatrial.engines import installed, obstacle
from seatrial.errors import ConversionFailed
from seatrial.machine import Machine, this_machine
from seatrial.settings import Settings
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export import child, quantize, tensorrt
from seatrial_export.build import Built, Workshop, building
from seatrial_export.candidate import CANDIDATES, ONNX_CPU, TENSORRT, Candidate, Lost, Precision, Verdict, named
from seatrial_export.child import Limits
from seatrial_export.contest import Sizes
from seatrial_export.remote.there import There
from seatrial_export.samples import write_arrays
from seatrial_export.shelf import Shelf
from seatrial_export.source import Source
from seatrial_export.trial import Verified, ask_source, examine
from tests.export.agents import near
from tests.export.models import linear_source, some_rows
from tests.export.tensorrt_recorder import Recorder
from tests.serving.models import SIGNATURE, linear_onnx, save

LIMITS = Limits(time_s=300, memory_bytes=4 * 2**30, threads=1)
H100 = Device(name="NVIDIA H100", capability=(9, 0), memory_bytes=80 * 2**30)
A100 = Device(name="NVIDIA A100", capability=(8, 0), memory_bytes=40 * 2**30)
HARDWARE = Hardware(device=H100.fingerprint, library="tensorrt 11.4.0.106")
FP32, FP16, INT8, FP8 = named(["tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8-static", "tensorrt-fp8-static"])


@pytest.fixture
def _without_gpu() -> None:
    try:
        first_device()
    except NoDevice:
        return
    pytest.skip("there is an NVIDIA GPU here")


@pytest.fixture
def job(tmp_path: Path) -> tensorrt.Job:
    (tmp_path / "timings").touch()
    return tensorrt.Job(
        model=str(linear_onnx(tmp_path / "linear.onnx")),
        precision=Precision.FP16,
        signature=SIGNATURE,
        usual={"batch": 32},
        hardware=HARDWARE,
        memory_bytes=2**30,
        timings=str(tmp_path / "timings"),
    )


@pytest.fixture
def told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Recorder, tensorrt.Job, Device], tensorrt.Planned]:
    """Build in the folder `made`, with what stands in for TensorRT."""

    def told(recorder: Recorder, job: tensorrt.Job, device: Device = H100) -> tensorrt.Planned:
        monkeypatch.setitem(sys.modules, "tensorrt", recorder.module())
        (tmp_path / "made").mkdir(exist_ok=True)
        with chdir(tmp_path / "made"):
            return tensorrt.build(job, device)

    return told


Told = Callable[..., tensorrt.Planned]


# What there is to build


def test_two_are_built_unasked_and_two_on_request() -> None:
    assert [each.name for each in CANDIDATES if each.target == TENSORRT] == ["tensorrt-fp32", "tensorrt-fp16"]
    for each in (FP32, FP16, INT8, FP8):
        assert each.bound
        assert each.engine == EngineSpec(name="tensorrt")
    assert [each.lossy for each in (FP32, FP16, INT8, FP8)] == [False, True, True, True]
    assert [each.quantized for each in (FP32, FP16, INT8, FP8)] == [False, False, True, True]


@pytest.mark.usefixtures("_without_gpu")
def test_without_a_gpu_none_is_built_and_the_report_says_why(tmp_path: Path) -> None:
    workshop = Workshop(
        source=linear_source(tmp_path), folder=tmp_path, settings=Settings(home=tmp_path), limits=LIMITS, tell=print
    )
    with building([FP32, FP16, INT8, FP8], workshop) as underway:
        found = [future.result() for future in underway.values()]
    for each in found:
        assert isinstance(each, Lost)
        assert each.verdict is Verdict.NOT_APPLICABLE
        assert each.reason == "no NVIDIA driver is installed (libcuda.so.1 is not found)"


@pytest.mark.slow
@pytest.mark.usefixtures("_without_gpu")
def test_the_child_says_so_too(job: tensorrt.Job, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="no NVIDIA driver is installed"):
        child.run(tensorrt.__name__, job, folder=tmp_path / "child", answer=tensorrt.Planned, limits=LIMITS)


def test_the_version_of_the_library_is_known_under_each_name_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle(EngineSpec(name="tensorrt")) is None:
        pytest.skip("TensorRT is installed here")
    place = tmp_path / "tensorrt_cu12-10.9.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt-cu12\nVersion: 10.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed("tensorrt") == "10.9.0"


# The sizes of a plan


def test_one_profile_covers_the_sizes_of_the_signature() -> None:
    ids = TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1))
    table = TensorSpec(name="table", datatype=DataType.FP32, shape=(10, 4))
    signature = Signature(
        inputs=(ids, table),
        outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 4)),),
        dynamic_axes=(
            DynamicAxis(name="batch", at={"ids": 0, "y": 0}, max=64),
            DynamicAxis(name="tokens", at={"ids": 1}, min=2, max=128),
        ),
    )
    assert tensorrt.profile(signature, {"batch": 32, "tokens": 100}) == {"ids": ((1, 2), (32, 100), (64, 128))}


@pytest.mark.parametrize(
    ("sizes", "usual"),
    [
        (Sizes(), {"batch": 32, "tokens": 128}),
        (Sizes(batches=(1, 8)), {"batch": 8, "tokens": 128}),
        (Sizes(batches=(48,), lengths=(16, 32)), {"batch": 48, "tokens": 32}),
    ],
)
def test_kernels_are_chosen_for_the_sizes_at_which_cost_counts(sizes: Sizes, usual: dict[str, int]) -> None:
    x = TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, -1))
    axes = (DynamicAxis(name="batch", at={"x": 0}, max=64), DynamicAxis(name="tokens", at={"x": 1}, max=128))
    assert sizes.usual(Signature(inputs=(x,), outputs=(), dynamic_axes=axes)) == usual
    few = DynamicAxis(name="batch", at={"x": 0}, max=7)
    assert Sizes().usual(Signature(inputs=(x,), outputs=(), dynamic_axes=(few,))) == {"batch": 7}


# What TensorRT is told


def test_the_network_keeps_the_types_of_the_file_and_fp32_is_no_tf32(job: tensorrt.Job, told: Told) -> None:
    recorder = Recorder()
    told(recorder, job)
    assert recorder.network_flags == 1 << 1
    assert recorder.cleared == ["tf32"]
    assert recorder.shapes == {"x": ((1, 4), (32, 4), (64, 4))}


@pytest.mark.parametrize(("allowed", "limit"), [(2**30, 2**30), (2**40, H100.memory_bytes)])
def test_the_builder_gets_the_memory_of_a_child_as_far_as_the_gpu_has_it(
    job: tensorrt.Job, told: Told, allowed: int, limit: int
) -> None:
    recorder = Recorder()
    told(recorder, msgspec.structs.replace(job, memory_bytes=allowed))
    assert recorder.pools == {"workspace": limit}


def test_it_leaves_a_plan_and_what_each_layer_computes_in(
    job: tensorrt.Job, told: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [
        {"Name": "conv", "Inputs": [{"Name": "x", "Format/Datatype": "Int8 NC/32HW32"}], "Outputs": []},
        {"Name": "head", "Inputs": [{"Name": "h", "Format": "Row major linear", "DataType": "Half"}], "Outputs": []},
    ]
    recorder = Recorder(layers=layers)
    assert told(recorder, job) == tensorrt.Planned(layers={"INT8": 1, "FP16": 1})
    assert recorder.verbosity == "detailed"
    assert (tmp_path / "made" / tensorrt.PLAN).read_bytes() == b"a plan"
    assert json.loads((tmp_path / "made" / tensorrt.LAYERS).read_text()) == layers
    assert capsys.readouterr().out == "INT8: conv\nFP16: head\n", "which a child has in its log"


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ("FP8 E4M3", "FP8"), ("Thirty-two wide channel vectorized row major Int8 format", "INT8"), ("BFloat16", "BF16"),
        ("Channel major FP16 format where channel % 8 == 0", "FP16"), ("Half", "FP16"), ("Row major linear FP32", "FP32"),
        ("Float", "FP32"), ("Int64", "integers"), ("Row major linear INT32 format", "integers"), ("Bool", "integers"),
        ("", "unknown"),
    ],
)  # fmt: skip
def test_a_layer_computes_in_what_it_reads(said: str, counted: str) -> None:
    assert tensorrt.types([{"Inputs": [{"Format/Datatype": said}], "Outputs": []}]) == {counted: 1}


def test_a_layer_that_reads_nothing_counts_by_what_it_writes_and_a_bare_name_by_nothing() -> None:
    constant = {"Inputs": [], "Outputs": [{"DataType": "Half"}]}
    assert tensorrt.types([constant, "only a name"]) == {"FP16": 1, "unknown": 1}


def test_what_kernels_took_is_there_for_the_next_build(job: tensorrt.Job, told: Told) -> None:
    recorder = Recorder(known_timings=b"+timed")
    told(recorder, job)
    told(recorder, job)
    assert recorder.caches == [b"", b"+timed"]
    assert Path(job.timings).read_bytes() == b"+timed+timed"


def test_timings_of_another_library_are_not_taken(job: tensorrt.Job, told: Told) -> None:
    Path(job.timings).write_bytes(b"of another")
    recorder = Recorder(known_timings=b"ours")
    told(recorder, job)
    assert recorder.caches == [b"of another", b""]
    assert Path(job.timings).read_bytes() == b"+timed"


@pytest.mark.parametrize(
    ("recorder", "words"),
    [
        (
            Recorder(refusals=[("no importer for NonZero", "find"), ("another", "one")]),
            r"parser refuses the graph: no importer for NonZero \(node 'find'\)",
        ),
        (Recorder(refusals=[("no opset", "")]), "parser refuses the graph: no opset$"),
        (Recorder(builds=False), "builder found no way"),
        (Recorder(accepts_profile=False), "refuses the sizes"),
        (Recorder(types={"y": np.float16}), "has 'y' as FP16, and the model as FP32"),
    ],
)
def test_what_cannot_be_built_is_told_with_its_first_reason(
    job: tensorrt.Job, told: Told, recorder: Recorder, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionFailed, match=words):
        told(recorder, job)
    assert not (tmp_path / "made" / tensorrt.PLAN).exists()


def test_a_tensor_that_the_network_lost_is_named(job: tensorrt.Job, told: Told) -> None:
    mask = TensorSpec(name="mask", datatype=DataType.BOOL, shape=(1,))
    wanted = msgspec.structs.replace(SIGNATURE, inputs=(*SIGNATURE.inputs, mask))
    with pytest.raises(ConversionFailed, match="no tensor mask"):
        told(Recorder(), msgspec.structs.replace(job, signature=wanted))


def test_fp8_takes_a_gpu_that_has_it(job: tensorrt.Job, told: Told) -> None:
    job = msgspec.structs.replace(job, precision=Precision.FP8)
    with pytest.raises(ConversionFailed, match=r"compute capability 8\.9, and NVIDIA A100 has 8\.0"):
        told(Recorder(), job, A100)
    told(Recorder(), job, H100)


# The file that it gets


def conv_onnx(path: Path) -> Path:
    """A convolution with a bias, a residual sum, and a product: 8 channels of 6 x 6 become 3 answers."""
    rng = np.random.default_rng(3)
    constants: dict[str, Array] = {
        "K": rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 9,
        "k": rng.normal(size=8).astype(np.float32),
        "W": rng.normal(size=(8, 3)).astype(np.float32),
    }
    return save(
        path,
        [
            helper.make_node("Conv", ["x", "K", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c", "x"], ["sum"], name="add"),
            helper.make_node("GlobalAveragePool", ["sum"], ["mean"], name="pool"),
            helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "W"], ["y"], name="head"),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants=constants,
    )


@pytest.mark.parametrize(
    ("steps", "kind", "most"), [("s8", TensorProto.INT8, 127), ("e4m3", TensorProto.FLOAT8E4M3FN, 448)]
)
def test_a_quantized_file_is_symmetric_with_its_layers_inputs_alone_in_eight_bits(
    tmp_path: Path, steps: quantize.Steps, kind: int, most: int
) -> None:
    exact = conv_onnx(tmp_path / "exact.onnx")
    x = np.random.default_rng(7).normal(size=(64, 8, 6, 6)).astype(np.float32)
    write_arrays(tmp_path / "rows.npz", {"x": x})
    job = quantize.Job(
        model=str(exact), mode="static", weight_bits=8, smallest={"batch": 1}, calibration=str(tmp_path / "rows.npz"),
        steps=steps,
    )  # fmt: skip
    with chdir(tmp_path):
        quantize.quantize(job)
    graph = onnx.load(tmp_path / quantize.MODEL).graph
    constants = {each.name: each for each in graph.initializer}
    quantizers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    restorers = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    assert len(quantizers) == 4, "what the layers read and their weights; the sum beside a convolution stays FP16"
    for node in layers:
        for tensor in node.input[:2]:
            quantizer = quantizers[restorers[tensor].input[0]]
            zero, scale = constants[quantizer.input[2]], constants[quantizer.input[1]]
            assert zero.data_type == kind
            assert not any(zero.raw_data), "zero is zero"
            assert scale.data_type == TensorProto.FLOAT16
    assert constants["k"].data_type == TensorProto.FLOAT16, "a bias stays float"
    [of_x] = [node for node in quantizers.values() if node.input[0] not in constants and "x" in node.input[1]]
    assert float(numpy_helper.to_array(constants[of_x.input[1]])) == pytest.approx(np.abs(x).max() / most, rel=1e-3)
    answers = {
        name: ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name, path in (("exact", exact), ("made", tmp_path / quantize.MODEL))
    }
    assert answers["made"].dtype == np.float32
    apart = np.abs(answers["made"] - answers["exact"]).max()
    assert 0 < apart < 0.05 * np.abs(answers["exact"]).max()


# Where timings of kernels are kept


def test_kernel_timings_are_of_one_gpu_and_one_version_of_the_library(tmp_path: Path) -> None:
    shelf = Shelf(place=tmp_path / "shelf", most_bytes=10**6, known={})
    path = shelf.kernel_timings(HARDWARE)
    assert path.read_bytes() == b""
    path.write_bytes(b"timed")
    assert shelf.kernel_timings(HARDWARE).read_bytes() == b"timed"
    for other in ({"device": A100.fingerprint}, {"library": "tensorrt 10.9.0.34"}):
        assert shelf.kernel_timings(msgspec.structs.replace(HARDWARE, **other)).read_bytes() == b""


# Where the GPU is


@dataclass
class Gpu:
    """Somewhere with a GPU that builds whatever it is asked for; `jobs` are what it was."""

    jobs: list[tensorrt.Job] = field(default_factory=list)
    name: str = "https://gpu.example.com"
    memory_bytes: int = 2**35
    machine: Machine = field(default_factory=this_machine)

    def obstacle(self, target: str) -> str | None:  # noqa: ARG002 - there is none
        return None

    def hardware(self, engine: str) -> Hardware:
        assert engine == "tensorrt"
        return HARDWARE

    def plan(self, job: tensorrt.Job, *, folder: Path, limits: Limits) -> tensorrt.Planned:  # noqa: ARG002 - it is quick
        self.jobs.append(job)
        folder.mkdir()
        (folder / tensorrt.PLAN).write_bytes(b"a plan")
        return tensorrt.Planned(layers={"INT8": 2, "FP16": 1})


@pytest.mark.slow
def test_a_plan_is_built_where_it_is_to_run_of_a_float_model_that_is_converted_once(tmp_path: Path) -> None:
    gpu, said = Gpu(), list[tuple[str, str]]()
    workshop = Workshop(
        source=linear_source(tmp_path), folder=tmp_path / "place", settings=Settings(home=tmp_path), limits=LIMITS,
        tell=lambda *words: said.append(words), elsewhere={TENSORRT: gpu}, sizes=Sizes(batches=(1, 16)),  # type: ignore[dict-item] # it is asked for plans alone
    )  # fmt: skip
    on_cpu = next(each for each in CANDIDATES if each.target == ONNX_CPU)
    with building([FP32, INT8, on_cpu], workshop) as underway:
        made = {candidate: future.result() for candidate, future in underway.items()}
    assert sum(words == "converting to ONNX" for _, words in said) == 1
    exact, quantized = made[FP32], made[INT8]
    assert isinstance(exact, Built)
    assert isinstance(quantized, Built)
    assert exact.model.name == quantized.model.name == tensorrt.PLAN
    assert quantized.recorded == ("8-bit-weights", "fp16-between")
    assert quantized.note == "TensorRT's layers of tensorrt-int8-static: 2 in INT8, 1 in FP16"
    jobs = {job.precision: job for job in gpu.jobs}
    assert {job.usual["batch"] for job in gpu.jobs} == {16}
    assert {job.hardware for job in gpu.jobs} == {HARDWARE}
    assert {job.memory_bytes for job in gpu.jobs} == {2**35}
    assert len({job.timings for job in gpu.jobs}) == 1
    assert {node.op_type for node in onnx.load(jobs[Precision.FP32].model).graph.node} == {"Gemm"}
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(jobs[Precision.INT8].model).graph.node}


@dataclass
class Answering:
    """A connection to an agent that has built a plan."""

    made: Mapping[str, bytes]
    sent: list[tuple[tensorrt.Job, dict[str, bytes]]] = field(default_factory=list)

    def run(
        self, step: str, job: tensorrt.Job, *, answer: type[tensorrt.Planned], log: Path, files: Mapping[str, Path]
    ) -> tuple[tensorrt.Planned, Mapping[str, str]]:
        assert (step, log.name) == ("plan", "plan.log")
        self.sent.append((job, {name: path.read_bytes() for name, path in files.items()}))
        return answer(layers={}), {name: name for name in self.made}

    def fetch(self, digest: str, target: Path) -> None:
        target.write_bytes(self.made[digest])


def test_what_kernels_took_on_another_machine_is_kept_here_and_sent_there_again(
    job: tensorrt.Job, tmp_path: Path
) -> None:
    made = {tensorrt.PLAN: b"a plan", tensorrt.LAYERS: b"[]", tensorrt.TIMINGS: b"timed there"}
    connection: Any = Answering(made)
    there = There(name="x", connection=connection, folder=tmp_path, settings=Settings(home=tmp_path), tell=print)
    for _ in range(2):
        there.plan(job, folder=tmp_path / "plan", limits=LIMITS)
    (first, before), (second, after) = connection.sent
    assert (before[tensorrt.TIMINGS], after[tensorrt.TIMINGS]) == (b"", b"timed there")
    assert Path(job.timings).read_bytes() == b"timed there"
    assert first == second
    assert {first.model, first.timings} == before.keys(), "no path crosses the wire"
    assert (tmp_path / "plan" / tensorrt.PLAN).read_bytes() == b"a plan"


@pytest.mark.slow
@pytest.mark.usefixtures("_without_gpu")
def test_two_plans_at_once_are_errands_one_after_the_other(job: tensorrt.Job, tmp_path: Path) -> None:
    """A real agent, without a GPU: each of its children says so, and neither is turned away because the other is at work."""
    with near(tmp_path / "far") as agent:
        connection = agent.connect()
        there = There(name="x", connection=connection, folder=tmp_path, settings=Settings(home=tmp_path), tell=print)

        def reason(name: str) -> str:
            with pytest.raises(ConversionFailed) as failed:
                there.plan(job, folder=tmp_path / name, limits=LIMITS)
            return failed.value.reason

        with ThreadPoolExecutor(2) as threads:
            reasons = list(threads.map(reason, ["one", "other"]))
        connection.close()
    assert reasons == [f"no NVIDIA driver is installed (libcuda.so.1 is not found) (on {agent.url})"] * 2


# On a GPU: none of this has run anywhere yet


def on_gpu(source: Source, folder: Path, some: Sequence[Candidate]) -> dict[str, Built | Lost]:
    if why := obstacle(EngineSpec(name="tensorrt")):
        pytest.skip(why)
    workshop = Workshop(source=source, folder=folder, settings=Settings(home=folder), limits=LIMITS, tell=print)
    with building(some, workshop) as underway:
        return {candidate.name: future.result() for candidate, future in underway.items()}


def conv_source(folder: Path) -> Source:
    x = np.random.default_rng(7).normal(size=(64, 8, 6, 6)).astype(np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 8, 6, 6)),),
        outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
        dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=64),),
    )
    source = linear_source(folder, rows={"x": x}, signature=signature)
    conv_onnx(source.program)
    return source


@pytest.mark.gpu
@pytest.mark.parametrize("candidate", [FP32, FP16, INT8, FP8], ids=lambda each: each.name)
def test_a_plan_answers_as_the_source_does(candidate: Candidate, tmp_path: Path) -> None:
    source = conv_source(tmp_path)
    [built] = on_gpu(source, tmp_path, [candidate]).values()
    if isinstance(built, Lost) and built.reason.startswith("FP8 takes a GPU"):
        pytest.skip(built.reason)
    assert isinstance(built, Built), built
    found = examine(built, source, ask_source(source), store=tmp_path / "bundles", threads=1)
    assert isinstance(found, Verified), found
    assert found.bundle.manifest.hardware is not None
    assert found.bundle.manifest.hardware.device == first_device().fingerprint
    wanted = {FP32: "FP32", FP16: "FP16", INT8: "INT8", FP8: "FP8"}[candidate]
    assert f" in {wanted}" in built.note, built.note


@pytest.mark.gpu
def test_a_second_build_reuses_what_kernels_took(tmp_path: Path) -> None:
    source = conv_source(tmp_path)
    on_gpu(source, tmp_path, [FP32])
    [timings] = (tmp_path / "conversions").rglob("timings.cache")
    assert timings.stat().st_size > 0
    assert isinstance(on_gpu(source, tmp_path, [FP16])[FP16.name], Built)
    assert "are timed anew" not in (tmp_path / f"plan-{FP16.name}" / child.LOG).read_text()


@pytest.mark.gpu
def test_a_plan_for_other_hardware_is_neither_built_nor_opened(job: tensorrt.Job, tmp_path: Path) -> None:
    if why := obstacle(EngineSpec(name="tensorrt")):
        pytest.skip(why)
    other = Hardware(device="NVIDIA-Riva-128/sm_01", library=HARDWARE.library)
    with pytest.raises(ConversionFailed, match="NVIDIA-Riva-128/sm_01"):
        child.run(
            tensorrt.__name__, msgspec.structs.replace(job, hardware=other), folder=tmp_path / "child",
            answer=tensorrt.Planned, limits=LIMITS, given_up=threading.Event(),
        )  # fmt: skip
    assert "were built for 'NVIDIA-Riva-128/sm_01'" in str(obstacle(EngineSpec(name="tensorrt"), other))


@pytest.mark.gpu
def test_what_the_parser_does_not_know_is_told(tmp_path: Path) -> None:
    source = linear_source(tmp_path, rows=some_rows())
    numbers = {"square": [-1, 2, 2], "last": [1], "shape": [1, 3]}
    save(
        source.program,
        [
            helper.make_node("Reshape", ["x", "square"], ["m"]),
            helper.make_node("Det", ["m"], ["d"]),
            helper.make_node("Unsqueeze", ["d", "last"], ["u"]),
            helper.make_node("Expand", ["u", "shape"], ["y"]),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        constants={name: np.asarray(value) for name, value in numbers.items()},
    )
    [lost] = on_gpu(source, tmp_path, [FP32]).values()
    assert isinstance(lost, Lost)
    assert lost.reason.startswith("TensorRT's parser refuses the graph: ")
    assert lost.log
