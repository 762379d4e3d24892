"""The protocol's extensions as their clients see them: tritonclient over REST and gRPC, against one real server.

Each extension that is advertised has its test here; `binary_tensor_data` has them in `test_rest`.
"""

import gzip
import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf.json_format import MessageToDict, ParseDict
from tritonclient.utils import InferenceServerException

from seatrial.registry.embedded import EmbeddedRegistry
from seatrial.settings import Settings
from seatrial_serving.doors.metadata import EXTENSIONS
from tests.conditions import until
from tests.registries import publish
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, everything_onnx, linear, linear_onnx

X = [[1.0, 2.0, 3.0, 4.0]]
Client: TypeAlias = "triton_http.InferenceServerClient | triton_grpc.InferenceServerClient"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_store: Path) -> Iterator[Server]:
    """Two aliases of `linear`, one of `moving` and of `beacon`, and two files, on one engine each; `home` is around it."""
    home = tmp_path_factory.mktemp("extensions")
    shutil.copyfile(migrated_store, home / "mlflow.db")
    registry = EmbeddedRegistry(Settings(home=home))
    publish(registry, LinearBundle(version="1", labels=("a", "b", "c")).write(home / "store"))
    publish(registry, LinearBundle(version="2", scale=2).write(home / "store"), alias="challenger")
    for name in ("moving", "beacon"):
        publish(registry, LinearBundle(name=name, version="1").write(home / "store"))
    environment = {
        "SEATRIAL_HOME": str(home),
        "SEATRIAL_SERVING__ENGINES__COUNT": "1",
        "SEATRIAL_SERVING__BATCHING__MAX_SIZE": "16",
        "SEATRIAL_SERVING__BATCHING__PRIORITY_LEVELS": "3",
        "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true",
        "SEATRIAL_REGISTRY__POLL_S": "0.1",
    }
    aliases = "linear@champion", "linear@challenger", "moving@champion", "beacon@champion"
    files = everything_onnx(home / "everything.onnx"), linear_onnx(home / "spare.onnx")
    with serving(*aliases, *files, place=home / "server", environment=environment) as running:
        yield running


@pytest.fixture
def home(server: Server) -> Path:
    return server.out.parent.parent


@pytest.fixture(params=["rest", "grpc"])
def connect(server: Server, request: pytest.FixtureRequest) -> Callable[[], Client]:
    """A client for each thread: that for REST belongs to the one that made it."""
    if request.param == "rest":
        return lambda: triton_http.InferenceServerClient(server.http)
    return lambda: triton_grpc.InferenceServerClient(server.grpc)


@pytest.fixture
def client(connect: Callable[[], Client]) -> Iterator[Client]:
    with connect() as opened:
        yield opened


def library(client: Client) -> Any:
    return triton_http if isinstance(client, triton_http.InferenceServerClient) else triton_grpc


def asked(client: Client, x: Any = X) -> list[Any]:
    array = np.array(x, np.float32)
    tensor = library(client).InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return [tensor]


def version_of(answer: Any) -> str:
    response = answer.get_response()
    return str(response["model_version"] if isinstance(response, dict) else response.model_version)


def as_json(message: Any) -> Any:
    """What either client returns, with numbers as numbers: gRPC's JSON writes 64-bit ones as text."""
    if isinstance(message, dict):
        return {key: as_json(value) for key, value in message.items()}
    if isinstance(message, list):
        return [as_json(value) for value in message]
    return int(message) if isinstance(message, str) and message.lstrip("-").isdigit() else message


def test_what_is_advertised(client: Client) -> None:
    told = client.get_server_metadata()
    assert list(told["extensions"] if isinstance(told, dict) else told.extensions) == list(EXTENSIONS)
    assert set(EXTENSIONS) <= {
        *(
            "classification",
            "sequence",
            "sequence(string_id)",
            "model_repository",
            "schedule_policy",
            "model_configuration",
        ),
        *("binary_tensor_data", "parameters", "statistics", "trace", "logging"),
    }, "Triton's own spelling"


# Aliases


def test_an_alias_stands_where_a_version_can(client: Client) -> None:
    for alias, version, scale in (("champion", "1", 1), ("challenger", "2", 2)):
        assert client.is_model_ready("linear", f"@{alias}")
        answer = client.infer("linear", asked(client), model_version=f"@{alias}")
        assert version_of(answer) == version
        assert answer.as_numpy("y").tolist() == linear(X, scale=scale).tolist()
        assert as_json(plain(client.get_model_config("linear", f"@{alias}")))["parameters"]["seatrial.version"] == {
            "string_value": int(version)
        }
    assert not client.is_model_ready("linear", "@nobody")
    with pytest.raises(InferenceServerException, match="there is no model 'linear alias nobody'"):
        client.infer("linear", asked(client), model_version="@nobody")


def plain(described: Any) -> Any:
    """What is in a message, as the dictionary that REST has anyway."""
    if isinstance(described, dict):
        return described
    return MessageToDict(getattr(described, "config", described), preserving_proto_field_name=True)


def test_an_alias_has_a_place_in_the_url(server: Server) -> None:
    base = server.url("/v2/models/linear/aliases/challenger")
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
    for _ in range(2):  # the second one's head is known
        answer = httpx.post(f"{base}/infer", json=body).json()
        assert (answer["model_version"], answer["outputs"][0]["data"]) == ("2", linear(X, scale=2)[0].tolist())
    assert httpx.get(base).json()["properties"] | {"digest": ""} == {
        "alias": "challenger", "digest": "", "variant": "fp32", "verified": "true", "version": "2",
    }  # fmt: skip
    assert httpx.get(f"{base}/ready").status_code == 200
    assert httpx.get(f"{base}/config").json()["name"] == "linear"
    assert [each["version"] for each in httpx.get(f"{base}/stats").json()["model_stats"]] == ["2"]
    for path in ("", "/ready", "/config", "/stats"):
        gone = httpx.get(server.url(f"/v2/models/linear/aliases/nobody{path}"))
        assert gone.status_code == (400 if path == "/ready" else 404)
    assert httpx.post(server.url("/v2/models/linear/aliases/nobody/infer"), json=body).status_code == 404


# Parameters and schedule policy


def test_parameters_of_one_s_own_disturb_nothing(client: Client) -> None:
    parameters = {"mine": "ünique", "count": 3, "part": 0.5, "sure": True}
    answer = client.infer("linear", asked(client), parameters=parameters)
    assert answer.as_numpy("y").tolist() == linear(X).tolist()


@contextmanager
def stalled(server: Server, model: str = "linear") -> Iterator[None]:
    """The engines of all models stand still, and `model`'s has its hands full, until the block ends."""
    engines = server.engines()
    full = {"inputs": [{"name": "x", "shape": [16, 4], "datatype": "FP32", "data": [0] * 64}]}
    url = server.url(f"/v2/models/{model}/infer")
    for engine in engines:
        engine.suspend()
    with ThreadPoolExecutor(2) as fillers:
        try:
            filling = [fillers.submit(httpx.post, url, json=full, timeout=30) for _ in range(2)]
            until(lambda: server.total("seatrial_inflight_requests", model=model, version="1") == 2)
            yield
        finally:
            for engine in engines:
                engine.resume()
        assert {each.result().status_code for each in filling} == {200}


def test_the_most_urgent_request_is_answered_first(server: Server, connect: Callable[[], Client]) -> None:
    mark = f"{time.monotonic_ns()}-"

    def ask(name: str, priority: int) -> None:
        with connect() as client:
            whole_batch = asked(client, np.zeros((16, 4)))
            client.infer("linear", whole_batch, request_id=mark + name, priority=priority)

    with ThreadPoolExecutor(4) as callers:
        with stalled(server):
            waiting = []
            for name, priority in (("low", 3), ("middle", 0), ("beyond", 99), ("high", 1)):
                waiting.append(callers.submit(ask, name, priority))
                until(lambda: server.total("seatrial_queue_depth", model="linear", version="1") == len(waiting))
        for each in waiting:
            each.result()
    until(lambda: len(marked(server, mark)) == 4)
    assert marked(server, mark) == ["high", "middle", "beyond", "low"], (
        "none, and one that is not there, mean the middle"
    )


def marked(server: Server, mark: str) -> list[str]:
    """Requests in the order in which they were answered."""
    return [each["id"].removeprefix(mark) for each in server.log() if each["id"].startswith(mark)]


def test_a_request_s_own_timeout_ends_its_waiting(server: Server, client: Client) -> None:
    with stalled(server), pytest.raises(InferenceServerException, match="longer than its deadline allows") as late:
        client.infer("linear", asked(client), timeout=20_000)
    assert "504" in str(late.value.status()) or "DEADLINE_EXCEEDED" in str(late.value.status())
    assert client.infer("linear", asked(client), timeout=20_000_000).as_numpy("y") is not None


def test_a_header_can_carry_the_deadline(server: Server) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
    url = server.url("/v2/models/linear/infer")
    for _ in range(2):  # the second one's head is known
        with stalled(server):
            assert httpx.post(url, json=body, headers={"Inference-Timeout-Ms": "20"}, timeout=30).status_code == 504
        assert httpx.post(url, json=body, headers={"Inference-Timeout-Ms": "20000"}).status_code == 200


def test_a_wish_that_makes_no_sense_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="the parameter 'timeout' is -1, expected a whole number"):
        client.infer("linear", asked(client), timeout=-1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("priority", -1), ("priority", "1"), ("timeout", 0.5), ("priority", True), ("timeout", 10**400)],
    ids=["negative", "text", "fraction", "bool", "beyond 64 bits"],
)
def test_a_wish_of_another_type_is_refused(server: Server, name: str, value: object) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}], "parameters": {name: value}}
    refused = httpx.post(server.url("/v2/models/linear/infer"), json=body)
    assert refused.status_code == 400
    assert f"the parameter '{name}' is" in refused.json()["error"]


# Classification


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_come_with_their_labels(client: Client, binary: bool) -> None:
    x = [[1, 2, 3, 4], [9, 0, 0, 0]]
    lib = library(client)
    output = lib.InferRequestedOutput("y", class_count=2, **({"binary_data": binary} if lib is triton_http else {}))
    answer = client.infer("linear", asked(client, x), model_version="1", outputs=[output])
    assert linear(x).tolist() == [[4.5, 4.5, 4.0], [9.5, -0.5, 18.0]]
    assert texts(answer) == [["4.500000:0:a", "4.500000:1:b"], ["18.000000:2:c", "9.500000:0:a"]]
    unlabelled = client.infer("linear", asked(client, x), model_version="2", outputs=[output])
    assert texts(unlabelled)[1] == ["36.000000:2", "19.000000:0"]


def texts(answer: Any) -> list[list[str]]:
    """tritonclient gives bytes from binary data and texts from JSON."""
    return [[each.decode() if isinstance(each, bytes) else each for each in row] for row in answer.as_numpy("y")]


def test_only_what_has_an_order_can_be_classified(client: Client) -> None:
    output = library(client).InferRequestedOutput("y", class_count=-1)
    with pytest.raises(InferenceServerException, match="'classification' is -1"):
        client.infer("linear", asked(client), outputs=[output])


# Compression


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_travel_compressed_both_ways(server: Server, algorithm: str) -> None:
    x = np.ones((16, 4), np.float32)
    with triton_http.InferenceServerClient(server.http) as client:
        answer = client.infer(
            "linear",
            asked(client, x),
            outputs=[triton_http.InferRequestedOutput("y", binary_data=False)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
    assert answer.as_numpy("y").tolist() == linear(x).tolist()


def long_body(rows: int = 16) -> bytes:
    x = [1] * (4 * rows)
    inputs = [{"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": x}]
    return json.dumps({"id": "i" * 2000, "inputs": inputs}).encode()


def test_an_answer_is_compressed_only_if_asked_for_and_long_enough(server: Server) -> None:
    url = server.url("/v2/models/linear/infer")

    def ask(accepts: str, body: bytes) -> httpx.Response:
        headers = {"Accept-Encoding": accepts}
        first, known = (httpx.post(url, content=body, headers=headers) for _ in range(2))
        assert first.json() == known.json()
        assert known.json()["outputs"][0]["data"][:3] == linear([1, 1, 1, 1]).tolist()
        return known

    short = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1] * 4}]}).encode()
    assert "content-encoding" not in ask("gzip", short).headers
    assert "content-encoding" not in ask("identity", long_body()).headers
    assert "content-encoding" not in ask("gzip;q=0.1, identity;q=1", long_body()).headers
    assert ask("gzip", long_body()).headers["content-encoding"] == "gzip"
    assert ask("gzip;q=0.4, deflate", long_body()).headers["content-encoding"] == "deflate"
    assert int(ask("gzip", long_body()).headers["content-length"]) < 1000


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_long_answer_is_compressed_aside(server: Server, encoding: str) -> None:
    body = {"id": "i" * 200_000, "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
    sent = json.dumps(body).encode()
    headers = {"Accept-Encoding": "gzip", "Content-Encoding": encoding}
    answer = httpx.post(
        server.url("/v2/models/linear/infer"),
        content=gzip.compress(sent) if encoding == "gzip" else sent,
        headers={name: value for name, value in headers.items() if value != "identity"},
    )
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json()["id"] == body["id"]


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_a_compressed_request_means_the_same_whatever_was_sent_before(server: Server, encoding: str, pack: Any) -> None:
    url = server.url("/v2/models/linear/infer")
    plain_body = long_body()
    packed = pack(plain_body)
    padded = plain_body[: len(packed)]
    with httpx.Client() as client:
        for content, headers, status in (
            (plain_body, {}, 200),
            (packed, {"Content-Encoding": encoding}, 200),
            (packed, {}, 400),
            (padded, {"Content-Encoding": encoding}, 400),
            (packed, {"Content-Encoding": encoding}, 200),
        ):
            assert client.post(url, content=content, headers=headers).status_code == status


# Model configuration


def test_the_configuration_is_what_the_model_is_served_with(client: Client) -> None:
    config = as_json(plain(client.get_model_config("linear", "1")))
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("linear", "onnxruntime", 16)
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["instance_group"] == [{"name": "linear", "kind": "KIND_CPU", "count": 1}]
    assert config["dynamic_batching"]["priority_levels"] == 3
    assert config["dynamic_batching"]["default_priority_level"] == 2
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 1024
    assert not config["model_transaction_policy"].get("decoupled")
    everything = as_json(plain(client.get_model_config("everything")))
    assert {each["name"]: each["data_type"] for each in everything["input"]}["in_bytes"] == "TYPE_STRING"
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        client.get_model_config("nobody")


def test_triton_s_own_message_takes_the_configuration_as_json(server: Server) -> None:
    for model in ("linear", "everything"):
        described = httpx.get(server.url(f"/v2/models/{model}/config")).json()
        assert ParseDict(described, triton_grpc.model_config_pb2.ModelConfig()).name == model


# Statistics


def stats(client: Client, model: str = "", version: str = "") -> dict[tuple[str, str], Any]:
    told = client.get_inference_statistics(model, version)
    if not isinstance(told, dict):
        told = MessageToDict(told, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {(each["name"], str(each["version"])): as_json(each) for each in told["model_stats"]}


def test_statistics_count_what_happened_between_two_looks(client: Client) -> None:
    before = stats(client, "linear", "1")["linear", "1"]
    for _ in range(3):
        client.infer("linear", asked(client, np.ones((5, 4))), model_version="1")
    with pytest.raises(InferenceServerException, match="shape"):
        client.infer("linear", asked(client, [[1]]), model_version="1")
    failed = before["inference_stats"]["fail"]["count"]
    until(lambda: stats(client, "linear", "1")["linear", "1"]["inference_stats"]["fail"]["count"] > failed)
    after = stats(client, "linear", "1")["linear", "1"]
    assert after["inference_count"] - before["inference_count"] == 15
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["last_inference"] > 1.7e12, "milliseconds since 1970"
    was, now = before["inference_stats"], after["inference_stats"]
    grown = {part: {key: now[part][key] - was[part][key] for key in ("count", "ns")} for part in now}
    assert {part: grown[part]["count"] for part in grown} == {
        "success": 3, "fail": 1, "queue": 3, "compute_input": 3, "compute_infer": 3, "compute_output": 3,
        "cache_hit": 0, "cache_miss": 0,
    }  # fmt: skip
    assert grown["fail"]["ns"] > 0
    assert 0 < grown["compute_infer"]["ns"] <= grown["success"]["ns"] < 60e9
    assert grown["queue"]["ns"] + grown["compute_infer"]["ns"] <= grown["success"]["ns"]
    batches = {each["batch_size"]: each["compute_infer"]["count"] for each in after["batch_stats"]}
    had = {each["batch_size"]: each["compute_infer"]["count"] for each in before["batch_stats"]}
    assert batches[5] - had.get(5, 0) == 3
    assert sum(batches.values()) == after["execution_count"]


def test_statistics_of_one_version_of_all_and_of_all_models(client: Client) -> None:
    assert set(stats(client, "linear", "2")) == {("linear", "2")}
    assert set(stats(client, "linear")) == {("linear", "1"), ("linear", "2")}
    assert {("linear", "1"), ("linear", "2"), ("everything", "1")} <= set(stats(client))
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        stats(client, "nobody")


# The model repository

EVERYBODY = dict.fromkeys(
    [("linear", "1"), ("linear", "2"), ("moving", "1"), ("beacon", "1"), ("everything", "1"), ("spare", "1")],
    ("READY", ""),
)


def listed(client: Client) -> dict[tuple[str, str], Any]:
    told = client.get_model_repository_index()
    told = told if isinstance(told, list) else plain(told)["models"]
    return {(each["name"], each.get("version", "")): (each["state"], each.get("reason", "")) for each in told}


def without(name: str) -> dict[tuple[str, str], Any]:
    others = {key: state for key, state in EVERYBODY.items() if key[0] != name}
    return others | {(name, ""): ("UNAVAILABLE", "unloaded")}


def test_a_model_is_unloaded_and_loaded_again(server: Server, client: Client) -> None:
    assert listed(client) == EVERYBODY
    engines = len(server.engines())
    client.unload_model("spare")
    assert listed(client) == without("spare")
    assert len(server.engines()) == engines - 1, "its engine has ended"
    assert not client.is_model_ready("spare")
    assert client.is_server_ready(), "what nobody wants is not missing"
    with pytest.raises(InferenceServerException, match="there is no model 'spare'"):
        client.infer("spare", asked(client))
    ready_only = httpx.post(server.url("/v2/repository/index"), json={"ready": True}).json()
    assert {(each["name"], each["version"]) for each in ready_only} == EVERYBODY.keys() - {("spare", "1")}

    client.load_model("spare")
    assert listed(client) == EVERYBODY
    assert client.infer("spare", asked(client)).as_numpy("y").tolist() == linear(X).tolist()


def test_a_request_whose_body_comes_when_its_model_is_gone_counts_as_what_its_client_is_told(server: Server) -> None:
    def counted() -> tuple[float, ...]:
        return (
            server.total("seatrial_unknown_model_requests_total", protocol="rest"),
            server.total("seatrial_requests_total", protocol="rest", outcome="client_error"),
        )

    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
    unknown, wrong = counted()
    with server.half_sent("/v2/models/spare/infer", body) as send_the_rest:
        httpx.post(server.url("/v2/repository/models/spare/unload"), json={}).raise_for_status()
        status, answer = send_the_rest()
    assert (status, counted()) == (404, (unknown + 1, wrong))
    assert "there is no model 'spare'" in answer["error"]
    httpx.post(server.url("/v2/repository/models/spare/load"), json={}).raise_for_status()


def test_a_registered_model_is_unloaded_with_all_its_aliases_and_comes_back(server: Server, client: Client) -> None:
    client.unload_model("linear")
    assert listed(client) == without("linear")
    assert not client.is_model_ready("linear", "@champion")
    assert client.is_server_ready()
    client.load_model("linear")
    assert listed(client) == EVERYBODY
    for alias, version in (("champion", "1"), ("challenger", "2")):
        assert version_of(client.infer("linear", asked(client), model_version=f"@{alias}")) == version
    assert version_of(client.infer("linear", asked(client))) == "1", "the first that was asked for is the default again"
    assert server.total("seatrial_ready") == 1


def test_loading_reads_the_source_again_without_a_failed_request(server: Server, client: Client, home: Path) -> None:
    before = server.total("seatrial_swaps_total", model="spare", outcome="done")
    linear_onnx(home / "spare.onnx", scale=5)
    loaded = threading.Event()

    def ask_all_the_time() -> set[int]:
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
        seen = set()
        with httpx.Client() as asking:
            while not loaded.is_set():
                seen.add(asking.post(server.url("/v2/models/spare/infer"), json=body).status_code)
        return seen

    with ThreadPoolExecutor(1) as caller:
        asking = caller.submit(ask_all_the_time)
        client.load_model("spare")
        loaded.set()
        assert asking.result() == {200}
    assert client.infer("spare", asked(client)).as_numpy("y").tolist() == linear(X, scale=5).tolist()
    assert server.total("seatrial_swaps_total", model="spare", outcome="done") == before + 1
    linear_onnx(home / "spare.onnx")
    client.load_model("spare")


def test_a_source_that_cannot_be_loaded_changes_nothing_and_the_index_says_why(client: Client, home: Path) -> None:
    (home / "spare.onnx").write_bytes(b"no model")
    with pytest.raises(InferenceServerException, match="cannot load"):
        client.load_model("spare")
    assert listed(client) == EVERYBODY
    assert client.infer("spare", asked(client)).as_numpy("y").tolist() == linear(X).tolist()

    client.unload_model("spare")
    with pytest.raises(InferenceServerException, match="cannot load"):
        client.load_model("spare")
    state, reason = listed(client)["spare", ""]
    assert state == "UNAVAILABLE"
    assert "cannot load" in reason
    linear_onnx(home / "spare.onnx")
    client.load_model("spare")
    assert listed(client) == EVERYBODY


def test_what_is_no_change_is_refused(client: Client) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'nobody' to load or unload"):
        client.load_model("nobody")
    with pytest.raises(InferenceServerException, match="there is no model 'nobody' to load or unload"):
        client.unload_model("nobody")
    with pytest.raises(InferenceServerException, match="loading takes no parameters"):
        client.load_model("spare", config=json.dumps({"max_batch_size": 9}))


@pytest.mark.parametrize("body", [b"[", b"[]", b'{"ready": "yes"}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_index_request_is_refused(server: Server, body: bytes) -> None:
    assert httpx.post(server.url("/v2/repository/index"), content=body).status_code == 400


def test_an_alias_that_moves_brings_up_nothing_that_was_unloaded(server: Server, home: Path) -> None:
    registry = EmbeddedRegistry(Settings(home=home))
    with triton_http.InferenceServerClient(server.http) as client:
        client.unload_model("moving")
        for name in ("moving", "beacon"):  # told in this order
            publish(registry, LinearBundle(name=name, version="2", scale=3).write(home / "store"))
        until(lambda: client.is_model_ready("beacon", "2"))
        assert listed(client)["moving", ""] == ("UNAVAILABLE", "unloaded")
        assert server.total("seatrial_alias_drift_seconds", model="moving") == 0
        client.load_model("moving")
        assert client.infer("moving", asked(client)).as_numpy("y").tolist() == linear(X, scale=3).tolist()


def test_after_all_that_the_server_still_answers(server: Server, client: Client) -> None:
    assert client.infer("linear", asked(client)).as_numpy("y").tolist() == linear(X).tolist()
    assert "Traceback" not in server.err.read_text()
