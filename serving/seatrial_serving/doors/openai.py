"""OpenAI's embeddings and list of models, for bundles that say how they make texts or token ids into embeddings.

Source: OpenAI's API reference, "Embeddings" and "Models"; the `openai` client is the test. More inputs than a batch may
have go through as several batches, one after the other, the shortest first. `dimensions` may only be what the model has: a
shorter embedding would be another model's.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from fastapi import APIRouter, Request, Response

from seatrial.errors import MalformedRequest, SeatrialError, WrongInput
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import DataType, Signature
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors import rows
from seatrial_serving.doors.answering import Door
from seatrial_serving.doors.tf_serving import openai_model
from seatrial_serving.engines import TEXT, TOKENS
from seatrial_serving.generation import Generation

MOST_INPUTS = 2048
ERROR_TYPES: Mapping[int, str] = {
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}

Texts: TypeAlias = list[str]
TokenIds: TypeAlias = list[list[int]]


class _Named(msgspec.Struct):
    model: str


class _Asked(_Named):
    input: Any
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


def router(plane: DataPlane) -> APIRouter:
    paths = APIRouter()
    door = Door(plane=plane, protocol=Protocol.OPENAI, refuse=_refuse)

    @paths.get("/v1/models")
    def models() -> dict[str, Any]:
        names = sorted({generation.identity.name for generation in plane.visible()})
        return {"object": "list", "data": [openai_model(name) for name in names]}

    @paths.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        async def reply(exchange: Exchange) -> Any:
            body = await door.body(request)
            generation = door.find(exchange, _decode(body, _Named).model)
            asked = _decode(body, _Asked)
            graph, inputs = _inputs(asked.input)
            signature = _signature(generation, graph, asked)
            embedded: dict[int, Any] = {}
            used = 0
            shortest_first = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
            for start in range(0, len(inputs), generation.max_rows):
                some = shortest_first[start : start + generation.max_rows]
                chosen = _as_request(signature, [inputs[index] for index in some])
                embedding, tokens = await plane.submit(exchange, chosen, graph=graph)
                embedded.update(zip(some, embedding.array, strict=True))
                used += int(tokens.array.sum())
            return {
                "object": "list",
                "model": asked.model,
                "data": [_item(index, embedded[index], asked.encoding_format) for index in range(len(inputs))],
                "usage": {"prompt_tokens": used, "total_tokens": used},
            }

        return await door.answer(request, reply)

    return paths


def _refuse(status: int, error: SeatrialError) -> dict[str, Any]:
    kind, code = ERROR_TYPES.get(status, "invalid_request_error"), "model_not_found" if status == 404 else None
    return {"error": {"message": str(error), "type": kind, "param": None, "code": code}}


N = TypeVar("N", _Named, _Asked)


def _decode(body: bytes, kind: type[N]) -> N:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not a request for embeddings: {error}") from error


def _inputs(given: Any) -> tuple[str, Texts | TokenIds]:
    """The graph that takes them, and one text or list of token ids for each embedding."""
    listed = [given] if isinstance(given, str) or _are(given, int) else given
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_INPUTS or not all(listed):
        raise WrongInput(f"'input' must be 1 to {MOST_INPUTS} texts, or lists of token ids, none of them empty")
    if _are(listed, str):
        return TEXT, listed
    if all(_are(each, int) for each in listed):
        return TOKENS, listed
    raise WrongInput("'input' must hold texts alone, or lists of token ids alone")


def _are(values: Any, kind: type) -> bool:
    """Whether it is a list of `kind` and nothing else; no bool is a number here."""
    return isinstance(values, list) and bool(values) and set(map(type, values)) == {kind}


def _signature(generation: Generation, graph: str, asked: _Asked) -> Signature:
    signature = generation.graphs.get(graph)
    if signature is None:
        raise WrongInput(f"the model '{asked.model}' does not embed: its bundle has no tokenizer and no pooling")
    width = signature.outputs[0].shape[1]
    if asked.dimensions not in (None, width):
        raise WrongInput(f"the model '{asked.model}' has {width} dimensions, and cannot give {asked.dimensions}")
    return signature


def _as_request(signature: Signature, inputs: Sequence[Any]) -> InferRequest:
    if len(signature.inputs) == 1:
        return rows.from_columns(signature, list(inputs))
    ids, mask = signature.inputs
    longest = max(map(len, inputs))
    padded = [row + [0] * (longest - len(row)) for row in inputs]
    real = np.arange(longest) < np.array([len(row) for row in inputs])[:, None]
    return InferRequest(
        (rows.as_tensor(ids, padded), Tensor(mask.name, mask.datatype, real.astype(mask.datatype.numpy)))
    )


def _item(index: int, embedding: Any, encoding: str) -> dict[str, Any]:
    if encoding == "base64":
        embedding = base64.b64encode(embedding.astype(DataType.FP32.numpy).tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": embedding}
