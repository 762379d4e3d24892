"""What the manifests make containers do, done for real: their own command lines and probes, on a real server."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from seatrial.bundle import Bundle
from seatrial.registry import ModelRef
from seatrial.settings import Serving
from seatrial_serving.runtime import run
from seatrial_serving.triton.environment import TritonEnvironment
from seatrial_serving.triton.repository import Backend, write_repository
from seatrial_serving.triton.server import prepare
from tests.commands import Typed, type_seatrial
from tests.kubernetes.manifests import BASE, TRITON, containers, environment, expanded, rendered, serving_container
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear
from tests.serving.runtimes import triton_environment

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


# The base


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The base's own command line and environment, on free ports of this machine, with a bundle where the model's name is."""
    place = tmp_path_factory.mktemp("server")
    variables = environment(rendered(BASE)) | {
        "MODEL": str(LinearBundle(version="3").write(place / "store").path),
        "SEATRIAL_HOME": str(place / "home"),
        "SEATRIAL_SERVING__HOST": "127.0.0.1",
    }
    command, *what = expanded(serving_container(rendered(BASE))["args"], variables)
    assert command == "serve"
    with serving(*what, place=place, environment=variables) as running:
        yield running


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_is_answered(server: Server, probe: str) -> None:
    asked = serving_container(rendered(BASE))[probe]["httpGet"]
    assert asked["port"] == "http"
    assert httpx.get(server.url(asked["path"])).status_code == 200


def test_what_is_scraped_is_where_it_is_scraped(server: Server) -> None:
    assert server.metrics()["seatrial_ready"] == 1


def test_the_model_is_one_that_the_registry_could_be_asked_for() -> None:
    for folder in (BASE, TRITON):
        assert ModelRef.parse(environment(rendered(folder))["MODEL"]).name


# Triton's repository, written by the init container


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return LinearBundle(version="3").write(tmp_path / "store")


def write(
    variables: dict[str, str], to: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    """What the init container does, with `to` where it has its volume."""
    [writer] = [each for each in containers(rendered(TRITON)) if each["name"] == "repository"]
    assert {"name": "models", "mountPath": "/models"} in writer["volumeMounts"]
    arguments = expanded(writer["args"], environment(rendered(TRITON)) | variables)
    here = [str(to) if argument == "/models" else argument for argument in arguments]
    return type_seatrial(*here, monkeypatch=monkeypatch, capsys=capsys)


def test_the_init_container_writes_the_repository_that_triton_reads(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    done = write({"MODEL": str(bundle.path), "DIGEST": bundle.digest}, models, monkeypatch, capsys)
    assert done.code == 0, done.err
    config = text_format.Parse((models / "linear/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.backend == "onnxruntime"
    assert (models / "linear/3/model.onnx").read_bytes() == bundle.file("model.onnx").read_bytes()
    assert "--model-repository=/models" in serving_container(rendered(TRITON))["args"]
    mounted = {each["mountPath"]: each for each in serving_container(rendered(TRITON))["volumeMounts"]}
    assert mounted["/models"] == {"name": "models", "mountPath": "/models", "readOnly": True}


def test_the_init_container_writes_nothing_when_the_digest_is_another(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = write({"MODEL": str(bundle.path)}, tmp_path / "models", monkeypatch, capsys)
    assert done.code == 1
    assert "sha256:0000" in done.err
    assert not (tmp_path / "models").exists()


@pytest.mark.xdist_group("triton")
def test_the_real_triton_takes_the_arguments_and_answers_the_probes(bundle: Bundle, tmp_path: Path) -> None:
    """On CPU and with the Python backend, because the GPU and the image with ONNX Runtime in it are not here."""
    environment_of_triton = TritonEnvironment(triton_environment())
    write_repository([bundle], tmp_path / "models", backend=Backend.PYTHON)
    server = prepare(environment_of_triton, tmp_path / "models", Serving(http_port=0, grpc_port=0, metrics_port=0))
    container = serving_container(rendered(TRITON))
    moved = ("--model-repository=", "--http-port=", "--grpc-port=", "--metrics-port=", "--exit-timeout-secs=")
    kept = [argument for argument in container["args"] if not argument.startswith(moved)]
    assert len(kept) + len(moved) == len(container["args"])
    runtime = dataclasses.replace(server.runtime, command=[*server.runtime.command, *kept])

    x = np.array([[1, 2, 3, 4]], np.float32)
    seen: dict[str, object] = {}

    async def look() -> None:
        stop = asyncio.Event()

        def ready() -> None:
            for probe in PROBES:
                seen[probe] = httpx.get(f"http://{server.http}{container[probe]['httpGet']['path']}").status_code
            tensor = triton.InferInput("x", list(x.shape), "FP32")
            tensor.set_data_from_numpy(x)
            with triton.InferenceServerClient(server.http) as client:
                seen["answer"] = client.infer("linear", [tensor]).as_numpy("y").tolist()
            stop.set()

        await run(runtime, ready=ready, stop=stop)

    asyncio.run(look())
    assert seen == {**dict.fromkeys(PROBES, 200), "answer": linear(x).tolist()}
