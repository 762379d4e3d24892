"""Load for any v2 server, over REST or gRPC: how many requests a second, how long they take, which fail.

Closed loop: as many callers as asked for, each sending its next request when the last one was answered. Open loop: requests
are due at a steady rate, whatever the server does, and latency counts from when each was due, not from when it could be sent.
"""

import asyncio
import math
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast
from typing import Protocol as Contract
from urllib.parse import SplitResult, quote, urlsplit

import grpc
import httptools
import httpx
import numpy as np

from seatrial.credentials import Credentials
from seatrial.errors import InvalidSource, NotReady
from seatrial.protocol import InferRequest, Tensor, encode_request, write_tensor
from seatrial.tensors import Array, DataType
from seatrial_serving.open_inference import SERVICE, messages
from seatrial_serving.open_inference.ends import grpc_end

Protocol: TypeAlias = Literal["rest", "rest-json", "grpc"]
OK = "ok"
ROWS_WHERE_UNKNOWN = 1
SIZE_WHERE_UNKNOWN = 8


class Call(Contract):
    async def __call__(self, number: int = 0) -> str:
        """Send the request of that number, of those that are asked in turn; how it ended: `ok`, or what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`rate` None is a closed loop of `callers`; else so many requests a second are due, on at most `callers` at a time.

    What is asked is `requests`, in turn, or where there are none one of `rows` from `samples`, or of zeros. In an open loop
    `due` says when in a round, which is 0 to 1, each of as many requests is due; by default one a round.
    """

    url: str
    model: str
    protocol: Protocol = "rest"
    callers: int = 8
    seconds: float = 10.0
    warm_up_s: float = 1.0
    rate: float | None = None
    samples: Path | None = None
    rows: int = ROWS_WHERE_UNKNOWN
    credentials: Credentials = field(default_factory=Credentials)
    requests: tuple[InferRequest, ...] = field(default=(), compare=False, repr=False)
    due: tuple[float, ...] = field(default=(0.0,), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """`outcomes` counts how requests ended; latencies, in milliseconds, are of those that were answered well."""

    requests: int
    seconds: float
    outcomes: dict[str, int]
    per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    @property
    def failed(self) -> int:
        return self.requests - self.outcomes.get(OK, 0)


@dataclass(slots=True)
class _Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    def note(self, outcome: str, latency_s: float) -> None:
        self.outcomes[outcome] += 1
        if outcome == OK:
            self.latencies_s.append(latency_s)

    def result(self, seconds: float) -> Result:
        ms = 1000 * np.array(self.latencies_s or [math.nan])
        p50, p90, p99 = (float(np.percentile(ms, q)) for q in (50, 90, 99))
        return Result(
            requests=self.outcomes.total(),
            seconds=seconds,
            outcomes=dict(self.outcomes),
            per_second=self.outcomes[OK] / seconds,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            max_ms=float(ms.max()),
        )


async def bench(plan: Plan) -> Result:
    """Put the load of `plan` on the server. Raises `NotReady` where it does not answer, `InvalidSource` for bad samples."""
    async with callers(plan) as calls:
        load = _open_loop if plan.rate else _closed_loop
        await load(calls, plan, plan.warm_up_s)
        began = time.perf_counter()
        tally = await load(calls, plan, plan.seconds)
        return tally.result(time.perf_counter() - began)


async def _closed_loop(calls: Sequence[Call], plan: Plan, seconds: float) -> _Tally:  # noqa: ARG001 - as _open_loop
    tally = _Tally()
    end = time.perf_counter() + seconds

    async def keep_asking(number: int, call: Call) -> None:
        while (began := time.perf_counter()) < end:
            tally.note(await call(number), time.perf_counter() - began)
            number += len(calls)

    await asyncio.gather(*(keep_asking(number, call) for number, call in enumerate(calls)))
    return tally


async def _open_loop(calls: Sequence[Call], plan: Plan, seconds: float) -> _Tally:
    assert plan.rate, "an open loop without a rate: this is a bug"
    tally = _Tally()
    free: asyncio.Queue[Call] = asyncio.Queue()
    for each in calls:
        free.put_nowait(each)

    async def ask(number: int, due: float) -> None:
        call = await free.get()
        try:
            tally.note(await call(number), time.perf_counter() - due)
        finally:
            free.put_nowait(call)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(plan.rate * seconds)):
            rounds, place = divmod(number, len(plan.due))
            due = began + (rounds + plan.due[place]) * len(plan.due) / plan.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(ask(number, due))
    return tally


# What to ask


async def _metadata(plan: Plan) -> dict[str, Any]:
    """The model's inputs, from the server itself."""
    if plan.protocol == "grpc":
        return await _grpc_metadata(plan)
    credentials = plan.credentials
    async with httpx.AsyncClient(headers=credentials.headers, verify=credentials.trusting()) as client:
        try:
            answer = await client.get(f"{_http(plan.url)}/v2/models/{quote(plan.model)}")
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise NotReady(f"{plan.url} does not describe the model '{plan.model}': {error}") from error
        metadata: dict[str, Any] = answer.json()
        return metadata


async def _grpc_metadata(plan: Plan) -> dict[str, Any]:
    async with _channel(plan) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelMetadata",
            request_serializer=messages.ModelMetadataRequest.SerializeToString,
            response_deserializer=messages.ModelMetadataResponse.FromString,
        )
        try:
            answer = await ask(messages.ModelMetadataRequest(name=plan.model), timeout=10, metadata=_shown(plan))
        except grpc.RpcError as error:
            raise NotReady(f"{plan.url} does not describe the model '{plan.model}': {error}") from error
    return {"inputs": [{"name": i.name, "datatype": i.datatype, "shape": list(i.shape)} for i in answer.inputs]}


def _inputs(metadata: dict[str, Any], plan: Plan) -> tuple[Tensor, ...]:
    """Rows of `plan.samples`, or zeros of the shape that the server states, axes of unknown size small."""
    given = _read_samples(plan.samples) if plan.samples else {}
    tensors = []
    for spec in metadata["inputs"]:
        datatype = DataType(spec["datatype"])
        name, shape = spec["name"], [int(size) for size in spec["shape"]]
        if plan.samples and name not in given:
            raise InvalidSource(f"{plan.samples} has no array '{name}'; it has {sorted(given)}")
        array = given[name][: plan.rows] if plan.samples else _zeros(shape, datatype, rows=plan.rows)
        tensors.append(Tensor(name, datatype, array))
    return tuple(tensors)


def _zeros(shape: Sequence[int], datatype: DataType, *, rows: int) -> Array:
    sizes = [(rows if axis == 0 else SIZE_WHERE_UNKNOWN) if size < 0 else size for axis, size in enumerate(shape)]
    return np.full(sizes, b"", object) if datatype is DataType.BYTES else np.zeros(sizes, datatype.numpy)


def _read_samples(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise InvalidSource(f"{path} is no .npz file of arrays by input name: {error}") from error


# How to ask


@asynccontextmanager
async def callers(plan: Plan) -> AsyncIterator[list[Call]]:
    """As many as `plan` wants. Raises as `bench` does."""
    requests = plan.requests or (InferRequest(_inputs(await _metadata(plan), plan)),)
    async with AsyncExitStack() as stack:
        if plan.protocol == "grpc":
            sent = [as_grpc(request, plan.model) for request in requests]
            yield [await stack.enter_async_context(_grpc_caller(plan, sent)) for _ in range(plan.callers)]
        else:
            sent = [_as_http(request, plan) for request in requests]
            yield [await stack.enter_async_context(_caller(plan, sent)) for _ in range(plan.callers)]


def _as_http(request: InferRequest, plan: Plan) -> bytes:
    binary = plan.protocol == "rest"
    asked = request._replace(parameters={**request.parameters, "binary_data_output": binary})
    body, json_length = encode_request(asked, binary=binary)
    head = (
        f"POST /v2/models/{quote(plan.model)}/infer HTTP/1.1\r\nHost: {urlsplit(_http(plan.url)).netloc}\r\n"
        f"Content-Length: {len(body)}\r\n"
        + (f"Inference-Header-Content-Length: {json_length}\r\n" if binary else "Content-Type: application/json\r\n")
        + "".join(f"{name}: {value}\r\n" for name, value in plan.credentials.headers.items())
    )
    return head.encode() + b"\r\n" + body


@asynccontextmanager
async def _caller(plan: Plan, sent: Sequence[bytes]) -> AsyncIterator[Call]:
    """One connection."""
    address = urlsplit(_http(plan.url))
    tls = plan.credentials.trusting() if address.scheme == "https" else None
    connection = await _connect(address, tls)

    async def call(number: int = 0) -> str:
        nonlocal connection
        if connection.closed:
            connection = await _connect(address, tls)
        status = await connection.ask(sent[number % len(sent)])
        return {httpx.codes.OK: OK, _LOST: "connection lost"}.get(status, str(status))

    try:
        yield call
    except BaseException:
        connection.drop()
        raise
    await connection.close()


async def _connect(address: SplitResult, tls: ssl.SSLContext | None) -> "_Connection":
    host, port = address.hostname or "localhost", address.port or (443 if tls else 80)
    try:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port, ssl=tls)
    except OSError as error:
        raise NotReady(f"{host}:{port} cannot be reached: {error}") from error
    return connection


@asynccontextmanager
async def _grpc_caller(plan: Plan, sent: Sequence[bytes]) -> AsyncIterator[Call]:
    shown = _shown(plan)
    async with _channel(plan) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=bytes, response_deserializer=bytes)

        async def call(number: int = 0) -> str:
            try:
                await ask(sent[number % len(sent)], timeout=60, metadata=shown)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return OK

        yield call


def _channel(plan: Plan) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    address, tls = grpc_end(plan.url, plan.credentials)
    if tls is not None:
        return grpc.aio.secure_channel(address, tls, options=options)
    return grpc.aio.insecure_channel(address, options=options)


def _shown(plan: Plan) -> tuple[tuple[str, str], ...]:
    return tuple(plan.credentials.headers.items())


def as_grpc(request: InferRequest, model: str) -> bytes:
    """The serialized `ModelInferRequest`."""
    message = messages.ModelInferRequest(model_name=model)
    for name, datatype, array in request.inputs:
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(write_tensor(array, datatype))
    return message.SerializeToString()


_LOST = 0


class _Connection(asyncio.Protocol):
    """A client's end of one HTTP connection, with one request in flight."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._lost = asyncio.Event()
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()

    async def close(self) -> None:
        self._transport.close()
        await self._lost.wait()  # TLS ends with a word of the other side's

    def drop(self) -> None:
        """Close without a word. An event loop whose connections are left open may never end."""
        self._transport.abort()

    def ask(self, request: bytes) -> "asyncio.Future[int]":
        """The status of the answer; `_LOST` where the connection broke."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._finish(self._parser.get_status_code())
        if not self._parser.should_keep_alive():
            self._transport.close()
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        self._finish(_LOST)
        self._lost.set()

    def _finish(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)


def _http(url: str) -> str:
    return url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
