"""Triton's generate extension: inputs are fields of one JSON object, and so are the outputs; as a stream, server-sent events.

A model with a memory takes its rows as steps, and each is an event as soon as it is computed; a request that names no
sequence is one of its own. Any other model's answer is the only event. The next step is computed when the client has room for
it. Sources: Triton's generate extension, and `GenerateRequestClass` in its `http_server.cc` for what it leaves open;
`generate_rest.yaml` of the Open Inference Protocol, where it agrees.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response

from seatrial.errors import MalformedRequest, WrongInput
from seatrial.protocol import MAX_PARAMETERS, InferRequest, Parameters, Tensor
from seatrial.tensors import Signature, TensorSpec
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors import rows
from seatrial_serving.doors.answering import Door
from seatrial_serving.doors.metadata import MODEL
from seatrial_serving.generation import Generation
from seatrial_serving.sequences import in_sequence
from seatrial_serving.workers import Outputs

ID, PARAMETERS = "id", "parameters"


def router(plane: DataPlane) -> APIRouter:
    paths = APIRouter()
    door = Door(plane=plane, protocol=Protocol.REST, refuse=lambda _, error: {"error": str(error)})

    async def read(exchange: Exchange, request: Request, name: str, version: str, alias: str) -> InferRequest:
        generation = door.find(exchange, name, version, alias=alias)
        return as_request(generation, await door.body(request))

    async def generate(request: Request, name: str, version: str = "", alias: str = "") -> Response:
        async def reply(exchange: Exchange) -> Any:
            asked = await read(exchange, request, name, version, alias)
            return fields(exchange, asked, await plane.submit(exchange, asked))

        return await door.answer(request, reply)

    async def generate_stream(request: Request, name: str, version: str = "", alias: str = "") -> Response:
        async def events(exchange: Exchange) -> AsyncGenerator[Any, None]:
            asked = await read(exchange, request, name, version, alias)
            async with aclosing(plane.stream(exchange, asked)) as answers:
                async for outputs in answers:
                    yield fields(exchange, asked, outputs)

        return await door.stream(request, events)

    for path in MODEL:
        paths.post(path + "/generate")(generate)
        paths.post(path + "/generate_stream")(generate_stream)
    return paths


def as_request(generation: Generation, body: bytes) -> InferRequest:
    """Fields that are no inputs are parameters, and `parameters` may hold either. Raises `MalformedRequest` or `WrongInput`."""
    given = rows.read_object(body)
    parameters = given.pop(PARAMETERS, {})
    if not isinstance(parameters, dict):
        raise MalformedRequest(f"'{PARAMETERS}' is a JSON {type(parameters).__name__}, expected an object")
    given = parameters | given
    specs = {spec.name: spec for spec in generation.signature.inputs}
    inputs = tuple(_tensor(specs[name], given.pop(name)) for name in specs if name in given)
    request_id = given.pop(ID, "")
    if not isinstance(request_id, str):
        raise MalformedRequest(f"'{ID}' is {request_id!r}, expected a text")
    request = InferRequest(inputs, id=request_id, parameters=_parameters(given, generation.signature))
    return in_sequence(request) if generation.stateful else request


def _tensor(spec: TensorSpec, data: Any) -> Tensor:
    """Axes that are left out in front are of size 1: a text, or one row, may come by itself."""
    tensor = rows.as_tensor(spec, data)
    missing = len(spec.shape) - tensor.array.ndim
    return tensor._replace(array=tensor.array.reshape((1,) * missing + tensor.array.shape)) if missing > 0 else tensor


def _parameters(given: dict[str, Any], signature: Signature) -> Parameters:
    if len(given) > MAX_PARAMETERS:
        raise MalformedRequest(f"the request has {len(given)} parameters; {MAX_PARAMETERS} are the most")
    for name, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise WrongInput(
                f"'{name}' is no input, so it is a parameter, which is a text, a number or true or false; the inputs are "
                f"{[spec.name for spec in signature.inputs]}"
            )
    return given


def fields(exchange: Exchange, asked: InferRequest, outputs: Outputs) -> dict[str, Any]:
    """An output of one element is that element; of several, the list of them."""
    assert exchange.generation is not None, "an answer without a generation: this is a bug"
    identity = exchange.generation.identity
    said: dict[str, Any] = {ID: asked.id} if asked.id else {}
    said |= {"model_name": identity.name, "model_version": identity.version}
    for output in outputs:
        flat = rows.as_json(output._replace(array=output.array.reshape(-1)))
        said[output.name] = flat[0] if len(flat) == 1 else flat
    return said
