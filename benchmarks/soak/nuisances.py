"""Clients that do something wrong. Each is told what, in the right way, and the server counts it: that is what is checked.

A nuisance does its one thing and says how the server must have counted it; it raises `Wrong` where it was told otherwise.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import httpx
import numpy as np
import tritonclient.grpc.aio as triton_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.soak.ledger import LEFT, Key, closed, ended, unknown
from benchmarks.soak.subject import HEADER_BYTES, MODEL
from benchmarks.soak.voices import INFER, PATIENCE_S, Wrong, tensors
from seatrial_monitoring.series import Closing, Outcome, Protocol
from tests.servers import Server

BODY = b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'
HEAD = f"POST {INFER} HTTP/1.1\r\nhost: soak\r\ncontent-length: {len(BODY)}\r\n\r\n".encode()

Nuisance: TypeAlias = Callable[[Server], Awaitable[tuple[Key, ...]]]


async def send(address: str, data: bytes, *, and_no_more: bool = False) -> bytes:
    """All that the server says until it closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    said = b""
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        if and_no_more:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            while part := await reader.read(65536):
                said += part
    writer.close()
    return said


def expect(said: bytes, words: bytes) -> None:
    if words not in said:
        raise Wrong(f"expected {words!r}, was told {said[:200]!r}")


async def no_http(server: Server) -> tuple[Key, ...]:
    expect(await send(server.http, b"\x16\x03\x01\x00 no request\r\n\r\n"), b"HTTP/1.1 400 ")
    return (closed(Closing.MALFORMED),)


async def no_http2(server: Server) -> tuple[Key, ...]:
    expect(await send(server.grpc, b"GET / HTTP/1.1\r\nhost: soak\r\n\r\n"), b"this port speaks gRPC")
    return (closed(Closing.MALFORMED, Protocol.GRPC),)


async def headers_too_large(server: Server) -> tuple[Key, ...]:
    expect(await send(server.http, b"GET / HTTP/1.1\r\nx-big: " + b"a" * (HEADER_BYTES + 1)), b"HTTP/1.1 431 ")
    return (closed(Closing.HEADERS),)


async def never_finishes_its_headers(server: Server) -> tuple[Key, ...]:
    expect(await send(server.http, HEAD[:-8]), b"HTTP/1.1 408 ")
    return (closed(Closing.SLOW),)


async def never_finishes_its_body(server: Server) -> tuple[Key, ...]:
    expect(await send(server.http, HEAD + BODY[:-8]), b"HTTP/1.1 408 ")
    return closed(Closing.SLOW), ended(Outcome.ABANDONED)


async def half_closes_in_its_body(server: Server) -> tuple[Key, ...]:
    if said := await send(server.http, HEAD + BODY[:-8], and_no_more=True):
        raise Wrong(f"half a request was answered: {said[:200]!r}")
    return (ended(Outcome.ABANDONED),)


async def leaves_before_its_answer(server: Server) -> tuple[Key, ...]:
    host, _, port = server.http.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD + BODY)
    await writer.drain()
    writer.close()
    return (ended(LEFT),)


async def connects_and_leaves(server: Server) -> tuple[Key, ...]:
    for address in (server.http, server.grpc):
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
    return ()


def sends(status: int, key: Key, *, content: bytes, path: str = INFER, **headers: str) -> Nuisance:
    """The `content` is read, and refused with `status`."""

    async def nuisance(server: Server) -> tuple[Key, ...]:
        lines = [f"POST {path} HTTP/1.1", "host: soak", f"content-length: {len(content)}", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        expect(await send(server.http, "\r\n".join((*lines, "", "")).encode() + content), f" {status} ".encode())
        return (key,)

    return nuisance


async def asks_wrongly_over_grpc(server: Server) -> tuple[Key, ...]:
    async with triton_grpc.InferenceServerClient(server.grpc) as client:
        try:
            await client.infer(MODEL, tensors(np.ones((1, 7), np.float32)), client_timeout=PATIENCE_S)
        except InferenceServerException as error:
            expect(str(error).encode(), b"INVALID_ARGUMENT")
        else:
            raise Wrong("seven columns were taken for four")
    return (ended(Outcome.CLIENT_ERROR, Protocol.GRPC),)


WRONG_SHAPE = BODY.replace(b"[1, 4]", b"[1, 7]")
BAD = ended(Outcome.CLIENT_ERROR)
NUISANCES: Sequence[Nuisance] = (
    *(no_http, no_http2, headers_too_large, never_finishes_its_headers, never_finishes_its_body),
    *(half_closes_in_its_body, leaves_before_its_answer, connects_and_leaves, asks_wrongly_over_grpc),
    sends(httpx.codes.BAD_REQUEST, BAD, content=b"{"),
    sends(httpx.codes.BAD_REQUEST, BAD, content=WRONG_SHAPE),
    sends(httpx.codes.BAD_REQUEST, BAD, content=b"\x1f\x8b corrupt", content_encoding="gzip"),
    sends(httpx.codes.NOT_FOUND, unknown(), content=BODY, path="/v2/models/nobody/infer"),
)
