"""Clients that do nothing wrong: every one of their requests must be answered, and rightly.

A voice is opened once and then asked to speak again and again. `speak` sends one request, looks at the numbers that come
back, and says how the server must have counted it. Numbers are small integers, so that answers are exact.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any, TypeAlias

import httpx
import numpy as np
import tritonclient.grpc.aio as triton_grpc
from numpy.typing import ArrayLike

from benchmarks.soak.ledger import Key, ended, unknown
from benchmarks.soak.subject import ENCODER, MODEL, SCALES, SPARE, SPARE_SCALE
from seatrial.protocol import InferRequest, Tensor, decode_answer, encode_request
from seatrial.tensors import Array, DataType
from seatrial_monitoring.series import Outcome, Protocol
from tests.servers import Server
from tests.serving.models import embedding, linear

PATIENCE_S = 30.0
SIZES = (1, 1, 1, 1, 4, 16, 64)
INFER = f"/v2/models/{MODEL}/infer"
TEXTS = ("a ship at sea", "a ship in harbour is safe", "sea", "in harbour")
HEAD_LENGTH = "inference-header-content-length"

Speak: TypeAlias = Callable[[Random], Awaitable[Key]]
Voice: TypeAlias = Callable[[Server], AbstractAsyncContextManager[Speak]]


class Wrong(Exception):
    """An answer that is not what the model computes."""


def rows(random: Random) -> Array:
    return np.array([[random.randint(-9, 9) for _ in range(4)] for _ in range(random.choice(SIZES))], np.float32)


def check(x: Array, y: ArrayLike, *scales: float) -> None:
    """Raises `Wrong` unless `y` is what a version with one of the `scales` makes of `x`."""
    got = np.asarray(y, np.float32).reshape(-1, 3)
    if not any(np.array_equal(got, linear(x, scale=scale)) for scale in scales):
        raise Wrong(f"{got.tolist()} for {x.tolist()}, of versions that scale by {scales}")


def as_json(x: Array, **parameters: object) -> dict[str, Any]:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return {"inputs": [tensor]} | ({"parameters": parameters} if parameters else {})


@asynccontextmanager
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url(""), timeout=PATIENCE_S) as client:
        yield client


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return (await client.post(path, **body)).raise_for_status()


@asynccontextmanager
async def rest_json(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            answer = (await ask(client, INFER, json=as_json(x))).json()
            check(x, answer["outputs"][0]["data"], SCALES[answer["model_version"]])
            return ended(Outcome.OK)

        yield speak


@asynccontextmanager
async def rest_binary(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            body, length = encode_request(
                InferRequest((Tensor("x", DataType.FP32, x),), parameters={"binary_data_output": True})
            )
            answer = await ask(client, INFER, content=body, headers={HEAD_LENGTH: str(length)})
            [y] = decode_answer(answer.content, json_length=int(answer.headers[HEAD_LENGTH]))
            check(x, y.array, *SCALES.values())
            return ended(Outcome.OK)

        yield speak


@asynccontextmanager
async def rest_compressed(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            packed = gzip.compress(json.dumps(as_json(x)).encode(), 1)
            answer = (await ask(client, INFER, content=packed, headers={"content-encoding": "gzip"})).json()
            check(x, answer["outputs"][0]["data"], SCALES[answer["model_version"]])
            return ended(Outcome.OK)

        yield speak


@asynccontextmanager
async def rest_slow(server: Server) -> AsyncIterator[Speak]:
    """Sends its body in pieces, and takes its time to read."""

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 + len(body) // 4):
            yield body[start : start + 1 + len(body) // 4]
            await asyncio.sleep(0.1)

    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            body = json.dumps(as_json(x)).encode()
            async with client.stream("POST", INFER, content=pieces(body)) as answer:
                await asyncio.sleep(0.1)
                said = json.loads(await answer.aread())
            check(x, said["outputs"][0]["data"], SCALES[said["model_version"]])
            return ended(Outcome.OK)

        yield speak


@asynccontextmanager
async def rest_spare(server: Server) -> AsyncIterator[Speak]:
    """Asks for a model that is sometimes unloaded, and is told so."""
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            answer = await client.post(f"/v2/models/{SPARE}/infer", json=as_json(x), headers={"connection": "close"})
            if answer.status_code == httpx.codes.NOT_FOUND:
                return unknown()
            check(x, answer.raise_for_status().json()["outputs"][0]["data"], SPARE_SCALE)
            return ended(Outcome.OK)

        yield speak


@asynccontextmanager
async def mlflow(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            answer = await ask(client, "/invocations", json={"inputs": x.tolist()})
            check(x, answer.json()["predictions"], *SCALES.values())
            return ended(Outcome.OK, Protocol.MLFLOW)

        yield speak


@asynccontextmanager
async def tf_serving(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            answer = await ask(client, f"/v1/models/{MODEL}:predict", json={"instances": x.tolist()})
            check(x, answer.json()["predictions"], *SCALES.values())
            return ended(Outcome.OK, Protocol.TF_SERVING)

        yield speak


@asynccontextmanager
async def openai(server: Server) -> AsyncIterator[Speak]:
    async with http(server) as client:

        async def speak(random: Random) -> Key:
            text = random.choice(TEXTS)
            answer = await ask(client, "/v1/embeddings", json={"model": ENCODER, "input": text})
            [item] = answer.json()["data"]
            if not np.allclose(item["embedding"], embedding(text), atol=1e-6):
                raise Wrong(f"{item['embedding']} for {text!r}")
            return ended(Outcome.OK, Protocol.OPENAI)

        yield speak


def tensors(x: Array) -> list[triton_grpc.InferInput]:
    tensor = triton_grpc.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def check_result(x: Array, result: triton_grpc.InferResult) -> None:
    check(x, result.as_numpy("y"), SCALES[result.get_response().model_version])


@asynccontextmanager
async def grpc(server: Server) -> AsyncIterator[Speak]:
    async with triton_grpc.InferenceServerClient(server.grpc) as client:

        async def speak(random: Random) -> Key:
            x = rows(random)
            check_result(x, await client.infer(MODEL, tensors(x), client_timeout=PATIENCE_S))
            return ended(Outcome.OK, Protocol.GRPC)

        yield speak


@asynccontextmanager
async def grpc_stream(server: Server) -> AsyncIterator[Speak]:
    """One stream for all requests, however long the server lives."""
    asked: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[dict[str, Any]]:
        while (request := await asked.get()) is not None:
            yield request

    async with triton_grpc.InferenceServerClient(server.grpc) as client:
        answers = client.stream_infer(requests())

        async def speak(random: Random) -> Key:
            x = rows(random)
            asked.put_nowait({"model_name": MODEL, "inputs": tensors(x)})
            async with asyncio.timeout(PATIENCE_S):
                result, error = await anext(answers)
            if error is not None:
                raise error
            check_result(x, result)
            return ended(Outcome.OK, Protocol.GRPC)

        yield speak
        asked.put_nowait(None)
        async for result, error in answers:
            raise Wrong(f"an answer to nothing: {result}, {error}")


VOICES: Mapping[str, Voice] = {
    "REST, JSON": rest_json,
    "REST, binary": rest_binary,
    "REST, compressed": rest_compressed,
    "REST, slow": rest_slow,
    "REST, a model that comes and goes": rest_spare,
    "MLflow": mlflow,
    "TensorFlow Serving": tf_serving,
    "OpenAI": openai,
    "gRPC": grpc,
    "gRPC, stream": grpc_stream,
}
