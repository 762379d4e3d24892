"""Everything of the Open Inference Protocol over REST that is not inference: health, metadata. Ordinary FastAPI.

Health answers as `peers` of this protocol disagree: 200 with a JSON body where the answer is yes, 400 on `/v2` where it is
no (as Triton does), 503 on `/readyz`, for load balancers that expect it.
"""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from seatrial import __version__
from seatrial.errors import NotReady, SeatrialError, UnknownModel
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors import mlflow, openai, tf_serving, torchserve
from seatrial_serving.doors.infer import refusal
from seatrial_serving.generation import Generation

EXTENSIONS = ("binary_tensor_data",)
"""Only what the tests prove."""


def build(plane: DataPlane) -> FastAPI:
    app = FastAPI(title="Seatrial", version=__version__, openapi_url=None)

    @app.exception_handler(SeatrialError)
    def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, SeatrialError)
        status, headers, body = refusal(error)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    @app.get("/v2")
    def server_metadata() -> dict[str, Any]:
        return {"name": "seatrial", "version": __version__, "extensions": EXTENSIONS}

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    def model_metadata(name: str, version: str = "") -> dict[str, Any]:
        return metadata(plane, plane.find(name, version))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    def model_ready(name: str, version: str = "") -> Response:
        ready = is_model_ready(plane, name, version)
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 400)

    for door in (mlflow, tf_serving, torchserve, openai):
        app.include_router(door.router(plane))
    return app


def is_model_ready(plane: DataPlane, name: str, version: str) -> bool:
    """Unknown models are not ready; asking about them is no error."""
    try:
        return plane.accepting and plane.find(name, version).ready
    except (UnknownModel, NotReady):
        return False


def metadata(plane: DataPlane, generation: Generation) -> dict[str, Any]:
    identity, signature = generation.identity, generation.signature
    tensors = {
        kind: [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]
        for kind, specs in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }
    versions = sorted(each.identity.version for each in plane.generations() if each.identity.name == identity.name)
    properties = {
        "variant": identity.variant,
        "digest": identity.digest,
        "alias": identity.alias,
        "verified": str(identity.verified).lower(),
        "version": identity.version,
    }
    return {
        "name": identity.name,
        "versions": versions,
        "platform": identity.platform,
        **tensors,
        "properties": properties,
    }
