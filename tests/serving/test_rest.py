"""REST as its clients see it: a real server, tritonclient, and raw bytes on a socket."""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from seatrial import __version__
from seatrial.protocol import InferRequest, Tensor, encode_request
from seatrial.tensors import DataType
from seatrial_serving.doors.metadata import EXTENSIONS
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, everything_onnx, linear

HEADER_LIMIT, BODY_LIMIT = 16 * 1024, 1024 * 1024
LIMITS = {
    "SEATRIAL_SERVING__LIMITS__HEADER_BYTES": str(HEADER_LIMIT),
    "SEATRIAL_SERVING__LIMITS__BODY_BYTES": str(BODY_LIMIT),
    "SEATRIAL_SERVING__LIMITS__RECEIVE_S": "0.5",
    "SEATRIAL_SERVING__LIMITS__IDLE_S": "2",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("rest")
    bundle = LinearBundle(version="3", labels=("a", "b", "c")).write(place)
    everything = everything_onnx(place / "everything.onnx")
    with serving(bundle.path, everything, place=place / "server", environment=LIMITS) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.http) as opened:
        yield opened


def asked(x: np.ndarray, *, binary: bool = True) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x.astype(np.float32), binary_data=binary)
    return [tensor]


def body(data: Any = (1, 2, 3, 4), *, shape: tuple[int, ...] = (1, 4), **change: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data} | change]}


# The protocol, through the client that others wrote


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "3")
    assert not client.is_model_ready("linear", "4")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata() == {
        "name": "seatrial",
        "version": __version__,
        "extensions": list(EXTENSIONS),
    }
    metadata = client.get_model_metadata("linear")
    assert metadata["name"] == "linear"
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    assert metadata["properties"]["verified"] == "true"
    assert client.get_model_metadata("everything")["properties"]["verified"] == "false"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_inference_in_every_mix_of_binary_and_json(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    x = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
    wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    answer = client.infer("linear", asked(x, binary=binary_in), outputs=wanted, request_id="42", model_version="3")
    assert answer.as_numpy("y").tolist() == linear(x).tolist()
    assert answer.get_response() | {"outputs": None} == {
        "model_name": "linear",
        "model_version": "3",
        "id": "42",
        "outputs": None,
    }


def test_without_named_outputs_all_are_answered_in_json_or_binary_as_the_request_says(server: Server) -> None:
    answer = httpx.post(server.url("/v2/models/linear/infer"), json=body()).json()
    assert answer["outputs"] == [
        {"name": "y", "shape": [1, 3], "datatype": "FP32", "data": linear([1, 2, 3, 4]).tolist()}
    ]
    binary = httpx.post(
        server.url("/v2/models/linear/infer"), json=body() | {"parameters": {"binary_data_output": True}}
    )
    assert binary.headers["content-type"] == "application/octet-stream"
    head = int(binary.headers["inference-header-content-length"])
    assert np.frombuffer(binary.content[head:], np.float32).tolist() == linear([1, 2, 3, 4]).tolist()


@pytest.mark.anyio
async def test_the_asyncio_client_works_too(server: Server) -> None:
    async with triton_aio.InferenceServerClient(server.http) as client:
        assert await client.is_server_ready()
        answer = await client.infer("linear", asked(np.ones((2, 4))))
        assert answer.as_numpy("y").tolist() == linear(np.ones((2, 4))).tolist()


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_every_datatype_comes_back_as_it_was_sent(server: Server, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 3))
    tensors = []
    for datatype in DataType:
        if datatype is DataType.BF16:
            continue
        elements = st.text(max_size=5).map(str.encode) if datatype is DataType.BYTES else None
        array = data.draw(hnp.arrays(datatype.numpy, (rows, 2), elements=elements))
        tensors.append(Tensor(f"in_{datatype.lower()}", datatype, array))
    sent, head = encode_request(InferRequest(tuple(tensors), parameters={"binary_data_output": True}))
    with triton.InferenceServerClient(server.http) as client:
        inputs = []
        for name, datatype, array in tensors:
            tensor = triton.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        answer = client.infer("everything", inputs)
    for name, datatype, array in tensors:
        got = answer.as_numpy(name.replace("in_", "out_"))
        assert np.array_equal(got, array, equal_nan=array.dtype.kind == "f"), datatype
    raw = httpx.post(
        server.url("/v2/models/everything/infer"), content=sent, headers={"Inference-Header-Content-Length": str(head)}
    )
    assert raw.status_code == 200


def test_the_repository_can_be_read_by_all_and_changed_by_nobody_who_was_not_allowed_to(server: Server) -> None:
    listed = httpx.post(server.url("/v2/repository/index")).json()
    assert {(each["name"], each["version"], each["state"]) for each in listed} == {
        ("linear", "3", "READY"), ("everything", "1", "READY"),
    }  # fmt: skip
    for change in ("load", "unload"):
        refused = httpx.post(server.url(f"/v2/repository/models/linear/{change}"))
        assert refused.status_code == 403
        assert "serving.repository_control is off" in refused.json()["error"]
    assert httpx.get(server.url("/v2/models/linear/ready")).status_code == 200


# What is wrong with a request is said, with its own status, and the server goes on


@pytest.mark.parametrize(
    ("path", "sent", "status", "words"),
    [
        ("/v2/models/nobody/infer", body(), 404, "there is no model 'nobody'"),
        ("/v2/models/linear/versions/9/infer", body(), 404, "there are ['everything/1', 'linear/3']"),
        ("/v2/models/linear/infer", body(name="z"), 400, "there is no input 'z'"),
        ("/v2/models/linear/infer", body(datatype="FP64"), 400, "datatype FP64, expected FP32"),
        ("/v2/models/linear/infer", body(shape=(4,)), 400, "shape [4], expected [-1, 4]"),
        ("/v2/models/linear/infer", body((1, 2, 3)), 400, "has 3 elements"),
        ("/v2/models/linear/infer", body([0] * 400, shape=(100, 4)), 400, "verified for 1 to 64"),
        ("/v2/models/linear/infer", body((1, 2, 3, 1e300)), 400, "too large for FP32"),
        ("/v2/models/linear/infer", body(("1", 2, 3, 4)), 400, "holds str"),
        ("/v2/models/linear/infer", {"inputs": []}, 400, "missing input ['x']"),
        ("/v2/models/linear/infer", {}, 400, "missing required field"),
        ("/v2/models/linear/infer", body() | {"outputs": [{"name": "q"}]}, 400, "there is no output 'q'"),
        ("/v2/models/..%2f..%2fetc%2fpasswd/infer", body(), 404, ""),
    ],
)
def test_each_mistake_has_its_own_answer(server: Server, path: str, sent: Any, status: int, words: str) -> None:
    answer = httpx.post(server.url(path), json=sent)
    assert answer.status_code == status
    assert words in answer.text
    assert set(answer.json()) <= {"error", "detail"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b'{"inputs": [{"name": "x", "shape": [1,4], "datatype": "FP32", "data": [NaN,1,2,3]}]}', {}, 400, "JSON"),
        (b"\xff\xfe", {}, 400, "not an inference request"),
        (b"", {}, 400, "not an inference request"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, 400, "said to be 99 bytes"),
        (b"{}", {"Inference-Header-Content-Length": "many"}, 400, "expected a number"),
        (b"{}", {"Content-Encoding": "gzip"}, 400, "not gzip"),
        (b"{}", {"Content-Encoding": "br"}, 415, "'br'"),
        (gzip.compress(b" " * (BODY_LIMIT + 1), mtime=0), {"Content-Encoding": "gzip"}, 413, "expands to more than"),
        (b"{}", {"Inference-Timeout-Ms": "soon"}, 400, "expected a number"),
        (b"{}", {"Inference-Timeout-Ms": "-1"}, 400, "more than 0"),
        (b"{}", {"Inference-Timeout-Ms": "nan"}, 400, "more than 0"),
        (b" " * (BODY_LIMIT + 1), {}, 413, "larger than"),
    ],
)
def test_bodies_that_are_no_requests(
    server: Server, content: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    answer = httpx.post(server.url("/v2/models/linear/infer"), content=content, headers=headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_body_without_a_stated_length_is_limited_all_the_same(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    with suppress(httpx.TransportError):  # the answer may cross the body that we are still sending
        assert httpx.post(server.url("/v2/models/linear/infer"), content=endless()).status_code == 413
    assert httpx.post(server.url("/v2/models/linear/infer"), json=body()).status_code == 200


def test_a_model_s_answers_are_counted_by_outcome(server: Server) -> None:
    def requests(outcome: str) -> float:
        return server.total("seatrial_requests_total", model="linear", protocol="rest", outcome=outcome)

    good, bad = requests("ok"), requests("client_error")
    unknown = server.total("seatrial_unknown_model_requests_total", protocol="rest")
    httpx.post(server.url("/v2/models/linear/infer"), json=body())
    httpx.post(server.url("/v2/models/linear/infer"), json=body(name="z"))
    httpx.post(server.url("/v2/models/nobody/infer"), json=body())
    assert requests("ok") == good + 1
    assert requests("client_error") == bad + 1
    assert server.total("seatrial_unknown_model_requests_total", protocol="rest") == unknown + 1


def test_each_request_leaves_one_line_in_the_log_without_its_payload(server: Server) -> None:
    httpx.post(server.url("/v2/models/linear/infer"), json=body((7.125, 2, 3, 4)) | {"id": "find-me"})
    until(lambda: [record for record in server.log() if record["id"] == "find-me"])
    [record] = [record for record in server.log() if record["id"] == "find-me"]
    assert (record["model"], record["version"], record["variant"], record["outcome"]) == ("linear", "3", "fp32", "ok")
    assert 0 <= record["queue_ms"] <= record["total_ms"]
    assert "7.125" not in json.dumps(record)


# Clients that are slow, huge or gone


def connect(server: Server) -> socket.socket:
    host, port = server.http.split(":")
    opened = socket.create_connection((host, int(port)), timeout=10)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def first_line(connection: socket.socket) -> bytes:
    """The status line, or nothing where the server closed without one."""
    received = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(4096):
            received += chunk
    return received.partition(b"\r\n")[0]


@pytest.mark.parametrize("ended", [False, True])
def test_headers_over_the_limit_are_refused(server: Server, ended: bool) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * (2 * HEADER_LIMIT))
        if ended:
            connection.sendall(b"\r\n\r\n")
        assert first_line(connection) == b"HTTP/1.1 431 Request Header Fields Too Large"


def test_many_small_headers_count_too(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + b"x-a: 1\r\n" * HEADER_LIMIT)
        assert first_line(connection) == b"HTTP/1.1 431 Request Header Fields Too Large"


def test_headers_at_the_limit_pass(server: Server) -> None:
    assert httpx.get(server.url("/v2"), headers={"x-big": "a" * (HEADER_LIMIT - 500)}).status_code == 200


@pytest.mark.parametrize(
    "half",
    [
        b"POST /v2/models/linear/infer HTT",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: x\r\ncontent-le",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ],
)
def test_a_half_sent_request_is_given_up(server: Server, half: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(half)
        assert first_line(connection) == b"HTTP/1.1 408 Request Timeout"


def test_a_client_that_sends_nothing_is_let_go(server: Server) -> None:
    with connect(server) as connection:
        assert first_line(connection) == b""


def test_a_trickle_does_not_buy_time(server: Server) -> None:
    with connect(server) as connection:
        connection.settimeout(0.1)
        connection.sendall(b"GET /v2 HTTP/1.1\r\n")

        def refused() -> bool:
            try:
                connection.sendall(b"x-a: 1\r\n")
                return b"408" in connection.recv(4096)
            except TimeoutError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True

        until(refused, within_s=5)


def test_two_requests_on_one_connection_at_once_are_both_answered(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        received = b""
        while received.count(b'{"live": true}') < 2:
            received += connection.recv(4096)
        assert received.count(b"HTTP/1.1 200 OK") == 2


def test_after_all_that_the_server_still_answers(server: Server) -> None:
    assert httpx.post(server.url("/v2/models/linear/infer"), json=body()).status_code == 200
    assert "Traceback" not in server.err.read_text()
