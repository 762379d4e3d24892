"""TorchServe's door, asked as `curl -T`, `curl -d`, `curl -F` and requests' `files=` ask it."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from seatrial.errors import BadRequest
from seatrial.protocol import InferRequest
from seatrial_serving.doors import torchserve
from seatrial_serving.doors.torchserve import NPY
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import SIGNATURE, LinearBundle, echo_onnx, linear, pair_onnx

ROW, X = [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.5, 2.0]]
ONE, TWO = linear(ROW).tolist(), linear(X).tolist()
OCTETS, JSON = "application/octet-stream", "application/json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("torchserve")
    what = (LinearBundle(version="3").write(place).path, pair_onnx(place / "pair.onnx"), echo_onnx(place / "echo.onnx"))
    with serving(*what, place=place / "server", environment={"SEATRIAL_SERVING__ENGINES__COUNT": "1"}) as running:
        yield running


def npy(values: Any, dtype: str = "<f4", *, order: Any = "C") -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values, dtype, order=order))
    return file.getvalue()


def raw(values: Any) -> bytes:
    return np.asarray(values, np.float32).tobytes()


def post(server: Server, path: str, content: bytes, content_type: str = "") -> httpx.Response:
    headers = {"content-type": content_type} if content_type else {}
    return httpx.post(server.url(f"/predictions/{path}"), content=content, headers=headers)


@pytest.mark.parametrize(
    ("content", "content_type", "answer"),
    [
        (json.dumps(ROW).encode(), JSON, ONE),
        (json.dumps(X).encode(), JSON, TWO),
        (json.dumps({"data": X}).encode(), JSON, TWO),
        (json.dumps({"instances": X}).encode(), JSON, TWO),
        (json.dumps({"x": ROW}).encode(), "application/x-www-form-urlencoded", ONE),
        (npy(ROW), OCTETS, ONE),
        (npy(X), "", TWO),
        (npy(X, order="F"), "", TWO),
        (raw(X), OCTETS, TWO),
        (raw(ROW), "", [ONE]),
    ],
)
def test_one_datum_is_answered_by_one_and_rows_by_rows(
    server: Server, content: bytes, content_type: str, answer: Any
) -> None:
    for path in ("linear", "linear/3"):
        response = post(server, path, content, content_type)
        assert (response.status_code, response.json()) == (200, answer)


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ([("data", npy(ROW))], ONE),
        ([("data", ("x.npy", npy(X), OCTETS))], TWO),
        ([("data", (None, json.dumps(ROW), JSON))], ONE),
        ([("data", (None, json.dumps(ROW)))], ONE),
        ([("data", npy(X[0])), ("data", npy(X[1]))], TWO),
        ([("x", raw(X))], TWO),
        ([("x", ("with\r\n--boundary", npy(np.frombuffer(b"\r\n--" * 4, "<f4"))))], None),
    ],
)
def test_forms_carry_files_and_fields(server: Server, files: Any, answer: Any) -> None:
    response = httpx.post(server.url("/predictions/linear"), files=files)
    assert response.status_code == 200, response.text
    assert answer is None or response.json() == answer


def test_text_and_images_go_in_as_they_are_to_inputs_of_bytes(server: Server) -> None:
    sent = 'a ship, ein Schiff, {"b64": 1}, ☸'.encode()
    assert post(server, "echo", sent).json() == {"text": sent.decode(), "text_bytes": sent.decode()}
    assert post(server, "echo", sent, "text/plain").json()["text"] == sent.decode()
    form = [("data", ("a.txt", b"first")), ("data", ("b.txt", b"second"))]
    assert httpx.post(server.url("/predictions/echo"), files=form).json()["text"] == ["first", "second"]


def test_parts_of_a_form_are_inputs_by_their_names(server: Server) -> None:
    form: Any = {"a": npy([1, 2]), "n": (None, "[2]")}
    assert httpx.post(server.url("/predictions/pair"), files=form).json() == {"quotient": [0.5, 1.0], "twice": [4]}


@pytest.mark.parametrize(
    ("path", "content", "content_type", "status", "words"),
    [
        ("other", b"", "", 404, "no model 'other'"),
        ("linear/4", b"", "", 404, "version 4"),
        ("linear", b"123", OCTETS, 400, "no whole rows"),
        ("linear", b"[[1, 2", JSON, 400, "not JSON"),
        ("linear", npy(X, "<f8"), OCTETS, 400, "datatype FP64"),
        ("linear", npy(X, ">f4"), OCTETS, 400, ">f4"),
        ("linear", npy(X)[:-4], OCTETS, 400, "takes 32 bytes"),
        ("linear", b"\x93NUMPY\x01\x00\xff\xff{", OCTETS, 400, "are none"),
        ("linear", b"\x93NUMPY\x01\x00\x20\x00" + b"[" * 32, OCTETS, 400, "are none"),
        ("linear", npy(["a"], "<U1"), OCTETS, 400, "must hold numbers"),
        ("pair", npy(X), OCTETS, 400, "by its name"),
        ("linear", b"--x\r\n\r\n\r\n--x--", "multipart/form-data; boundary=x", 400, "no name"),
        ("linear", b"--x\r\nnothing", "multipart/form-data; boundary=x", 400, "boundary"),
        ("linear", b"--x--", "multipart/form-data; boundary=x", 400, "no part"),
        ("linear", b"--x--", "multipart/form-data", 400, "boundary"),
        ("linear", b"--x\r\n" * 2000 + b"--x--", "multipart/form-data; boundary=x", 400, "1024 parts"),
    ],
)
def test_what_is_wrong_is_said_in_their_form(
    server: Server, path: str, content: bytes, content_type: str, status: int, words: str
) -> None:
    response = post(server, path, content, content_type)
    assert response.status_code == status, response.text
    assert response.json()["code"] == status
    assert response.json()["type"] == ("ModelNotFoundException" if status == 404 else "BadRequestException")
    assert words in response.json()["message"]


@pytest.mark.parametrize("other", [npy(X), npy(ROW, "<f8")], ids=["shape", "datatype"])
def test_parts_that_differ_are_no_rows(server: Server, other: bytes) -> None:
    response = httpx.post(server.url("/predictions/linear"), files=[("data", npy(ROW)), ("data", other)])
    assert (response.status_code, "one row each" in response.json()["message"]) == (400, True)


def test_a_pickle_in_an_npy_is_not_opened(server: Server) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"an": "object"}], object), allow_pickle=True)
    response = post(server, "linear", file.getvalue(), OCTETS)
    assert (response.status_code, "must hold numbers" in response.json()["message"]) == (400, True)


def test_models_are_listed(server: Server) -> None:
    listed = httpx.get(server.url("/models")).json()["models"]
    assert [model["modelName"] for model in listed] == ["echo", "linear", "pair"]


def test_each_request_is_counted_and_logged_under_the_doors_own_name(server: Server) -> None:
    def count(outcome: str) -> float:
        return server.total("seatrial_requests_total", model="linear", protocol="torchserve", outcome=outcome)

    good, bad = count("ok"), count("client_error")
    post(server, "linear", raw(X))
    post(server, "linear", b"123")
    assert (count("ok"), count("client_error")) == (good + 1, bad + 1)
    endings = [("torchserve", "ok"), ("torchserve", "client_error")]
    until(lambda: [(each["protocol"], each["outcome"]) for each in server.log()[-2:]] == endings)


TYPES = ("", JSON, OCTETS, "text/plain; =;", *(f"multipart/form-data; boundary{way}=x" for way in ("", "*", "*0")))
PIECES = (
    b"--x",
    b"--",
    b"\r\n",
    b"\r\n\r\n",
    b"[1",
    b"]",
    NPY,
    b"\x01\x00",
    b'Content-Disposition: form-data; name="x"',
)


@settings(deadline=None)
@given(st.sampled_from(TYPES), st.binary(max_size=99) | st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join))
def test_any_bytes_are_read_or_refused(content_type: str, body: bytes) -> None:
    with suppress(BadRequest):
        assert isinstance(torchserve.read(SIGNATURE, content_type, body), InferRequest)
