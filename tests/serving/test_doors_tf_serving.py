"""TensorFlow Serving's REST and Vertex AI's, by the examples and rules of their documentation."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from seatrial.settings import Serving
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Outcome, Protocol
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.http import Application, HttpServer, listen
from tests.conditions import soon, until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, echo_onnx, linear, pair_onnx
from tests.serving.scripted import ScriptedEngine, generation

X = [[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.5, 2.0]]
ROWS = [{"a": [1, 2], "n": [2]}, {"a": [3, 4], "n": [0]}]
VERTEX = {
    "AIP_PREDICT_ROUTE": "/v1/endpoints/12/deployedModels/34:predict",
    "AIP_HEALTH_ROUTE": "/v1/endpoints/12/deployedModels/34",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("tf_serving")
    what = (LinearBundle(version="3").write(place).path, pair_onnx(place / "pair.onnx"), echo_onnx(place / "echo.onnx"))
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__DOORS__MODEL": "pair", **VERTEX}
    with serving(*what, place=place / "server", environment=environment) as running:
        yield running


def predict(server: Server, path: str, body: Any) -> httpx.Response:
    return httpx.post(server.url(f"/v1/models/{path}:predict"), json=body)


@pytest.mark.parametrize("path", ["linear", "linear/versions/3"])
def test_one_input_and_one_output_need_no_names(server: Server, path: str) -> None:
    y = linear(X).tolist()
    assert predict(server, path, {"instances": X}).json() == {"predictions": y}
    assert predict(server, path, {"instances": [{"x": row} for row in X]}).json() == {"predictions": y}
    assert predict(server, path, {"inputs": X, "signature_name": "serving_default"}).json() == {"outputs": y}
    assert predict(server, path, {"inputs": {"x": X}}).json() == {"outputs": y}


def test_several_go_by_name_in_rows_and_in_columns(server: Server) -> None:
    in_rows = [{"quotient": [0.5, 1.0], "twice": [4]}, {"quotient": [None, None], "twice": [0]}]
    assert predict(server, "pair", {"instances": ROWS}).json() == {"predictions": in_rows}
    columns = {"a": [[1, 2], [3, 4]], "n": [[2], [0]]}
    in_columns = {"quotient": [[0.5, 1.0], [None, None]], "twice": [[4], [0]]}
    assert predict(server, "pair", {"inputs": columns}).json() == {"outputs": in_columns}


def test_bytes_travel_as_base64_where_the_name_says_so(server: Server) -> None:
    ship = {"b64": base64.b64encode(b"ship").decode()}
    answer = predict(server, "echo", {"instances": ["ship", ship]}).json()
    assert answer == {"predictions": [{"text": "ship", "text_bytes": ship}] * 2}
    assert predict(server, "echo", {"instances": [{"said": ship}]}).json()["predictions"] == answer["predictions"][:1]
    assert predict(server, "echo", {"inputs": [ship]}).json() == {"outputs": {"text": ["ship"], "text_bytes": [ship]}}


def test_status_also_answers_openais_question(server: Server) -> None:
    available = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("linear", "linear/versions/3"):
        status = httpx.get(server.url(f"/v1/models/{path}")).json()
        assert status["model_version_status"] == [available]
        assert (status["id"], status["object"]) == ("linear", "model")


def test_metadata_says_the_signature_in_tensorflows_words(server: Server) -> None:
    metadata = httpx.get(server.url("/v1/models/pair/metadata")).json()
    assert metadata["model_spec"] == {"name": "pair", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["n"] == {
        "name": "n",
        "dtype": "DT_INT64",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False},
    }
    assert signature["outputs"]["quotient"]["dtype"] == "DT_FLOAT"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("other", {"instances": X}, 404, "no model 'other'"),
        ("linear/versions/4", {"instances": X}, 404, "version 4"),
        ("linear/labels/champion", {"instances": X}, 404, "alias champion"),
        ("linear", {}, 400, "'instances' and 'inputs'"),
        ("linear", {"instances": X, "inputs": X}, 400, "'instances' and 'inputs'"),
        ("linear", {"instances": X, "signature_name": "other"}, 400, "signature"),
        ("linear", {"instances": []}, 400, "at least one row"),
        ("linear", {"instances": 3}, 400, "at least one row"),
        ("linear", {"instances": [{"x": X[0]}, X[1]]}, 400, "do not agree"),
        ("linear", {"instances": [X[0], X[1][:3]]}, 400, "ragged"),
        ("linear", {"inputs": {"z": X}}, 400, "no input 'z'"),
        ("pair", {"instances": X}, 400, "by its name"),
        ("pair", {"instances": [{"a": [1, 2]}]}, 400, "missing input ['n']"),
        ("pair", {"inputs": {"a": [[1, 2]], "n": [[1.5]]}}, 400, "INT64"),
        ("echo", {"instances": [{"b64": "/w=="}]}, 400, "UTF-8"),
        ("..%2f..%2fetc", {"instances": X}, 404, ""),
    ],
)
def test_what_is_wrong_is_said_in_their_form(server: Server, path: str, body: Any, status: int, words: str) -> None:
    answer = predict(server, path, body)
    assert answer.status_code == status, answer.text
    assert words in answer.json().get("error", "")


@pytest.mark.parametrize("path", ["other", "linear/versions/4", "linear/labels/champion", "other/metadata"])
def test_status_of_what_is_not_served_is_404(server: Server, path: str) -> None:
    answer = httpx.get(server.url(f"/v1/models/{path}"))
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_vertex_asks_and_probes_the_paths_that_its_environment_names(server: Server) -> None:
    assert httpx.get(server.url(VERTEX["AIP_HEALTH_ROUTE"])).status_code == 200
    answer = httpx.post(server.url(VERTEX["AIP_PREDICT_ROUTE"]), json={"instances": ROWS[:1], "parameters": {}})
    assert answer.json() == {"predictions": [{"quotient": [0.5, 1.0], "twice": [4]}]}


def test_each_request_is_counted_and_logged_under_the_doors_own_name(server: Server) -> None:
    def count(outcome: str) -> float:
        return server.total("seatrial_requests_total", model="linear", protocol="tf_serving", outcome=outcome)

    good, bad, unknown = count("ok"), count("client_error"), server.total("seatrial_unknown_model_requests_total")
    predict(server, "linear", {"instances": X})
    predict(server, "linear/versions/3", {"instances": 3})
    predict(server, "other", {"instances": X})
    assert (count("ok"), count("client_error")) == (good + 1, bad + 1)
    assert server.total("seatrial_unknown_model_requests_total") == unknown + 1
    until(lambda: (server.log() or [{}])[-1].get("error") == "UnknownModel")
    endings = [(each["protocol"], each["outcome"], each.get("error", "")) for each in server.log()[-3:]]
    assert endings == [
        ("tf_serving", "ok", ""),
        ("tf_serving", "client_error", "WrongInput"),
        ("tf_serving", "client_error", "UnknownModel"),
    ]


@pytest.mark.anyio
async def test_an_alias_is_a_label_and_a_client_that_leaves_is_counted_as_gone() -> None:
    engine, settings = ScriptedEngine(held_back=True), Serving()
    async with generation(lambda: engine, serving=settings) as on:
        plane = DataPlane(settings, ServingMetrics(CollectorRegistry(), 0.1))
        plane.install(on, default=True)
        plane._aliases["linear", "champion"] = on
        application = Application(plane)
        application.open_rest()
        http, listener = HttpServer(application, settings.limits, door=application.infer), listen("127.0.0.1", 0)
        await http.start(listener)
        ended = on.metrics.requests[Protocol.TF_SERVING]
        url = "http://{}:{}/v1/models/linear/labels/champion:predict".format(*listener.getsockname())
        async with httpx.AsyncClient() as client:
            leaving = asyncio.create_task(client.post(url, json={"instances": X}))
            await soon(lambda: engine.held)
            leaving.cancel()
        await soon(lambda: ended[Outcome.ABANDONED] == 1)
        engine.held_back = False
        engine.answer()
        async with httpx.AsyncClient() as client:
            assert (await client.post(url, json={"instances": X})).json() == {"predictions": linear(X).tolist()}
        assert ended[Outcome.OK] == 1
        await http.stop()
