"""The HTTP server: uvicorn, held to limits that it does not have, in front of the hot path and the FastAPI application.

uvicorn with httptools reads headers of any size and waits for them for ever; `Connection` bounds both. Which application
answers is decided here: the infer paths go straight to `InferDoor`, health is answered even while no model is loaded, and
everything else goes to FastAPI, which is imported while the first requests are answered.

Clients send the same head over and over. One that asks for an inference is parsed once; after that the same bytes mean the
same, and `Connection` hands the body to `InferDoor` itself, with no parser, ASGI or task between.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from seatrial.errors import PortInUse, SeatrialError
from seatrial.settings import Limits
from seatrial.tls import subjects
from seatrial_monitoring.series import Closing
from seatrial_serving.access.caller import CALLER, Act, Caller
from seatrial_serving.access.guard import Guard, credential
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors.closings import Closings
from seatrial_serving.doors.infer import JSON, LARGE, Ask, Headers, InferDoor, Scope, refusal

SWEEP_S = 0.5
YIELD_S = 0.0005
"""How long an import keeps the interpreter from whoever waits for an answer."""
END_OF_HEAD = b"\r\n\r\n"
CLOSE = (b"connection", b"close")
OPEN = frozenset(("/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/ping", "/health", "/docs"))
"""Paths that are answered to anybody: how the server is, and a page that holds nothing of it and asks for a key."""
EVERY_ACT = frozenset(Act)
REFUSALS = {
    Closing.HEADERS: b"431 Request Header Fields Too Large",
    Closing.SLOW: b"408 Request Timeout",
    Closing.NO_ROOM: b"503 Service Unavailable\r\nretry-after: 1",
}
MOST_HEADS, LONGEST_HEAD = 1024, 4096
"""Bounds of what is remembered."""


class Heads:
    """Heads of inference requests that were parsed, by their bytes; the oldest is forgotten for a new one."""

    def __init__(self) -> None:
        self._asks: dict[bytes, Ask] = {}
        self.find = self._asks.get

    def learn(self, head: bytes, ask: Ask) -> None:
        """NOTE: a lone line feed might end a head for one parser and not for another, and empty lines before a request are
        no part of it: what has either is never learned."""
        if not head.startswith(b"POST ") or len(head) > LONGEST_HEAD or head.count(b"\n") != head.count(b"\r\n"):
            return
        if len(self._asks) >= MOST_HEADS:
            del self._asks[next(iter(self._asks))]
        self._asks[head] = ask


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one. A `shared` one lets others of this server be bound to the same port; one
    of another server's would be let too, so it is looked for first. Raises `PortInUse`.
    """
    if shared and port:
        bind(host, port).close()
    listener = bind(host, port, shared=shared)
    listener.listen(2048)
    return listener


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that is to listen. Raises `PortInUse`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise PortInUse(
            f"cannot listen on {host}:{port}: {error.strerror}. Another server may be running there; choose another port "
            "with --http-port, --grpc-port, --metrics-port or --management-port (0 takes a free one)"
        ) from error
    bound.setblocking(False)
    return bound


class Application:
    """ASGI: asks who it is where that is to be asked, and chooses who answers. `acts` are those that this port offers."""

    def __init__(self, plane: DataPlane, acts: frozenset[Act] = EVERY_ACT) -> None:
        self._plane, self._acts = plane, acts
        self.infer = InferDoor(plane)
        self._rest: Any = None
        self._opening: asyncio.Task[None] | None = None
        self._open = OPEN | {plane.settings.doors.health_route}

    def open_rest(self) -> "asyncio.Task[None]":
        """Take every path from now on. FastAPI is imported meanwhile; who needs it waits until the task is done."""
        self._opening = asyncio.get_running_loop().create_task(self._open_rest())
        return self._opening

    async def _open_rest(self) -> None:
        self._rest = await asyncio.to_thread(self._build_rest)

    def _build_rest(self) -> Any:
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(YIELD_S)
        try:
            from seatrial_serving.doors.rest import build

            return build(self._plane, self._acts)
        finally:
            sys.setswitchinterval(usual_s)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        guard = self._plane.guard
        if guard is not None and scope["path"] not in self._open:
            try:
                CALLER.set(guard.identify(credential(scope["headers"]), scope.get("seatrial.subjects", ())))
            except SeatrialError as error:
                guard.turned_away(error)
                await _turn_away(scope, send, error)
                return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Any, send: Any) -> None:
        if Act.INFER in self._acts and (target := InferDoor.target(scope)) is not None:
            model, version = target
            await self.infer(scope, receive, send, model=model, version=version)
        elif (health := self._health(scope["path"])) is not None:
            await _respond(send, *health)
        elif self._opening is not None:
            if self._rest is None:
                await asyncio.shield(self._opening)
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


async def _turn_away(scope: Scope, send: Any, error: SeatrialError) -> None:
    """Without reading the body; where much of it may be to come, the connection ends with the answer."""
    given = dict(scope["headers"])
    status, found, body = refusal(error)
    headers = list(found)
    stated = given.get(b"content-length", b"0")
    if b"transfer-encoding" in given or not stated.isdigit() or int(stated) > LARGE:
        headers.append(CLOSE)
    await _respond(send, status, body, headers)


async def _respond(send: Any, status: int, body: bytes, headers: Headers | None = None) -> None:
    headers = headers or [JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Connection(HttpToolsProtocol):
    """One client's connection, held to `limits`; they and what else a server has are set on a subclass for each."""

    limits: Limits
    closings: Closings | None
    door: InferDoor | None
    guard: Guard | None
    heads: Heads
    caller: Caller | None = None
    """Who sent the request that the shortcut was taken for, where that is asked."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn narrows it too
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._began: float | None = None
        self._in_head = self._refused = False
        self._head_bytes = self._chunk_bytes = 0
        self._head = b""
        """What the parser is being given, if it begins with a whole head."""
        self._shortcut: Shortcut | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        """More than one where a client sends ahead; uvicorn knows the last one only."""
        self._subjects = subjects(transport) if self.guard is not None else ()
        if self.closings is not None and self.closings.has_no_room(transport):
            self._refuse(Closing.NO_ROOM)

    def data_received(self, data: bytes) -> None:
        if self._shortcut is not None:
            self._shortcut.data_received(data)
            return
        self._head = b""
        if self.door is not None and self._began is None and self._at_rest:
            end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
            self._head = data[:end] if end >= len(END_OF_HEAD) else b""
            if (ask := self.heads.find(self._head)) is not None and (self.guard is None or self._admits(ask)):
                self._unset_keepalive_if_required()
                self._shortcut = Shortcut(self, self.door, ask)
                if len(data) - end == ask.size:
                    self._shortcut.answer(data[end:])
                else:
                    self._began = self.loop.time()
                    self._shortcut.data_received(data[end:])
                return
        super().data_received(data)
        if self._in_head:  # a header that never ends is never shown to `on_header`
            self._chunk_bytes += len(data)
            if self._chunk_bytes > self.limits.header_bytes:
                self._refuse(Closing.HEADERS)

    def on_message_begin(self) -> None:
        self._began = self.loop.time()
        self._in_head = True
        self._head_bytes = self._chunk_bytes = 0
        super().on_message_begin()
        if self._subjects:
            cast(Scope, self.scope)["seatrial.subjects"] = self._subjects

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes + len(self.url) > self.limits.header_bytes:
            self._refuse(Closing.HEADERS)
        else:
            super().on_headers_complete()
            if self._latest is not None:
                self._unanswered.append(self._latest)
            self._learn()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._began = None
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        if self._unanswered:
            self._unanswered.popleft()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._refused:
            self._refused = True
            self._note(Closing.MALFORMED)
            super().send_400_response(msg)
            self._forget_answers()

    def shutdown(self) -> None:
        if self._shortcut is not None:
            self._shortcut.last = True
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._shortcut is not None:
            self._shortcut.leave()
        exchange = self._latest.scope.get("seatrial.exchange") if self._latest else None
        if isinstance(exchange, Exchange):
            exchange.leave()
        self._forget_answers()
        super().connection_lost(exc)

    def received(self) -> None:
        """The shortcut's request is whole."""
        self._began = None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Write the shortcut's answer; then either close, or go on with what came behind its request."""
        shortcut, self._shortcut = self._shortcut, None
        if shortcut is None or self.transport.is_closing():
            return
        last = CLOSE in headers
        if shortcut.last and not last:
            last, headers = True, (*headers, CLOSE)
        said = _lines(tuple(headers))
        dated = _lines(tuple(self.server_state.default_headers))
        self.transport.write(b"".join((STATUS_LINE[status], dated, said, b"\r\n", body)))
        self._idle_since = self.loop.time()
        if last:
            self.transport.close()
        elif shortcut.behind:
            self.flow.pause_reading()  # nothing may overtake it
            self.loop.call_soon(self._go_on, shortcut.behind)
        else:
            self.flow.resume_reading()

    def _go_on(self, behind: bytes) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.data_received(behind)

    def _learn(self) -> None:
        head, self._head = self._head, b""
        if not head or self.door is None or self.parser.should_upgrade() or not self.parser.should_keep_alive():
            return
        if self.parser.get_http_version() == "1.1" and (ask := self.door.read(cast(Scope, self.scope))) is not None:
            if self.guard is not None:
                ask = ask._replace(shown=credential(self.headers))
                if not self._admits(ask):
                    return
            self.heads.learn(head, ask)

    def _admits(self, ask: Ask) -> bool:
        """Whether the shortcut may be taken; who is refused is told so on the long way, before the body is read."""
        assert self.guard is not None
        try:
            self.caller = self.guard.identify(ask.shown, self._subjects)
        except SeatrialError:
            return False
        return self.caller.may(Act.INFER, ask.model) and self.caller.allowance.is_open

    def sweep(self, now: float) -> None:
        """Close the connection if its client takes too long over a request, or has sent none for long."""
        if self._began is not None:
            if now - self._began > self.limits.receive_s:
                self._refuse(Closing.SLOW)
        elif self._at_rest and now - self._idle_since > self.limits.idle_s:
            self.transport.close()

    @property
    def _latest(self) -> RequestResponseCycle | None:
        """The latest request of this connection; uvicorn's own type hides that there may be none yet."""
        return self.cycle

    @property
    def _at_rest(self) -> bool:
        return self._shortcut is None and (self._latest is None or self._latest.response_complete)

    def _refuse(self, reason: Closing) -> None:
        """Say so, unless an answer is under way, and close."""
        if self._refused:
            return
        self._refused = True
        self._note(reason)
        if self._shortcut is not None or self._at_rest or not self.cycle.response_started:
            self.transport.write(
                b"HTTP/1.1 " + REFUSALS[reason] + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
        self.transport.close()
        self._forget_answers()

    def _note(self, reason: Closing) -> None:
        if self.closings is not None:
            self.closings.note(reason)

    def _forget_answers(self) -> None:
        """The connection is closing or gone: answers that are still being made have nowhere to go."""
        for cycle in self._unanswered:
            cycle.disconnected = True


@lru_cache(maxsize=1024)
def _lines(headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class Shortcut:
    """One request whose head was known, from its first byte to its answer."""

    def __init__(self, connection: Connection, door: InferDoor, ask: Ask) -> None:
        self._connection, self._door, self._ask = connection, door, ask
        self._exchange = door.begin(ask)
        self._exchange.caller = connection.caller
        self._parts: list[bytes] = []
        self._missing = ask.size
        self.behind = b""
        """What came behind it."""
        self.last = False
        """Close the connection after the answer."""

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:  # whole, and being answered
            self.behind += data
            self._connection.flow.pause_reading()
            return
        self._parts.append(data[: self._missing])
        self.behind = data[self._missing :]
        self._missing -= len(self._parts[-1])
        if not self._missing:
            self._connection.received()
            self.answer(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))

    def answer(self, body: bytes) -> None:
        """`body` is whole."""
        self._missing = -1
        self._door.answer(self._exchange, self._ask, body, self._connection.respond)

    def leave(self) -> None:
        """The client has gone."""
        if self._missing >= 0:
            self._door.give_up(self._exchange)
        else:
            self._exchange.leave()


class HttpServer:
    """uvicorn on our event loop and our sockets; the process's signals stay ours. Without `closings`, on a port for operators,
    nobody is turned away for want of descriptors."""

    def __init__(
        self,
        application: Any,
        limits: Limits,
        *,
        door: InferDoor | None = None,
        guard: Guard | None = None,
        tls: ssl.SSLContext | None = None,
        closings: Closings | None = None,
    ) -> None:
        held_to = {"limits": limits, "door": door, "guard": guard, "heads": Heads(), "closings": closings}
        config = uvicorn.Config(
            application,
            http=type("BoundedConnection", (Connection,), held_to),
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.idle_s),
        )
        config.load()
        config.ssl = tls
        self._server = _Uvicorn(config)
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
