"""The Open Inference Protocol over gRPC, with `grpc.health.v1` and reflection. Translates, and calls the data plane."""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from seatrial import __version__
from seatrial.errors import MalformedRequest, SeatrialError, WrongInput
from seatrial.protocol import (
    MAX_TENSORS,
    InferRequest,
    Parameters,
    RequestedOutput,
    Tensor,
    element_count,
    read_tensor,
    write_tensor,
)
from seatrial.tensors import Array, DataType
from seatrial_monitoring.series import Closing, Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors.calls import Calls, Conversation, Head, Methods, Streaming, Unary, UnaryCall
from seatrial_serving.doors.closings import Closings
from seatrial_serving.doors.configuration import configuration
from seatrial_serving.doors.grpc_health import Health
from seatrial_serving.doors.grpc_reflection import reflection
from seatrial_serving.doors.http2 import Connection
from seatrial_serving.doors.infer import wanted
from seatrial_serving.doors.metadata import EXTENSIONS, is_model_ready, metadata
from seatrial_serving.doors.statistics import statistics
from seatrial_serving.open_inference import POOL, SERVICE, messages
from seatrial_serving.repository import check_load_parameters
from seatrial_serving.workers import Outputs

SWEEP_S = 0.5
MANAGING = (f"/{SERVICE}/RepositoryModelLoad", f"/{SERVICE}/RepositoryModelUnload")
"""Not answered here where management has a port of its own, which speaks REST."""
FINAL = "triton_final_response"
"""What Triton calls the parameter that tells the last of several answers."""
MOST_AHEAD = 64
"""Requests of one stream that may wait for their answers; the next is read when one of them is answered."""

M = TypeVar("M", bound=Message)

CONTENTS: Mapping[DataType, str] = {
    DataType.BOOL: "bool_contents",
    DataType.INT8: "int_contents",
    DataType.INT16: "int_contents",
    DataType.INT32: "int_contents",
    DataType.INT64: "int64_contents",
    DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents",
    DataType.UINT32: "uint_contents",
    DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents",
    DataType.FP64: "fp64_contents",
    DataType.BYTES: "bytes_contents",
}
"""Where a tensor's elements lie if not in `raw_input_contents`; FP16 and BF16 have no such place."""


class GrpcServer:
    """Created on the event loop that serves it."""

    def __init__(self, plane: DataPlane, *, tls: ssl.SSLContext | None = None) -> None:
        self._limits, self._tls = plane.settings.limits, tls
        self._health = Health(lambda: plane.ready, services=("", SERVICE))
        methods = {**Servicer(plane).methods(), **self._health.methods()}
        methods |= reflection(methods, POOL)
        if plane.settings.management_port is not None:
            methods = {path: method for path, method in methods.items() if path not in MANAGING}
        anybody = {*self._health.methods(), f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady"}
        self._calls = Calls(methods, self._limits.body_bytes, self._limits.header_bytes, plane.guard, anybody)
        self._closings = Closings("gRPC", plane.metrics.closed[Protocol.GRPC])
        self._connections: set[Connection[Head]] = set()
        self._empty = asyncio.Event()
        self._server: asyncio.Server
        self._sweeping: asyncio.Task[None]

    async def start(self, listener: socket.socket) -> None:
        self.announce()
        loop = asyncio.get_running_loop()
        patience = None if self._tls is None else self._limits.receive_s
        self._server = await loop.create_server(
            self._connect, sock=listener, ssl=self._tls, ssl_handshake_timeout=patience
        )
        self._sweeping = loop.create_task(self._sweep())

    def announce(self) -> None:
        """Tell health watchers whether the server takes requests."""
        self._health.announce()

    async def stop(self, grace_s: float) -> None:
        """Take no new call, let those in flight end for at most `grace_s`."""
        self._server.close()
        for connection in list(self._connections):
            connection.go_away()
        self.announce()
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), grace_s)
        self._sweeping.cancel()
        for connection in list(self._connections):
            connection.abort()

    def _connect(self) -> Connection[Head]:
        return Connection(self._calls, self._limits, made=self._made, lost=self._lost, closing=self._closings.note)

    def _made(self, connection: Connection[Head]) -> None:
        self._connections.add(connection)
        if self._closings.has_no_room(connection.transport):
            self._closings.note(Closing.NO_ROOM)
            asyncio.get_running_loop().call_soon(connection.abort)

    def _lost(self, connection: Connection[Head]) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._limits.receive_s / 4))
            now = asyncio.get_running_loop().time()
            for connection in list(self._connections):
                connection.sweep(now)


class Servicer:
    """The methods of the service, from message to message."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def methods(self) -> Methods:
        return {
            f"/{SERVICE}/ServerLive": _plain(messages.ServerLiveRequest, self.server_live),
            f"/{SERVICE}/ServerReady": _plain(messages.ServerReadyRequest, self.server_ready),
            f"/{SERVICE}/ModelReady": _plain(messages.ModelReadyRequest, self.model_ready),
            f"/{SERVICE}/ServerMetadata": _plain(messages.ServerMetadataRequest, self.server_metadata),
            f"/{SERVICE}/ModelMetadata": _plain(messages.ModelMetadataRequest, self.model_metadata),
            f"/{SERVICE}/ModelConfig": _plain(messages.ModelConfigRequest, self.model_config),
            f"/{SERVICE}/ModelStatistics": _slow(messages.ModelStatisticsRequest, self.model_statistics),
            f"/{SERVICE}/RepositoryIndex": _slow(messages.RepositoryIndexRequest, self.repository_index),
            f"/{SERVICE}/RepositoryModelLoad": _slow(messages.RepositoryModelLoadRequest, self.repository_load),
            f"/{SERVICE}/RepositoryModelUnload": _slow(messages.RepositoryModelUnloadRequest, self.repository_unload),
            f"/{SERVICE}/ModelInfer": Unary(self.model_infer),
            f"/{SERVICE}/ModelStreamInfer": Streaming(self.model_stream_infer),
        }

    def server_live(self, _: messages.ServerLiveRequest) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    def server_ready(self, _: messages.ServerReadyRequest) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._plane.ready)

    def model_ready(self, asked: messages.ModelReadyRequest) -> messages.ModelReadyResponse:
        return messages.ModelReadyResponse(ready=is_model_ready(self._plane, asked.name, asked.version))

    def server_metadata(self, _: messages.ServerMetadataRequest) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(name="seatrial", version=__version__, extensions=EXTENSIONS)

    def model_metadata(self, asked: messages.ModelMetadataRequest) -> messages.ModelMetadataResponse:
        return messages.ModelMetadataResponse(**metadata(self._plane, self._plane.find(asked.name, asked.version)))

    def model_config(self, asked: messages.ModelConfigRequest) -> messages.ModelConfigResponse:
        described = configuration(self._plane.find(asked.name, asked.version), cached=self._plane.cache is not None)
        return ParseDict({"config": described}, messages.ModelConfigResponse())

    async def model_statistics(self, asked: messages.ModelStatisticsRequest) -> messages.ModelStatisticsResponse:
        told = await statistics(self._plane, asked.name, asked.version)
        return ParseDict(told, messages.ModelStatisticsResponse())

    async def repository_index(self, asked: messages.RepositoryIndexRequest) -> messages.RepositoryIndexResponse:
        listed = [asdict(each) for each in await self._plane.index(ready=asked.ready)]
        return ParseDict({"models": listed}, messages.RepositoryIndexResponse())

    async def repository_load(self, asked: messages.RepositoryModelLoadRequest) -> messages.RepositoryModelLoadResponse:
        control = self._plane.control(asked.model_name)
        check_load_parameters(asked.parameters)
        await control.load(asked.model_name)
        return messages.RepositoryModelLoadResponse()

    async def repository_unload(
        self, asked: messages.RepositoryModelUnloadRequest
    ) -> messages.RepositoryModelUnloadResponse:
        await self._plane.control(asked.model_name).unload(asked.model_name)
        return messages.RepositoryModelUnloadResponse()

    def model_infer(self, call: UnaryCall, message: bytes) -> None:
        def respond(answer: messages.ModelInferResponse | Exception) -> None:
            if isinstance(answer, Exception):
                call.fail(answer)
            else:
                call.answer(answer.SerializeToString())

        try:
            asked = _parse(messages.ModelInferRequest, message)
        except MalformedRequest as error:
            call.fail(error)
        else:
            call.leave = self._infer(asked, respond, timeout_s=call.head.timeout_s).leave

    async def model_stream_infer(self, call: Conversation) -> None:
        """Answers come in the order of the requests; one that fails says so in its own answer, and the stream goes on."""
        line = _Line(call)
        try:
            async for message in call.messages():
                await line.until(MOST_AHEAD - 1)
                await call.drained()
                asked = _parse(messages.ModelInferRequest, message)
                if self._steps(asked) > 1:
                    await line.until(0)
                    await self._infer_steps(asked, call)
                else:
                    line.join(asked.id, partial(self._infer, asked, timeout_s=call.head.timeout_s))
            await line.until(0)
        finally:
            line.leave()

    def _steps(self, asked: messages.ModelInferRequest) -> int:
        """How many answers it is to have on a stream: one for each step that a model with a memory takes."""
        with contextlib.suppress(SeatrialError):  # it will be told when it is asked
            generation = self._plane.resolve(asked.model_name, asked.model_version)
            if generation.stateful and generation.signature.batch and asked.inputs and asked.inputs[0].shape:
                return asked.inputs[0].shape[0]
        return 1

    async def _infer_steps(self, asked: messages.ModelInferRequest, call: Conversation) -> None:
        """Answer each step when the client has room for it."""
        exchange = self._plane.begin(Protocol.GRPC, asked.model_name, asked.model_version)
        left = self._steps(asked)
        try:
            self._plane.locate(exchange)
            request = read_request(asked)
            async with contextlib.aclosing(
                self._plane.stream(exchange, request, timeout_s=call.head.timeout_s)
            ) as answers:
                async for outputs in answers:
                    left -= 1
                    answer = _write_answer(exchange, request, outputs)
                    call.send(_streamed(answer, asked.id, final=not left).SerializeToString())
                    await call.drained()
        except BaseException as error:
            self._plane.fail(exchange, error)
            if not isinstance(error, Exception):
                raise
            call.send(_streamed(error, asked.id).SerializeToString())
        finally:
            self._plane.end(exchange)

    def _infer(
        self,
        asked: messages.ModelInferRequest,
        respond: Callable[[messages.ModelInferResponse | Exception], None],
        *,
        timeout_s: float | None,
    ) -> Exchange:
        """Answer `asked` by calling `respond`, at once or later. A client that has left gets none."""
        exchange = self._plane.begin(Protocol.GRPC, asked.model_name, asked.model_version)
        self._plane.answer(exchange, partial(read_request, asked), _write_answer, respond, timeout_s=timeout_s)
        return exchange


class _Line:
    """Requests of one stream that wait for their answers, which are sent in the order of the requests."""

    def __init__(self, call: Conversation) -> None:
        self._call = call
        self._waiting: deque[_Place] = deque()
        self._moved = asyncio.Event()

    def join(self, request_id: str, begin: "Callable[[Callable[[Any], None]], Exchange]") -> None:
        place = _Place(request_id)
        self._waiting.append(place)
        place.exchange = begin(partial(self._answered, place))

    def _answered(self, place: "_Place", answer: messages.ModelInferResponse | Exception) -> None:
        place.answer = _streamed(answer, place.request_id)
        while self._waiting and (answered := self._waiting[0].answer) is not None:
            self._waiting.popleft()
            self._call.send(answered.SerializeToString())
        self._moved.set()

    async def until(self, length: int) -> None:
        """Return once no more than `length` requests wait."""
        while len(self._waiting) > length:
            self._moved.clear()
            await self._moved.wait()

    def leave(self) -> None:
        for place in self._waiting:
            if place.exchange is not None:
                place.exchange.leave()


class _Place:
    __slots__ = ("answer", "exchange", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.answer: messages.ModelStreamInferResponse | None = None
        self.exchange: Exchange | None = None


def _streamed(
    answer: messages.ModelInferResponse | Exception, request_id: str, *, final: bool = True
) -> messages.ModelStreamInferResponse:
    """`final` is the last answer to its request."""
    if isinstance(answer, messages.ModelInferResponse):
        answer.parameters[FINAL].bool_param = final
        return messages.ModelStreamInferResponse(infer_response=answer)
    said = str(answer) if isinstance(answer, SeatrialError) else "internal error"
    return messages.ModelStreamInferResponse(
        error_message=said, infer_response=messages.ModelInferResponse(id=request_id)
    )


def _parse(kind: type[M], message: bytes) -> M:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise MalformedRequest(f"the message is no {kind.DESCRIPTOR.name}: {error}") from error


def _plain(kind: type[M], method: Callable[[M], Message]) -> Unary:
    """A method that answers at once."""

    def answer(call: UnaryCall, message: bytes) -> None:
        try:
            reply = method(_parse(kind, message))
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            call.fail(error)
        else:
            call.answer(reply.SerializeToString())

    return Unary(answer)


def _slow(kind: type[M], method: Callable[[M], Coroutine[Any, Any, Message]]) -> Unary:
    """A method that takes its time, and goes on where its client leaves."""
    running: set[asyncio.Task[None]] = set()

    async def reply(call: UnaryCall, message: bytes) -> None:
        try:
            call.answer((await method(_parse(kind, message))).SerializeToString())
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            call.fail(error)

    def answer(call: UnaryCall, message: bytes) -> None:
        task = asyncio.get_running_loop().create_task(reply(call, message))
        running.add(task)
        task.add_done_callback(running.discard)

    return Unary(answer)


def read_request(asked: messages.ModelInferRequest) -> InferRequest:
    """Raises `MalformedRequest` or `WrongInput`."""
    if max(len(asked.inputs), len(asked.outputs)) > MAX_TENSORS:
        raise MalformedRequest(f"the request names more than {MAX_TENSORS} tensors")
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise MalformedRequest(
            f"there are {len(asked.inputs)} inputs but {len(raw)} raw_input_contents; send one for each"
        )
    inputs = tuple(_read_tensor(tensor, raw[number] if raw else None) for number, tensor in enumerate(asked.inputs))
    outputs = tuple(RequestedOutput(output.name, _read_parameters(output.parameters)) for output in asked.outputs)
    return InferRequest(inputs, outputs, asked.id, _read_parameters(asked.parameters))


def _read_parameters(given: Mapping[str, messages.InferParameter]) -> Parameters:
    if not given:
        return {}
    choices = {name: (value, value.WhichOneof("parameter_choice")) for name, value in given.items()}
    return {name: getattr(value, choice) for name, (value, choice) in choices.items() if choice}


def _read_tensor(tensor: messages.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    try:
        datatype = DataType(tensor.datatype)
    except ValueError:
        raise WrongInput(
            f"input '{tensor.name}' has datatype {tensor.datatype!r}; there are {list(DataType)}"
        ) from None
    if raw is None:
        return Tensor(tensor.name, datatype, _read_contents(tensor, datatype))
    if tensor.HasField("contents"):
        raise MalformedRequest(f"input '{tensor.name}' has both contents and raw_input_contents; send one")
    return Tensor(tensor.name, datatype, read_tensor(raw, datatype, tensor.shape, name=tensor.name))


def _read_contents(tensor: messages.ModelInferRequest.InferInputTensor, datatype: DataType) -> Array:
    if datatype not in CONTENTS:
        raise WrongInput(f"input '{tensor.name}' is {datatype}, which has no contents field; send raw_input_contents")
    elements = getattr(tensor.contents, CONTENTS[datatype])
    count = element_count(tensor.shape, name=tensor.name)
    if len(elements) != count:
        raise MalformedRequest(
            f"input '{tensor.name}' has {len(elements)} elements in {CONTENTS[datatype]}, its shape says {count}"
        )
    try:
        array: Array = np.array(elements, datatype.numpy)
    except OverflowError as error:
        raise WrongInput(f"input '{tensor.name}' holds a number that {datatype} cannot: {error}") from error
    return array.reshape(tensor.shape)


def _write_answer(exchange: Exchange, request: InferRequest, outputs: Outputs) -> messages.ModelInferResponse:
    """Raw contents always: every client of the protocol reads them, and they cost nothing."""
    assert exchange.generation is not None, "an answer without a generation: this is a bug"
    identity = exchange.generation.identity
    answer = messages.ModelInferResponse(model_name=identity.name, model_version=identity.version, id=request.id)
    for name, datatype, array in wanted(outputs, request, exchange.generation):
        answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        answer.raw_output_contents.append(write_tensor(array, datatype))
    return answer
