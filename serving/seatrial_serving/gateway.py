"""What clients talk to, in whatever process: the doors to a data plane, put together. A supervisor says what it serves."""

import contextlib
import gc
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector

from seatrial.settings import Serving
from seatrial.tls import listening
from seatrial_monitoring.metrics import ServerFacts, ServingMetrics
from seatrial_monitoring.request_log import RequestLog
from seatrial_monitoring.series import Denial, Protocol
from seatrial_serving.access.caller import Act
from seatrial_serving.access.guard import Guard, guarding
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.closings import Closings
from seatrial_serving.doors.grpc import GrpcServer
from seatrial_serving.doors.http import EVERY_ACT, Application, HttpServer


def how_many(serving: Serving, *, cores: int) -> int:
    """Gateways, where nothing that is served wants one only. Of quotas and of what is cached each has its share only: where
    there may be any, one unless more are asked for."""
    if serving.gateways is not None:
        return serving.gateways
    one = cores < 2 or serving.access.file is not None or serving.cache_bytes > 0
    return 1 if one else 2 + (cores - 2) // 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    plane: DataPlane
    registry: CollectorRegistry
    http: HttpServer
    grpc: GrpcServer
    application: Application
    guard: Guard | None
    log: RequestLog | None

    def facts(self) -> ServerFacts:
        """As far as a gateway knows them."""
        return ServerFacts(
            ready=self.plane.ready,
            log_dropped=self.log.dropped if self.log else 0,
            log_written=self.log.written if self.log else 0,
            generations=[generation.facts() for generation in self.plane.generations()],
            denied=self.guard.denied if self.guard else dict.fromkeys(Denial, 0),
        )

    async def open(self, http: socket.socket, grpc: socket.socket) -> None:
        """Take connections."""
        await self.http.start(http)
        await self.grpc.start(grpc)

    def open_rest(self) -> None:
        """Take every path from now on. Once all is imported for that, what there is stays: the interpreter's collector, which
        would stop everything for 50 ms each time it looked through it, sees only what comes after."""
        self.application.open_rest().add_done_callback(_collect_later_ones)


def _collect_later_ones(_: object) -> None:
    gc.freeze()
    gc.enable()


@contextlib.asynccontextmanager
async def gateway(serving: Serving, *, gateways: int = 1, log_lock: int | None = None) -> AsyncIterator[Gateway]:
    """One of so many `gateways`, which share caches and quotas evenly; where there are several, `log_lock` is the one that
    they all hold while they write to the request log. Raises `InvalidSettings` or `MissingExtra`."""
    async with contextlib.AsyncExitStack() as stack:
        guard = await stack.enter_async_context(guarding(serving.access, gateways=gateways))
        tls, tls_h2 = (listening(serving.tls, speaks=speaks) for speaks in ("http/1.1", "h2"))
        log = None
        if serving.request_log:
            log = RequestLog(sys.stdout.fileno(), share=serving.request_log_share, lock=log_lock)
            stack.callback(log.close)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        metrics = ServingMetrics(registry, serving.latency_budget_ms / 1000)
        shared = serving.model_copy(update={"cache_bytes": serving.cache_bytes // gateways})
        plane = DataPlane(shared, metrics, log, guard=guard)
        application = Application(plane, EVERY_ACT if serving.management_port is None else EVERY_ACT - {Act.MANAGE})
        closings = Closings("REST", metrics.closed[Protocol.REST])
        own = Gateway(
            plane=plane,
            registry=registry,
            http=HttpServer(
                application, serving.limits, door=application.infer, guard=guard, tls=tls, closings=closings
            ),
            grpc=GrpcServer(plane, tls=tls_h2),
            application=application,
            guard=guard,
            log=log,
        )
        metrics.facts = own.facts
        yield own
