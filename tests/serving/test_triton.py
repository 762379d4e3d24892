"""Bundles behind the real tritonserver, and the repositories that NVIDIA's own would read."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from seatrial.bundle import Bundle
from seatrial.errors import BundleCorrupt, EngineFailed, EngineUnavailable
from seatrial.settings import Serving, Settings
from seatrial.settings import Triton as TritonSettings
from seatrial_serving.runtime import run
from seatrial_serving.triton.environment import TritonEnvironment
from seatrial_serving.triton.repository import Backend, Hardware, configuration, write_repository
from seatrial_serving.triton.server import prepare
from tests.commands import type_seatrial
from tests.serving.models import LinearBundle, linear
from tests.serving.runtimes import Foreign, serving_with, triton_environment

pytestmark = pytest.mark.xdist_group("triton")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return LinearBundle(version="3").write(tmp_path / "store")


def config_of(bundle: Bundle, backend: Backend, hardware: Hardware = Hardware.CPU) -> model_config_pb2.ModelConfig:
    text = configuration(bundle, backend=backend, hardware=hardware, instances=3, threads=2)
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize("backend", list(Backend))
def test_the_configuration_is_one_that_triton_reads(bundle: Bundle, backend: Backend) -> None:
    config = config_of(bundle, backend)
    assert (config.name, config.backend, config.max_batch_size) == ("linear", backend, 64)
    [tensor] = config.input
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == ("x", model_config_pb2.TYPE_FP32, [4])
    assert list(config.output[0].dims) == [3]
    assert config.instance_group[0].count == 3
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [3]
    assert config.parameters["seatrial.digest"].string_value == bundle.digest


def test_on_a_gpu_the_instances_are_gpu_instances(bundle: Bundle) -> None:
    config = config_of(bundle, Backend.ONNXRUNTIME, Hardware.GPU)
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU


def test_for_nvidias_container_the_graph_alone_is_written(bundle: Bundle, tmp_path: Path) -> None:
    [place] = write_repository([bundle], tmp_path / "models", backend=Backend.ONNXRUNTIME)
    files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    assert files == ["3/model.onnx", "config.pbtxt"]
    assert (place / "3" / "model.onnx").read_bytes() == bundle.file("model.onnx").read_bytes()


def test_writing_again_replaces_the_model_and_leaves_others_alone(bundle: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    write_repository([bundle], models, backend=Backend.PYTHON)
    newer = LinearBundle(version="4").write(tmp_path / "store")
    write_repository([newer], models, backend=Backend.ONNXRUNTIME)
    assert sorted(path.name for path in models.iterdir()) == ["linear", "other"]
    assert sorted(path.name for path in (models / "linear").iterdir()) == ["4", "config.pbtxt"]


def test_a_changed_bundle_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    bundle.file("model.onnx").write_bytes(b"poison")
    with pytest.raises(BundleCorrupt):
        write_repository([bundle], tmp_path / "models", backend=Backend.ONNXRUNTIME)
    assert list((tmp_path / "models").iterdir()) == []


def test_the_command_writes_only_the_digest_that_was_asked_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("triton", "repository", bundle.path, "--to", tmp_path / "models", "--digest")
    wrong = type_seatrial(*where, "sha256:" + "0" * 64, monkeypatch=monkeypatch, capsys=capsys)
    assert wrong.code == 1
    assert "nothing was written" in wrong.err
    right = type_seatrial(*where, bundle.digest, monkeypatch=monkeypatch, capsys=capsys)
    assert right.code == 0
    assert (tmp_path / "models" / "linear" / "config.pbtxt").exists()


def test_without_triton_the_way_to_it_is_named(tmp_path: Path) -> None:
    settings = Settings(triton=TritonSettings(environment=tmp_path))
    with pytest.raises(EngineUnavailable, match="seatrial triton install"):
        TritonEnvironment.of(settings).require()


# The real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    triton_environment()
    place = tmp_path_factory.mktemp("triton")
    bundle = LinearBundle(version="3").write(place / "store")
    with serving_with("triton", bundle.path, place=place / "server") as running:
        yield running


@pytest.mark.parametrize("module", [triton, triton_grpc], ids=["http", "grpc"])
def test_triton_answers_as_the_model_does(server: Foreign, module: triton) -> None:
    assert server.models == ("linear/3",)
    x = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]], np.float32)
    tensor = module.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    with module.InferenceServerClient(server.http if module is triton else server.grpc) as client:
        assert client.is_model_ready("linear", "3")
        assert client.infer("linear", [tensor]).as_numpy("y").tolist() == linear(x).tolist()


def test_a_bundle_that_answers_differently_is_refused_before_triton_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = LinearBundle(golden_scale=2).write(tmp_path / "store")
    refused = type_seatrial("triton", "serve", wrong.path, monkeypatch=monkeypatch, capsys=capsys)
    assert refused.code == 1
    assert "GoldenMismatch" in refused.err


def test_inside_triton_it_is_refused_too(tmp_path: Path) -> None:
    wrong = LinearBundle(golden_scale=2).write(tmp_path / "store")
    write_repository([wrong], tmp_path / "models", backend=Backend.PYTHON)
    free = Serving(http_port=0, grpc_port=0, metrics_port=0)
    server = prepare(TritonEnvironment(triton_environment()), tmp_path / "models", free)
    with pytest.raises(EngineFailed, match="tritonserver ended with 1"):
        asyncio.run(run(server.runtime, ready=pytest.fail))
    assert "is answered differently here" in server.runtime.log.read_text()
