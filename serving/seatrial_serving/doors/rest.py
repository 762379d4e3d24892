"""Everything of the Open Inference Protocol over REST that is not inference: health, metadata, and the extensions that tell
what is served and how, or change it. Ordinary FastAPI.

Health answers as `peers` of this protocol disagree: 200 with a JSON body where the answer is yes, 400 on `/v2` where it is
no (as Triton does), 503 on `/readyz`, for load balancers that expect it.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from seatrial import __version__
from seatrial.errors import MalformedRequest, SeatrialError
from seatrial_serving.access.caller import Act
from seatrial_serving.data_plane import ALIAS, DataPlane
from seatrial_serving.doors import generate, mlflow, openai, openapi, tf_serving, torchserve
from seatrial_serving.doors.configuration import configuration
from seatrial_serving.doors.infer import ClientLeft, read_body, refusal
from seatrial_serving.doors.metadata import EXTENSIONS, MODEL, is_model_ready, metadata
from seatrial_serving.doors.statistics import statistics
from seatrial_serving.repository import check_load_parameters


def build(plane: DataPlane, acts: frozenset[Act]) -> FastAPI:
    """What answers on a port that offers `acts`."""
    app = FastAPI(title="Seatrial", version=__version__, openapi_url=None)

    @app.exception_handler(SeatrialError)
    def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, SeatrialError)
        status, headers, body = refusal(error)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    @app.exception_handler(ClientLeft)
    def nobody_to_tell(_: Request, __: Exception) -> Response:
        return Response(status_code=400)

    @app.get("/v2")
    def server_metadata() -> dict[str, Any]:
        return {"name": "seatrial", "version": __version__, "extensions": EXTENSIONS}

    @app.get("/v2/models/stats")
    async def all_statistics() -> dict[str, Any]:
        return await statistics(plane)

    @_of_a_model(app, "")
    def model_metadata(name: str, version: str = "", alias: str = "") -> dict[str, Any]:
        return metadata(plane, plane.find(name, version, alias=alias))

    @_of_a_model(app, "/ready")
    def model_ready(name: str, version: str = "", alias: str = "") -> Response:
        ready = is_model_ready(plane, name, ALIAS + alias if alias else version)
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 400)

    @_of_a_model(app, "/config")
    def model_configuration(name: str, version: str = "", alias: str = "") -> dict[str, Any]:
        return configuration(plane.find(name, version, alias=alias), cached=plane.cache is not None)

    @_of_a_model(app, "/stats")
    async def model_statistics(name: str, version: str = "", alias: str = "") -> dict[str, Any]:
        return await statistics(plane, name, ALIAS + alias if alias else version)

    @app.post("/v2/repository/index")
    async def repository_index(request: Request) -> list[dict[str, Any]]:
        asked = await _read(request, plane, _Index)
        return [asdict(each) for each in await plane.index(ready=asked.ready)]

    own = list(app.routes)
    if Act.MANAGE in acts:
        management = _management(plane)
        own += management.routes
        app.include_router(management)
    if Act.INFER in acts:
        routers = {
            openapi.GENERATE: generate.router(plane),
            openapi.MLFLOW: mlflow.router(plane),
            openapi.TF_SERVING: tf_serving.router(plane),
            openapi.TORCHSERVE: torchserve.router(plane),
            openapi.OPENAI: openai.router(plane),
        }
        routes = {openapi.V2: own, **{door: router.routes for door, router in routers.items()}}
        for router in (*routers.values(), openapi.router(plane, routes)):
            app.include_router(router)
    return app


def _management(plane: DataPlane) -> APIRouter:
    paths = APIRouter()

    @paths.post("/v2/repository/models/{name}/load")
    async def repository_load(name: str, request: Request) -> Response:
        control = plane.control(name)
        check_load_parameters((await _read(request, plane, _Change)).parameters)
        await control.load(name)
        return Response()

    @paths.post("/v2/repository/models/{name}/unload")
    async def repository_unload(name: str, request: Request) -> Response:
        control = plane.control(name)
        await _read(request, plane, _Change)
        await control.unload(name)
        return Response()

    return paths


E = TypeVar("E", bound=Callable[..., Any])


def _of_a_model(app: FastAPI, what: str) -> Callable[[E], E]:
    """Answer GET for `what` of a model by its name, by name and version, and by name and alias."""

    def add(endpoint: E) -> E:
        for path in MODEL:
            app.get(path + what)(endpoint)
        return endpoint

    return add


class _Index(msgspec.Struct):
    ready: bool = False


class _Change(msgspec.Struct):
    parameters: dict[str, Any] = {}


S = TypeVar("S", _Index, _Change)


async def _read(request: Request, plane: DataPlane, kind: type[S]) -> S:
    """The body as JSON; an empty one asks for nothing in particular."""
    body = await read_body(request.receive, max_body=plane.settings.limits.body_bytes)
    try:
        return msgspec.json.decode(body, type=kind) if body else kind()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not what this takes: {error}") from error
