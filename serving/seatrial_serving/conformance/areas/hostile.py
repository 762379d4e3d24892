"""What may hurt a server: JSON too deep for a parser's stack, shapes that no memory holds, a client that leaves half-way.

Sent only where the user says so, and last.
"""

import socket
from contextlib import suppress

import httpx
import orjson

from seatrial_serving.conformance.areas.errors import CLAUSE, JSON
from seatrial_serving.conformance.check import Kind, NotApplicable, check
from seatrial_serving.conformance.rest import Rest, path, write
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Wire

DEEP = 50_000
HUGE = 2**40
MANY_AXES = 1000


@check("hostile.huge_shape", clause=CLAUSE)
def a_shape_that_no_memory_holds_is_refused(wire: Wire, subject: Subject) -> str:
    ask = subject.ask()
    first = ask.inputs[0]
    return subject.refused(wire, lambda: wire.infer(ask.with_first(shape=tuple(HUGE for _ in first.shape) or (HUGE,))))


@check("hostile.many_axes", clause=CLAUSE)
def a_shape_of_a_thousand_axes_is_refused(wire: Wire, subject: Subject) -> str:
    ask = subject.ask()
    return subject.refused(wire, lambda: wire.infer(ask.with_first(shape=(1,) * MANY_AXES)))


@check("hostile.size_beyond_64_bits", clause="Request Input: shape, unsigned 64-bit", on=(Kind.REST,))
def a_size_beyond_64_bits_is_refused(rest: Rest, subject: Subject) -> str:
    body = orjson.loads(write(subject.json_ask)[0])
    body["inputs"][0]["shape"] = ["DIJ"]
    content = orjson.dumps(body).replace(b'"DIJ"', b"9" * 40)
    return subject.refused(rest, lambda: rest.post(subject.ask(), content, JSON))


@check("hostile.left", clause="the next request is answered", on=(Kind.REST,))
def a_client_that_leaves_half_way_hurts_nobody(rest: Rest, subject: Subject) -> None:
    body = write(subject.ask())[0]
    url = rest.address.join(f"{path(subject.model)}/infer")
    if url.scheme != "http":
        raise NotApplicable("over TLS a client that leaves is another matter")
    head = f"POST {url.raw_path.decode()} HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n"
    with subject.unharmed(rest):
        _send_half(url, f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body)


def _send_half(url: httpx.URL, head: bytes, body: bytes) -> None:
    with suppress(OSError), socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(head + body[: len(body) // 2])


@check("hostile.deep", clause=CLAUSE, on=(Kind.REST,))
def very_deep_json_is_refused(rest: Rest, subject: Subject) -> str:
    head = write(subject.json_ask)[0].partition(b'"data":')[0]
    body = head + b'"data":' + b"[" * DEEP + b"]" * DEEP + b"}]}"
    return subject.refused(rest, lambda: rest.post(subject.ask(), body, JSON))
