"""What a server says of itself at `/openapi.json` and `/docs`: valid, complete, and every example in it is answered."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from seatrial.settings import Doors, Serving
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors import openapi
from seatrial_serving.doors.http import EVERY_ACT
from seatrial_serving.doors.rest import build
from tests.servers import Server, serving
from tests.serving.browser import shown
from tests.serving.models import EncoderBundle, LinearBundle, echo_onnx, everything_onnx, gather_onnx, pair_onnx
from tests.serving.scripted import IDENTITY, ScriptedEngine, generation

HOSTILE = "it's <img src=x onerror=\"document.title='broken'\">&{name}$(touch broken)"
ENVIRONMENT = {
    "SEATRIAL_SERVING__ENGINES__COUNT": "1",
    "SEATRIAL_SERVING__DOORS__MODEL": "linear",
    "SEATRIAL_SERVING__DOORS__PREDICT_ROUTE": "/vertex/predict",
    "SEATRIAL_SERVING__DOORS__HEALTH_ROUTE": "/vertex/health",
    "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true",
    "SEATRIAL_SERVING__LIMITS__BODY_BYTES": "65536",
}
MODELS = {"linear", "everything", "gather", "pair", "echo", "encoder", HOSTILE}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("openapi")
    bare = [make(place / f"{name}.onnx") for name, make in (
        ("everything", everything_onnx), ("gather", gather_onnx), ("pair", pair_onnx), ("echo", echo_onnx),
    )]  # fmt: skip
    bundles = [
        LinearBundle(version="3", labels=("<b>a</b>", "b", "c")).write(place),
        LinearBundle(name=HOSTILE, version="'; touch broken #").write(place),
        EncoderBundle().write(place),
    ]
    with serving(
        *bare, *(bundle.path for bundle in bundles), place=place / "server", environment=ENVIRONMENT
    ) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    return httpx.get(server.url("/openapi.json")).json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def schema_errors(document: Any, schema: Any, value: Any) -> list[str]:
    rooted = {**schema, "components": document["components"]}
    return [error.message for error in Draft202012Validator(rooted).iter_errors(value)]


def resolved(document: Any, value: Any) -> Any:
    """What a reference refers to."""
    if "$ref" not in value:
        return value
    for name in value["$ref"].removeprefix("#/").split("/"):
        document = document[name]
    return document


def model_of(document: Any, name: str) -> Any:
    [found] = [each for each in document["x-seatrial-models"] if each["name"] == name]
    return found


# The document


def test_it_is_openapi(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert {each["name"] for each in document["x-seatrial-models"]} == MODELS


def test_every_path_of_every_door_is_in_it(document: Any) -> None:
    doors = Doors(model="linear", predict_route="/vertex/predict", health_route="/vertex/health")
    plane = DataPlane(Serving(doors=doors), ServingMetrics(CollectorRegistry(), 0.1))
    routes = get_openapi(title="", version="", routes=build(plane, EVERY_ACT).routes)["paths"]
    assert len(routes) > 35
    described = {(path, method) for path, method, _ in operations(document)}
    missing = {
        (path, method)
        for path, methods in routes.items()
        for method in methods
        if not any(method == of_path and stands_for(path, concrete) for concrete, of_path in described)
    }
    aliases = {(path, method) for path, method in missing if "{alias}" in path or "{label}" in path}
    assert missing == aliases, "no alias is served here, and nothing else may be missing"
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert (path, "get") in described


def stands_for(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path) is not None


def test_every_example_is_what_its_schema_says_and_is_answered_as_its_schema_says(
    server: Server, document: Any
) -> None:
    asked = 0
    with httpx.Client(base_url=server.url("")) as client:
        for path, method, operation in operations(document):
            for request in requests(document, operation):
                response = client.request(method, filled(path, operation), **request)
                assert response.status_code == 200, f"{method} {path} {request}: {response.text}"
                media = response.headers["content-type"].partition(";")[0]
                answer = operation["responses"]["200"]["content"][media]
                if media == "application/json":
                    assert not schema_errors(document, answer["schema"], response.json()), path
                asked += 1
    infer = [path for path, method, _ in operations(document) if method == "post" and "/infer" in path]
    assert len(infer) == 2 * len(MODELS), "by name, and by name and version"
    assert asked > 3 * len(infer)


def requests(document: Any, operation: Any) -> Iterator[dict[str, Any]]:
    """Each example of `operation`, as httpx takes it; a GET is one."""
    headers = {
        parameter["name"]: str(parameter["example"])
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header" and "example" in parameter
    }
    if "requestBody" not in operation:
        yield {"headers": headers}
        return
    for media, content in operation["requestBody"]["content"].items():
        for name, example in content.get("examples", {}).items():
            value = resolved(document, example)["value"]
            assert not schema_errors(document, content["schema"], value)
            body = value if isinstance(value, str) else json.dumps(value)
            of_name = {
                parameter["name"]: str(parameter["examples"][name]["value"])
                for parameter in operation.get("parameters", ())
                if name in parameter.get("examples", {})
            }
            yield {"headers": {"content-type": media, **headers, **of_name}, "content": body.encode()}


def filled(path: str, operation: Any) -> str:
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", quote(parameter["example"], safe=""))
    return path


def test_a_bundle_s_own_recording_is_the_example(document: Any) -> None:
    [tensor] = document["components"]["examples"][model_of(document, "linear")["example"]]["value"]["inputs"]
    assert tensor == {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}


X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
RIGHT: Mapping[str, Any] = {
    "flat": X,
    "nested": X | {"data": [[1, 2, 3, 4]]},
    "the largest batch": X | {"shape": [64, 4], "data": [0] * 256},
    "more than was asked for": X | {"colour": "blue"},
}
WRONG: Mapping[str, Any] = {
    "another name": X | {"name": "z"},
    "another datatype": X | {"datatype": "FP64"},
    "a row too many": X | {"shape": [65, 4], "data": [0] * 260},
    "no row": X | {"shape": [0, 4], "data": []},
    "a column too many": X | {"shape": [1, 5], "data": [1, 2, 3, 4, 5]},
    "an axis too few": X | {"shape": [4]},
    "text": X | {"data": ["1", 2, 3, 4]},
    "too large a number": X | {"data": [1, 2, 3, 1e39]},
    "too few numbers": X | {"data": [1, 2, 3]},
    "no data": {key: value for key, value in X.items() if key != "data"},
}


@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_the_schema_and_the_server_agree_on_what_is_right(server: Server, document: Any, kind: str) -> None:
    body = {"inputs": [{**RIGHT, **WRONG}[kind]]}
    path = "/v2/models/linear/infer"
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    status = httpx.post(server.url(path), json=body).status_code
    assert status == (200 if kind in RIGHT else 400)
    assert bool(schema_errors(document, schema, body)) == (status == 400)


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        *product(
            (
                "/v2/models/linear/infer",
                "/v1/models/linear:predict",
                "/predictions/linear",
                "/invocations",
                "/v1/embeddings",
                "/vertex/predict",
            ),
            [{"content": b"{"}],
            [400],
        ),
        ("/v2/models/linear/infer", {"content": b"{}", "headers": {"content-encoding": "br"}}, 415),
        ("/v2/models/linear/infer", {"content": b" " * 65_537}, 413),
        ("/v1/models/linear:predict", {"content": b" " * 65_537}, 413),
    ],
)
def test_refusals_are_as_described(server: Server, document: Any, path: str, sent: Any, status: int) -> None:
    headers = {"content-type": "application/json", **sent.get("headers", {})}
    response = httpx.post(server.url(path), content=sent["content"], headers=headers)
    assert response.status_code == status
    described = document["paths"][path]["post"]["responses"][str(status)]["content"]["application/json"]["schema"]
    assert not schema_errors(document, described, response.json())


@pytest.mark.anyio
async def test_aliases_have_paths_of_their_own() -> None:
    plane = DataPlane(Serving(), ServingMetrics(CollectorRegistry(), 0.1))
    async with generation(ScriptedEngine) as served:
        served.identity = replace(IDENTITY, alias="champion")
        plane.install(served, default=True)
        app = build(plane, EVERY_ACT)
        paths = openapi.document(plane.addresses(), {openapi.V2: app.routes}, Doors())["paths"]
    infer = {path for path in paths if path.endswith("/infer")}
    assert infer == {f"/v2/models/linear{way}/infer" for way in ("", "/versions/1", "/aliases/champion")}
    [alias] = [
        each
        for each in paths["/v2/models/{name}/aliases/{alias}/ready"]["get"]["parameters"]
        if each["name"] == "alias"
    ]
    assert (alias["schema"]["enum"], alias["example"]) == (["champion"], "champion")


# What can be copied


def test_the_lines_to_copy_work(server: Server, document: Any, tmp_path: Path) -> None:
    curl, answered = shutil.which("curl"), 0
    for model in document["x-seatrial-models"]:
        script = tmp_path / "ask.py"
        script.write_text(model["python"].replace("localhost:8000", server.http, 1))
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{model['python']}\n{ran.stderr}"
        if "curl" in model and curl:
            line = model["curl"].replace("localhost:8000", server.http, 1)
            said = subprocess.run(["sh", "-c", f"{line} -s"], capture_output=True, check=True, cwd=tmp_path).stdout
            assert json.loads(said)["model_name"] == model["name"], line
            assert shlex.split(line)[0] == "curl"
            answered += 1
    assert not (tmp_path / "broken").exists()
    assert not curl or answered == len(MODELS) - 1, "all but the one that takes FP16"


# The page


def test_the_page_runs_its_own_script_and_style_and_reaches_nobody_else(server: Server) -> None:
    response = httpx.get(server.url("/docs"))
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind, element in (("script-src", "script"), ("style-src", "style")):
        [inline] = re.findall(f"<{element}>(.*?)</{element}>", response.text, re.DOTALL)
        assert policy[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
    assert not re.search(
        r"""https?://|\ssrc=|\son\w+=|\sstyle=|innerHTML|insertAdjacent|document\.write|eval\(""", response.text
    )


def test_in_a_browser_names_from_a_bundle_are_text(server: Server, tmp_path: Path) -> None:
    page = shown(server.url("/docs"), tmp_path)
    assert "<title>Seatrial: what can be asked here</title>" in page
    assert page.count("<h2>") == len(MODELS) + 1
    assert "<img" not in page
    assert "&lt;img src=x onerror=" in page
    assert "&lt;b&gt;a&lt;/b&gt;" in page


# Last, because it takes a model away


def test_the_document_is_of_what_is_served_now(server: Server, document: Any) -> None:
    again = httpx.get(server.url("/openapi.json"))
    assert again.json() == document
    httpx.post(server.url("/v2/repository/models/gather/unload")).raise_for_status()
    without = httpx.get(server.url("/openapi.json")).json()
    assert {each["name"] for each in without["x-seatrial-models"]} == MODELS - {"gather"}
    assert "/v2/models/gather/infer" in document["paths"]
    assert "/v2/models/gather/infer" not in without["paths"]
    httpx.post(server.url("/v2/repository/models/gather/load"), timeout=60).raise_for_status()
    assert "/v2/models/gather/infer" in httpx.get(server.url("/openapi.json")).json()["paths"]
    assert "Traceback" not in server.err.read_text()
