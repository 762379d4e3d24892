"""One inference through a door that is ordinary FastAPI: begun, found, read, answered or refused, ended.

What the answer or the refusal looks like is the door's own; that each request is counted and logged once, whatever becomes
of it, is seen to here.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
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
        except SeatrialError as error:
            self.plane.fail(exchange, error)
            return self.refused(error)
        except (ClientLeft, asyncio.CancelledError) as gone:
            self.plane.fail(exchange, asyncio.CancelledError())
            if isinstance(gone, asyncio.CancelledError) and not exchange.left:
                raise  # the server itself is stopping this task
            return Response(status_code=499)  # to nobody
        except Exception as error:
            self.plane.fail(exchange, error)
            log.exception("a request to '%s' could not be answered; this is a bug", exchange.model)
            return self.refused(Broken("internal error"))
        finally:
            self.plane.end(exchange)

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
