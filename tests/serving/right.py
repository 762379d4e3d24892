"""A v2 server of a page that does everything right, on real sockets: `listening` puts it behind uvicorn and `grpc`.

What a faulty server (`faulty`) does otherwise is a method of its own.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
import numpy as np
import orjson
import uvicorn
from google.protobuf import json_format

from seatrial.errors import MalformedRequest, SeatrialError, UnknownModel, UnsupportedEncoding, WrongInput
from seatrial.protocol import InferRequest, RequestedOutput, Tensor, decode_request, encode_answer, write_tensor
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_serving.doors.grpc import read_request
from seatrial_serving.open_inference import SERVICE, messages
from tests.conditions import until
from tests.serving.models import linear

NAME, VERSION = "shifted", "7"
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 4)),
        TensorSpec(name="shift", datatype=DataType.INT64, shape=(-1, 1)),
    ),
    outputs=(
        TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),
        TensorSpec(name="best", datatype=DataType.INT64, shape=(-1, 1)),
    ),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "shift": 0, "y": 0, "best": 0}, max=256),),
)
HEAD_LENGTH = "inference-header-content-length"
JSON = {"content-type": "application/json"}

Response = tuple[int, Mapping[str, str], bytes]


def as_json(document: Any, status: int = 200) -> Response:
    return status, JSON, orjson.dumps(document)


class Right:
    """y = x W + b + shift, best = the index of the greatest of y."""

    caught_by: ClassVar[str] = ""
    """The check that finds a fault, and `words` of what it says that it found."""
    words: ClassVar[str] = ""

    def __init__(self) -> None:
        self.rows = self.requests = 0

    # What a fault may change

    extensions: tuple[str, ...] = (
        "binary_tensor_data", "parameters", "schedule_policy", "classification", "model_configuration", "statistics",
        "model_repository",
    )  # fmt: skip

    def health(self) -> Response:
        return 200, {}, b""

    def model_health(self, name: str, version: str) -> Response:
        self.find(name, version)
        return self.health()

    def find(self, name: str, version: str) -> None:
        if name != NAME or version not in ("", VERSION):
            raise UnknownModel(f"there is no {name} {version}")

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "right", "version": "1", "extensions": self.extensions}

    def metadata(self) -> dict[str, Any]:
        tensors = {
            kind: [{"name": spec.name, "datatype": str(spec.datatype), "shape": list(spec.shape)} for spec in specs]
            for kind, specs in (("inputs", SIGNATURE.inputs), ("outputs", SIGNATURE.outputs))
        }
        return {"name": NAME, "versions": [VERSION], "platform": "test", **tensors}

    def configuration(self) -> dict[str, Any]:
        tensors = {
            kind: [{"name": s.name, "data_type": f"TYPE_{s.datatype}", "dims": list(s.shape[1:])} for s in specs]
            for kind, specs in (("input", SIGNATURE.inputs), ("output", SIGNATURE.outputs))
        }
        return {"name": NAME, "max_batch_size": 256, **tensors}

    def statistics(self) -> dict[str, Any]:
        stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        counted = {stage: {"count": self.requests, "ns": 1} for stage in stages}
        counts = {"inference_count": self.rows, "execution_count": self.requests, "last_inference": 1}
        return {"model_stats": [{"name": NAME, "version": VERSION, "inference_stats": counted} | counts]}

    def index(self) -> list[dict[str, Any]]:
        return [{"name": NAME, "version": VERSION, "state": "READY", "reason": ""}]

    def decode(self, headers: Mapping[str, str], body: bytes) -> InferRequest:
        if "content-encoding" in headers:
            raise UnsupportedEncoding("no encoding is spoken here")
        length = headers.get(HEAD_LENGTH)
        if length is not None and not length.isdecimal():
            raise MalformedRequest(f"{HEAD_LENGTH} is {length}")
        return decode_request(body, json_length=None if length is None else int(length))

    def check(self, request: InferRequest) -> None:
        SIGNATURE.check(request.inputs)

    def predict(self, arrays: Mapping[str, Array], request: InferRequest) -> dict[str, Array]:  # noqa: ARG002 - a fault's
        y = linear(arrays["x"]) + arrays["shift"].astype(np.float32)
        return {"y": y, "best": np.argmax(y, axis=1, keepdims=True).astype(np.int64)}

    async def compute(self, request: InferRequest) -> dict[str, Array]:
        return self.predict({tensor.name: tensor.array for tensor in request.inputs}, request)

    def select(self, tensors: list[Tensor], request: InferRequest) -> list[Tensor]:
        by_name = {tensor.name: tensor for tensor in tensors}
        try:
            return [by_name[output.name] for output in request.outputs] or tensors
        except KeyError as error:
            raise WrongInput(f"there is no output {error}") from error

    def classify(self, scores: Array, most: int) -> Array:
        best = np.argsort(-scores, axis=1)[:, :most]
        texts = [
            [f"{row[index]:f}:{index}".encode() for index in indexes] for row, indexes in zip(scores, best, strict=True)
        ]
        return np.array(texts, object)

    def identity(self, request: InferRequest) -> dict[str, str]:
        return {"model": NAME, "version": VERSION, "request_id": request.id}

    def binary(self, request: InferRequest) -> dict[str, bool]:
        said = {output.name: output.binary for output in request.outputs if output.binary is not None}
        return {spec.name: said.get(spec.name, request.binary_by_default) for spec in SIGNATURE.outputs}

    def dress(self, body: bytes, length: int | None) -> Response:
        if length is None:
            return 200, JSON, body
        return 200, {"content-type": "application/octet-stream", HEAD_LENGTH: str(length)}, body

    def mistake(self, error: SeatrialError) -> Response:
        return as_json({"error": str(error)}, 404 if isinstance(error, UnknownModel) else 400)

    # How it is put together

    async def infer(self, request: InferRequest) -> list[Tensor]:
        self.check(request)
        arrays = await self.compute(request)
        self.requests += 1
        self.rows += len(request.inputs[0].array)
        tensors = [
            Tensor(spec.name, spec.datatype, arrays[spec.name]) for spec in SIGNATURE.outputs if spec.name in arrays
        ]
        return [self._as_asked(tensor, request) for tensor in self.select(tensors, request)]

    def _as_asked(self, tensor: Tensor, request: InferRequest) -> Tensor:
        asked = {output.name: output.parameters.get("classification") for output in request.outputs}
        most = asked.get(tensor.name)
        return tensor if most is None else Tensor(tensor.name, DataType.BYTES, self.classify(tensor.array, int(most)))

    async def respond(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        try:
            match method, path.removeprefix("/").split("/"):
                case "GET", ["v2"]:
                    return as_json(self.server_metadata())
                case "GET", ["v2", "health", _]:
                    return self.health()
                case "GET", ["v2", "models", "stats"]:
                    return as_json(self.statistics())
                case "POST", ["v2", "repository", "index"]:
                    return as_json(self.index())
                case _, ["v2", "models", name, "versions", version, *act]:
                    return await self._of_model(method, name, version, act, headers, body)
                case _, ["v2", "models", name, *act]:
                    return await self._of_model(method, name, "", act, headers, body)
            raise UnknownModel("there is no such path")
        except SeatrialError as error:
            return self.mistake(error)

    async def _of_model(
        self, method: str, name: str, version: str, act: list[str], headers: Mapping[str, str], body: bytes
    ) -> Response:
        if (method, act) == ("GET", ["ready"]):
            return self.model_health(name, version)
        self.find(name, version)
        match method, act:
            case "GET", []:
                return as_json(self.metadata())
            case "GET", ["config"]:
                return as_json(self.configuration())
            case "GET", ["stats"]:
                return as_json(self.statistics())
            case "POST", ["infer"]:
                request = self.decode(headers, body)
                tensors = await self.infer(request)
                return self.dress(*encode_answer(tensors, **self.identity(request), binary=self.binary(request)))
        raise UnknownModel("there is no such path")

    # gRPC

    def grpc_mistake(self, error: SeatrialError) -> grpc.StatusCode:
        return grpc.StatusCode.NOT_FOUND if isinstance(error, UnknownModel) else grpc.StatusCode.INVALID_ARGUMENT

    def grpc_infer(self, asked: Any) -> Any:
        self.find(asked.model_name, asked.model_version)
        outputs = tuple(RequestedOutput(each.name, _plain(each.parameters)) for each in asked.outputs)
        request = read_request(asked)._replace(outputs=outputs)
        answer = messages.ModelInferResponse()
        for name, datatype, array in asyncio.run(self.infer(request)):
            answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
            answer.raw_output_contents.append(write_tensor(array, datatype))
        said = self.identity(request)
        answer.model_name, answer.model_version, answer.id = said["model"], said["version"], said["request_id"]
        return answer

    def grpc_metadata(self) -> dict[str, Any]:
        return self.metadata()

    def grpc_answer(self, method: str, asked: Any) -> Any:
        """What REST says, as a message."""
        if method == "ModelInfer":
            return self.grpc_infer(asked)
        if getattr(asked, "name", ""):
            self.find(asked.name, asked.version)
        said: dict[str, Any] = {
            "ServerLive": {"live": True},
            "ServerReady": {"ready": True},
            "ModelReady": {"ready": True},
            "ServerMetadata": self.server_metadata(),
            "ModelMetadata": self.grpc_metadata(),
            "ModelConfig": {"config": self.configuration()},
            "ModelStatistics": self.statistics(),
            "RepositoryIndex": {"models": self.index()},
        }
        return json_format.ParseDict(said[method], getattr(messages, f"{method}Response")())

    def grpc_stream(self, asks: Iterator[Any]) -> Iterator[Any]:
        """As MLServer: the answers themselves."""
        for asked in asks:
            yield self.grpc_infer(asked)


# On real sockets


@dataclass(kw_only=True)
class Stage:
    """The server that listens is `playing` whichever a test puts here."""

    http_address: str = ""
    grpc_address: str = ""
    playing: Right
    hang_up: Callable[[], None] = lambda: None
    """Close every connection and listen no more."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event.get("body", b""), event.get("more_body", False)
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, headers, answer = await self.playing.respond(scope["method"], scope["path"], given, body)
        headers = {**headers, "content-length": str(len(answer))}
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": answer})

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        method = details.method.removeprefix(f"/{SERVICE}/")
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(
                self.stream,
                request_deserializer=messages.ModelInferRequest.FromString,
                response_serializer=_serialized,
            )
        request = getattr(messages, f"{method}Request", None)
        return request and grpc.unary_unary_rpc_method_handler(
            lambda asked, context: self.answer(method, asked, context),
            request_deserializer=request.FromString,
            response_serializer=_serialized,
        )

    def stream(self, asks: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from self.playing.grpc_stream(asks)
        except SeatrialError as error:
            context.abort(self.playing.grpc_mistake(error), str(error))

    def answer(self, method: str, asked: Any, context: grpc.ServicerContext) -> Any:
        try:
            return self.playing.grpc_answer(method, asked)
        except SeatrialError as error:
            context.abort(self.playing.grpc_mistake(error), str(error))


def _serialized(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}


class _Service(grpc.GenericRpcHandler):
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._stage.service(handler_call_details)


@contextmanager
def listening() -> Iterator[Stage]:
    """A stage on free ports, both wires, until the block ends."""
    stage = Stage(playing=Right())
    server = uvicorn.Server(uvicorn.Config(stage, lifespan="off", ws="none", log_level="critical"))
    over_grpc = grpc.server(ThreadPoolExecutor(4), handlers=[_Service(stage)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stage.http_address = f"127.0.0.1:{listener.getsockname()[1]}"
        stage.grpc_address = f"127.0.0.1:{over_grpc.add_insecure_port('127.0.0.1:0')}"
        stage.hang_up = lambda: _hang_up(server)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        over_grpc.start()
        try:
            until(lambda: server.started)
            yield stage
        finally:
            server.should_exit = True
            over_grpc.stop(grace=None).wait()
            thread.join()


def _hang_up(server: uvicorn.Server) -> None:
    for listener in server.servers:
        listener.close()
    for connection in server.server_state.connections:
        connection.transport.abort()
