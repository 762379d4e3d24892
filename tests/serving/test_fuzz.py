"""Bytes that no client should send, made from bytes that clients do send: over REST, on raw HTTP/1.1, and over gRPC.

After each case the server answers a good request; in the end the same processes run and no traceback was written. A few
seconds of cases in `make test`, minutes of them in `make test-slow`.
"""

import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import hypothesis.strategies as st
import numpy as np
import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings

from seatrial.protocol import InferRequest, Tensor, encode_request
from seatrial.tensors import DataType
from seatrial_serving.doors.calls import PREFIX
from seatrial_serving.doors.http2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from seatrial_serving.open_inference import SERVICE, messages
from tests.servers import Server, serving
from tests.serving.models import EncoderBundle, LinearBundle, everything_onnx, linear, pair_onnx

SOME, MANY = 60, 12_000
CASES = pytest.mark.parametrize(
    "cases", [SOME, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["some", "many"]
)
PATIENCE_S = 0.05
"""How long an answer is waited for that may never come."""
LIMITS = {
    "SEATRIAL_SERVING__LIMITS__BODY_BYTES": str(256 * 1024),
    "SEATRIAL_SERVING__LIMITS__HEADER_BYTES": str(16 * 1024),
    "SEATRIAL_SERVING__LIMITS__RECEIVE_S": "2",
    "SEATRIAL_SERVING__ENGINES__COUNT": "1",
    "SEATRIAL_SERVING__REQUEST_LOG": "false",
}
X = [[1.0, 2.0, 3.0, 4.0]]
GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": X}]}).encode()
GOOD_REQUEST = messages.ModelInferRequest(model_name="linear", id="good")
GOOD_REQUEST.inputs.add(name="x", datatype="FP32", shape=[1, 4])
GOOD_REQUEST.raw_input_contents.append(np.array(X, np.float32).tobytes())


@dataclass
class Target:
    """The server, and a client of each kind that asks it something right."""

    server: Server
    rest: http.client.HTTPConnection
    channel: grpc.Channel

    @property
    def infer(self) -> Callable[..., bytes]:
        return self.channel.unary_unary(f"/{SERVICE}/ModelInfer")  # messages as bytes, both ways

    def still_answers_rest(self) -> None:
        self.rest.request("POST", "/v2/models/linear/infer", GOOD)
        with self.rest.getresponse() as response:
            assert response.status == 200
            assert json.load(response)["outputs"][0]["data"] == linear(X).ravel().tolist()

    def still_answers_grpc(self) -> None:
        answer = messages.ModelInferResponse.FromString(self.infer(GOOD_REQUEST.SerializeToString(), timeout=10))
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == linear(X).ravel().tolist()

    def connect(self, address: str) -> socket.socket:
        host, port = address.rsplit(":", 1)
        opened = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    place = tmp_path_factory.mktemp("fuzz")
    what = (
        *(LinearBundle().write(place).path, EncoderBundle().write(place).path),
        *(everything_onnx(place / "everything.onnx"), pair_onnx(place / "pair.onnx")),
    )
    with serving(*what, place=place / "server", environment=LIMITS) as server:
        engines = {engine.pid for engine in server.engines()}
        host, port = server.http.rsplit(":", 1)
        rest = http.client.HTTPConnection(host, int(port), timeout=20)
        with closing(rest), grpc.insecure_channel(server.grpc) as channel:
            yield Target(server, rest, channel)
        assert {engine.pid for engine in server.engines()} == engines
        assert server.total("seatrial_engine_deaths_total") == 0
        said = server.err.read_text()
        first = max(said.find("Traceback"), said.find("this is a bug"))
        assert first < 0, said[first : first + 5000]


T = TypeVar("T")


def for_many(cases: int, strategy: st.SearchStrategy[T], holds: Callable[[T], None]) -> None:
    """`holds` for `cases` of `strategy`."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    settings(max_examples=cases, deadline=None, suppress_health_check=quiet)(given(strategy)(holds))()


# Mutations of bytes


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of `seeds`, with some of it flipped, cut, repeated, replaced, or spliced with another."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 16))
        match draw(st.integers(0, 7)):
            case 0 if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes((data[at] ^ 1 << draw(st.integers(0, 7)),)) + data[at + 1 :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at + size :]
            case 3:
                data = data[: at + size] + data[at:]
            case 4:
                data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
            case 5:
                data = data[:at] + draw(st.sampled_from(SPICE)) + data[at + draw(st.sampled_from((0, size))) :]
            case 6:
                data = data[:at] + draw(st.sampled_from(seeds))[draw(st.integers(0, len(data))) :]
            case 7:
                numbers = (struct.pack(kind, value) for kind in ("<I", ">I") for value in (0, 2**31, 2**32 - 1))
                data = data[:at] + draw(st.sampled_from(list(numbers))) + data[at + 4 :]
    return data


SPICE = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b",", b":", b'"', b"[", b"]", b"{", b"}", b"\xff", b"\xc3\x28"),
    *(b"-1", b"0", b"1e309", b"NaN", b"18446744073709551616", b"null", b"true", b"[" * 2000, b'{"a":' * 500, b"0" * 5000),
    *(b"Content-Length: 5\r\n", b"Content-Length: -5\r\n", b"Transfer-Encoding: chunked\r\n", b" chunked", b"0\r\n\r\n"),
    *(b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"HTTP/1.0", b"HTTP/9.9", b"Host: x\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate\r\n", b"Inference-Header-Content-Length: 9\r\n"),
)  # fmt: skip


# Bodies of /v2: what JSON says about the binary data behind it


def everything(*, rows: int = 1) -> InferRequest:
    tensors = []
    for datatype in DataType:
        if datatype is not DataType.BF16:
            text = np.full((rows, 2), b"ab", object)
            array = text if datatype is DataType.BYTES else np.ones((rows, 2), datatype.numpy)
            tensors.append(Tensor(f"in_{datatype.lower()}", datatype, array))
    return InferRequest(tuple(tensors), parameters={"binary_data_output": True})


SIZES: st.SearchStrategy[Any] = st.sampled_from(
    (-1, 0, 1, 2, 3, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 10**3000, -(2**63), 1.0, 1.5, "2", None, True, [2], {})
)
NAMES = st.sampled_from(("in_fp32", "in_bytes", "x", "", "in_fp32\0", "\ud800", "é" * 300, 1, None))
DATATYPES = st.sampled_from((*map(str, DataType), "fp32", "", "OBJECT", 3, None))
ELEMENTS = st.sampled_from((
    [], [1, 2], [[1, 2]], [[[1, 2]]], [[1], [2, 3]], ["a", "b"], [None, 1], [True, False], [1e400, 1], [2**70, 1], 5, "ab", {},
    [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]],
))  # fmt: skip
CHANGES = st.one_of(
    st.tuples(st.just("shape"), st.lists(SIZES, max_size=20) | SIZES),
    st.tuples(st.just("name"), NAMES),
    st.tuples(st.just("datatype"), DATATYPES),
    st.tuples(st.just("data"), ELEMENTS),
    st.tuples(st.just("binary_data_size"), SIZES),
    st.tuples(
        st.just("parameters"), st.sampled_from(({}, None, [], {"binary_data_size": "8"}, {"a": [1]}, {"a": None}))
    ),
)
TOP = st.sampled_from((
    ("id", 5), ("id", "é" * 2000), ("id", "\n"), ("parameters", {"priority": -1}), ("parameters", {"timeout": 2**63}),
    ("parameters", {"timeout": 1}), ("parameters", {"priority": 10**30}), ("parameters", {"timeout": 10**400}),
    ("parameters", {"binary_data_output": "no"}),
    ("outputs", [{"name": "out_fp32", "parameters": {"classification": 2**40}}]),
    ("outputs", [{"name": "out_bytes", "parameters": {"classification": 1}}]),
    ("outputs", [{"name": "out_fp16", "parameters": {"binary_data": False}}]),
    ("outputs", [{"name": "out_fp32"}] * 50), ("outputs", [{}]), ("outputs", 3), ("inputs", []), ("inputs", {}),
))  # fmt: skip
LENGTHS = st.sampled_from(
    (
        "",
        "-1",
        "0",
        "1",
        "00",
        "+9",
        " 9",
        "9 ",
        "9,9",
        "0x9",
        "1e2",
        "9.0",
        "1_0",
        "٣",
        "inf",
        "nan",
        "9" * 400,
        str(2**64),
    )
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """A body that is nearly right, and its headers."""
    body, length = encode_request(everything(rows=draw(st.sampled_from((1, 2, 300)))))
    head, tail = json.loads(body[:length]), body[length:]
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            tensor = (
                draw(st.sampled_from(head["inputs"])) if isinstance(head["inputs"], list) and head["inputs"] else {}
            )
            field, value = draw(CHANGES)
            if field == "binary_data_size":
                tensor["parameters"] = {field: value}
            else:
                tensor[field] = value
        else:
            key, value = draw(TOP)
            head[key] = value
    text = json.dumps(head).encode()
    if draw(st.booleans()):
        text = draw(mutated([text, GOOD]))
    if draw(st.booleans()):
        tail = draw(mutated([tail, b""]))
    near = st.integers(-3, 3).map(lambda off: str(len(text) + off))
    stated = draw(st.sampled_from((str(len(text)),) * 3) | near | LENGTHS)
    headers = {"Inference-Header-Content-Length": stated}
    headers |= draw(
        st.sampled_from(
            ({}, {}, {"Content-Encoding": "gzip"}, {"Inference-Timeout-Ms": "0.001"}, {"Accept-Encoding": "gzip"})
        )
    )
    return text + tail, headers


@CASES
def test_bodies_of_inference_requests(target: Target, cases: int) -> None:
    def holds(case: tuple[bytes, dict[str, str]]) -> None:
        body, headers = case
        target.rest.putrequest("POST", "/v2/models/everything/infer")
        for name, value in headers.items():
            target.rest.putheader(name, value.encode())
        target.rest.putheader("Content-Length", str(len(body)))
        target.rest.endheaders(body)
        with target.rest.getresponse() as response:
            said = response.read()
            assert response.status in (200, 400, 413, 415, 504), (response.status, said)
        target.still_answers_rest()

    for_many(cases, bodies(), holds)


ROWS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.just({"b64": "AA="}),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("x", "a", "n", "b64", "columns", "data")), inner)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from((
    *("instances", "inputs", "data", "dataframe_split", "dataframe_records", "params", "signature_name"),
    *("model", "input", "encoding_format", "dimensions"),
))  # fmt: skip
PATHS = st.sampled_from((
    *("/invocations", "/v1/models/pair:predict", "/v1/models/linear:predict", "/v1/models/everything:predict"),
    *("/predictions/linear", "/predictions/pair/1", "/v1/embeddings", "/v2/repository/index"),
))  # fmt: skip
TYPES = st.sampled_from((
    *("application/json", "text/csv", "application/octet-stream", "multipart/form-data; boundary=b", "text/csv; charset=utf-16"),
    *("multipart/form-data; boundary*=utf-8''b", "multipart/form-data; boundary*0=b; boundary*1=c", "a; boundary*99999999*=x"),
    *("", "application/json; charset=é", "multipart/form-data", "a/b;" + "x=y;" * 50, "application/json; charset=\"\\\""),
))  # fmt: skip


def npy(descr: bytes, data: bytes) -> bytes:
    head = b"{'descr': '%s', 'fortran_order': False, 'shape': (4,), }" % descr
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head) + 1) + head + b"\n" + data


def form(*parts: bytes) -> bytes:
    named = (b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + part + b"\r\n" for part in parts)
    return b"".join(named) + b"--b--"


FILES = (
    b"a,b,c,d\n1,2,3,4\n", npy(b"<f4", bytes(16)), form(npy(b"<f4", bytes(16)), npy(b"<f8", bytes(32))),
    form(npy(b"<f8", bytes(32)), b"[1,2,3,4]"),
    b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n[1,2,3,4]\r\n--b--', bytes(16),
    b'{"model": "encoder", "input": [[2, 4, 3]]}', b'{"instances": [[1, 2, 3, 4]]}',
)  # fmt: skip


@CASES
def test_bodies_of_the_other_doors(target: Target, cases: int) -> None:
    said = st.dictionaries(KEYS, ROWS, max_size=3).map(lambda body: json.dumps(body).encode())
    asked = st.tuples(PATHS, TYPES, said | mutated(FILES), st.sampled_from(("linear", "pair", "encoder", "nobody")))

    def holds(case: tuple[str, str, bytes, str]) -> None:
        path, media, body, model = case
        headers: dict[str, str | bytes] = {"Content-Type": media.encode(), "X-Amzn-SageMaker-Target-Model": model}
        target.rest.request("POST", path, body, headers)
        with target.rest.getresponse() as response:
            answer = response.read()
            assert response.status in (200, 400, 404, 413, 415), (response.status, answer)
            json.loads(answer)
        target.still_answers_rest()

    for_many(cases, asked, holds)


# HTTP/1.1 itself


def post(body: bytes, *headers: bytes, path: bytes = b"/v2/models/linear/infer") -> bytes:
    return b"\r\n".join((b"POST " + path + b" HTTP/1.1", b"Host: x", *headers, b"", body))


def stated(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
WHOLE = post(GOOD, stated(GOOD))
STREAMS = (
    WHOLE, WHOLE + WHOLE + LIVE, LIVE + WHOLE, post(CHUNKED, b"Transfer-Encoding: chunked"), LIVE,
    post(GOOD, stated(GOOD), b"Expect: 100-continue"), post(GOOD, stated(GOOD), b"Connection: close") + LIVE,
)  # fmt: skip


def exchange(target: Target, pieces: Sequence[bytes]) -> bytes:
    """Send `pieces` one after the other, and read until the server closes or has nothing more to say."""
    received = b""
    with target.connect(target.server.http) as connection, suppress(TimeoutError, ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
        while chunk := connection.recv(65_536):
            received += chunk
    return received


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


@st.composite
def in_pieces(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    data = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@CASES
def test_streams_of_http(target: Target, cases: int) -> None:
    def holds(pieces: list[bytes]) -> None:
        found = statuses(exchange(target, pieces))
        assert not [status for status in found if status >= 500 and status != 505], found
        target.still_answers_rest()

    for_many(cases, in_pieces(mutated(STREAMS)), holds)


SMUGGLED = b"POST /v2/models/nobody/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
DISAGREEING = {
    "two lengths": post(GOOD + SMUGGLED, stated(GOOD), b"Content-Length: %d" % (len(GOOD) + len(SMUGGLED))),
    "two lengths in one": post(GOOD, b"Content-Length: %d, 5" % len(GOOD)),
    "chunked and a length": post(CHUNKED + SMUGGLED, b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "a length and chunked": post(CHUNKED + SMUGGLED, b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "chunked, but not at last": post(CHUNKED, b"Transfer-Encoding: chunked, identity"),
    "chunked twice": post(CHUNKED, b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "a space before the colon": post(CHUNKED, b"Transfer-Encoding : chunked"),
    "a length that is folded": post(GOOD, b"Content-Length:\r\n %d" % len(GOOD)),
    "a length with a sign": post(GOOD, b"Content-Length: +%d" % len(GOOD)),
    "a length with an underscore": post(GOOD, b"Content-Length: 1_0"),
    "a length beyond numbers": post(GOOD, b"Content-Length: %d" % 2**64),
    "a negative length": post(GOOD, b"Content-Length: -1"),
    "a negative chunk": post(b"-5\r\nabcde\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "a chunk beyond numbers": post(b"1" + b"0" * 16 + b"\r\nabc", b"Transfer-Encoding: chunked"),
    "a null in a header": post(GOOD, stated(GOOD), b"X-A: a\0b"),
    "a line feed alone": WHOLE.replace(b"\r\n", b"\n", 2),
    "a carriage return alone": post(GOOD, stated(GOOD), b"X-A: a\rTransfer-Encoding: chunked"),
    "a name that is none": post(GOOD, stated(GOOD), b"X A: b"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DISAGREEING)
def test_a_request_whose_end_is_not_certain_is_never_taken_for_two(target: Target, kind: str) -> None:
    """One answer at most is a success, and nothing that lies in a body is taken for a request."""
    for _ in range(2):  # the second time the head might have been learned
        received = exchange(target, [DISAGREEING[kind]])
        found = statuses(received)
        assert found.count(200) <= 1
        assert not [status for status in found if status >= 500], received
        assert b"nobody" not in received, "the smuggled request was answered"
        target.still_answers_rest()


# gRPC: messages, and the frames that carry them


def grpc_seeds() -> list[bytes]:
    raw = messages.ModelInferRequest(model_name="everything", id="7")
    typed = messages.ModelInferRequest(model_name="pair")
    for name, datatype, array in everything().inputs:
        raw.inputs.add(name=name, datatype=datatype, shape=array.shape)
        raw.raw_input_contents.append(b"\2\0\0\0ab\2\0\0\0ab" if datatype is DataType.BYTES else array.tobytes())
    typed.inputs.add(name="a", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    typed.inputs.add(name="n", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(3)
    typed.outputs.add(name="twice").parameters["classification"].int64_param = 1
    typed.parameters["timeout"].int64_param = 10**6
    typed.parameters["priority"].uint64_param = 2
    empty = messages.ModelInferRequest(model_name="linear", raw_input_contents=[b""])
    empty.inputs.add(name="x", datatype="FP32", shape=[0, 2**62, 2**62])
    return [message.SerializeToString() for message in (GOOD_REQUEST, raw, typed, empty)]


GRPC_SEEDS = grpc_seeds()
OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
"""Statuses that would say that the server is wrong, and not its client."""


@CASES
def test_messages_of_grpc(target: Target, cases: int) -> None:
    infer = target.infer
    stream: Any = target.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")

    def holds(message: bytes) -> None:
        for ask in (lambda: [infer(message, timeout=10)], lambda: stream(iter((message, GRPC_SEEDS[0])), timeout=10)):
            refusal = None
            try:
                assert not [answer for answer in ask() if b"internal error" in answer]
            except grpc.RpcError as error:
                refusal = error.code()
            assert refusal not in OURS
        target.still_answers_grpc()

    for_many(cases, mutated(GRPC_SEEDS), holds)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A connection with calls on it: whole frames left out, doubled, moved or given other numbers; then bytes changed."""
    encoder = Encoder()
    sent = [frame(SETTINGS, 0, 0)]
    for stream in range(1, 2 * draw(st.integers(1, 3)), 2):
        method = draw(st.sampled_from(("ModelInfer", "ModelInfer", "ModelStreamInfer", "ServerLive", "Nothing")))
        head = encoder.encode(
            [
                *((":method", "POST"), (":scheme", "http"), (":path", f"/{SERVICE}/{method}"), (":authority", "x")),
                *(("content-type", "application/grpc"), ("te", "trailers")),
                *draw(
                    st.lists(
                        st.sampled_from((("grpc-timeout", "1S"), ("grpc-encoding", "gzip"), ("x", "y" * 300))),
                        max_size=2,
                    )
                ),
            ],
            huffman=draw(st.booleans()),
        )
        message = draw(st.sampled_from(GRPC_SEEDS) | mutated(GRPC_SEEDS))
        size = max(0, len(message) + draw(st.sampled_from((0, 0, 0, -1, 1, 2**31))))
        body = PREFIX.pack(draw(st.sampled_from((0, 0, 0, 1, 2))), size) + message
        cut = draw(st.integers(0, len(body)))
        sent += [
            frame(HEADERS, END_HEADERS, stream, head),
            frame(DATA, 0, stream, body[:cut]),
            frame(DATA, END_STREAM, stream, body[cut:]),
        ]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(sent) - 1))
        match draw(st.integers(0, 4)):
            case 0 if len(sent) > 1:
                del sent[at]
            case 1:
                sent.insert(draw(st.integers(0, len(sent))), sent[at])
            case 2:
                sent.insert(0, sent.pop(at))
            case 3:
                kind, flags = draw(st.integers(0, 11)), draw(st.integers(0, 255))
                sent[at] = frame(kind, flags, draw(st.integers(0, 9)), sent[at][9:])
            case 4:
                size = draw(st.sampled_from((0, 1, 2**31 - 1)))
                sent.insert(at, frame(WINDOW_UPDATE, 0, draw(st.integers(0, 5)), size.to_bytes(4, "big")))
    whole = PREFACE + b"".join(sent)
    return draw(mutated([whole])) if draw(st.booleans()) else whole


@CASES
def test_frames_of_http2(target: Target, cases: int) -> None:
    def holds(pieces: list[bytes]) -> None:
        received = b""
        with target.connect(target.server.grpc) as connection, suppress(TimeoutError, ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
            while chunk := connection.recv(65_536):
                received += chunk
        assert b"grpc-status\x0213" not in received, "INTERNAL"
        target.still_answers_grpc()

    for_many(cases, in_pieces(frames()), holds)
