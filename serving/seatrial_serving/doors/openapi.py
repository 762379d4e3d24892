"""`/openapi.json`: what can be asked of this server at this moment, and how; `/docs`: the same as a page.

Made from the routes of the doors and the signatures of the models that are served. Operations that infer are listed for each
model, with its own schemas and an example that works; the others once, with the names that may stand in their paths.
Sources: OpenAPI 3.1.1; JSON Schema 2020-12. `x-seatrial-models` is ours, and what the page is made from.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from seatrial import __version__
from seatrial.settings import Doors
from seatrial.tensors import DataType, TensorSpec
from seatrial_serving.data_plane import ALIAS, DataPlane
from seatrial_serving.doors import examples, page, schemas
from seatrial_serving.doors.metadata import MODEL
from seatrial_serving.doors.mlflow import FORMATS, TARGET_MODEL
from seatrial_serving.doors.openai import MOST_INPUTS
from seatrial_serving.doors.rows import write_json
from seatrial_serving.doors.schemas import TEXT, Schema, record
from seatrial_serving.engines import TEXT as TEXTS
from seatrial_serving.generation import Generation

Addresses: TypeAlias = Sequence[tuple[str, str, Generation]]
Content: TypeAlias = dict[str, Any]
"""Schema and examples by content type."""
Operation: TypeAlias = dict[str, Any]

V2, GENERATE, MLFLOW, TF_SERVING = "v2", "generate", "mlflow", "tf_serving"
TORCHSERVE, OPENAI, DOCS = "torchserve", "openai", "docs"
TITLES = {
    V2: "Open Inference Protocol v2",
    GENERATE: "Triton's generate extension",
    MLFLOW: "MLflow, Amazon SageMaker",
    TF_SERVING: "TensorFlow Serving, Google Vertex AI",
    TORCHSERVE: "TorchServe",
    OPENAI: "OpenAI",
    DOCS: "What can be asked here",
}
"""The doors, as the document calls them."""
JSON, BINARY = "application/json", "application/octet-stream"
OTHER_TYPES = {"/version": "text/plain", "/docs": "text/html"}
"""Answers that are not JSON."""
CHANGING = ("repository_load", "repository_unload")
"""Operations that answer nothing but that they are done."""
PLACEHOLDER = re.compile(r"{(\w+)}")
NO_IDENTIFIER = re.compile(r"[^A-Za-z0-9]+")
HEALTH = ("/v2/health/live", "/v2/health/ready", "/livez", "/readyz")
INFER = tuple(path + "/infer" for path in MODEL)
"""Paths that are answered before any route is asked."""
ERRORS: Mapping[str, Schema] = {
    V2: record({"error": TEXT}),
    MLFLOW: record({"error_code": TEXT, "message": TEXT}),
    TORCHSERVE: record({"code": {"type": "integer"}, "type": TEXT, "message": TEXT}),
    OPENAI: record({"error": record({"message": TEXT, "type": TEXT})}),
}
"""How a door says what is wrong; the others do as `/v2`."""
REFUSALS = {
    400: "the request is wrong, and the caller can mend it",
    401: "nobody knows who asks, where the server wants to know",
    403: "the caller's rights do not allow it",
    404: "no such model, version or alias is served",
    413: "the body is too large",
    415: "a content type or encoding that is not spoken here",
    429: "over the client's quota",
    500: "the engine failed",
    503: "full, or not ready: the same request may succeed later",
    504: "the answer would have come too late",
}
"""Of a request for an inference."""
REPOSITORY: Mapping[str, tuple[Schema, Any]] = {
    "repository_index": (record({}, ready={"type": "boolean"}), {"ready": True}),
    "repository_load": (record({}, parameters={"type": "object"}), None),
    "repository_unload": (record({}, parameters={"type": "object"}), None),
}
"""What the model repository takes, and an example where nothing changes by it."""
DESCRIPTION = (
    "What this server answers now: made from the models that it serves, each with its own signature. A request whose head "
    "is too large is answered with 431, one that takes too long to arrive with 408, both without a body."
)


def router(plane: DataPlane, routes: Mapping[str, Sequence[BaseRoute]]) -> APIRouter:
    """`routes` are those of the other doors, by door."""
    paths = APIRouter()
    html, policy = page.load()
    written: tuple[Addresses, bytes] = ([], b"")

    @paths.get("/openapi.json")
    async def openapi_document() -> Response:
        """What can be asked of this server now, as OpenAPI 3.1."""
        nonlocal written
        addresses = plane.addresses()
        if not written[1] or addresses != written[0]:
            every = {**routes, DOCS: paths.routes}
            written = addresses, await asyncio.to_thread(_write, addresses, every, plane.settings.doors)
        return Response(written[1], media_type=JSON)

    @paths.get("/docs")
    def docs() -> Response:
        """The same as a page."""
        return Response(html, headers=policy, media_type="text/html")

    return paths


def _write(addresses: Addresses, routes: Mapping[str, Sequence[BaseRoute]], doors: Doors) -> bytes:
    return write_json(document(addresses, routes, doors))


def document(addresses: Addresses, routes: Mapping[str, Sequence[BaseRoute]], doors: Doors) -> dict[str, Any]:
    reachable = [each for each in addresses if _fits_a_path(each[0]) and _fits_a_path(each[1] or "-")]
    generations = sorted({each for _, _, each in reachable}, key=lambda each: str(each.identity))
    models = {each: Model.of(each, key=f"model-{number}") for number, each in enumerate(generations, start=1)}
    served = [Address(name, version, models[generation]) for name, version, generation in reachable]
    schemas_: dict[str, Schema] = {f"error-{door}": schema for door, schema in ERRORS.items()}
    examples_: dict[str, Any] = {}
    for model in models.values():
        schemas_ |= model.schemas
        examples_ |= model.examples
    return {
        "openapi": "3.1.1",
        "info": {"title": "Seatrial", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": title} for title in TITLES.values()],
        "paths": _Paths(served, doors).of(routes),
        "components": {"schemas": schemas_, "examples": examples_},
        "x-seatrial-models": [model.shown(served) for model in models.values()],
    }


def _fits_a_path(segment: str) -> bool:
    """Whether a client can write it between two slashes."""
    return bool(segment) and "/" not in segment and segment not in (".", "..")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A generation, with the components of the document that are its own."""

    generation: Generation
    key: str
    schemas: dict[str, Schema]
    examples: dict[str, Any]

    @classmethod
    def of(cls, generation: Generation, *, key: str) -> "Model":
        identity, signature, most = generation.identity, generation.signature, generation.max_rows
        answer = schemas.answer(signature, name=identity.name, version=identity.version, max_rows=most)
        bodies: dict[str, Any] = {}
        if (given := examples.inputs(generation)) is not None:
            bodies = {
                "v2": examples.as_v2(generation, given),
                "rows": examples.as_rows(generation, given),
                "fields": examples.as_fields(given),
            }
        return cls(
            generation=generation,
            key=key,
            schemas={
                f"{key}.request": {"title": f"what {identity} takes", **schemas.request(signature, max_rows=most)},
                f"{key}.answer": {"title": f"what {identity} answers", **answer},
                f"{key}.rows": schemas.rows(signature, signature.inputs, max_rows=most),
                f"{key}.columns": schemas.by_name(signature, signature.inputs, max_rows=most),
                f"{key}.answered-rows": schemas.rows(signature, signature.outputs, max_rows=most, answered=True),
                f"{key}.answered": schemas.by_name(signature, signature.outputs, max_rows=most, answered=True),
            },
            examples={f"{key}.{form}": {"value": body} for form, body in bodies.items() if body is not None},
        )

    def ref(self, schema: str) -> Schema:
        return {"$ref": f"#/components/schemas/{self.key}.{schema}"}

    def example(self, form: str) -> dict[str, Any]:
        """As a part of the content that it is one of."""
        name = f"{self.key}.{form}"
        if name not in self.examples:
            return {}
        return {"examples": {"example": {"$ref": f"#/components/examples/{name}"}}}

    @property
    def reads_fields(self) -> bool:
        """Whether it can be asked in JSON that names no datatypes."""
        return all(spec.datatype is not DataType.BF16 for spec in self.generation.signature.inputs)

    @property
    def reads_rows(self) -> bool:
        """Whether the doors for clients of other servers can ask it; they know no sequences."""
        return self.reads_fields and not self.generation.stateful

    def shown(self, served: "Sequence[Address]") -> dict[str, Any]:
        """What the page says of it."""
        identity, signature = self.generation.identity, self.generation.signature
        mine = [each for each in served if each.model is self]
        paths = [path for each in mine for template in INFER if (path := each.fill(template))]
        shown: dict[str, Any] = {
            "name": identity.name,
            "version": identity.version,
            "variant": identity.variant,
            "digest": identity.digest,
            "verified": identity.verified,
            "labels": identity.labels,
            "inputs": [self._tensor(spec) for spec in signature.inputs],
            "outputs": [self._tensor(spec) for spec in signature.outputs],
            "paths": paths,
            "python": examples.python(self.generation, version=mine[0].version),
        }
        if (example := self.examples.get(f"{self.key}.v2")) is not None:
            line = examples.curl(paths[0], write_json(example["value"]))
            shown |= {"curl": line, "example": f"{self.key}.v2"}
        return shown

    def _tensor(self, spec: TensorSpec) -> dict[str, Any]:
        shape = examples.shape_words(self.generation, spec)
        return {"name": spec.name, "datatype": spec.datatype, "shape": shape}


class Address(NamedTuple):
    """One way to ask for a model: `version` is empty for its bare name, or an alias with its "@"."""

    name: str
    version: str
    model: Model

    def fill(self, template: str) -> str:
        """The path; empty if `template` is for another way to ask."""
        asked = ["alias" if name == "label" else name for name in PLACEHOLDER.findall(template)]
        if asked != ["name", *([self.kind] if self.kind else [])]:
            return ""
        version = quote(self.version.removeprefix(ALIAS), safe="")
        return template.format(name=quote(self.name, safe=""), version=version, alias=version, label=version)

    @property
    def kind(self) -> str:
        return "" if not self.version else "alias" if self.version.startswith(ALIAS) else "version"


class Inference(NamedTuple):
    """What an operation that infers takes and answers."""

    takes: Content
    answers: Content
    parameters: Sequence[dict[str, Any]] = ()


class _Paths:
    """The paths of the document."""

    def __init__(self, served: Sequence[Address], doors: Doors) -> None:
        self._served, self._doors = served, doors
        self._paths: dict[str, dict[str, Operation]] = {}
        self._ids: set[str] = set()

    def of(self, routes: Mapping[str, Sequence[BaseRoute]]) -> dict[str, dict[str, Operation]]:
        for path in INFER:
            self._infer(V2, path, "infer")
        for path in HEALTH:
            self._plain(V2, "get", path, path.rpartition("/")[2])
        for door, of_door in routes.items():
            for route in of_door:
                if isinstance(route, APIRoute):
                    for method in sorted(route.methods or ()):
                        self._route(door, method.lower(), route)
        return self._paths

    def _route(self, door: str, method: str, route: APIRoute) -> None:
        if method != "post" or door in (V2, DOCS):
            self._plain(door, method, route.path, route.name, description=route.description)
        elif PLACEHOLDER.search(route.path):
            self._infer(door, route.path, route.name)
        else:
            self._infer_unnamed(door, route.path, route.name)

    def _plain(self, door: str, method: str, path: str, name: str, *, description: str = "") -> None:
        """An operation that does not infer; left out where nothing can stand in its path."""
        parameters = []
        placeholders = PLACEHOLDER.findall(path)
        if placeholders:
            ways = [each for each in self._served if each.fill(path)]
            if not ways:
                return
            for placeholder, values in zip(placeholders, zip(*ways, strict=True), strict=False):
                parameters.append(_path_parameter(placeholder, values))
        operation = self._operation(door, method, path, name)
        if description:
            operation["description"] = description
        if parameters:
            operation["parameters"] = parameters
        takes, example = REPOSITORY.get(name, (None, None))
        if takes is not None:
            shown = {} if example is None else {"examples": {"example": {"value": example}}}
            operation["requestBody"] = {"content": {JSON: {"schema": takes, **shown}}}
        kind = OTHER_TYPES.get(path, JSON)
        said = {"content": {kind: {"schema": TEXT if kind != JSON else {"type": ["object", "array"]}}}}
        refused = {"content": {JSON: {"schema": {"type": "object"}}}}
        operation["responses"] = {
            "200": {"description": "done", **({} if name in CHANGING else said)},
            "4XX": {"description": "no, or not so", **refused},
            "5XX": {"description": "not now", **refused},
        }
        self._put(path, method, operation)

    def _infer(self, door: str, template: str, name: str) -> None:
        """An operation for each model that can be asked this way."""
        describe = {V2: _v2, GENERATE: _generate, TF_SERVING: _tf_serving, TORCHSERVE: _torchserve}[door]
        for each in self._served:
            path = each.fill(template)
            asks = {V2: True, GENERATE: each.model.reads_fields}
            if path and asks.get(door, each.model.reads_rows):
                self._asking(door, path, name, describe(each.model))

    def _infer_unnamed(self, door: str, path: str, name: str) -> None:
        """An operation whose path names no model."""
        models = {each.name: each.model for each in self._served if not each.kind and each.model.reads_rows}
        chosen = self._doors.model or (next(iter(models)) if len(models) == 1 else "")
        if door == OPENAI:
            self._asking(door, path, name, _openai(models))
        elif door == MLFLOW:
            self._asking(door, path, name, _mlflow(models, chosen))
        elif chosen in models:
            self._asking(door, path, name, _tf_serving(models[chosen]))

    def _asking(self, door: str, path: str, name: str, inference: Inference) -> None:
        error = {"$ref": f"#/components/schemas/error-{door if door in ERRORS else V2}"}
        refusals: dict[str, dict[str, Any]] = {
            str(status): {"description": words, "content": {JSON: {"schema": error}}}
            for status, words in REFUSALS.items()
        }
        for status in ("429", "503"):
            refusals[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
        operation = self._operation(door, "post", path, name)
        if inference.parameters:
            operation["parameters"] = list(inference.parameters)
        operation["requestBody"] = {"required": True, "content": inference.takes}
        operation["responses"] = {"200": {"description": "the answer", "content": inference.answers}, **refusals}
        self._put(path, "post", operation)

    def _operation(self, door: str, method: str, path: str, name: str) -> Operation:
        identifier = NO_IDENTIFIER.sub("_", f"{method}{path}")
        while identifier in self._ids:
            identifier += "_"
        self._ids.add(identifier)
        return {"tags": [TITLES[door]], "summary": name.replace("_", " "), "operationId": identifier}

    def _put(self, path: str, method: str, operation: Operation) -> None:
        self._paths.setdefault(path, {})[method] = operation


def _path_parameter(name: str, found: Sequence[str]) -> dict[str, Any]:
    """The first that was `found` is the example, so that the examples of a path belong together."""
    values = found if name == "name" else [value.removeprefix(ALIAS) for value in found]
    schema = {"type": "string", "enum": sorted(set(values))}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": values[0]}


# What each door takes and answers


def _v2(model: Model) -> Inference:
    takes: Content = {}
    parameters: list[dict[str, Any]] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "of a body with binary data: how long the JSON before them is",
            "schema": {"type": "integer", "minimum": 0},
        },
        {
            "name": "Inference-Timeout-Ms",
            "in": "header",
            "description": "how long the caller will wait",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
    ]
    if not any(spec.datatype in schemas.WITHOUT_JSON for spec in model.generation.signature.inputs):
        takes[JSON] = {"schema": model.ref("request"), **model.example("v2")}
    takes[BINARY] = {"schema": {}}
    if (binary := examples.as_binary(model.generation)) is not None:
        body, length = binary
        takes[BINARY]["examples"] = {"binary": {"value": body}}
        parameters[0]["examples"] = {"binary": {"value": length}}
    return Inference(takes, {JSON: {"schema": model.ref("answer")}, BINARY: {"schema": {}}}, parameters)


def _generate(model: Model) -> Inference:
    """Inputs may leave out axes in front, and outputs come flat, so the fields can be anything."""
    takes = record({spec.name: {} for spec in model.generation.signature.inputs}, parameters={"type": "object"})
    event = {"type": "object", "properties": {"data": TEXT}, "required": ["data"]}
    answers = {JSON: {"schema": {"type": "object"}}, "text/event-stream": {"schema": event}}
    return Inference({JSON: {"schema": takes, **model.example("fields")}}, answers)


def _tf_serving(model: Model) -> Inference:
    either = [record({"instances": model.ref("rows")}), record({"inputs": model.ref("columns")})]
    answers = [record({"predictions": model.ref("answered-rows")}), record({"outputs": model.ref("answered")})]
    return Inference(
        {JSON: {"schema": {"oneOf": either}, **model.example("rows")}}, {JSON: {"schema": {"anyOf": answers}}}
    )


def _torchserve(model: Model) -> Inference:
    """One datum is answered by one, so an answer is whatever was asked for."""
    forms = [
        record({"instances": model.ref("rows")}),
        *(record({name: model.ref("columns")}) for name in ("inputs", "data")),
    ]
    takes = {JSON: {"schema": {"anyOf": forms}, **model.example("rows")}, BINARY: {"schema": {}}}
    return Inference(takes, {JSON: {"schema": {}}})


def _mlflow(models: Mapping[str, Model], chosen: str) -> Inference:
    """`chosen` is the model that answers a request which names none, if there is one."""
    shown = chosen if chosen in models else next(iter(models), "")
    forms = [record({name: {}}, params={"type": ["object", "null"]}) for name in FORMATS]
    takes = {"schema": {"oneOf": forms}, **(models[shown].example("rows") if shown else {})}
    target: dict[str, Any] = {
        "name": TARGET_MODEL,
        "in": "header",
        "description": "the model that is asked",
        "required": chosen not in models,
        "schema": {"type": "string", "enum": sorted(models)} if models else TEXT,
    }
    if shown and shown != chosen:
        target["example"] = shown
    answers = {"schema": record({"predictions": {}})}
    return Inference({JSON: takes, "text/csv": {"schema": TEXT}}, {JSON: answers}, [target])


def _openai(models: Mapping[str, Model]) -> Inference:
    names = sorted(name for name, model in models.items() if TEXTS in model.generation.graphs)
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    texts = {"type": "string", "minLength": 1}
    many = {"type": "array", "minItems": 1, "maxItems": MOST_INPUTS}
    takes = record(
        {
            "model": {"enum": names} if names else TEXT,
            "input": {"anyOf": [texts, {**many, "items": texts}, ids, {**many, "items": ids}]},
        },
        encoding_format={"enum": ["float", "base64"]},
        dimensions={"type": "integer"},
        user=TEXT,
    )
    item = record(
        {
            "object": {"const": "embedding"},
            "index": {"type": "integer"},
            "embedding": {"type": ["array", "string"], "items": {"type": ["number", "null"]}},
        }
    )
    answers = record(
        {
            "object": {"const": "list"},
            "model": TEXT,
            "data": {"type": "array", "items": item},
            "usage": record({"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}),
        }
    )
    shown = {"examples": {"example": {"value": {"model": names[0], "input": ["text"]}}}} if names else {}
    return Inference({JSON: {"schema": takes, **shown}}, {JSON: {"schema": answers}})
