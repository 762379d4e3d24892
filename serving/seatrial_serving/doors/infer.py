"""`POST /v2/models/NAME[/versions/VERSION | /aliases/ALIAS]/infer`: the hot path, without a framework in front.

Everything that a request costs is spent here, in the codec, and in the data plane. There are two ways in: `answer` for a
request that is whole and whose head was read before, and the ASGI callable for any other.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import orjson

from seatrial.errors import (
    BadRequest,
    MalformedRequest,
    Overloaded,
    QuotaExceeded,
    SeatrialError,
    TooLarge,
    Unauthenticated,
    WrongInput,
)
from seatrial.protocol import CLASSIFICATION, InferRequest, Tensor, decode_request, encode_answer
from seatrial.tensors import DataType
from seatrial_monitoring.series import Protocol
from seatrial_serving.data_plane import ALIAS, DataPlane, Exchange
from seatrial_serving.doors.classification import classify
from seatrial_serving.doors.compression import IDENTITY, choose, compress, expand
from seatrial_serving.doors.status import http_status
from seatrial_serving.generation import Generation, Identity
from seatrial_serving.workers import Outputs

Scope: TypeAlias = dict[str, Any]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
Response: TypeAlias = tuple[int, Headers, bytes]
Respond: TypeAlias = Callable[[int, Headers, bytes], None]

JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")
PREFIX, SUFFIX = "/v2/models/", "/infer"


LARGE = 64 * 1024
"""Bodies over this are compressed in a thread, so that nobody else waits for it."""
ONCE = (b"content-length", b"inference-header-content-length", b"inference-timeout-ms")
"""Headers that `Ask` is made from; two of a kind are for the parser to judge."""
TELLING = (b"transfer-encoding", b"content-encoding", b"expect")
"""Headers that ask for more than a body and an answer."""

log = logging.getLogger(__name__)


class Ask(NamedTuple):
    """What the head of an inference request says. `size` is the body's, where it is stated; `json_length` that of the JSON in
    it; `encoding` is the body's, `accepts` the answer's, both empty for none; `shown` is a key or token, where one is asked."""

    model: str
    version: str
    size: int
    json_length: int | None = None
    timeout_s: float | None = None
    encoding: str = ""
    accepts: str = ""
    shown: bytes = b""


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
            case [name, "aliases", alias]:
                return name, ALIAS + alias
        return None

    def read(self, scope: Scope) -> Ask | None:
        """What a head asks for, if it asks for an inference and for nothing out of the ordinary."""
        headers: Headers = scope["headers"]
        names = [name for name, _ in headers]
        target = self.target(scope)
        if target is None or any(names.count(name) > 1 for name in ONCE) or any(name in names for name in TELLING):
            return None
        with suppress(BadRequest):
            return read_head(*target, headers, max_body=self._max_body)
        return None

    def begin(self, ask: Ask) -> Exchange:
        return self._plane.begin(Protocol.REST, ask.model, ask.version)

    def answer(self, exchange: Exchange, ask: Ask, body: bytes, respond: Respond) -> None:
        """Answer a whole body by calling `respond`, at once or later, and end the exchange. A client that has left gets none."""
        self._plane.answer(
            exchange,
            partial(decode_request, body, json_length=ask.json_length),
            _response,
            partial(self._answered, exchange, ask.accepts, respond),
            timeout_s=ask.timeout_s,
        )

    def _answered(self, exchange: Exchange, accepts: str, respond: Respond, answer: Response | Exception) -> None:
        response = _failure(exchange, answer) if isinstance(answer, Exception) else answer
        if not accepts:
            respond(*response)
        elif len(response[-1]) > LARGE:
            compressing = asyncio.get_running_loop().run_in_executor(None, _compressed, response, accepts)
            compressing.add_done_callback(lambda done: respond(*done.result()))
        else:
            respond(*_compressed(response, accepts))

    def give_up(self, exchange: Exchange) -> None:
        """The client has left before its request was whole."""
        self._plane.give_up(exchange)

    async def __call__(self, scope: Scope, receive: Any, send: Any, *, model: str, version: str) -> None:
        exchange = self._plane.begin(Protocol.REST, model, version)
        scope["seatrial.exchange"] = exchange  # so that the connection can tell it when the client leaves
        try:
            status, headers, body = await self._respond(exchange, scope, receive)
        except (ClientLeft, asyncio.CancelledError) as gone:
            self._plane.fail(exchange, asyncio.CancelledError())
            if isinstance(gone, asyncio.CancelledError) and not exchange.left:
                raise  # the server itself is stopping this task
            return
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            self._plane.fail(exchange, error)
            status, headers, body = _failure(exchange, error)
        finally:
            self._plane.end(exchange)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _respond(self, exchange: Exchange, scope: Scope, receive: Any) -> Response:
        self._plane.locate(exchange)
        ask = read_head(exchange.model, exchange.version, scope["headers"], max_body=self._max_body)
        body = await read_body(receive, max_body=self._max_body)
        if ask.encoding:
            body = await asyncio.to_thread(expand, body, ask.encoding, max_body=self._max_body)
        request = decode_request(body, json_length=ask.json_length)
        outputs = await self._plane.submit(exchange, request, timeout_s=ask.timeout_s)
        response = _response(exchange, request, outputs)
        if ask.accepts and len(response[-1]) > LARGE:
            return await asyncio.to_thread(_compressed, response, ask.accepts)
        return _compressed(response, ask.accepts) if ask.accepts else response


def _failure(exchange: Exchange, error: Exception) -> Response:
    if isinstance(error, SeatrialError):
        return refusal(error)
    log.error("a request to '%s' could not be answered; this is a bug", exchange.model, exc_info=error)
    return 500, (JSON, (b"content-length", b"27")), b'{"error": "internal error"}'


class Beginning(NamedTuple):
    """What answers to requests of one layout begin with while `identity` answers, with outputs of these shapes: all but the
    data of those that were `chosen`."""

    identity: Identity
    shapes: list[tuple[int, ...]]
    chosen: list[int]
    headers: Headers
    text: bytes


def _response(exchange: Exchange, request: InferRequest, outputs: Outputs) -> Response:
    assert exchange.generation is not None, "an answer without a generation: this is a bug"
    identity = exchange.generation.identity
    known: Beginning | None = request.layout.answer if request.layout is not None else None
    if known is not None and known.identity is identity and known.shapes == [each.array.shape for each in outputs]:
        return 200, known.headers, b"".join([known.text, *[outputs[index].array.tobytes() for index in known.chosen]])
    chosen = wanted(outputs, request, exchange.generation)
    binary = _binary(chosen, request)
    body, length = encode_answer(
        chosen, model=identity.name, version=identity.version, request_id=request.id, binary=binary
    )
    content_length = b"content-length", b"%d" % len(body)
    if length is None:
        return 200, (JSON, content_length), body
    headers = BINARY, (b"inference-header-content-length", b"%d" % length), content_length
    if request.layout is not None and all(binary.values()) and _all_plain(chosen, outputs):
        places = [next(index for index, each in enumerate(outputs) if each is tensor) for tensor in chosen]
        shapes = [each.array.shape for each in outputs]
        request.layout.answer = Beginning(identity, shapes, places, headers, body[:length])
    return 200, headers, body


def _all_plain(chosen: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether the `chosen` are outputs as they are, of which the shape alone decides how many bytes they take."""
    return all(
        tensor.datatype is not DataType.BYTES
        and tensor.array.dtype == tensor.datatype.numpy
        and any(each is tensor for each in outputs)
        for tensor in chosen
    )


def _compressed(response: Response, encoding: str) -> Response:
    """The same answer, compressed where that makes it smaller."""
    status, headers, body = response
    compressed = compress(body, encoding)
    if compressed is None:
        return response
    kept = [header for header in headers if header[0] != b"content-length"]
    sizes = [(b"content-encoding", encoding.encode()), (b"content-length", b"%d" % len(compressed))]
    return status, (*kept, *sizes), compressed


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


def read_head(model: str, version: str, headers: Headers, *, max_body: int) -> Ask:
    """What the headers ask for. Raises `TooLarge` or `MalformedRequest` for those that rule a request out."""
    given = dict(headers)
    size = _number(given, b"content-length", int) or 0  # unstated means none, unless it is chunked
    _bounded(b"", size, max_body)
    timeout_ms = _number(given, b"inference-timeout-ms", float)
    if timeout_ms is not None and not 0 < timeout_ms < math.inf:
        raise MalformedRequest(f"Inference-Timeout-Ms is {timeout_ms}, expected milliseconds, more than 0")
    encoding = given.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    return Ask(
        model,
        version,
        size,
        _number(given, b"inference-header-content-length", int),
        None if timeout_ms is None else timeout_ms / 1000,
        "" if encoding == IDENTITY else encoding,
        choose(value for name, value in headers if name == b"accept-encoding"),
    )


N = TypeVar("N", int, float)


def _number(headers: dict[bytes, bytes], name: bytes, kind: type[N]) -> N | None:
    if name not in headers:
        return None
    try:
        return kind(headers[name])
    except ValueError:
        raise MalformedRequest(f"{name.decode().title()} is {headers[name]!r}, expected a number") from None


def wanted(outputs: Sequence[Tensor], request: InferRequest, generation: Generation) -> Sequence[Tensor]:
    """The outputs that were asked for, in the order in which they were asked for; all of them if none was named.

    An output whose best classes were asked for is replaced by them. Raises `WrongInput`.
    """
    if not request.outputs:
        return outputs
    by_name = {tensor.name: tensor for tensor in outputs}
    try:
        chosen = [by_name[output.name] for output in request.outputs]
    except KeyError as error:
        raise WrongInput(f"there is no output {error}; the outputs are {list(by_name)}") from None
    for output in request.outputs:
        if CLASSIFICATION in output.parameters:
            return _classified(chosen, request, generation)
    return chosen


def _classified(chosen: Sequence[Tensor], request: InferRequest, generation: Generation) -> list[Tensor]:
    labels, batched = generation.identity.labels, generation.signature.batch is not None
    return [
        classify(tensor, output.classes, labels=labels, batched=batched) if output.classes else tensor
        for tensor, output in zip(chosen, request.outputs, strict=True)
    ]


def _binary(outputs: Sequence[Tensor], request: InferRequest) -> dict[str, bool]:
    by_default = request.binary_by_default
    if not request.outputs:
        return {tensor.name: by_default for tensor in outputs}
    said = {output.name: output.binary for output in request.outputs}
    binary = {}
    for tensor in outputs:
        asked = said.get(tensor.name)
        binary[tensor.name] = by_default if asked is None else asked
    return binary


def refusal(error: SeatrialError) -> Response:
    """Status, headers and body for an error of ours."""
    body = orjson.dumps({"error": str(error)})
    headers = [JSON, (b"content-length", b"%d" % len(body))]
    if isinstance(error, Overloaded | QuotaExceeded):
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="seatrial"'))
    if isinstance(error, TooLarge):
        headers.append((b"connection", b"close"))  # what is left of the body is not worth reading
    return http_status(error), headers, body
