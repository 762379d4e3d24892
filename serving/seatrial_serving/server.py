"""The server, put together in one place: sockets, data plane, supervisor, doors; started in order, stopped in reverse."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, make_asgi_app

from seatrial.settings import Settings
from seatrial_monitoring.metrics import ServerFacts, ServingMetrics
from seatrial_monitoring.request_log import RequestLog
from seatrial_monitoring.series import Denial, Protocol
from seatrial_serving.access.caller import Act
from seatrial_serving.access.guard import guarding
from seatrial_serving.access.tls import listening
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.closings import Closings
from seatrial_serving.doors.grpc import GrpcServer
from seatrial_serving.doors.http import EVERY_ACT, Application, HttpServer, listen
from seatrial_serving.sources import Source
from seatrial_serving.supervisor import Supervisor
from seatrial_serving.triton.folder import TritonRepository

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running server listens, host and port each; `models` are those it serves. `management` is empty where REST's
    port does that too."""

    http: str
    grpc: str
    metrics: str
    management: str
    models: tuple[str, ...]


async def serve(
    sources: Sequence[Source | TritonRepository],
    settings: Settings,
    *,
    ready: Callable[[Addresses], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serve `sources` until SIGTERM, SIGINT or `stop`. `ready` is called once requests are taken.

    On SIGTERM readiness says no at once, requests are still taken for `serving.drain_s`, and those in flight are answered
    before the process ends. On SIGINT the waiting is left out. On SIGHUP every model is loaded again from where it
    came. Raises what kept a source from being served at the start.
    """
    serving = settings.serving
    async with contextlib.AsyncExitStack() as stack:
        http_socket = stack.enter_context(listen(serving.host, serving.http_port))
        grpc_socket = stack.enter_context(listen(serving.host, serving.grpc_port))
        metrics_socket = stack.enter_context(listen(serving.host, serving.metrics_port))
        management_socket = None
        if serving.management_port is not None:
            management_socket = stack.enter_context(listen(serving.host, serving.management_port))
        log.info("settings: %s", serving.model_dump_json())
        guard = await stack.enter_async_context(guarding(serving.access))
        tls, tls_h2 = (listening(serving.tls, speaks=speaks) for speaks in ("http/1.1", "h2"))

        request_log = RequestLog(sys.stdout.fileno(), share=serving.request_log_share) if serving.request_log else None
        if request_log is not None:
            stack.callback(request_log.close)
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        metrics = ServingMetrics(registry, serving.latency_budget_ms / 1000)
        plane = DataPlane(serving, metrics, request_log, guard=guard)
        grpc_server = GrpcServer(plane, tls=tls_h2)
        supervisor = plane.repository = Supervisor(settings, plane, metrics, grpc_server.announce)
        metrics.facts = lambda: ServerFacts(
            ready=plane.ready,
            registry_age_s=supervisor.registry_age_s(),
            log_dropped=request_log.dropped if request_log else 0,
            log_written=request_log.written if request_log else 0,
            generations=[generation.facts() for generation in plane.generations()],
            aliases=supervisor.aliases(),
            denied=guard.denied if guard else dict.fromkeys(Denial, 0),
        )

        application = Application(plane, EVERY_ACT if management_socket is None else EVERY_ACT - {Act.MANAGE})
        closings = Closings("REST", metrics.closed[Protocol.REST])
        http = HttpServer(application, serving.limits, door=application.infer, guard=guard, tls=tls, closings=closings)
        managing = Application(plane, frozenset({Act.READ, Act.MANAGE}))
        management = HttpServer(managing, serving.limits, guard=guard, tls=tls)
        metrics_http = HttpServer(make_asgi_app(registry), serving.limits, tls=tls if serving.tls.metrics else None)
        stopping = stop or asyncio.Event()
        signals = Signals(stopping, supervisor.reload)
        stack.callback(signals.remove)

        await metrics_http.start(metrics_socket)
        stack.push_async_callback(metrics_http.stop)
        stack.push_async_callback(supervisor.stop)
        await http.start(http_socket)
        stack.push_async_callback(http.stop)
        if management_socket is not None:
            await management.start(management_socket)
            stack.push_async_callback(management.stop)
        await grpc_server.start(grpc_socket)
        stack.push_async_callback(grpc_server.stop, serving.limits.request_s)
        await _unless(stopping, supervisor.start(sources))
        if not stopping.is_set():
            application.open_rest()
            if management_socket is not None:
                managing.open_rest()
        gc.collect()
        gc.freeze()  # what there is now stays: to look through it again and again would stop everything for 50 ms each time
        ready(
            Addresses(
                http=_address(http_socket),
                grpc=_address(grpc_socket),
                metrics=_address(metrics_socket),
                management=_address(management_socket),
                models=tuple(plane.served()),
            )
        )
        await stopping.wait()
        plane.accepting = False
        grpc_server.announce()
        if signals.patient:
            log.info("draining: not ready any more, requests are taken for %g s", serving.drain_s)
            await asyncio.sleep(serving.drain_s)
        log.info("stopping: answering what is in flight")


def _address(listener: socket.socket | None) -> str:
    return "" if listener is None else "{}:{}".format(*listener.getsockname()[:2])


class Signals:
    """SIGTERM and SIGINT set `stopping`; a second one ends the process at once. SIGHUP calls `reload`."""

    def __init__(self, stopping: asyncio.Event, reload: Callable[[], None]) -> None:
        self._stopping = stopping
        self.patient = False
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._heard, number)
        self._loop.add_signal_handler(signal.SIGHUP, reload)

    def remove(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.remove_signal_handler(number)

    def _heard(self, number: int) -> None:
        if self._stopping.is_set():
            os._exit(128 + number)
        self.patient = number == signal.SIGTERM
        self._stopping.set()


async def _unless(stopping: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Await `work`, but give up as soon as `stopping` is set."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        waiting.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
