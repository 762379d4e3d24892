"""`grpc.health.v1`: whether the server takes requests, asked once or watched. Kubernetes' gRPC probes ask it."""

import asyncio
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from seatrial.errors import MalformedRequest
from seatrial_serving.doors.calls import Conversation, Methods, Streaming, Unary, UnaryCall
from seatrial_serving.doors.status import Code

SERVICE = "grpc.health.v1.Health"


class Health:
    """`services` all have the same health: that of the server, which `ready` tells."""

    def __init__(self, ready: Callable[[], bool], *, services: Sequence[str]) -> None:
        self._ready, self._services = ready, services
        self._watching: set[asyncio.Event] = set()

    def methods(self) -> Methods:
        return {f"/{SERVICE}/Check": Unary(self.check), f"/{SERVICE}/Watch": Streaming(self.watch)}

    def announce(self) -> None:
        """Tell those who watch what `ready` says now."""
        for changed in self._watching:
            changed.set()

    def check(self, call: UnaryCall, message: bytes) -> None:
        try:
            service = _service(message)
        except MalformedRequest as error:
            call.fail(error)
            return
        if service in self._services:
            call.answer(HealthCheckResponse(status=self._status(service)).SerializeToString())
        else:
            call.end(Code.NOT_FOUND, f"there is no service {service!r}; there are {list(self._services)}")

    async def watch(self, call: Conversation) -> None:
        """The status now, and again whenever it has become another."""
        service = _service(await anext(call.messages(), b""))
        changed = asyncio.Event()
        self._watching.add(changed)
        said = None
        try:
            while call.open and not call.stopping:
                status = self._status(service)
                if status != said:
                    call.send(HealthCheckResponse(status=status).SerializeToString())
                    said = status
                await changed.wait()
                changed.clear()
        finally:
            self._watching.discard(changed)

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._ready() else HealthCheckResponse.NOT_SERVING


def _service(message: bytes) -> str:
    try:
        return str(HealthCheckRequest.FromString(message).service)
    except DecodeError as error:
        raise MalformedRequest(f"the message is no HealthCheckRequest: {error}") from error
