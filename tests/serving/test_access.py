"""Who may do what: a real server that asks, keys made as operators make them, and the clients that present them."""

import hmac
import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from tritonclient.utils import InferenceServerException

from seatrial.cli import shell
from seatrial.errors import InvalidSettings, QuotaExceeded, Unauthenticated
from seatrial.settings import Access, Quota, Serving, load_settings
from seatrial.watched import Watched
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Protocol
from seatrial_serving.access import grants
from seatrial_serving.access.guard import Guard, credential
from seatrial_serving.access.quotas import Allowance
from seatrial_serving.data_plane import DataPlane
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.browser import page
from tests.serving.callers import Made, grant
from tests.serving.models import LinearBundle, linear, linear_onnx

X = [[1.0, 2.0, 3.0, 4.0]]
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}
TRUTH = linear(X)[0].tolist()
INFER = "/v2/models/linear/infer"
ASKING = {"SEATRIAL_SERVING__REPOSITORY_CONTROL": "true", "SEATRIAL_SERVING__ENGINES__COUNT": "1"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("access") / "access.json"
    grant(path, "first")
    return path


@pytest.fixture(scope="module")
def server(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("asking")
    other = linear_onnx(place / "other.onnx", scale=2)
    environment = ASKING | {"SEATRIAL_SERVING__ACCESS__FILE": str(file)}
    with serving(LinearBundle().write(place).path, other, place=place / "s", environment=environment) as running:
        yield running


def ask(server: Server, made: Made, path: str = INFER) -> httpx.Response:
    return httpx.post(server.url(path), json=BODY, headers=made.headers, timeout=30)


def known(server: Server, made: Made) -> Made:
    """`made`, once the server knows it."""
    until(lambda: httpx.get(server.url("/v2"), headers=made.headers).status_code == 200)
    return made


def inputs() -> list[triton_grpc.InferInput]:
    tensor = triton_grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array(X, np.float32))
    return [tensor]


# Who asks


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", INFER), ("GET", "/v2"), ("GET", "/v2/models/linear"), ("GET", "/v2/models/linear/ready"), ("GET", "/nowhere"),
     ("POST", "/v2/repository/index"), ("POST", "/v2/repository/models/linear/unload"), ("POST", "/invocations"),
     ("POST", "/v1/embeddings"), ("GET", "/v1/models"), ("POST", "/predictions/linear"), ("POST", "/v1/models/linear:predict"),
     ("GET", "/v2/health/../models/linear"), ("GET", "/V2/HEALTH/LIVE"), ("GET", "/openapi.json"),
     ("GET", "/docs/")],
)  # fmt: skip
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer seatrial_000000000000_AAAA"}, {"authorization": "Bearer no.such.token"},
     {"x-api-key": "seatrial_"}, {"authorization": "Basic YTpi"}],
)  # fmt: skip
def test_nobody_is_let_in_without_a_key(server: Server, method: str, path: str, headers: dict[str, str]) -> None:
    answer = httpx.request(method, server.url(path), json=BODY if method == "POST" else None, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="seatrial"'
    assert "linear" not in answer.text


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/ping", "/health"])
def test_how_the_server_is_anybody_may_ask(server: Server, path: str) -> None:
    assert httpx.get(server.url(path)).status_code == 200


def test_the_page_is_everybody_s_and_tells_nothing(server: Server) -> None:
    answer = httpx.get(server.url("/docs"))
    assert answer.status_code == 200
    assert "linear" not in answer.text
    assert not re.search(r"localStorage|sessionStorage|cookie|location\.hash|indexedDB", answer.text)


def test_in_a_browser_the_page_asks_for_a_key_and_shows_it(server: Server, file: Path, tmp_path: Path) -> None:
    made = known(server, grant(file, "reader"))
    with page(server.url("/docs"), tmp_path) as shown:
        until(lambda: shown.run("document.getElementById('access')?.hidden") is False)
        assert "the server asks who calls" in shown.run("document.body.innerText")
        shown.run(
            f"key = document.getElementById('key'), key.value = '{made.key}', key.dispatchEvent(new Event('change'))"
        )
        until(lambda: shown.run("document.querySelectorAll('#models h2').length") == 2)
        shown.run("document.querySelector('button.send').click()")
        until(lambda: " after " in shown.run("document.querySelector('.act [role=status]').textContent"))
        assert shown.run("document.querySelector('.act [role=status]').textContent").startswith("200 ")
        assert made.key not in shown.run("document.documentElement.outerHTML + location.href")


def test_over_grpc_nobody_is_let_in_either_but_for_health(server: Server) -> None:
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for refused in (
            lambda: client.infer("linear", inputs()),
            client.get_server_metadata,
            client.get_model_repository_index,
        ):
            with pytest.raises(InferenceServerException) as told:
                refused()
            assert "UNAUTHENTICATED" in str(told.value.status())
    with grpc.insecure_channel(server.grpc) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
        unknown: Any = channel.unary_unary("/inference.GRPCInferenceService/Nothing")
        with pytest.raises(grpc.RpcError) as told_too:
            unknown(b"", metadata=[("authorization", "Bearer seatrial_x")])
        assert told_too.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_clients_that_people_have_present_keys(server: Server, file: Path) -> None:
    made = known(server, grant(file))
    by_name = {"x-api-key": made.key}
    for headers in (made.headers, by_name, made.headers | by_name, {"authorization": f"bearer  {made.key}"}):
        for _ in range(2):  # once parsed, once remembered
            answer = httpx.post(server.url(INFER), json=BODY, headers=headers)
            assert answer.json()["outputs"][0]["data"] == TRUTH
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            answered = client.infer("linear", inputs(), headers=headers)
            assert answered.as_numpy("y")[0].tolist() == TRUTH
    with triton_http.InferenceServerClient(server.http) as plain:
        tensor = triton_http.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.array(X, np.float32))
        assert plain.infer("linear", [tensor], headers=made.headers).as_numpy("y")[0].tolist() == TRUTH
    with openai.OpenAI(base_url=server.url("/v1"), api_key=made.key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["linear", "other"]
    with (
        openai.OpenAI(base_url=server.url("/v1"), api_key="sk-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_two_keys_that_differ_are_none() -> None:
    assert credential([(b"authorization", b"Bearer a"), (b"x-api-key", b"a")]) == b"a"
    assert credential([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")]) == b""
    assert credential([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]) == b""


@pytest.mark.parametrize("body", ["content-length: 67108864", "transfer-encoding: chunked"])
def test_a_stranger_is_told_so_before_a_body_is_read(server: Server, body: str) -> None:
    host, port = server.http.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\n{body}\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(4096):  # to the end: the server closes
            answer += part
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer


def test_a_stranger_with_a_small_body_keeps_the_connection(server: Server, file: Path) -> None:
    made = known(server, grant(file))
    with httpx.Client() as client:
        assert client.post(server.url(INFER), json=BODY).status_code == 401
        assert client.post(server.url(INFER), json=BODY, headers=made.headers).status_code == 200
        assert client.post(server.url(INFER), json=BODY).status_code == 401, "a key is for its own request alone"


# What they may do


def test_rights_are_for_models_and_acts(server: Server, file: Path) -> None:
    made = known(server, grant(file, "narrow", acts=["infer"], models=["lin*"]))
    assert ask(server, made).json()["outputs"][0]["data"] == TRUTH
    for path in ("/v2/models/other/infer", "/v2/models/nobody/infer", "/predictions/other", "/v1/models/other:predict"):
        refused = ask(server, made, path)
        assert (refused.status_code, "'narrow' may not infer" in refused.text) == (403, True)
    for path in (
        "/v2/models/linear",
        "/v2/models/linear/stats",
        "/v2/models/other/ready",
        "/v1/models/linear/metadata",
    ):
        assert httpx.get(server.url(path), headers=made.headers).status_code == 403
    for what in ("load", "unload"):
        assert ask(server, made, f"/v2/repository/models/linear/{what}").status_code == 403
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        calls: tuple[Callable[[], Any], ...] = (
            lambda: client.infer("other", inputs(), headers=made.headers),
            lambda: client.get_model_metadata("linear", headers=made.headers),
            lambda: client.unload_model("linear", headers=made.headers),
        )
        for refused_call in calls:
            with pytest.raises(InferenceServerException) as told:
                refused_call()
            assert "PERMISSION_DENIED" in str(told.value.status())


def test_lists_have_only_what_the_caller_may_know_of(server: Server, file: Path) -> None:
    made = known(server, grant(file, "narrow", acts=["read", "manage"], models=["other", "ghost"]))
    index = httpx.post(server.url("/v2/repository/index"), headers=made.headers).json()
    models = httpx.get(server.url("/v1/models"), headers=made.headers).json()["data"]
    torchserve = httpx.get(server.url("/models"), headers=made.headers).json()["models"]
    statistics = httpx.get(server.url("/v2/models/stats"), headers=made.headers).json()["model_stats"]
    assert [each["name"] for each in index] == ["other"]
    assert [each["id"] for each in models] == ["other"]
    assert [each["modelName"] for each in torchserve] == ["other"]
    assert [each["name"] for each in statistics] == ["other"]
    unknown = httpx.get(server.url("/v2/models/other/versions/9"), headers=made.headers)
    assert (unknown.status_code, "linear" in unknown.text) == (404, False)
    ghost = httpx.post(server.url("/v2/repository/models/ghost/load"), headers=made.headers)
    assert (ghost.status_code, "linear" in ghost.text) == (404, False)


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e%2fother.onnx",
        "..",
        "%00",
        "linear%2F..%2Fother",
        "%2Fetc%2Fpasswd",
        "a%5C..%5Cb",
    ],
)
def test_no_name_reaches_a_path(server: Server, file: Path, name: str) -> None:
    made = known(server, grant(file, "manager", acts=["manage", "infer", "read"]))
    for path in (f"/v2/repository/models/{name}/load", f"/v2/models/{name}/infer", f"/predictions/{name}"):
        assert ask(server, made, path).status_code in (400, 404, 405)
    with triton_grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as told:
        client.load_model("../../etc/passwd", headers=made.headers)
    assert "NOT_FOUND" in str(told.value.status())


# Changes while it runs


def test_a_key_is_rotated_and_revoked_under_load_and_nobody_else_notices(server: Server, file: Path) -> None:
    old = known(server, grant(file, "rotating"))
    current = [old]
    stop, statuses = threading.Event(), []

    def rest() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                statuses.append(client.post(server.url(INFER), json=BODY, headers=current[0].headers).status_code)

    def grpc_calls() -> None:
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            while not stop.is_set():
                client.infer("linear", inputs(), headers=current[0].headers)
                statuses.append(200)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(each) for each in (rest, grpc_calls)]
        try:
            until(lambda: len(statuses) > 20)
            current[0] = known(server, grant(file, "rotating"))
            before = len(statuses)
            until(lambda: len(statuses) > before + 4)  # whoever had the old one in hand is done with it
            grants.remove(file, old.id)
            began = time.monotonic()
            until(lambda: ask(server, old).status_code == 401)
            assert time.monotonic() - began < 5
            after = len(statuses)
            until(lambda: len(statuses) > after + 20)
        finally:
            stop.set()
        for each in running:
            each.result()
    assert set(statuses) == {200}
    with triton_grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as told:
        client.infer("linear", inputs(), headers=old.headers)
    assert "revoked" in told.value.message()


def test_a_stream_that_was_begun_with_a_key_ends_with_it(server: Server, file: Path) -> None:
    made = known(server, grant(file, "streaming"))
    answers: list[object] = []
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.append(error or result), headers=made.headers)
        client.async_stream_infer("linear", inputs())
        until(lambda: answers)
        assert not isinstance(answers[0], InferenceServerException)
        grants.remove(file, made.id)

        def refused() -> bool:
            try:
                client.async_stream_infer("linear", inputs())
            except InferenceServerException:  # the stream has ended
                return True
            return isinstance(answers[-1], InferenceServerException)

        until(refused)
        client.stop_stream()
    assert "revoked" in str(answers[-1])


def test_a_key_expires_by_itself(server: Server, file: Path) -> None:
    made = known(server, grant(file, "passing", lasts_s=4))
    until(lambda: ask(server, made).status_code == 401)
    assert "has expired" in ask(server, made).json()["error"]


def test_a_file_that_cannot_be_read_changes_nothing(server: Server, file: Path) -> None:
    made = known(server, grant(file))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    try:
        until(lambda: ask(server, made).status_code == 200 and "does not say who may do what" in server.err.read_text())
        assert ask(server, made).status_code == 200
    finally:
        file.write_bytes(whole)


# Quotas


def test_who_is_over_its_quota_is_told_when_to_come_back_and_others_are_not_hurt(server: Server, file: Path) -> None:
    greedy = known(server, grant(file, "greedy", requests_per_s=0.01))
    modest = known(server, grant(file, "modest", requests_per_s=1000))
    assert ask(server, greedy).status_code == 200
    refused = ask(server, greedy)
    assert refused.status_code == 429
    assert 90 < int(refused.headers["retry-after"]) <= 100
    assert [ask(server, modest).status_code for _ in range(5)] == [200] * 5
    with triton_grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as told:
        client.infer("linear", inputs(), headers=greedy.headers)
    assert "RESOURCE_EXHAUSTED" in str(told.value.status())
    again = known(server, grant(file, "greedy", requests_per_s=0.01))
    assert ask(server, again).status_code == 429, "another key of the same name has the same quota"
    assert server.total("seatrial_rejected_total", model="linear", reason="quota") >= 3


def test_rows_are_owed() -> None:
    now = 0.0
    allowance = Allowance(Quota(rows_per_s=10, burst_s=1), clock=lambda: now)
    allowance.take_request("a")
    allowance.take_rows(30)  # 20 more than there are
    with pytest.raises(QuotaExceeded) as told:
        allowance.take_request("a")
    assert told.value.retry_after_s == 3
    now = 2.0
    assert not allowance.is_open
    now = 2.11
    allowance.take_request("a")


def test_each_of_several_gateways_gives_its_share_of_a_quota() -> None:
    now = 0.0
    shares = [Allowance(Quota(requests_per_s=4, burst_s=2), gateways=4, clock=lambda: now) for _ in range(4)]
    for allowance in shares:
        for _ in range(2):
            allowance.take_request("a")
        with pytest.raises(QuotaExceeded, match="in 1 s"):
            allowance.take_request("a")
    now = 1.0
    assert all(allowance.is_open for allowance in shares)


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    now = 0.0
    allowance = Allowance(Quota(requests_per_s=2, burst_s=2), clock=lambda: now)
    for later in (0.0, 1000.0):
        now = later
        for _ in range(4):
            allowance.take_request("a")
        with pytest.raises(QuotaExceeded, match=r"in 0\.5 s"):
            allowance.take_request("a")


# What is kept and told


def test_the_log_names_the_caller_and_nothing_holds_a_key(server: Server, file: Path) -> None:
    made = known(server, grant(file, "logged", models=("linear",)))
    denials = ("unauthenticated", "forbidden")
    before = [server.total("seatrial_denied_requests_total", denial=denial) for denial in denials]
    ask(server, made)
    ask(server, made, "/v2/models/other/infer")
    ask(server, Made("", "seatrial_000000000000_AAAA"))
    until(lambda: any(record.get("caller") == "logged" for record in server.log()))
    after = [server.total("seatrial_denied_requests_total", denial=denial) for denial in denials]
    assert after == [count + 1 for count in before]
    secret = made.key.split("_", 2)[2]  # in which there may be more of them
    assert secret not in server.out.read_text() + server.err.read_text() + file.read_text()


def test_keys_are_made_listed_and_revoked_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEATRIAL_HOME", str(tmp_path))
    file = tmp_path / "access.json"

    def run(*words: str) -> str:
        ended = CliRunner().invoke(shell, ["keys", *words], catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended.stdout

    key = run("create", "mobile-app", "--model", "digits*", "--act", "infer", "--expires", "90").strip()
    assert key.startswith("seatrial_")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    run("allow", "certificate:ci.example.com", "--act", "manage")
    assert "mobile-app: infer with digits*, until" in run("list")
    assert key.rpartition("_")[2] not in run("list") + run("list", "--json") + file.read_text()
    guard = Guard(Access(file=file))
    assert guard.identify(key.encode()).name == "mobile-app"
    assert guard.identify(b"", ["nobody", "ci.example.com"]).name == "certificate:ci.example.com"
    with pytest.raises(Unauthenticated, match="nobody here knows certificate:else"):
        guard.identify(b"", ["else"])
    run("revoke", json.loads(run("list", "--json"))[0]["id"])
    with pytest.raises(Unauthenticated, match="revoked"):
        Guard(Access(file=file)).identify(key.encode())
    for wrong in (["create", "a:b"], ["allow", "mobile-app"]):
        assert CliRunner().invoke(shell, ["keys", *wrong]).exit_code == 2


def test_a_hash_is_compared_in_the_same_time_whatever_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for an id that is not there, so that time does not tell which ids are."""
    made = grant(tmp_path / "access.json")
    compared: list[tuple[int, int]] = []
    right = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return right(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    guard = Guard(Access(file=tmp_path / "access.json"))
    assert guard.identify(made.key.encode()).name == "app"
    for wrong in (made.key[:-1] + ("A" if made.key[-1] != "A" else "B"), "seatrial_000000000000_" + "A" * 43):
        with pytest.raises(Unauthenticated):
            guard.identify(wrong.encode())
    assert compared == [(64, 64)] * 3


def test_files_are_looked_at_once_a_second_and_a_rename_is_a_change(tmp_path: Path) -> None:
    file, now, read = tmp_path / "f", 0.0, 0

    def text() -> str:
        nonlocal read
        read += 1
        if (found := file.read_text()) == "bad":
            raise InvalidSettings("bad")
        return found

    file.write_text("one")
    watched = Watched([file], text, clock=lambda: now)
    (tmp_path / "g").write_text("two")
    os.replace(tmp_path / "g", file)  # noqa: PTH105 - as a deployment does it
    assert watched.current() == "one"
    now = 1.0
    assert [watched.current() for _ in range(3)] == ["two"] * 3
    assert read == 2
    file.write_text("bad")
    now = 2.0
    assert watched.current() == "two"
    file.unlink()
    now = 3.0
    with pytest.raises(FileNotFoundError):  # not an error of ours: readers turn it into one
        watched.current()


def test_a_door_that_does_not_ask_lets_nobody_in(tmp_path: Path) -> None:
    grant(tmp_path / "access.json")
    guard = Guard(Access(file=tmp_path / "access.json"))
    plane = DataPlane(Serving(), ServingMetrics(CollectorRegistry(), 0.1), guard=guard)
    with pytest.raises(AssertionError, match="without asking who"):
        plane.locate(plane.begin(Protocol.REST, "linear"))
    for unasked in (plane.find, plane._may_see):
        with pytest.raises(LookupError):
            unasked("linear")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"access": {"quota": {"requests_per_s": 5}}}, "set access.file too"),
        ({"access": {"file": "f", "tokens": {"issuer": "i"}}}, "belong together"),
        ({"access": {"file": "f", "tokens": {"issuer": "i", "audience": "a", "keys": "http://example.com/k"}}}, "keys"),
        ({"access": {"file": "f", "tokens": {"algorithms": ["HS256"]}}}, "RS256"),
        ({"access": {"file": "f", "tokens": {"algorithms": ["none"]}}}, "RS256"),
        ({"tls": {"certificate": "c"}}, "certificate and key belong together"),
        ({"tls": {"client_ca": "c"}}, "client_ca needs"),
        ({"tls": {"metrics": True}}, "metrics needs"),
    ],
)
def test_settings_that_would_protect_nothing_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettings) as told:
        load_settings(serving=wrong)
    assert words.lower() in str(told.value).lower()


# A port for management


def test_management_has_a_port_of_its_own_and_answers_nowhere_else(tmp_path: Path) -> None:
    environment = ASKING | {"SEATRIAL_SERVING__MANAGEMENT_PORT": "0"}
    with serving(LinearBundle().write(tmp_path).path, place=tmp_path / "s", environment=environment) as server:
        managing = f"http://{server.management}"
        for what in ("load", "unload"):
            for path in (f"/v2/repository/models/linear/{what}", f"/v2/repository%2Fmodels/linear/{what}/"):
                assert httpx.post(server.url(path)).status_code in (404, 405, 307)
        with triton_grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as told:
            client.unload_model("linear")
        assert "UNIMPLEMENTED" in str(told.value.status())
        for path in (INFER, "/predictions/linear", "/v1/models/linear:predict", "/invocations"):
            assert httpx.post(managing + path, json=BODY).status_code in (404, 405)
        assert httpx.get(managing + "/readyz").status_code == 200
        assert httpx.get(managing + "/v2/models/linear").status_code == 200
        assert httpx.post(managing + "/v2/repository/models/linear/unload").status_code == 200
        assert httpx.post(server.url(INFER), json=BODY).status_code == 404
        assert httpx.post(managing + "/v2/repository/models/linear/load", timeout=60).status_code == 200
        assert httpx.post(server.url(INFER), json=BODY).json()["outputs"][0]["data"] == TRUTH
