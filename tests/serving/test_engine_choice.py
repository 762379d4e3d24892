"""Which engine a bundle gets, and what is said where this machine has not got it."""

import platform
from importlib.util import find_spec
from pathlib import Path

import pytest

from seatrial.bundle import Bundle, EngineSpec, Evidence, Hardware, Sibling
from seatrial.bundle.evidence import Provenance
from seatrial.cuda import NoDevice, first_device
from seatrial.doctor import diagnose
from seatrial.engines import ENGINES, fingerprint, obstacle
from seatrial.errors import EngineUnavailable
from seatrial.machine import this_machine
from seatrial.settings import Settings
from seatrial_serving.engines import OPENERS, open_engine
from tests.servers import serving, start
from tests.serving.models import LinearBundle

CUDA = EngineSpec(name="onnxruntime", options={"provider": "cuda"})
ON_CPU = Sibling(target="onnx-cpu", variant="onnx-cpu-fp32", digest="", engine=EngineSpec(name="onnxruntime"))
ON_OPENVINO = Sibling(target="openvino-cpu", variant="o", digest="", engine=EngineSpec(name="openvino"))
ON_GPU = Sibling(target="onnx-tensorrt", variant="t", digest="", engine=EngineSpec(name="tensorrt"))
ELSEWHERE = Hardware(device="riscv avx1024", library="torch 2.13")


@pytest.fixture
def _without_gpu() -> None:
    try:
        first_device()
    except NoDevice:
        return
    pytest.skip("there is an NVIDIA GPU here")


def with_siblings(bundle: Bundle, *siblings: Sibling) -> Bundle:
    bundle.replace_evidence(
        Evidence(
            bundle=bundle.digest,
            written_at="2026-01-01T00:00:00Z",
            machine=this_machine(),
            provenance=Provenance(source="models:/linear/1"),
            siblings=siblings,
        )
    )
    return bundle


def test_every_engine_that_can_be_named_can_be_opened() -> None:
    assert set(OPENERS) == set(ENGINES)


@pytest.mark.usefixtures("_without_gpu")
def test_without_a_gpu_the_sibling_that_runs_here_is_named(tmp_path: Path) -> None:
    bundle = with_siblings(LinearBundle(engine=CUDA).write(tmp_path), ON_GPU, ON_CPU, ON_OPENVINO)
    with pytest.raises(EngineUnavailable) as caught:
        open_engine(bundle, threads=1)
    said = str(caught.value)
    assert "wants the engine onnxruntime with the provider 'cuda'" in said
    assert "NVIDIA" in said
    assert "the variant 'onnx-cpu-fp32' for onnx-cpu, which runs here" in said
    assert "seatrial serve linear/1 --target onnx-cpu" in said


@pytest.mark.usefixtures("_without_gpu")
def test_without_a_sibling_that_runs_here_the_way_to_one_is_named(tmp_path: Path) -> None:
    bundle = with_siblings(LinearBundle(engine=CUDA).write(tmp_path), ON_GPU)
    with pytest.raises(EngineUnavailable, match="No variant that runs here is known; build one with: seatrial export"):
        open_engine(bundle, threads=1)


@pytest.mark.usefixtures("_without_gpu")
def test_a_server_that_cannot_run_it_says_so_and_ends(tmp_path: Path) -> None:
    bundle = with_siblings(LinearBundle(engine=CUDA).write(tmp_path), ON_CPU)
    process = start(bundle.path, place=tmp_path / "server")
    assert process.wait(60) == 1
    assert "seatrial serve linear/1 --target onnx-cpu" in (tmp_path / "server" / "err").read_text()


def test_a_server_runs_another_engine_than_onnx_runtime(tmp_path: Path) -> None:
    import httpx

    from tests.serving.models import linear

    bundle = LinearBundle(engine=EngineSpec(name="openvino")).write(tmp_path)
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    with serving(bundle.path, place=tmp_path / "server") as server:
        answer = httpx.post(server.url("/v2/models/linear/infer"), json=body).json()
        assert answer["outputs"][0]["data"] == linear([1, 2, 3, 4]).tolist()
        assert httpx.get(server.url("/v2/models/linear")).json()["platform"].startswith("openvino")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (EngineSpec(name="warp"), "there is no engine of that name"),
        (EngineSpec(name="onnxruntime", options={"provider": "rocm"}), "there is no such provider"),
    ],
)
def test_what_there_is_not_is_told(engine: EngineSpec, words: str) -> None:
    assert words in str(obstacle(engine))


def test_machine_code_runs_where_every_feature_that_it_was_built_with_is(tmp_path: Path) -> None:
    here = fingerprint("aotinductor")
    engine = EngineSpec(name="aotinductor")
    assert here.device.startswith(platform.machine())
    assert obstacle(engine, here) is None
    assert obstacle(engine, Hardware(device=platform.machine(), library=here.library)) is None
    assert "were built for 'riscv avx1024', and this machine is" in str(obstacle(engine, ELSEWHERE))
    older = Hardware(device=here.device, library="torch 1.0")
    assert f"were built by torch 1.0, and {here.library} is installed here" in str(obstacle(engine, older))
    bundle = LinearBundle(engine=engine, hardware=ELSEWHERE).write(tmp_path)
    with pytest.raises(EngineUnavailable, match="riscv avx1024"):
        open_engine(bundle, threads=1)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_an_engine_whose_library_is_not_whole_is_unavailable(tmp_path: Path) -> None:
    bundle = LinearBundle(engine=EngineSpec(name="tensorrt")).write(tmp_path)
    with pytest.raises(EngineUnavailable, match="whose library is not whole: No module named 'tensorrt'"):
        OPENERS["tensorrt"](bundle, 1, False)


def test_the_doctor_tells_of_every_engine(tmp_path: Path) -> None:
    findings = {finding.subject: finding for finding in diagnose(Settings(home=tmp_path)).findings}
    for name in (*ENGINES, "onnxruntime on cuda", "onnxruntime on tensorrt"):
        finding = findings[f"engine {name}"]
        assert finding.verdict in ("ok", "absent")
        assert finding.detail
    assert findings["engine onnxruntime"].verdict == "ok"


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_graph_runs_on_the_gpu(provider: str, tmp_path: Path) -> None:
    import numpy as np

    from seatrial_serving.engines.proof import replay, warm_up
    from tests.serving.models import linear

    spec = EngineSpec(name="onnxruntime", options={"provider": provider})
    if why := obstacle(spec):
        pytest.skip(why)
    bundle = LinearBundle(engine=spec).write(tmp_path)
    engine = open_engine(bundle, threads=1)
    assert not engine.on_cpu
    warm_up(engine, batch_sizes=(1, 64))
    assert replay(engine, bundle) == 1
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    for rows in (1, 10, 3):
        assert engine.predict({"x": x[:rows]})["y"].tolist() == linear(x[:rows]).tolist()
    engine.close()


@pytest.mark.gpu
def test_memory_of_the_device_holds_what_was_copied_into_it() -> None:
    import numpy as np

    from seatrial_serving.engines.device_memory import Buffer, Stream

    try:
        stream = Stream()
    except NoDevice as why:
        pytest.skip(str(why))
    buffer, there, back = Buffer(stream.driver), np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    for _ in range(2):
        buffer.reserve(there.nbytes)
        stream.copy_in(there, buffer)
        stream.copy_out(buffer, back)
        stream.wait()
        assert back.tolist() == there.tolist()
    buffer.close()
    stream.close()
