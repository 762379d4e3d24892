"""The server, put together in one place: sockets, gateways, supervisor; started in order, stopped in reverse."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import make_asgi_app

from seatrial.machine import cores
from seatrial.settings import Settings
from seatrial.tls import listening
from seatrial_serving.access.caller import Act
from seatrial_serving.doors.http import Application, HttpServer, listen
from seatrial_serving.doors.infer import Scope
from seatrial_serving.fork_server import ForkServer
from seatrial_serving.gateway import gateway, how_many
from seatrial_serving.gateways import Gateways
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
    engine_forks: ForkServer,
    gateway_forks: ForkServer,
) -> None:
    """Serve `sources` until SIGTERM or SIGINT. `ready` is called once requests are taken.

    On SIGTERM readiness says no at once, requests are still taken for `serving.drain_s`, and those in flight are answered
    before the process ends. On SIGINT the waiting is left out. On SIGHUP every model is loaded again from where it
    came. Raises what kept a source from being served at the start. Both `ForkServer` may have been started already.
    """
    serving = settings.serving
    count = how_many(serving, cores=cores())
    async with contextlib.AsyncExitStack() as stack:
        http_socket = stack.enter_context(listen(serving.host, serving.http_port, shared=count > 1))
        grpc_socket = stack.enter_context(listen(serving.host, serving.grpc_port, shared=count > 1))
        metrics_socket = stack.enter_context(listen(serving.host, serving.metrics_port))
        management_socket = None
        if serving.management_port is not None:
            management_socket = stack.enter_context(listen(serving.host, serving.management_port))
        log.info("settings: %s", serving.model_dump_json())
        log_lock = None
        if count > 1:
            log_lock = os.memfd_create("seatrial-log")
            stack.callback(os.close, log_lock)
        own = await stack.enter_async_context(gateway(serving, gateways=count, log_lock=log_lock))
        plane, metrics = own.plane, own.plane.metrics
        gateways = Gateways(plane, count=count, at_need=serving.gateways is None, forks=gateway_forks)
        supervisor = plane.repository = Supervisor(
            settings, plane, metrics, own.grpc.announce, gateways=gateways, forks=engine_forks
        )
        metrics.elsewhere = gateways.counted
        metrics.facts = lambda: replace(
            own.facts(),
            registry_age_s=supervisor.registry_age_s(),
            aliases=supervisor.aliases(),
            gateways=gateways.running,
            gateway_deaths=gateways.deaths,
        )

        managing = Application(plane, frozenset({Act.READ, Act.MANAGE}))
        tls = listening(serving.tls, speaks="http/1.1")
        management = HttpServer(managing, serving.limits, guard=own.guard, tls=tls)
        exposition = _counted_first(gateways, make_asgi_app(own.registry))
        metrics_http = HttpServer(exposition, serving.limits, tls=tls if serving.tls.metrics else None)
        stopping = asyncio.Event()
        signals = Signals(stopping, supervisor.reload)
        stack.callback(signals.remove)

        await metrics_http.start(metrics_socket)
        stack.push_async_callback(metrics_http.stop)
        stack.push_async_callback(supervisor.stop)
        stack.push_async_callback(gateways.stop)
        if log_lock is not None:
            plane.everywhere = gateways.count
            await gateways.start(serving, (http_socket, grpc_socket), log_lock=log_lock)
        await own.http.start(http_socket)
        stack.push_async_callback(own.http.stop)
        if management_socket is not None:
            await management.start(management_socket)
            stack.push_async_callback(management.stop)
        await own.grpc.start(grpc_socket)
        stack.push_async_callback(own.grpc.stop, serving.limits.request_s)
        stack.callback(gateways.stop_soon)
        await _unless(stopping, supervisor.start(sources))
        if not stopping.is_set():
            own.open_rest()
            if management_socket is not None:
                managing.open_rest()
            await gateways.listen()
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
        gateways.drain()
        own.grpc.announce()
        if signals.patient:
            log.info("draining: not ready any more, requests are taken for %g s", serving.drain_s)
            await asyncio.sleep(serving.drain_s)
        log.info("stopping: answering what is in flight")


def _counted_first(gateways: Gateways, exposition: Any) -> Any:
    """The ASGI application `exposition`, once all gateways have said what they counted."""

    async def answer(scope: Scope, receive: Any, send: Any) -> None:
        await gateways.count()
        await exposition(scope, receive, send)

    return answer if gateways.several else exposition


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
