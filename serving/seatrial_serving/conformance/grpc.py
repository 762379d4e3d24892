"""The gRPC end of a server."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import grpc
import msgspec
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from seatrial.errors import SeatrialError
from seatrial.protocol import Tensor, read_tensor
from seatrial.tensors import Array, DataType
from seatrial_serving.conformance.check import Failed, Kind, NotApplicable
from seatrial_serving.conformance.wire import (
    TIMEOUT_S,
    Answer,
    Ask,
    Configuration,
    Form,
    Indexed,
    ModelMetadata,
    Parameters,
    Refusal,
    ServerMetadata,
    State,
    Statistics,
)
from seatrial_serving.open_inference import SERVICE, messages

T = TypeVar("T")

BLAMES_CALLER = {
    grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip

CONTENTS: Mapping[str, tuple[DataType, ...]] = {
    "bool_contents": (DataType.BOOL,),
    "int_contents": (DataType.INT8, DataType.INT16, DataType.INT32),
    "int64_contents": (DataType.INT64,),
    "uint_contents": (DataType.UINT8, DataType.UINT16, DataType.UINT32),
    "uint64_contents": (DataType.UINT64,),
    "fp32_contents": (DataType.FP32,),
    "fp64_contents": (DataType.FP64,),
    "bytes_contents": (DataType.BYTES,),
}
FIELD = {datatype: field for field, datatypes in CONTENTS.items() for datatype in datatypes}
"""FP16 and BF16 have none."""


class Streamed(NamedTuple):
    """One message of a stream: an answer or an error. Two message types are in use under the same method."""

    answer: Answer | None
    error: str
    form: str


class Grpc:
    kind = Kind.GRPC

    def __init__(self, channel: grpc.Channel, shown: Sequence[tuple[str, str]] = ()) -> None:
        """`shown` is metadata that goes with every call."""
        self.channel, self._shown = channel, tuple(shown)

    def call(self, method: str, asked: Message | bytes, answer: type[T]) -> T:
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=bytes,
            response_deserializer=answer.FromString,  # type: ignore[attr-defined] # every message class has it
        )
        with refusals():
            sent = asked if isinstance(asked, bytes) else asked.SerializeToString()
            answered: T = call(sent, timeout=TIMEOUT_S, metadata=self._shown)
        return answered

    def live(self) -> State:
        return State(self.call("ServerLive", messages.ServerLiveRequest(), messages.ServerLiveResponse).live, "")

    def ready(self) -> State:
        return State(self.call("ServerReady", messages.ServerReadyRequest(), messages.ServerReadyResponse).ready, "")

    def model_ready(self, model: str, version: str = "") -> State:
        asked = messages.ModelReadyRequest(name=model, version=version)
        try:
            return State(self.call("ModelReady", asked, messages.ModelReadyResponse).ready, "")
        except Refusal as refusal:
            if not refusal.blames_caller and refusal.status != grpc.StatusCode.UNAVAILABLE.name:
                raise
            return State(False, refusal.status)

    def server(self) -> ServerMetadata:
        answer = self.call("ServerMetadata", messages.ServerMetadataRequest(), messages.ServerMetadataResponse)
        return convert(answer, ServerMetadata)

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        asked = messages.ModelMetadataRequest(name=model, version=version)
        return convert(self.call("ModelMetadata", asked, messages.ModelMetadataResponse), ModelMetadata)

    def infer(self, ask: Ask) -> Answer:
        return read_answer(self.call("ModelInfer", write(ask), messages.ModelInferResponse))

    def configuration(self, model: str, version: str = "") -> Configuration:
        asked = messages.ModelConfigRequest(name=model, version=version)
        return convert(self.call("ModelConfig", asked, messages.ModelConfigResponse).config, Configuration)

    def statistics(self, model: str = "", version: str = "") -> Sequence[Statistics]:
        asked = messages.ModelStatisticsRequest(name=model, version=version)
        answer = self.call("ModelStatistics", asked, messages.ModelStatisticsResponse)
        return [convert(each, Statistics) for each in answer.model_stats]

    def index(self, *, ready: bool = False) -> Sequence[Indexed]:
        asked = messages.RepositoryIndexRequest(ready=ready)
        answer = self.call("RepositoryIndex", asked, messages.RepositoryIndexResponse)
        return [convert(each, Indexed) for each in answer.models]

    def stream(self, asks: Sequence[Ask]) -> Iterator[Streamed]:
        """Send all of `asks` on one stream; what comes back, as it comes, until the server ends the stream."""
        call = self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        with refusals():
            sent = iter([write(ask).SerializeToString() for ask in asks])
            for message in call(sent, timeout=TIMEOUT_S, metadata=self._shown):
                yield _read_streamed(message)


@contextmanager
def refusals() -> Iterator[None]:
    """A status that is not OK is raised as `Refusal`."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        raise Refusal(code.name, details, message=details, blames_caller=code in BLAMES_CALLER) from error


def convert(message: Message, kind: type[T]) -> T:
    said = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    try:
        return msgspec.convert(said, kind, strict=False)  # 64-bit integers are strings there
    except msgspec.ValidationError as error:
        raise Failed(
            found=f"a message that cannot be read: {error}", expected="a message as the protocol has it"
        ) from error


# Requests


def write(ask: Ask) -> messages.ModelInferRequest:
    message = messages.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.id)
    _write_parameters(message.parameters, ask.parameters)
    for each in ask.inputs:
        tensor = message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if ask.form is Form.TYPED:
            _write_contents(tensor.contents, each.array)
        else:
            message.raw_input_contents.append(each.raw)
    for output in ask.outputs:
        _write_parameters(message.outputs.add(name=output.name).parameters, output.parameters)
    return message


def _write_contents(contents: messages.InferTensorContents, array: Array) -> None:
    datatype = DataType.of(array.dtype)
    if datatype not in FIELD:
        raise NotApplicable(f"{datatype} has no contents field")
    getattr(contents, FIELD[datatype]).extend(array.ravel().tolist())


def _write_parameters(into: Any, parameters: Parameters) -> None:
    fields = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(into[name], fields[type(value)], value)


# Answers


def read_answer(message: messages.ModelInferResponse) -> Answer:
    contents = message.raw_output_contents
    if contents and len(contents) != len(message.outputs):
        raise Failed(
            found=f"{len(contents)} raw_output_contents", expected=f"one for each of {len(message.outputs)} outputs"
        )
    outputs = [_read(tensor, contents[n] if contents else None) for n, tensor in enumerate(message.outputs)]
    return Answer(model=message.model_name, version=message.model_version, id=message.id, outputs=tuple(outputs))


def _read(tensor: messages.ModelInferResponse.InferOutputTensor, content: bytes | None) -> Tensor:
    try:
        datatype = DataType(tensor.datatype)
        if content is None:
            array = _read_contents(getattr(tensor.contents, FIELD[datatype]), datatype).reshape(tensor.shape)
        else:
            array = read_tensor(content, datatype, tensor.shape, name=tensor.name)
    except (SeatrialError, ValueError, KeyError) as error:
        raise Failed(found=f"output '{tensor.name}' cannot be read: {error}", expected="a tensor") from error
    return Tensor(tensor.name, datatype, array)


def _read_contents(elements: Sequence[Any], datatype: DataType) -> Array:
    array = np.empty(len(elements), datatype.numpy)
    array[:] = elements
    return array


def _read_streamed(message: bytes) -> Streamed:
    """Triton's messages wrap the answer; MLServer's are the answer, and have outputs where the others have no field."""
    try:
        bare = messages.ModelInferResponse.FromString(message)
        if bare.outputs:
            return Streamed(read_answer(bare), "", "ModelInferResponse")
    except DecodeError:
        pass  # then it is the other one, or neither
    try:
        wrapped = messages.ModelStreamInferResponse.FromString(message)
    except DecodeError as error:
        raise Failed(found=f"a message that is no answer: {error}", expected="ModelStreamInferResponse") from error
    answer = None if wrapped.error_message else read_answer(wrapped.infer_response)
    return Streamed(answer, wrapped.error_message, "ModelStreamInferResponse")
