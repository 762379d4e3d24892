"""TorchServe's inference: `/predictions/NAME`, and the list of models.

TorchServe leaves it to each handler what a body means; its own handlers take one datum and answer one, without a name or
the batch axis. Here the body says which it is: a tensor that lacks the batch axis is one datum and is answered by one, any
other is rows and is answered by rows. The forms that are taken are in docs/protocols.md.
Sources: TorchServe's `docs/inference_api.md` and `docs/management_api.md`; RFC 7578 for forms.
"""

import io
import math
import tokenize
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from seatrial.errors import MalformedRequest, SeatrialError, WrongInput
from seatrial.protocol import InferRequest, Tensor, read_tensor
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors import rows
from seatrial_serving.doors.answering import Door

JSON_TYPES = ("application/json", "application/x-www-form-urlencoded")
"""The second is what `curl -d` says of whatever it sends."""
NPY = b"\x93NUMPY"
MAX_PARTS = 1024
ERROR_TYPES: Mapping[int, str] = {
    404: "ModelNotFoundException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
    504: "ServiceUnavailableException",
}


def router(plane: DataPlane) -> APIRouter:
    paths = APIRouter()
    door = Door(plane=plane, protocol=Protocol.TORCHSERVE, refuse=_refuse)

    @paths.post("/predictions/{name}")
    @paths.post("/predictions/{name}/{version}")
    async def predictions(request: Request, name: str, version: str = "") -> Response:
        async def reply(exchange: Exchange) -> Any:
            signature = door.find(exchange, name, version).signature
            asked = read(signature, request.headers.get("content-type", ""), await door.body(request))
            datum, asked = _with_batch_axis(signature, asked)
            outputs = await plane.submit(exchange, asked)
            return rows.by_output(
                [output._replace(array=output.array[0, ...]) for output in outputs] if datum else outputs
            )

        return await door.answer(request, reply)

    @paths.get("/models")
    def models() -> dict[str, Any]:
        names = sorted({generation.identity.name for generation in plane.visible()})
        return {"models": [{"modelName": name, "modelUrl": f"/v2/models/{name}"} for name in names]}

    return paths


def _refuse(status: int, error: SeatrialError) -> dict[str, Any]:
    return {"code": status, "type": ERROR_TYPES.get(status, "BadRequestException"), "message": str(error)}


def read(signature: Signature, content_type: str, body: bytes) -> InferRequest:
    """Inputs as they were sent, with or without the batch axis."""
    header = _header("content-type", content_type)
    if header.get_content_type() == "multipart/form-data":
        return _read_form(signature, _parts(body, boundary=str(header.get_param("boundary", ""))))
    if header.get_content_type() in JSON_TYPES:
        return _read_json(signature, rows.read_json(body))
    return InferRequest((_read_bytes(rows.only_input(signature), body),))


def _read_json(signature: Signature, given: Any) -> InferRequest:
    if not isinstance(given, dict):
        return rows.from_columns(signature, given)
    match list(given):
        case ["instances"]:
            return rows.from_rows(signature, given["instances"])
        case ["inputs" | "data" as key]:
            return rows.from_columns(signature, given[key])
    return rows.from_columns(signature, given)


def _read_form(signature: Signature, parts: Sequence[tuple[str, str, bytes]]) -> InferRequest:
    """A part for each input by its name, or one or more parts with other names, each a datum of the only input."""
    specs = {spec.name: spec for spec in signature.inputs}
    names = [name for name, _, _ in parts]
    if set(names) == specs.keys() and len(names) == len(specs):
        return InferRequest(tuple(_read_part(specs[name], media, data) for name, media, data in parts))
    only = rows.only_input(signature)
    data = [_read_part(only, media, part) for _, media, part in parts]
    if not data:
        raise MalformedRequest("the form has no part; send the input as 'data'")
    if len(data) == 1:
        return InferRequest((data[0],))
    kinds = {(tensor.datatype, tensor.array.shape) for tensor in data}
    if len(kinds) > 1 or data[0].array.ndim != len(only.shape) - 1:
        raise WrongInput(f"the {len(data)} parts of the form are not one row each, alike, of input '{only.name}'")
    return InferRequest((data[0]._replace(array=np.stack([tensor.array for tensor in data])),))


def _read_part(spec: TensorSpec, media: str, data: bytes) -> Tensor:
    """Fields of a form are texts unless they say otherwise; the text of numbers is JSON."""
    if media == "application/json" or (media == "text/plain" and spec.datatype is not DataType.BYTES):
        return rows.as_tensor(spec, rows.read_json(data))
    return _read_bytes(spec, data)


def _read_bytes(spec: TensorSpec, data: bytes) -> Tensor:
    """A file: one text or image for an input of bytes, `.npy`, or whole rows of raw little-endian numbers."""
    if spec.datatype is DataType.BYTES:
        array = np.empty((1,) * (len(spec.shape) - 1), dtype=object)
        array.fill(data)
        return Tensor(spec.name, spec.datatype, array)
    if data.startswith(NPY):
        return _read_npy(spec.name, data)
    row = spec.shape[1:]
    row_bytes = math.prod(row) * spec.datatype.numpy.itemsize
    if not spec.shape or -1 in row or not row_bytes or len(data) % row_bytes:
        raise WrongInput(
            f"{len(data)} raw bytes are no whole rows of input '{spec.name}', {spec.datatype} {list(spec.shape)}; "
            "send .npy, or JSON with its content type"
        )
    shape = (len(data) // row_bytes, *row)
    return Tensor(spec.name, spec.datatype, read_tensor(data, spec.datatype, shape, name=spec.name))


def _read_npy(name: str, data: bytes) -> Tensor:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = reader(file)
        datatype = DataType.of(dtype)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise MalformedRequest(f"the data of input '{name}' begin as .npy but are none: {error}") from error
    if datatype is DataType.BYTES:
        raise WrongInput(f"the .npy of input '{name}' holds {dtype}; it must hold numbers")
    tensor = read_tensor(data[file.tell() :], datatype, shape[::-1] if by_column else shape, name=name)
    return Tensor(name, datatype, tensor.T if by_column else tensor)


def _with_batch_axis(signature: Signature, asked: InferRequest) -> tuple[bool, InferRequest]:
    """Whether the request is one datum, and the request with the batch axis in any case."""
    ranks = {spec.name: len(spec.shape) for spec in signature.inputs}
    if not signature.batch or any(tensor.array.ndim != ranks[tensor.name] - 1 for tensor in asked.inputs):
        return False, asked
    return True, InferRequest(tuple(tensor._replace(array=tensor.array[np.newaxis]) for tensor in asked.inputs))


def _parts(body: bytes, *, boundary: str) -> list[tuple[str, str, bytes]]:
    """Name, content type and data of each part of a form. Raises `MalformedRequest`."""
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_PARTS + 1)
    if not boundary or not parts or not parts[-1].startswith(b"--"):
        raise MalformedRequest(f"the form does not end with its boundary within {MAX_PARTS} parts")
    return [_part(part) for part in parts[:-1]]


def _part(part: bytes) -> tuple[str, str, bytes]:
    head, separator, data = part.partition(b"\r\n\r\n")
    fields = dict(line.split(b":", 1) for line in head.split(b"\r\n") if b":" in line)
    given = {name.strip().lower(): value.strip().decode("latin-1") for name, value in fields.items()}
    name = _header("content-disposition", given.get(b"content-disposition", "")).get_param(
        "name", header="content-disposition"
    )
    if not separator or not isinstance(name, str):
        raise MalformedRequest("a part of the form has no name")
    return name, _header("content-type", given.get(b"content-type", "")).get_content_type(), data


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = value
    return message
