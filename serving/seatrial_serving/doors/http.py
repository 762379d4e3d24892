"""The HTTP server: uvicorn, held to limits that it does not have, in front of the hot path and the FastAPI application.

uvicorn with httptools reads headers of any size and waits for them for ever; `Connection` bounds both. Which application
answers is decided here: the infer paths go straight to `InferDoor`, health is answered even while no model is loaded, and
everything else goes to FastAPI, which is imported once the first model is ready.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from seatrial.errors import PortInUse
from seatrial.settings import Limits
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors.infer import JSON, InferDoor, Scope

SWEEP_S = 0.5


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `PortInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"cannot listen on {host}:{port}: {error.strerror}. Another server may be running there; choose another port "
            "with --http-port, --grpc-port or --metrics-port (0 takes a free one)"
        ) from error
    listener.setblocking(False)
    return listener


class Application:
    """ASGI: chooses who answers."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._infer = InferDoor(plane)
        self._rest: Any = None

    def open_rest(self) -> None:
        """Import FastAPI and take every path from now on."""
        from seatrial_serving.doors.rest import build

        self._rest = build(self._plane)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if (target := InferDoor.target(scope)) is not None:
            model, version = target
            await self._infer(scope, receive, send, model=model, version=version)
        elif (health := self._health(scope["path"])) is not None:
            await _respond(send, *health)
        elif self._rest is not None:
            await self._rest(scope, receive, send)
        else:
            await _respond(send, 503, b'{"error": "no model is loaded yet"}')

    def _health(self, path: str) -> tuple[int, bytes] | None:
        match path:
            case "/v2/health/live" | "/livez":
                return 200, b'{"live": true}'
            case "/v2/health/ready":
                return (200, b'{"ready": true}') if self._plane.ready else (400, b'{"ready": false}')
            case "/readyz":
                return (200, b'{"ready": true}') if self._plane.ready else (503, b'{"ready": false}')
        return None


async def _respond(send: Any, status: int, body: bytes) -> None:
    headers = [JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Connection(HttpToolsProtocol):
    """One client's connection, held to `limits`, which the server sets on a subclass of its own."""

    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._began: float | None = None
        self._in_head = self._refused = False
        self._head_bytes = self._chunk_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:  # a header that never ends is never shown to `on_header`
            self._chunk_bytes += len(data)
            if self._chunk_bytes > self.limits.header_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._began = self.loop.time()
        self._in_head = True
        self._head_bytes = self._chunk_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes + len(self.url) > self.limits.header_bytes:
            self._refuse(b"431 Request Header Fields Too Large")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._began = None
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._latest.scope.get("seatrial.exchange") if self._latest else None
        if isinstance(exchange, Exchange):
            exchange.leave()
        super().connection_lost(exc)

    def sweep(self, now: float) -> None:
        """Close the connection if its client takes too long over a request, or has sent none for long."""
        if self._began is not None:
            if now - self._began > self.limits.receive_s:
                self._refuse(b"408 Request Timeout")
        elif self._at_rest and now - self._idle_since > self.limits.idle_s:
            self.transport.close()

    @property
    def _latest(self) -> RequestResponseCycle | None:
        """The latest request of this connection; uvicorn's own type hides that there may be none yet."""
        return self.cycle

    @property
    def _at_rest(self) -> bool:
        return self._latest is None or self._latest.response_complete

    def _refuse(self, status: bytes) -> None:
        """Answer with `status`, unless an answer is under way, and close."""
        if self._refused:
            return
        self._refused = True
        if self._at_rest or not self.cycle.response_started:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


class HttpServer:
    """uvicorn on our event loop and our sockets; the process's signals stay ours."""

    def __init__(self, application: Any, limits: Limits) -> None:
        protocol = type("BoundedConnection", (Connection,), {"limits": limits})
        self._server = _Uvicorn(
            uvicorn.Config(
                application,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(limits.idle_s),
            )
        )
        self._limits = limits
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, listener: socket.socket) -> None:
        self._tasks = [
            asyncio.create_task(self._server.serve(sockets=[listener])),
            asyncio.create_task(self._sweep()),
        ]
        while not self._server.started:
            await asyncio.sleep(0)
            if self._tasks[0].done():
                self._tasks[0].result()

    async def stop(self) -> None:
        """Take no new connection, answer what is in flight, close."""
        self._server.should_exit = True
        await self._tasks[0]
        self._tasks[1].cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._limits.receive_s / 4))
            now = asyncio.get_running_loop().time()
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, Connection):
                    connection.sweep(now)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
