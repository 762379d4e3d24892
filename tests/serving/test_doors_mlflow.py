"""MLflow's and SageMaker's door: the same bodies go to MLflow's own scoring code, and the answers are compared."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server import client as scoring_client

from seatrial import __version__
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, echo_onnx, linear, pair_onnx

X = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.5, 2.0]]
COLUMNS = ["a", "b", "c", "d"]
FRAME = pd.DataFrame(X, columns=COLUMNS)
MLFLOW: Any = scoring_server
MLFLOW_CLIENT: Any = scoring_client
"""MLflow gives their functions no types."""

JSON, CSV = "application/json", "text/csv"
BODIES = {
    "dataframe_split": (JSON, json.dumps({"dataframe_split": FRAME.to_dict(orient="split")})),
    "dataframe_split without names": (JSON, json.dumps({"dataframe_split": {"data": X}})),
    "dataframe_records": (JSON, json.dumps({"dataframe_records": FRAME.to_dict(orient="records")})),
    "instances": (JSON, json.dumps({"instances": X})),
    "inputs": (JSON, json.dumps({"inputs": X, "params": {"temperature": 1}})),
    "a charset": (JSON + "; charset=UTF-8", json.dumps({"inputs": X})),
    "csv": (CSV, FRAME.to_csv(index=False)),
    "csv of numbered columns": (CSV, pd.DataFrame(X).to_csv(index=False)),
}


class Linear:
    """A pyfunc model that returns a tensor, as far as MLflow's scoring code looks at it."""

    metadata = None

    def predict(self, data: Any) -> np.ndarray:
        return linear(data)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("mlflow")
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__LIMITS__BODY_BYTES": "65536"}
    with serving(LinearBundle().write(place).path, place=place / "server", environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("several")
    what = (pair_onnx(place / "pair.onnx"), echo_onnx(place / "echo.onnx"))
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1"}
    with serving(*what, place=place / "server", environment=environment) as running:
        yield running


def invoke(server: Server, body: Any, content_type: str = JSON, **headers: str) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url("/invocations"), content=content, headers={"content-type": content_type, **named})


@pytest.mark.parametrize("form", BODIES)
def test_every_form_is_answered_as_mlflow_answers_it(server: Server, form: str) -> None:
    content_type, body = BODIES[form]
    theirs = MLFLOW.invocations(body, content_type, Linear(), None)
    ours = invoke(server, body, content_type)
    assert (ours.status_code, ours.json()) == (theirs.status, json.loads(theirs.response))
    assert ours.json() == {"predictions": linear(X).tolist()}
    assert ours.headers["content-type"] == theirs.mimetype


def test_mlflows_own_client_is_served(server: Server) -> None:
    client = MLFLOW_CLIENT.ScoringServerClient(*server.http.split(":"))
    client.wait_server_ready()
    assert client.get_version() == __version__
    assert client.invoke(FRAME).get_predictions().values.tolist() == linear(X).tolist()
    assert client.invoke(np.array(X)).get_predictions("ndarray").tolist() == linear(X).tolist()


def test_health_has_one_body_for_mlflow_sagemaker_and_torchserve(server: Server) -> None:
    for path in ("/ping", "/health"):
        answer = httpx.get(server.url(path))
        assert (answer.status_code, answer.json()) == (200, {"status": "Healthy"})


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        ({"inputs": X}, "application/octet-stream", 415, "application/json or text/csv"),
        ({"inputs": X}, "", 415, "application/json or text/csv"),
        ({"inputs": X}, JSON + "; charset=latin-1", 415, "UTF-8"),
        ("{", JSON, 400, "not JSON"),
        (b'{"inputs": "\xff"}', JSON, 400, "not JSON"),
        ("[" * 100_000, JSON, 413, "serving.limits.body_bytes"),
        ("[" * 60_000, JSON, 400, "not JSON"),
        (X, JSON, 400, "expected an object"),
        ({"data": X}, JSON, 400, "exactly one of"),
        ({"inputs": X, "instances": X}, JSON, 400, "exactly one of"),
        ({"inputs": X, "params": [1]}, JSON, 400, "params"),
        ('{"inputs": [[NaN, 1, 2, 3]]}', JSON, 400, "not JSON"),
        ({"inputs": [[1, 2, 3]]}, JSON, 400, "shape [1, 3], expected [-1, 4]"),
        ({"inputs": {"z": X}}, JSON, 400, "there is no input 'z'"),
        ({"dataframe_split": {"columns": COLUMNS, "data": [[1, 2, 3]]}}, JSON, 400, "4 columns"),
        ({"dataframe_split": {"columns": COLUMNS}}, JSON, 400, "dataframe_split"),
        ({"dataframe_split": {"columns": 4, "data": X}}, JSON, 400, "columns"),
        ({"dataframe_records": [{"a": 1}, {"b": 1}]}, JSON, 400, "do not agree"),
        ({"dataframe_records": {"a": 1}}, JSON, 400, "list of objects"),
        ({"dataframe_records": []}, JSON, 400, "size 0"),
        ("", CSV, 400, "column names"),
        (b"\xff", CSV, 400, "CSV"),
        ('a,b,c,d\n"1', CSV, 400, "CSV"),
        ("1.5,2,3,4\n5,6,7,8\n", CSV, 400, "names first"),
        ("a,b,c,d\n1,2,3\n", CSV, 400, "4 columns"),
        ("a,b,c,d\n1,2,3,\n", CSV, 400, "FP32"),
        ("a,b,c,d\n1,2,3,nan\n", CSV, 400, "FP32"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_mlflows_form(
    server: Server, body: Any, content_type: str, status: int, words: str
) -> None:
    answer = invoke(server, body, content_type)
    assert answer.status_code == status, answer.text
    assert answer.json()["error_code"] == "BAD_REQUEST"
    assert words in answer.json()["message"]
    assert invoke(server, {"inputs": X}).status_code == 200


def test_a_body_may_come_compressed_and_is_bounded_by_what_it_expands_to(server: Server) -> None:
    body = gzip.compress(json.dumps({"inputs": X}).encode())
    assert invoke(server, body, content_encoding="gzip").json() == {"predictions": linear(X).tolist()}
    assert invoke(server, gzip.compress(b" " * 70_000), content_encoding="gzip").status_code == 413
    assert invoke(server, body[:-9], content_encoding="gzip").status_code == 400


def test_each_request_is_counted_and_logged_under_the_doors_own_name(server: Server) -> None:
    labels = {"model": "linear", "protocol": "mlflow"}
    before = {
        outcome: server.total("seatrial_requests_total", outcome=outcome, **labels)
        for outcome in ("ok", "client_error")
    }
    assert invoke(server, {"inputs": X}).status_code == 200
    assert invoke(server, "{").status_code == 400
    assert invoke(server, {"inputs": X}, content_encoding="br").status_code == 415
    assert server.total("seatrial_requests_total", outcome="ok", **labels) == before["ok"] + 1
    assert server.total("seatrial_requests_total", outcome="client_error", **labels) == before["client_error"] + 2
    until(lambda: (server.log() or [{}])[-1].get("error") == "UnsupportedEncoding")
    *_, good, malformed, encoded = server.log()
    assert [record["protocol"] for record in (good, malformed, encoded)] == ["mlflow"] * 3
    assert (good["outcome"], good["model"], good["rows"]) == ("ok", "linear", 2)
    assert (malformed["outcome"], malformed["error"]) == ("client_error", "MalformedRequest")
    assert encoded["outcome"] == "client_error"


def test_where_several_are_served_the_request_must_say_which(several: Server) -> None:
    unnamed = invoke(several, {"inputs": ["x"]})
    assert unnamed.status_code == 400
    assert "['echo', 'pair']" in unnamed.json()["message"]
    assert several.total("seatrial_unknown_model_requests_total", protocol="mlflow") == 1
    until(lambda: several.log() and several.log()[-1]["error"] == "MalformedRequest")
    unknown = invoke(several, {"inputs": ["x"]}, x_amzn_sagemaker_target_model="other")
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert several.total("seatrial_unknown_model_requests_total", protocol="mlflow") == 2
    named = invoke(several, {"inputs": ["x"]}, x_amzn_sagemaker_target_model="echo")
    assert named.json() == {"predictions": {"text": ["x"], "text_bytes": ["x"]}}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({"inputs": {"a": [[1, 2], [3, 4]], "n": [[2], [0]]}}, JSON),
        ({"instances": [{"a": [1, 2], "n": [2]}, {"n": [0], "a": [3, 4]}]}, JSON),
        ({"dataframe_split": {"columns": ["n", "a"], "data": [[2, [1, 2]], [0, [3, 4]]]}}, JSON),
        ({"dataframe_records": [{"a": [1, 2], "n": 2}, {"a": [3, 4], "n": 0}]}, JSON),
    ],
)  # fmt: skip
def test_several_inputs_and_outputs_go_by_name_and_what_is_not_finite_is_null(
    several: Server, body: Any, content_type: str
) -> None:
    answer = invoke(several, body, content_type, x_amzn_sagemaker_target_model="pair")
    assert answer.json() == {"predictions": {"quotient": [[0.5, 1.0], [None, None]], "twice": [[4], [0]]}}


def test_cells_of_csv_are_read_as_the_inputs_type(several: Server) -> None:
    answer = invoke(several, 'said\n"a, b"\n7\n', CSV, x_amzn_sagemaker_target_model="echo")
    assert answer.json()["predictions"]["text"] == ["a, b", "7"]
