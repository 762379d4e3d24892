"""One inference through a door that is ordinary FastAPI: begun, found, read, answered or refused, ended.

What the answer or the refusal looks like is the door's own; that each request is counted and logged once, whatever becomes
of it, is seen to here.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from seatrial.errors import Broken, MalformedRequest, SeatrialError
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors.compression import expand
from seatrial_serving.doors.infer import ClientLeft, read_body, read_head, refusal
from seatrial_serving.doors.rows import write_json
from seatrial_serving.generation import Generation

Reply = Callable[[Exchange], Awaitable[Any]]
"""Finds the generation, reads the body, submits what it asks to the data plane; returns what to write as JSON."""

EVENT_STREAM = "text/event-stream; charset=utf-8"
GONE = Response(status_code=499)
"""To nobody."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """`refuse` says an error as the door's clients expect it: JSON, from the HTTP status and the error."""

    plane: DataPlane
    protocol: Protocol
    refuse: Callable[[int, SeatrialError], Any]

    async def answer(self, request: Request, reply: Reply) -> Response:
        exchange = self.plane.begin(self.protocol, "")
        request.scope["seatrial.exchange"] = exchange  # so that the connection can tell it when the client leaves
        try:
            return Response(write_json(await reply(exchange)), media_type="application/json")
        except BaseException as error:  # noqa: BLE001 - judged, and raised again where it is not the request's
            told = self.judge(exchange, error)
            return GONE if told is None else self.refused(told)
        finally:
            self.plane.end(exchange)

    async def stream(self, request: Request, events: Callable[[Exchange], AsyncGenerator[Any, None]]) -> Response:
        """Server-sent events, each of them what `events` gives as JSON; it finds, reads and submits as a `Reply` does. What goes
        wrong before the first is a refusal, and after it the last event."""
        exchange = self.plane.begin(self.protocol, "")
        request.scope["seatrial.exchange"] = exchange
        given = events(exchange)
        try:
            first = await anext(given)
        except BaseException as error:  # noqa: BLE001 - judged, and raised again where it is not the request's
            told = self.judge(exchange, error)
            self.plane.end(exchange)
            return GONE if told is None else self.refused(told)
        return Events(self, exchange, first, given)

    def judge(self, exchange: Exchange, error: BaseException) -> SeatrialError | None:
        """Note that the exchange ended with `error`. What to tell the client; None where it has gone, or nobody is to be told.

        Raises `error` itself where the server is stopping.
        """
        if isinstance(error, SeatrialError):
            self.plane.fail(exchange, error)
            return error
        if isinstance(error, Exception) and not isinstance(error, ClientLeft):
            self.plane.fail(exchange, error)
            log.error("a request to '%s' could not be answered; this is a bug", exchange.model, exc_info=error)
            return Broken("internal error")
        self.plane.fail(exchange, asyncio.CancelledError())
        if not isinstance(error, ClientLeft) and not exchange.left:
            raise error
        return None

    def find(self, exchange: Exchange, model: str, version: str = "", *, alias: str = "") -> Generation:
        """`model` empty means the only one that is served, or the one that the settings name.

        Raises `MalformedRequest` where that says none, or as `DataPlane.find` does.
        """
        exchange.model, exchange.version = model or self._only_model(), version
        return self.plane.locate(exchange, alias=alias)

    def refused(self, error: SeatrialError) -> Response:
        status, headers, _ = refusal(error)
        kept = {name.decode(): value.decode() for name, value in headers if not name.startswith(b"content-")}
        return Response(write_json(self.refuse(status, error)), status, kept, media_type="application/json")

    async def body(self, request: Request) -> bytes:
        """Expanded, where it came compressed. Raises `TooLarge`, `UnsupportedEncoding` or `MalformedRequest`."""
        max_body = self.plane.settings.limits.body_bytes
        head = read_head("", "", request.scope["headers"], max_body=max_body)
        body = await read_body(request.receive, max_body=max_body)
        return await asyncio.to_thread(expand, body, head.encoding, max_body=max_body) if head.encoding else body

    def _only_model(self) -> str:
        if self.plane.settings.doors.model:
            return self.plane.settings.doors.model
        names = sorted({generation.identity.name for generation in self.plane.visible()})
        if len(names) == 1:
            return names[0]
        raise MalformedRequest(
            f"the request names no model, and there are {names or 'none yet'}; name the one that answers in the setting "
            "serving.doors.model, or in the header X-Amzn-SageMaker-Target-Model of /invocations"
        )


class Events(Response):
    """The answer to a client that takes one event after the other. The next is asked for when the client has room for it,
    and none any more when it has gone. The exchange ends with the last."""

    def __init__(self, door: Door, exchange: Exchange, first: Any, others: AsyncGenerator[Any, None]) -> None:
        super().__init__()
        self._door, self._exchange, self._first, self._others = door, exchange, first, others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002 - the request has been read
        leaving = asyncio.ensure_future(receive())  # the body has come: the next that comes is that the client has gone
        told = None
        headers = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-store")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with aclosing(self._others):
                await self._tell(send, self._first, leaving)
                async for event in self._others:
                    await self._tell(send, event, leaving)
        except BaseException as error:  # noqa: BLE001 - judged, and raised again where it is not the request's
            told = self._door.judge(self._exchange, error)
            if told is None:
                return
        finally:
            leaving.cancel()
            self._door.plane.end(self._exchange)
        last = b"" if told is None else _event({"error": str(told)})
        await send({"type": "http.response.body", "body": last})

    async def _tell(self, send: Any, content: Any, leaving: "asyncio.Future[Any]") -> None:
        """Raises `ClientLeft` if the client has gone, or leaves what it was sent for too long."""
        try:
            async with asyncio.timeout(self._door.plane.settings.limits.idle_s):
                await send({"type": "http.response.body", "body": _event(content), "more_body": True})
        except TimeoutError:
            raise ClientLeft from None
        if leaving.done():
            raise ClientLeft


def _event(content: Any) -> bytes:
    return b"data: " + write_json(content) + b"\n\n"
