"""gRPC calls as grpcio's own clients make them: compressed, streamed, watched, cancelled, late."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hpack import Decoder

from seatrial_serving.doors.calls import MOST_WORDS, literal
from seatrial_serving.doors.grpc import MOST_AHEAD
from seatrial_serving.open_inference import SERVICE, messages
from tests.conditions import until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear

BODY_LIMIT = 2 * 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("calls")
    limits = {"SEATRIAL_SERVING__LIMITS__BODY_BYTES": str(BODY_LIMIT)}
    with serving(LinearBundle(version="3").write(place).path, place=place / "s", environment=limits) as running:
        yield running


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


def request(*rows: float, model: str = "linear", request_id: str = "") -> messages.ModelInferRequest:
    made = messages.ModelInferRequest(model_name=model, id=request_id)
    made.inputs.add(name="x", datatype="FP32", shape=[len(rows), 4])
    made.raw_input_contents.append(np.repeat(np.array(rows, np.float32), 4).tobytes())
    return made


def answer(row: float) -> list[float]:
    y: list[float] = linear([row] * 4).tolist()
    return y


def y(response: messages.ModelInferResponse) -> list[float]:
    values: list[float] = np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
    return values


def infer(channel: grpc.Channel) -> "grpc.UnaryUnaryMultiCallable[Any, Any]":
    return channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )


def stream(channel: grpc.Channel) -> "grpc.StreamStreamMultiCallable[Any, Any]":
    return channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )


# One message each way


@pytest.mark.parametrize(
    "compression", [grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression]
)
@pytest.mark.parametrize("rows", [1, 60])
def test_messages_may_be_compressed(channel: grpc.Channel, compression: grpc.Compression, rows: int) -> None:
    numbers = [float(row) for row in range(rows)]
    call = infer(channel).with_call(request(*numbers), compression=compression, timeout=30)
    assert y(call[0]) == [value for row in numbers for value in answer(row)]


def raw(channel: grpc.Channel, method: str = "ModelInfer") -> "grpc.UnaryUnaryMultiCallable[Any, Any]":
    return channel.unary_unary(f"/{SERVICE}/{method}", request_serializer=bytes, response_deserializer=bytes)


def test_a_compressed_message_is_bounded_by_what_it_unpacks_to(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match=f"expands to more than {BODY_LIMIT} bytes") as caught:
        raw(channel)(bytes(BODY_LIMIT + 1), compression=grpc.Compression.Gzip, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_messages_larger_than_any_window_pass_both_ways(channel: grpc.Channel) -> None:
    """The id comes back, so the answer is as large as the request."""
    sent = request(1, request_id="i" * (BODY_LIMIT - 1000))
    received = infer(channel)(sent, timeout=30)
    assert received.id == sent.id
    assert y(received) == answer(1)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError, match=r"there is no method /inference\.GRPCInferenceService/Nonsense") as caught:
        raw(channel, "Nonsense")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_that_has_passed_ends_the_call(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(request(1), timeout=1e-6)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert y(infer(channel)(request(1), timeout=30)) == answer(1)


def test_words_of_any_script_reach_the_client(channel: grpc.Channel) -> None:
    """A name in the status message is percent-encoded on the wire; grpcio decodes it."""
    for name in ("schöne %41 neue\tWelt", "模型" * MOST_WORDS):
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel)(request(1, model=name), timeout=30)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert name[:500] in str(caught.value.details()).replace("\\t", "\t")


@pytest.mark.parametrize("size", [0, 126, 127, 128, 254, 255, 20_000])
def test_literal_headers_are_what_the_other_implementation_reads(size: int) -> None:
    value = b"v" * size
    assert [tuple(pair) for pair in Decoder().decode(literal(b"x-name", value), raw=True)] == [(b"x-name", value)]


# Streams


def test_a_stream_answers_in_the_order_of_its_requests_and_survives_those_that_fail(server: Server) -> None:
    said: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(callback=lambda result, error: said.put((result, error)))
        for number in range(20):
            tensor = triton.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(np.full((1, 4), number, np.float32))
            client.async_stream_infer("nobody" if number == 7 else "linear", [tensor], request_id=str(number))
        for number in range(20):
            result, error = said.get(timeout=30)
            if number == 7:
                assert "there is no model 'nobody'" in str(error)
            else:
                assert result is not None
                assert result.get_response().id == str(number)
                assert result.as_numpy("y").tolist() == [answer(number)]
        client.stop_stream()


def test_a_stream_may_be_far_longer_than_what_may_wait(channel: grpc.Channel) -> None:
    numbers = range(5 * MOST_AHEAD)
    answers = stream(channel)((request(number, request_id=str(number)) for number in numbers), timeout=60)
    for number, each in zip(numbers, answers, strict=True):
        assert (each.infer_response.id, y(each.infer_response)) == (str(number), answer(number))


def test_a_stream_of_no_requests_ends_well(channel: grpc.Channel) -> None:
    assert list(stream(channel)(iter(()), timeout=30)) == []


def test_bytes_that_are_no_message_end_a_stream_with_a_reason(channel: grpc.Channel) -> None:
    call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError, match="the message is no ModelInferRequest") as caught:
        list(call(iter([b"\xff\xff"]), timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_cancels_a_stream_is_counted_as_gone_or_answered(server: Server, channel: grpc.Channel) -> None:
    def ended() -> float:
        return server.total("seatrial_requests_total", model="linear", protocol="grpc")

    before = ended()
    go_on = threading.Event()

    def requests() -> Iterator[messages.ModelInferRequest]:
        yield request(1)
        go_on.wait(30)

    answers = stream(channel)(requests(), timeout=60)
    assert y(next(answers).infer_response) == answer(1)
    answers.cancel()
    go_on.set()
    until(lambda: ended() == before + 1)
    assert y(infer(channel)(request(2), timeout=30)) == answer(2)


# Health and reflection


def test_reflection_answers_under_both_of_its_names_and_knows_its_own_services(channel: grpc.Channel) -> None:
    for version in ("v1", "v1alpha"):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services="*"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"),
            reflection_pb2.ServerReflectionRequest(file_by_filename="open_inference.proto"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        ]
        listed, health, proto, nothing = call(iter(asked), timeout=30)
        assert [service.name for service in listed.list_services_response.service] == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "inference.GRPCInferenceService",
        ]
        assert len(health.file_descriptor_response.file_descriptor_proto) == 1
        assert len(proto.file_descriptor_response.file_descriptor_proto) == 1
        assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    first = next(stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=30))
    assert first.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_watchers_and_streams_are_told_when_the_server_stops(tmp_path: Path) -> None:
    bundle = LinearBundle().write(tmp_path)
    go_on = threading.Event()

    def requests() -> Iterator[messages.ModelInferRequest]:
        yield request(1)
        go_on.wait(30)

    with (
        serving(bundle.path, place=tmp_path / "s", environment={"SEATRIAL_SERVING__DRAIN_S": "0.5"}) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        answers = stream(channel)(requests(), timeout=60)
        assert y(next(answers).infer_response) == answer(1)
        server.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for open_call in (watch, answers):
            with pytest.raises(grpc.RpcError, match="the server is stopping") as caught:
                next(open_call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        go_on.set()
        assert server.process.wait(20) == 0
