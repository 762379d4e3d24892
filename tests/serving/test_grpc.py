"""gRPC as its clients see it: a real server, tritonclient, and the generated messages themselves."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.utils import InferenceServerException

from seatrial.errors import MalformedRequest
from seatrial.protocol import MAX_TENSORS, write_tensor
from seatrial.tensors import DataType
from seatrial_serving.doors.grpc import read_request
from seatrial_serving.doors.metadata import EXTENSIONS
from seatrial_serving.open_inference import SERVICE, messages
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, everything_onnx, linear

PROTO = Path(__file__).parent.parent.parent / "serving" / "seatrial_serving" / "open_inference"
BODY_LIMIT, HEADER_LIMIT = 8 * 1024 * 1024, 16 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("grpc")
    limits = {
        "SEATRIAL_SERVING__LIMITS__BODY_BYTES": str(BODY_LIMIT),
        "SEATRIAL_SERVING__LIMITS__HEADER_BYTES": str(HEADER_LIMIT),
    }
    bundle = LinearBundle(version="3").write(place)
    with serving(
        bundle.path, everything_onnx(place / "everything.onnx"), place=place / "s", environment=limits
    ) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as opened:
        yield opened


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)]) as opened:
        yield opened


def asked(x: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x.astype(np.float32))
    return [tensor]


def infer(channel: grpc.Channel, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )
    answer: messages.ModelInferResponse = call(request, timeout=30)
    return answer


def request(*, name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (1, 4)) -> messages.ModelInferRequest:
    made = messages.ModelInferRequest(model_name="linear", id="7")
    made.inputs.add(name=name, datatype=datatype, shape=shape)
    return made


def test_a_request_names_no_more_tensors_than_any_model_has() -> None:
    for tensors in ("inputs", "outputs"):
        asked = messages.ModelInferRequest()
        for _ in range(MAX_TENSORS + 1):
            getattr(asked, tensors).add(name="x")
        with pytest.raises(MalformedRequest, match="more than 1024 tensors"):
            read_request(asked)


def test_our_messages_and_tritonclient_live_in_one_process() -> None:
    ours = messages.ModelInferRequest(model_name="m", id="1")
    theirs = triton.service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert (theirs.model_name, theirs.id) == ("m", "1")


def test_the_generated_messages_are_those_of_the_proto(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-o{tmp_path / 'set'}", "open_inference.proto"],
        check=True,
    )
    described = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file[0]
    generated = descriptor_pb2.FileDescriptorProto()
    messages.DESCRIPTOR.CopyToProto(generated)  # type: ignore[no-untyped-call] # protobuf's own
    for message in described.message_type:
        without_json_names(message)
    assert generated == described, "run: make docs"


def without_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    """protoc adds them to a descriptor set, not to a module."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        without_json_names(nested)


def test_fields_have_the_numbers_that_clients_of_the_protocol_use() -> None:
    theirs_by_name = {
        **triton.service_pb2.DESCRIPTOR.message_types_by_name,
        **triton.model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    for name, ours in messages.DESCRIPTOR.message_types_by_name.items():
        same_numbers(ours, theirs_by_name[name])


def same_numbers(ours: Descriptor, theirs: Descriptor) -> None:
    known = {field.name: (field.number, field.type, field.is_repeated) for field in theirs.fields}
    added = {"properties": (6, FieldDescriptor.TYPE_MESSAGE, True)} if ours.name == "ModelMetadataResponse" else {}
    told = {field.name: (field.number, field.type, field.is_repeated) for field in ours.fields}
    assert told.items() <= (known | added).items(), ours.full_name
    for nested in ours.nested_types:
        if nested.name != "PropertiesEntry":
            same_numbers(nested, theirs.nested_types_by_name[nested.name])


def test_enumerations_have_the_numbers_that_clients_of_the_protocol_use() -> None:
    theirs = triton.model_config_pb2
    assert messages.DataType.items() == theirs.DataType.items()
    assert messages.ModelInstanceGroup.Kind.items() == theirs.ModelInstanceGroup.Kind.items()
    assert messages.ModelQueuePolicy.TimeoutAction.items() == theirs.ModelQueuePolicy.TimeoutAction.items()


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear", "3")
    assert not client.is_model_ready("linear", "4")
    metadata = client.get_model_metadata("linear", as_json=True)
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert client.get_server_metadata(as_json=True)["extensions"] == list(EXTENSIONS)


def test_inference(client: triton.InferenceServerClient) -> None:
    x = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]])
    outputs = [triton.InferRequestedOutput("y")]
    answer = client.infer("linear", asked(x), outputs=outputs, request_id="42", model_version="3")
    assert answer.as_numpy("y").tolist() == linear(x).tolist()
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("linear", "3", "42")


@pytest.mark.anyio
async def test_the_asyncio_client_works_too(server: Server) -> None:
    async with triton_aio.InferenceServerClient(server.grpc) as client:
        assert await client.is_server_ready()
        answer = await client.infer("linear", asked(np.ones((2, 4))))
        assert answer.as_numpy("y").tolist() == linear(np.ones((2, 4))).tolist()


CONTENTS = {
    "BOOL": ("bool_contents", [True, False]), "INT8": ("int_contents", [-128, 127]), "INT16": ("int_contents", [-9, 9]),
    "INT32": ("int_contents", [-9, 9]), "INT64": ("int64_contents", [-(2**63), 9]), "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 9]), "UINT32": ("uint_contents", [0, 9]), "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [0.5, -1.5]), "FP64": ("fp64_contents", [0.1, -1e300]),
    "BYTES": ("bytes_contents", [b"a", "ü".encode()]),
}  # fmt: skip


def test_the_repository_can_be_read_by_all_and_changed_by_nobody_who_was_not_allowed_to(
    client: triton.InferenceServerClient,
) -> None:
    models = client.get_model_repository_index(as_json=True)["models"]
    assert {each["name"] for each in models} == {"linear", "everything"}
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match=r"serving\.repository_control is off") as refused:
            change("linear")
        assert refused.value.status() == "StatusCode.PERMISSION_DENIED"
    assert client.is_model_ready("linear")


def test_typed_contents_and_raw_contents_mean_the_same(channel: grpc.Channel) -> None:
    typed, raw = (messages.ModelInferRequest(model_name="everything") for _ in range(2))
    for datatype, (field, values) in CONTENTS.items():
        tensor = typed.inputs.add(name=f"in_{datatype.lower()}", datatype=datatype, shape=[1, 2])
        getattr(tensor.contents, field).extend(values)
    for datatype, (_, values) in [*CONTENTS.items(), ("FP16", ("", [1.0, 2.0]))]:
        array = np.array([values], DataType(datatype).numpy)
        raw.inputs.add(name=f"in_{datatype.lower()}", datatype=datatype, shape=[1, 2])
        raw.raw_input_contents.append(write_tensor(array, DataType(datatype)))

    answer = infer(channel, raw)
    sent = {
        i.name.replace("in_", "out_"): content for i, content in zip(raw.inputs, raw.raw_input_contents, strict=True)
    }
    assert {o.name: content for o, content in zip(answer.outputs, answer.raw_output_contents, strict=True)} == sent
    assert [tensor.array.tolist() for tensor in read_request(typed).inputs] == [
        tensor.array.tolist() for tensor in read_request(raw).inputs[:-1]
    ]


def test_half_precision_has_no_typed_contents(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match="FP16, which has no contents field"):
        infer(channel, request(datatype="FP16"))


# Mistakes, each with its status; the server goes on


def raw(made: messages.ModelInferRequest, *contents: bytes) -> messages.ModelInferRequest:
    made.raw_input_contents.extend(contents)
    return made


ROW = np.zeros((1, 4), np.float32).tobytes()


@pytest.mark.parametrize(
    ("made", "code", "words"),
    [
        (raw(request(name="z"), ROW), grpc.StatusCode.INVALID_ARGUMENT, "there is no input 'z'"),
        (raw(request(datatype="FP64"), ROW + ROW), grpc.StatusCode.INVALID_ARGUMENT, "datatype FP64, expected FP32"),
        (raw(request(datatype="FP33"), ROW), grpc.StatusCode.INVALID_ARGUMENT, "datatype 'FP33'"),
        (raw(request(shape=(1, 5)), ROW + b"1234"), grpc.StatusCode.INVALID_ARGUMENT, "shape [1, 5]"),
        (raw(request(shape=(-1, 4)), ROW), grpc.StatusCode.INVALID_ARGUMENT, "cannot be negative"),
        (raw(request(), ROW[:-1]), grpc.StatusCode.INVALID_ARGUMENT, "takes 16 bytes, got 15"),
        (raw(request(), ROW, ROW), grpc.StatusCode.INVALID_ARGUMENT, "1 inputs but 2 raw_input_contents"),
        (request(), grpc.StatusCode.INVALID_ARGUMENT, "has 0 elements in fp32_contents"),
        (messages.ModelInferRequest(model_name="nobody"), grpc.StatusCode.NOT_FOUND, "there is no model 'nobody'"),
    ],
)
def test_each_mistake_has_its_own_status(
    channel: grpc.Channel, made: messages.ModelInferRequest, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, made)
    assert caught.value.code() is code
    assert words in str(caught.value.details())
    assert infer(channel, raw(request(), ROW)).id == "7"


def test_both_contents_at_once_are_refused(channel: grpc.Channel) -> None:
    both = raw(request(), ROW)
    both.inputs[0].contents.fp32_contents.extend([0, 0, 0, 0])
    with pytest.raises(grpc.RpcError, match="both contents and raw_input_contents"):
        infer(channel, both)


def test_messages_are_limited_as_bodies_are_and_not_at_four_megabytes(channel: grpc.Channel) -> None:
    padded = raw(request(), ROW)
    padded.id = "p" * (BODY_LIMIT - 1000)
    assert infer(channel, padded).id == padded.id
    padded.id = "p" * (BODY_LIMIT + 1)
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, padded)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_metadata_over_the_limit_is_refused(channel: grpc.Channel) -> None:
    call = channel.unary_unary(f"/{SERVICE}/ServerLive", request_serializer=bytes, response_deserializer=bytes)
    call(b"", metadata=(("x-small", "a" * 1000),), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", metadata=(("x-big", "a" * (2 * HEADER_LIMIT)),), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer", request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError):
        call(b"\xff\xff\xff", timeout=10)
    assert infer(channel, raw(request(), ROW)).id == "7"


# Health and reflection


def test_grpc_health_says_serving(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_shows_the_service_and_its_messages(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked_for = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(asked_for), timeout=10)
    assert SERVICE in {service.name for service in listed.list_services_response.service}
    [file] = described.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(file).package == "inference"


def test_grpc_requests_are_counted_like_rest_ones(server: Server, channel: grpc.Channel) -> None:
    before = server.total("seatrial_requests_total", model="linear", protocol="grpc", outcome="ok")
    infer(channel, raw(request(), ROW))
    assert server.total("seatrial_requests_total", model="linear", protocol="grpc", outcome="ok") == before + 1
