"""TensorFlow Serving's REST: predict in row and column format, model status, metadata. Labels are our aliases.

Also Google Vertex AI, whose `instances` and `predictions` are the row format on a path that the environment chooses.
Sources: `tensorflow_serving/g3doc/api_rest.md` and `util/json_tensor.cc`; Vertex AI, "Custom container requirements".
Different on purpose: NaN is `null`, for it is no JSON; an input that the model has not got is refused, not left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from seatrial.errors import MalformedRequest, SeatrialError, WrongInput
from seatrial.protocol import Tensor
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors import rows
from seatrial_serving.doors.answering import Door
from seatrial_serving.generation import Generation

SIGNATURE = "serving_default"
"""The only one that there is."""
DTYPES: Mapping[DataType, str] = {
    DataType.BOOL: "DT_BOOL",
    DataType.FP16: "DT_HALF",
    DataType.BF16: "DT_BFLOAT16",
    DataType.FP32: "DT_FLOAT",
    DataType.FP64: "DT_DOUBLE",
    DataType.BYTES: "DT_STRING",
}
"""The others are called `DT_` and their own name."""


def router(plane: DataPlane) -> APIRouter:
    paths = APIRouter()
    door = Door(plane=plane, protocol=Protocol.TF_SERVING, refuse=lambda _, error: {"error": str(error)})

    @paths.post("/v1/models/{name}:predict")
    @paths.post("/v1/models/{name}/versions/{version}:predict")
    @paths.post("/v1/models/{name}/labels/{label}:predict")
    async def predict(request: Request, name: str, version: str = "", label: str = "") -> Response:
        async def reply(exchange: Exchange) -> Any:
            generation = door.find(exchange, name, version, alias=label)
            return await predictions(exchange, generation.signature, await door.body(request))

        return await door.answer(request, reply)

    async def predictions(exchange: Exchange, signature: Signature, body: bytes) -> Any:
        given = rows.read_object(body)
        if given.get("signature_name", SIGNATURE) != SIGNATURE:
            raise WrongInput(f"there is no signature {given['signature_name']!r}; there is {SIGNATURE!r}")
        match [format_ for format_ in ("instances", "inputs") if format_ in given]:
            case ["instances"]:
                asked = rows.from_rows(signature, given["instances"])
                return {"predictions": _as_rows(await plane.submit(exchange, asked))}
            case ["inputs"]:
                asked = rows.from_columns(signature, given["inputs"])
                return {"outputs": _as_columns(await plane.submit(exchange, asked))}
            case found:
                raise MalformedRequest(
                    f"the body must have one of 'instances' and 'inputs'; it has {found or list(given)}"
                )

    @paths.get("/v1/models/{name}")
    @paths.get("/v1/models/{name}/versions/{version}")
    @paths.get("/v1/models/{name}/labels/{label}")
    def status(name: str, version: str = "", label: str = "") -> Response:
        """Also OpenAI's way to look up a model: one body holds what either asks for."""
        try:
            asked = plane.find(name, version, alias=label)
        except SeatrialError as error:
            return door.refused(error)
        same = [asked] if version or label else plane.versions(name)
        return JSONResponse({"model_version_status": [_status(each) for each in same], **openai_model(name)})

    @paths.get("/v1/models/{name}/metadata")
    @paths.get("/v1/models/{name}/versions/{version}/metadata")
    @paths.get("/v1/models/{name}/labels/{label}/metadata")
    def metadata(name: str, version: str = "", label: str = "") -> Response:
        try:
            return JSONResponse(_metadata(plane.find(name, version, alias=label)))
        except SeatrialError as error:
            return door.refused(error)

    doors = plane.settings.doors
    if doors.predict_route:

        @paths.post(doors.predict_route)
        async def vertex_predict(request: Request) -> Response:
            async def reply(exchange: Exchange) -> Any:
                return await predictions(exchange, door.find(exchange, "").signature, await door.body(request))

            return await door.answer(request, reply)

    if doors.health_route:

        @paths.get(doors.health_route)
        def vertex_health() -> Response:
            return JSONResponse({"ready": plane.ready}, 200 if plane.ready else 503)

    return paths


def openai_model(name: str) -> dict[str, Any]:
    """A model as OpenAI lists it; when it was made is not known here."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "seatrial"}


def _as_rows(outputs: Sequence[Tensor]) -> Any:
    written = {output.name: _written(output) for output in outputs}
    sizes = {output.name: output.array.shape[:1] for output in outputs}
    if () in sizes.values() or len(set(sizes.values())) > 1:
        raise WrongInput("the outputs have no rows in common, so there is no row format for them; send 'inputs'")
    if len(written) == 1:
        return written[outputs[0].name]
    names = list(written)
    return [dict(zip(names, row, strict=True)) for row in zip(*written.values(), strict=True)]


def _as_columns(outputs: Sequence[Tensor]) -> Any:
    written = {output.name: _written(output) for output in outputs}
    return written if len(written) > 1 else written[outputs[0].name]


def _written(output: Tensor) -> Any:
    """The name of a text output that is not text ends in `_bytes`: that is the protocol's own rule."""
    return rows.as_json(output, binary=output.name.endswith("_bytes"))


def _status(generation: Generation) -> dict[str, Any]:
    return {
        "version": generation.identity.version,
        "state": "AVAILABLE" if generation.ready else "LOADING",
        "status": {"error_code": "OK", "error_message": ""},
    }


def _metadata(generation: Generation) -> dict[str, Any]:
    signature = {
        "inputs": {spec.name: _tensor_info(spec) for spec in generation.signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in generation.signature.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    identity = generation.identity
    return {
        "model_spec": {"name": identity.name, "signature_name": "", "version": identity.version},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    dimensions = [{"size": str(size), "name": ""} for size in spec.shape]
    return {
        "name": spec.name,
        "dtype": DTYPES.get(spec.datatype, f"DT_{spec.datatype}"),
        "tensor_shape": {"dim": dimensions, "unknown_rank": False},
    }
