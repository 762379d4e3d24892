"""`POST /v2/models/NAME[/versions/VERSION]/infer`: the hot path, without a framework in front.

Everything that a request costs is spent here, in the codec, and in the data plane. There are two ways in: `answer` for a
request that is whole and whose head was read before, and the ASGI callable for any other.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import orjson

from seatrial.errors import MalformedRequest, Overloaded, SeatrialError, TooLarge, UnsupportedEncoding, WrongInput
from seatrial.protocol import InferRequest, Tensor, decode_request, encode_answer
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import DataPlane, Exchange
from seatrial_serving.doors.status import http_status
from seatrial_serving.workers import Outputs

Scope: TypeAlias = dict[str, Any]
Headers: TypeAlias = list[tuple[bytes, bytes]]
Respond: TypeAlias = Callable[[int, Headers, bytes], None]

JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
PREFIX, SUFFIX = "/v2/models/", "/infer"


ONCE = (b"content-length", b"inference-header-content-length")
"""Headers that `Ask` is made from; two of a kind are for the parser to judge."""
TELLING = (b"transfer-encoding", b"content-encoding", b"expect")
"""Headers that ask for more than a body and an answer."""

log = logging.getLogger(__name__)


class Ask(NamedTuple):
    """What the head of an inference request says. `size` is the body's, `json_length` that of the JSON in it, if it is given."""

    model: str
    version: str
    size: int
    json_length: int | None


class ClientLeft(Exception):
    """The connection went away, or was closed because the client took too long, before the request was whole."""


class InferDoor:
    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._max_body = plane.settings.limits.body_bytes

    @staticmethod
    def target(scope: Scope) -> tuple[str, str] | None:
        """The model and version that `scope` asks to infer with; None if it is another kind of request."""
        path: str = scope["path"]
        if not (path.startswith(PREFIX) and path.endswith(SUFFIX)) or scope["method"] != "POST":
            return None
        match path[len(PREFIX) : -len(SUFFIX)].split("/"):
            case [name]:
                return name, ""
            case [name, "versions", version]:
                return name, version
        return None

    def read(self, scope: Scope) -> Ask | None:
        """What a head asks for, if it asks for an inference and for nothing out of the ordinary."""
        headers: Headers = scope["headers"]
        names = [name for name, _ in headers]
        target = self.target(scope)
        if target is None or any(names.count(name) > 1 for name in ONCE) or any(name in names for name in TELLING):
            return None
        given = dict(headers)
        try:
            size, json_length = (int(given[name]) if name in given else None for name in ONCE)
        except ValueError:
            return None
        return None if size is None or size > self._max_body else Ask(*target, size, json_length)

    def begin(self, ask: Ask) -> Exchange:
        return self._plane.begin(Protocol.REST, ask.model, ask.version)

    def answer(self, exchange: Exchange, ask: Ask, body: bytes, respond: Respond) -> None:
        """Answer a whole body by calling `respond`, at once or later, and end the exchange. A client that has left gets none."""
        try:
            self._plane.locate(exchange)
            request = decode_request(body, json_length=ask.json_length)
            answer = self._plane.submit(exchange, request)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            response = self._failed(exchange, error)
            self._plane.end(exchange)
            respond(*response)
        else:
            answer.add_done_callback(partial(self._answered, exchange, request, respond))

    def _answered(
        self, exchange: Exchange, request: InferRequest, respond: Respond, answer: "asyncio.Future[Outputs]"
    ) -> None:
        if answer.cancelled():
            self.give_up(exchange)
            return
        try:
            response = _response(exchange, request, answer.result())
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            response = self._failed(exchange, error)
        self._plane.end(exchange)
        respond(*response)

    def _failed(self, exchange: Exchange, error: Exception) -> tuple[int, Headers, bytes]:
        self._plane.fail(exchange, error)
        if isinstance(error, SeatrialError):
            return refusal(error)
        log.error("a request to '%s' could not be answered; this is a bug", exchange.model, exc_info=error)
        return 500, [JSON, (b"content-length", b"27")], b'{"error": "internal error"}'

    def give_up(self, exchange: Exchange) -> None:
        """The client has left, before its request was whole or after. It is counted for the model that it asked for."""
        if exchange.generation is None:
            with suppress(SeatrialError):
                self._plane.locate(exchange)
        self._plane.fail(exchange, asyncio.CancelledError())
        self._plane.end(exchange)

    async def __call__(self, scope: Scope, receive: Any, send: Any, *, model: str, version: str) -> None:
        exchange = self._plane.begin(Protocol.REST, model, version)
        scope["seatrial.exchange"] = exchange  # so that the connection can tell it when the client leaves
        try:
            status, headers, body = await self._respond(exchange, scope, receive)
        except SeatrialError as error:
            self._plane.fail(exchange, error)
            status, headers, body = refusal(error)
        except (ClientLeft, asyncio.CancelledError) as gone:
            self._plane.fail(exchange, asyncio.CancelledError())
            if isinstance(gone, asyncio.CancelledError) and not exchange.left:
                raise  # the server itself is stopping this task
            return
        finally:
            self._plane.end(exchange)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, exchange: Exchange, scope: Scope, receive: Any) -> tuple[int, Headers, bytes]:
        self._plane.locate(exchange)
        json_length = _read_headers(scope["headers"], max_body=self._max_body)
        request = decode_request(await read_body(receive, max_body=self._max_body), json_length=json_length)
        return _response(exchange, request, await self._plane.submit(exchange, request))


def _response(exchange: Exchange, request: InferRequest, outputs: Outputs) -> tuple[int, Headers, bytes]:
    assert exchange.generation is not None, "an answer without a generation: this is a bug"
    identity = exchange.generation.identity
    chosen = wanted(outputs, request)
    body, length = encode_answer(
        chosen,
        model=identity.name,
        version=identity.version,
        request_id=request.id,
        binary=_binary(chosen, request),
    )
    content_length = b"content-length", b"%d" % len(body)
    if length is None:
        return 200, [JSON, content_length], body
    return 200, [BINARY, (b"inference-header-content-length", b"%d" % length), content_length], body


async def read_body(receive: Any, *, max_body: int) -> bytes:
    """The whole request body. Raises `TooLarge` as soon as it is, `ClientLeft` if it never gets whole."""
    message = await receive()
    if not message.get("more_body"):
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body: bytes = message.get("body", b"")
        return _bounded(body, len(body), max_body)
    parts = []
    size = 0
    while True:
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        _bounded(b"", size, max_body)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft


def _bounded(body: bytes, size: int, max_body: int) -> bytes:
    if size > max_body:
        raise TooLarge(f"the body is larger than {max_body} bytes (serving.limits.body_bytes)")
    return body


def _read_headers(headers: Headers, *, max_body: int) -> int | None:
    """The length of the JSON part, where it is given; everything else in the headers that can rule a request out."""
    json_length = None
    for name, value in headers:
        if name == b"content-length":
            _bounded(b"", int(value), max_body)
        elif name == b"content-encoding" and value != b"identity":
            raise UnsupportedEncoding(f"the body is encoded as {value.decode('latin-1')!r}; send it as it is")
        elif name == b"inference-header-content-length":
            try:
                json_length = int(value)
            except ValueError:
                raise MalformedRequest(f"Inference-Header-Content-Length is {value!r}, expected a number") from None
    return json_length


def wanted(outputs: Sequence[Tensor], request: InferRequest) -> Sequence[Tensor]:
    """The outputs that were asked for, in the order in which they were asked for; all of them if none was named."""
    if not request.outputs:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    try:
        return [by_name[output.name] for output in request.outputs]
    except KeyError as error:
        raise WrongInput(f"there is no output {error}; the outputs are {list(by_name)}") from None


def _binary(outputs: Sequence[Tensor], request: InferRequest) -> dict[str, bool]:
    by_default = request.binary_by_default
    said = {output.name: output.binary for output in request.outputs}
    binary = {}
    for tensor in outputs:
        asked = said.get(tensor.name)
        binary[tensor.name] = by_default if asked is None else asked
    return binary


def refusal(error: SeatrialError) -> tuple[int, Headers, bytes]:
    """Status, headers and body for an error of ours."""
    body = orjson.dumps({"error": str(error)})
    headers = [JSON, (b"content-length", b"%d" % len(body))]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, TooLarge):
        headers.append((b"connection", b"close"))  # what is left of the body is not worth reading
    return http_status(error), headers, body
