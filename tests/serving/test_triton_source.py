"""`seatrial serve` of a Triton model repository, beside the real Triton on the same one; and what only ours does with it."""

import queue
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

from seatrial.settings import Serving
from seatrial.tensors import Array
from seatrial_serving.triton.environment import TritonEnvironment
from seatrial_serving.triton.server import prepare
from tests.conditions import until
from tests.servers import Server, serving, start
from tests.serving.models import linear, linear_onnx
from tests.serving.runtimes import triton_environment
from tests.serving.triton_models import LINEAR, model, write_backends, write_repository

pytestmark = pytest.mark.xdist_group("triton")

X = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]], np.float32)
ONE_EACH = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true"}
IMAGE = np.random.default_rng(5).normal(size=(3, 1, 4, 6)).astype(np.float32)
ROW = np.arange(24, dtype=np.float32).reshape(2, 6, 2, 1)
TEXT = np.array([[b"ship", b""], [b"at", b"sea"]], object)
QUESTIONS: dict[str, tuple[str, Array, str]] = {
    "labelled": ("x", X, "y"),
    "plain": ("x", X, "y"),
    "latest": ("x", X, "y"),
    "all": ("x", X, "y"),
    "specific": ("x", X, "y"),
    "unbatched": ("x", X, "y"),
    "text": ("said", TEXT, "loud"),
    "reshaped": ("row", ROW, "sum"),
    "cnn": ("image", IMAGE, "score"),
    "grand": ("given", X, "grand_total"),
    "apart": ("given", X, "y"),
}
ENSEMBLES = {"grand", "apart"}
VERSIONS = {"all": ["1", "2", "10"], "specific": ["1", "2"], "latest": ["10"]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("repository") / "models")


@pytest.fixture(scope="module")
def ours(repository: Path) -> Iterator[Server]:
    with serving(repository, place=repository.parent / "server", environment=ONE_EACH, within_s=180) as running:
        yield running


@pytest.fixture(scope="module")
def real(repository: Path) -> Iterator[tuple[str, str]]:
    """The addresses of tritonserver, REST and gRPC."""
    with tritonserver(repository, place=repository.parent / "triton") as addresses:
        yield addresses


@contextmanager
def tritonserver(repository: Path, place: Path) -> Iterator[tuple[str, str]]:
    environment = TritonEnvironment(triton_environment())
    place.mkdir()
    backends = write_backends(environment, place / "backends", repository)
    server = prepare(environment, repository, Serving(http_port=0, grpc_port=0, metrics_port=0))
    command = [word.replace(str(environment.backends), str(backends)) for word in server.runtime.command]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=dict(server.runtime.environment), stdout=log, stderr=log)
    try:

        def ready() -> bool:
            assert process.poll() is None, (place / "log").read_text()[-5000:]
            try:
                return httpx.get(server.runtime.health).is_success
            except httpx.TransportError:
                return False

        until(ready, within_s=180)
        yield server.http, server.grpc
    finally:
        process.terminate()
        process.wait(30)


Client: TypeAlias = "triton_http.InferenceServerClient | triton_grpc.InferenceServerClient"


@pytest.fixture(params=["rest", "grpc"])
def clients(request: pytest.FixtureRequest, ours: Server, real: tuple[str, str]) -> Iterator[tuple[Client, Client]]:
    """One of our server, one of Triton."""
    if request.param == "rest":
        with triton_http.InferenceServerClient(ours.http) as our, triton_http.InferenceServerClient(real[0]) as their:
            yield our, their
    else:
        with triton_grpc.InferenceServerClient(ours.grpc) as our, triton_grpc.InferenceServerClient(real[1]) as their:
            yield our, their


def answer(client: Client, name: str, version: str = "", *, classes: int = 0) -> tuple[str, Any]:
    """The version that answered, and the output."""
    lib = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc
    given, array, got = QUESTIONS[name]
    tensor = lib.InferInput(given, list(array.shape), "BYTES" if array.dtype == object else "FP32")
    tensor.set_data_from_numpy(array)
    # Triton's ensembles come to no end where an output is left out that another step needs
    outputs = None if name in ENSEMBLES else [lib.InferRequestedOutput(got, class_count=classes)]
    result = client.infer(name, [tensor], model_version=version, outputs=outputs)
    response = result.get_response()
    told = response["model_version"] if isinstance(response, dict) else response.model_version
    return told, result.as_numpy(got)


def as_dict(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        message = MessageToDict(message, preserving_proto_field_name=True)
    return message.get("config", message)  # type: ignore[no-any-return] # JSON


def numbers(tensors: list[dict[str, Any]], *fields: str) -> list[tuple[Any, ...]]:
    """`fields` of each; 64-bit numbers, which gRPC's JSON writes as text, as numbers."""
    return sorted(
        tuple([int(size) for size in each[field]] if field in ("shape", "dims") else each[field] for field in fields)
        for each in tensors
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_both_answer_the_same_and_tell_the_same(clients: tuple[Client, Client], name: str) -> None:
    our, their = clients
    told, expected = (as_dict(client.get_model_metadata(name)) for client in clients)
    assert told["versions"] == VERSIONS.get(name, ["1"])
    assert sorted(told["versions"]) == sorted(expected["versions"])
    assert (told["name"], told["platform"]) == (expected["name"], expected["platform"])
    for kind in ("inputs", "outputs"):
        assert numbers(told[kind], "name", "datatype", "shape") == numbers(expected[kind], "name", "datatype", "shape")
    for version in ("", *told["versions"]):
        (our_version, our_answer), (their_version, their_answer) = (answer(each, name, version) for each in clients)
        assert our_version == their_version == (version or told["versions"][-1])
        assert our_answer.shape == their_answer.shape
        if our_answer.dtype == object:
            assert our_answer.tolist() == their_answer.tolist()
        else:
            np.testing.assert_allclose(our_answer, their_answer, rtol=1e-6)
    for gone in {"1", "2", "3", "10"} - {*told["versions"]}:
        assert not our.is_model_ready(name, gone)
        assert not their.is_model_ready(name, gone)


def test_the_answers_are_the_model_s(ours: Server) -> None:
    with triton_grpc.InferenceServerClient(ours.grpc) as client:
        assert answer(client, "all", "2")[1].tolist() == linear(X, scale=2).tolist()
        assert answer(client, "all")[1].tolist() == linear(X, scale=10).tolist()
        assert answer(client, "text")[1].tolist() == [[b"SHIP", b""], [b"AT", b"SEA"]]
        assert answer(client, "reshaped")[1].tolist() == [[0 + 2 + 4 + 6 + 8 + 10], [12 + 14 + 16 + 18 + 20 + 22]]


def test_classes_come_with_the_labels_of_the_file(clients: tuple[Client, Client]) -> None:
    ours, theirs = (answer(client, "labelled", classes=3)[1].tolist() for client in clients)
    assert ours[0] == [b"4.500000:0:cat", b"4.500000:1:dog", b"4.000000:2:ship"]
    assert [sorted(row) for row in ours] == [sorted(row) for row in theirs], "in their order, but for equal ones"


@pytest.mark.parametrize("name", QUESTIONS)
def test_both_tell_the_same_configuration(clients: tuple[Client, Client], name: str) -> None:
    told, expected = (as_dict(client.get_model_config(name)) for client in clients)
    for kind in ("input", "output"):
        assert numbers(told[kind], "name", "data_type", "dims") == numbers(expected[kind], "name", "data_type", "dims")
    assert (
        (told.get("backend") or "") == (expected.get("backend") or "") == ("" if name in ENSEMBLES else "onnxruntime")
    )
    assert ("dynamic_batching" in told) == ("dynamic_batching" in expected)
    if name != "plain":  # Triton fills in its own number, we ours
        assert told.get("max_batch_size") == expected.get("max_batch_size")
    if name in ("cnn", "labelled"):
        for field in ("preferred_batch_size", "max_queue_delay_microseconds"):
            assert str(told["dynamic_batching"][field]) == str(expected["dynamic_batching"][field])


def coins(client: Client, *sequence: tuple[Any, int, str], model: str = "purse") -> list[Any]:
    """What is answered to requests of sequences: their ids, coins, and whether it is the first and last of its sequence."""
    lib = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc
    came = []
    for name, coin, flags in sequence:
        given = lib.InferInput("coin" if model == "purse" else "x", [1, 1], "INT64" if model == "purse" else "FP32")
        given.set_data_from_numpy(np.array([[coin]], np.int64 if model == "purse" else np.float32))
        try:
            answer = client.infer(
                model, [given], sequence_id=name, sequence_start="first" in flags, sequence_end="last" in flags
            )
        except InferenceServerException as refusal:
            came.append(str(refusal))
        else:
            came.append(answer.as_numpy("total" if model == "purse" else "told").ravel().tolist())
    return came


def test_sequences_of_both_are_the_same(clients: tuple[Client, Client]) -> None:
    asked = [
        *((11, 1, "first"), ("text", 2, "first"), (11, 1, ""), ("text", 3, "")),
        *((11, 0, "first"), (11, 0, ""), (11, 0, "last"), ("text", 0, "last"), (12, 3, "first last")),
    ]
    ours, theirs = (coins(client, *asked) for client in clients)
    assert ours == theirs == [[10], [100], [20], [1100], [1], [2], [3], [1101], [1000]]


@pytest.mark.parametrize("asked", [(13, 0, ""), (11, 0, "last"), ("nobody", 0, ""), (0, 0, ""), ("", 0, "")])
def test_both_refuse_who_is_in_no_sequence(clients: tuple[Client, Client], asked: tuple[Any, int, str]) -> None:
    for client in clients:
        [words] = coins(client, asked)
        assert any(
            phrase in words
            for phrase in (
                f"inference request for sequence {asked[0]} to model 'purse' must specify the START flag on the first request",
                "must specify a non-zero or non-empty correlation ID",
            )
        )


def test_both_tell_a_graph_where_it_is_in_a_sequence(clients: tuple[Client, Client]) -> None:
    asked = [(21, 5, "first"), (22, 6, "first"), (21, 7, ""), (22, 8, "last"), (21, 9, "last"), (23, 1, "first last")]
    ours, theirs = (coins(client, *asked, model="told") for client in clients)
    assert ours == theirs
    assert ours == [
        *([5, 1, 0, 1, 21], [6, 1, 0, 1, 22], [7, -1, 0, 1, 21], [8, -1, 9, 1, 22], [9, -1, 9, 1, 21]),
        [1, 1, 9, 1, 23],
    ]


def test_what_is_the_servers_is_not_shown(clients: tuple[Client, Client]) -> None:
    for name, given in (("purse", "coin"), ("told", "x")):
        for client in clients:
            told = as_dict(client.get_model_metadata(name))
            assert [each["name"] for each in told["inputs"]] == [given]
            assert len(told["outputs"]) == 1
            assert "sequence_batching" in as_dict(client.get_model_config(name))


def test_streams_of_both_tell_the_last_answer(ours: Server, real: tuple[str, str]) -> None:
    for address in (ours.grpc, real[1]):
        came: queue.Queue[Any] = queue.Queue()
        with triton_grpc.InferenceServerClient(address) as client:
            client.start_stream(lambda result, error, came=came: came.put(error or result))
            x = triton_grpc.InferInput("x", list(X.shape), "FP32")
            x.set_data_from_numpy(X)
            client.async_stream_infer("latest", [x])
            coin = triton_grpc.InferInput("coin", [1, 1], "INT64")
            coin.set_data_from_numpy(np.array([[1]]))
            client.async_stream_infer("purse", [coin], sequence_id=31, sequence_start=True, sequence_end=True)
            answers = [came.get(timeout=20) for _ in range(2)]
        finals = [each.get_response().parameters["triton_final_response"] for each in answers]
        assert [final.bool_param for final in finals] == [True, True]


def test_both_list_the_same_models(ours: Server, real: tuple[str, str]) -> None:
    listed = [
        sorted(
            (each["name"], each["version"], each["state"])
            for each in httpx.post(f"http://{address}/v2/repository/index").json()
        )
        for address in (ours.http, real[0])
    ]
    assert listed[0] == listed[1]
    assert ("all", "10", "READY") in listed[0]


def test_too_many_rows_are_refused_by_both(clients: tuple[Client, Client]) -> None:
    for client in clients:
        lib = triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc
        tensor = lib.InferInput("x", [9, 4], "FP32")
        tensor.set_data_from_numpy(np.zeros((9, 4), np.float32))
        with pytest.raises(InferenceServerException, match="8"):
            client.infer("latest", [tensor])


def test_nothing_is_said_to_be_verified(ours: Server) -> None:
    properties = httpx.get(ours.url("/v2/models/all/versions/2")).json()["properties"]
    assert (properties["verified"], properties["variant"]) == ("false", "unverified")
    assert properties["digest"].startswith("sha256:")
    assert "all/2 unverified is ready" in ours.err.read_text()


# What only ours is asked


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A repository whose models are not all well: `good`, `half` (version 2 is cut off), `foreign`, `mute` (no version)."""
    onnx = linear_onnx(tmp_path / "1.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(onnx.read_bytes()[:100])
    models = tmp_path / "models"
    batched = "max_batch_size: 8 " + LINEAR % ""
    model(models, "good", batched + "response_cache { enable: true }", v1=onnx)
    model(models, "half", batched + "version_policy { all {} }", v1=onnx, v2=cut)
    model(models, "foreign", 'backend: "tensorrt"', v1=onnx)
    model(models, "mute", batched)
    with serving(models, place=tmp_path / "server", environment=ONE_EACH, within_s=180) as running:
        yield running, models


def index(server: Server) -> dict[tuple[str, str], tuple[str, str]]:
    listed = httpx.post(server.url("/v2/repository/index")).json()
    return {(each["name"], each["version"]): (each["state"], each["reason"]) for each in listed}


def asked(server: Server, path: str) -> Any:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    response = httpx.post(server.url(f"/v2/models/{path}/infer"), json=body, timeout=30)
    return response.json()["outputs"][0]["data"] if response.is_success else response.status_code


def change(server: Server, name: str, what: str = "load") -> httpx.Response:
    return httpx.post(server.url(f"/v2/repository/models/{name}/{what}"), timeout=60)


def test_the_life_of_a_repository(changing: tuple[Server, Path], tmp_path: Path) -> None:
    server, models = changing
    value = {scale: linear([1, 2, 3, 4], scale=scale).tolist() for scale in (1, 3)}

    # what is broken is told, and takes nothing else along
    assert httpx.get(server.url("/v2/health/ready")).status_code == 200
    listed = index(server)
    assert {key for key, (state, _) in listed.items() if state == "READY"} == {("good", "1"), ("half", "1")}
    assert "cannot load" in listed["half", "2"][1]
    assert "'foreign' is for Triton's backend 'tensorrt'" in listed["foreign", ""][1]
    assert "none that its version_policy wants" in listed["mute", ""][1]
    assert asked(server, "half") == asked(server, "half/versions/1") == value[1]
    assert asked(server, "half/versions/2") == asked(server, "foreign") == 404
    assert "'good' sets what is not done here: response_cache" in server.err.read_text()

    # a new version, and a configuration that is gone: load reads both again, and the bare name means the highest
    three = linear_onnx(tmp_path / "3.onnx", scale=3)
    (models / "good" / "12").mkdir()
    shutil.copyfile(three, models / "good" / "12" / "model.onnx")
    assert asked(server, "good") == value[1]
    (models / "good" / "config.pbtxt").unlink()
    assert change(server, "good").status_code == 200
    assert asked(server, "good") == value[3]
    assert asked(server, "good/versions/1") == 404, "the policy is the latest one"
    assert ("good", "1") not in index(server)

    # a version that cannot be loaded does not end the one before
    (models / "good" / "13").mkdir()
    (models / "good" / "13" / "model.onnx").write_bytes(b"no model")
    refused = change(server, "good")
    assert refused.status_code == 500
    assert "cannot load" in refused.json()["error"]
    assert asked(server, "good") == value[3]
    shutil.rmtree(models / "good" / "13")

    # a configuration that cannot be read changes nothing
    (models / "good" / "config.pbtxt").write_text("what?")
    assert "cannot be read" in change(server, "good").json()["error"]
    assert asked(server, "good") == value[3]

    # the highest version goes: the bare name falls back
    shutil.copyfile(three, models / "half" / "2" / "model.onnx")
    assert change(server, "half").status_code == 200
    assert asked(server, "half") == value[3]
    (models / "half" / "2" / "model.onnx").rename(models / "half" / "2" / "aside")
    shutil.rmtree(models / "half" / "2")
    assert change(server, "half").status_code == 200
    assert asked(server, "half") == value[1]
    assert asked(server, "half/versions/2") == 404

    # models come and go while the server runs; no name leads elsewhere
    model(models, "new", None, v7=three)
    assert asked(server, "new") == 404
    assert change(server, "new").status_code == 200
    assert asked(server, "new/versions/7") == value[3]
    assert change(server, "new", "unload").status_code == 200
    assert asked(server, "new") == 404
    assert index(server)["new", "7"] == ("UNAVAILABLE", "unloaded")
    for name in ("..", "..%2Fmodels%2Fgood", ".", "nobody"):
        assert change(server, name).status_code in (404, 405), name
    shutil.rmtree(models / "new")
    assert "any more" in change(server, "new").json()["error"]


def test_where_nothing_can_be_served_the_reason_ends_it(tmp_path: Path) -> None:
    model(tmp_path / "models", "foreign", 'platform: "tensorflow_savedmodel"')
    process = start(tmp_path / "models", place=tmp_path / "server")
    assert process.wait(60) == 1
    assert "'foreign' is for Triton's backend 'tensorflow_savedmodel'" in (tmp_path / "server" / "err").read_text()
