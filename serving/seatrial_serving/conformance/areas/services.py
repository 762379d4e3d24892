"""What gRPC servers have beside the protocol: health for probes, reflection for tools."""

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from seatrial_serving.conformance.check import Failed, Kind, check
from seatrial_serving.conformance.expectations import expect
from seatrial_serving.conformance.grpc import Grpc, refusals
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import TIMEOUT_S
from seatrial_serving.open_inference import SERVICE

ON = (Kind.GRPC,)


@check("services.health", clause="grpc.health.v1", required=False, on=ON)
def the_health_service_says_serving(wire: Grpc, _: Subject) -> None:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    with refusals():
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    expect(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status), "SERVING", of="status")


@check("services.reflection", clause="grpc.reflection.v1alpha", required=False, on=ON)
def reflection_lists_the_service(wire: Grpc, _: Subject) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with refusals():
        [answer] = stub.ServerReflectionInfo(iter([asked]), timeout=TIMEOUT_S)
    services = [service.name for service in answer.list_services_response.service]
    if SERVICE not in services:
        raise Failed(found=f"services {services}", expected=f"{SERVICE} among them")
