"""The Open Inference Protocol over gRPC, with `grpc.health.v1` and reflection. Translates, and calls the data plane."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from seatrial import __version__
from seatrial.errors import MalformedRequest, PortInUse, SeatrialError, WrongInput
from seatrial.protocol import (
    InferRequest,
    Parameters,
    RequestedOutput,
    Tensor,
    element_count,
    read_tensor,
    write_tensor,
)
from seatrial.settings import Limits
from seatrial.tensors import Array, DataType
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.configuration import configuration
from seatrial_serving.doors.infer import wanted
from seatrial_serving.doors.metadata import EXTENSIONS, is_model_ready, metadata
from seatrial_serving.doors.statistics import statistics
from seatrial_serving.doors.status import grpc_status
from seatrial_serving.generation import Generation
from seatrial_serving.open_inference import POOL, SERVICE, messages
from seatrial_serving.repository import check_load_parameters

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

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

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._server = grpc.aio.server(options=_options(plane.settings.limits))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((_handlers(Servicer(plane)),))
        reflection.enable_server_reflection([SERVICE, reflection.SERVICE_NAME], self._server, pool=POOL)

    def listen(self, host: str, port: int) -> int:
        """The port, chosen by the system where `port` is 0. Raises `PortInUse`."""
        address = f"[{host}]" if ":" in host else host
        try:
            return self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise PortInUse(
                f"cannot listen on {address}:{port} for gRPC. Another server may be running there; choose another port "
                "with --grpc-port (0 takes a free one)"
            ) from error

    async def start(self) -> None:
        await self.announce()
        await self._server.start()

    async def announce(self) -> None:
        """Tell health watchers whether the server as a whole and each model take requests."""
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", serving if self._plane.ready else not_serving)
        await self._health.set(SERVICE, serving if self._plane.ready else not_serving)

    async def stop(self, grace_s: float) -> None:
        """Take no new call, let those in flight end for at most `grace_s`."""
        await self._server.stop(grace_s)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ("grpc.so_reuseport", 0),
    ]


def _handlers(servicer: "Servicer") -> grpc.GenericRpcHandler:
    def unary(method: Callable[..., Awaitable[Any]], request: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(asked: Any, context: Context) -> Any:
            try:
                return await method(asked, context)
            except SeatrialError as error:
                await context.abort(grpc_status(error), str(error))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request.FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "ServerLive": unary(servicer.server_live, messages.ServerLiveRequest),
            "ServerReady": unary(servicer.server_ready, messages.ServerReadyRequest),
            "ModelReady": unary(servicer.model_ready, messages.ModelReadyRequest),
            "ServerMetadata": unary(servicer.server_metadata, messages.ServerMetadataRequest),
            "ModelMetadata": unary(servicer.model_metadata, messages.ModelMetadataRequest),
            "ModelInfer": unary(servicer.model_infer, messages.ModelInferRequest),
            "ModelConfig": unary(servicer.model_config, messages.ModelConfigRequest),
            "ModelStatistics": unary(servicer.model_statistics, messages.ModelStatisticsRequest),
            "RepositoryIndex": unary(servicer.repository_index, messages.RepositoryIndexRequest),
            "RepositoryModelLoad": unary(servicer.repository_load, messages.RepositoryModelLoadRequest),
            "RepositoryModelUnload": unary(servicer.repository_unload, messages.RepositoryModelUnloadRequest),
        },
    )


class Servicer:
    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def server_live(self, _: messages.ServerLiveRequest, __: Context) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, _: messages.ServerReadyRequest, __: Context) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._plane.ready)

    async def model_ready(self, asked: messages.ModelReadyRequest, _: Context) -> messages.ModelReadyResponse:
        return messages.ModelReadyResponse(ready=is_model_ready(self._plane, asked.name, asked.version))

    async def server_metadata(self, _: messages.ServerMetadataRequest, __: Context) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(name="seatrial", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, asked: messages.ModelMetadataRequest, _: Context) -> messages.ModelMetadataResponse:
        return messages.ModelMetadataResponse(**metadata(self._plane, self._plane.find(asked.name, asked.version)))

    async def model_config(self, asked: messages.ModelConfigRequest, _: Context) -> messages.ModelConfigResponse:
        described = configuration(self._plane, self._plane.find(asked.name, asked.version))
        return ParseDict({"config": described}, messages.ModelConfigResponse())

    async def model_statistics(
        self, asked: messages.ModelStatisticsRequest, _: Context
    ) -> messages.ModelStatisticsResponse:
        return ParseDict(statistics(self._plane, asked.name, asked.version), messages.ModelStatisticsResponse())

    async def repository_index(
        self, asked: messages.RepositoryIndexRequest, _: Context
    ) -> messages.RepositoryIndexResponse:
        listed = [asdict(each) for each in self._plane.index(ready=asked.ready)]
        return ParseDict({"models": listed}, messages.RepositoryIndexResponse())

    async def repository_load(
        self, asked: messages.RepositoryModelLoadRequest, _: Context
    ) -> messages.RepositoryModelLoadResponse:
        control = self._plane.control
        check_load_parameters(asked.parameters)
        await control.load(asked.model_name)
        return messages.RepositoryModelLoadResponse()

    async def repository_unload(
        self, asked: messages.RepositoryModelUnloadRequest, _: Context
    ) -> messages.RepositoryModelUnloadResponse:
        await self._plane.control.unload(asked.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def model_infer(self, asked: messages.ModelInferRequest, context: Context) -> messages.ModelInferResponse:
        exchange = self._plane.begin(Protocol.GRPC, asked.model_name, asked.model_version)
        try:
            generation = self._plane.locate(exchange)
            request = read_request(asked)
            outputs = await self._plane.submit(exchange, request, timeout_s=context.time_remaining())
            answer = write_answer(outputs, request, generation)
        except SeatrialError as error:
            self._plane.fail(exchange, error)
            raise
        except asyncio.CancelledError as error:
            exchange.leave()
            self._plane.fail(exchange, error)
            raise
        finally:
            self._plane.end(exchange)
        identity = generation.identity
        answer.model_name, answer.model_version, answer.id = identity.name, identity.version, request.id
        return answer


def read_request(asked: messages.ModelInferRequest) -> InferRequest:
    """Raises `MalformedRequest` or `WrongInput`."""
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise MalformedRequest(
            f"there are {len(asked.inputs)} inputs but {len(raw)} raw_input_contents; send one for each"
        )
    inputs = tuple(_read_tensor(tensor, raw[number] if raw else None) for number, tensor in enumerate(asked.inputs))
    outputs = tuple(RequestedOutput(output.name, _read_parameters(output.parameters)) for output in asked.outputs)
    return InferRequest(inputs, outputs, asked.id, _read_parameters(asked.parameters))


def _read_parameters(given: "Mapping[str, messages.InferParameter]") -> Parameters:
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


def write_answer(
    outputs: Sequence[Tensor], request: InferRequest, generation: Generation
) -> messages.ModelInferResponse:
    """Raw contents always: every client of the protocol reads them, and they cost nothing."""
    answer = messages.ModelInferResponse()
    for name, datatype, array in wanted(outputs, request, generation):
        answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
        answer.raw_output_contents.append(write_tensor(array, datatype))
    return answer
