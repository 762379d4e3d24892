"""HTTP/2 against a client that others wrote, on real sockets in this process; and against bytes that no client should send."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from seatrial.settings import Limits
from seatrial_monitoring.series import Closing
from seatrial_serving.doors.calls import BEGINNING, FINE
from seatrial_serving.doors.http import listen
from seatrial_serving.doors.http2 import LARGEST_FRAME, LINGER_S, MOST_IDLE_FRAMES, Connection
from seatrial_serving.doors.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fault,
    frame,
)
from seatrial_serving.doors.http2_heads import Headers, MalformedHead
from seatrial_serving.doors.http2_stream import WINDOW, Stream
from tests.conditions import soon

LIMITS = Limits(body_bytes=400_000, header_bytes=4096, receive_s=5, idle_s=60)
REQUEST = [(":method", "POST"), (":scheme", "http"), (":authority", "here"), (":path", "/")]


@dataclass
class Echo:
    """Answers with the headers it was sent, as a line of JSON, and the body."""

    service: "Echoes"
    stream: Stream[Headers]
    head: Headers
    body: bytes = b""

    def received(self, data: bytes, *, last: bool) -> None:
        self.body += data
        if last and not self.service.silent:
            said = json.dumps([[name.decode(), value.decode()] for name, value in self.head]).encode()
            self.stream.send(headers=BEGINNING)
            self.stream.send(data=said + b"\n")
            self.stream.send(data=self.body * int(dict(self.head).get(b"x-times", b"1")), trailers=FINE)

    def stop(self) -> None:
        self.service.stopped += 1

    def left(self) -> None:
        self.service.left.append(self.stream.id)

    def too_slow(self) -> None:
        self.stream.reset(Fault.CANCEL)


@dataclass
class Echoes:
    silent: bool = False
    left: list[int] = field(default_factory=list)
    stopped: int = 0
    accepted: list[Echo] = field(default_factory=list)
    read: int = 0
    """Header blocks that were read, and not known already."""

    def read_head(self, headers: Headers) -> Headers:
        self.read += 1
        if (b"x-malformed", b"yes") in headers:
            raise MalformedHead
        return headers

    def accept(self, stream: Stream[Headers], head: Headers) -> Echo:
        size = int(dict(head).get(b"content-length", b"0"))
        if size > WINDOW:
            stream.expect(size - WINDOW)
        self.accepted.append(Echo(self, stream, head))
        return self.accepted[-1]


@dataclass
class Running:
    service: Echoes
    address: tuple[str, int]
    connections: list[Connection[Headers]]
    closings: list[Closing]


@asynccontextmanager
async def running(*, silent: bool = False) -> AsyncIterator[Running]:
    service = Echoes(silent=silent)
    connections: list[Connection[Headers]] = []
    closings: list[Closing] = []

    def connect() -> Connection[Headers]:
        return Connection(service, LIMITS, made=connections.append, lost=connections.remove, closing=closings.append)

    listener = listen("127.0.0.1", 0)
    server = await asyncio.get_running_loop().create_server(connect, sock=listener)
    try:
        yield Running(service, listener.getsockname(), connections, closings)
    finally:
        server.close()
        for connection in connections:
            connection.abort()
        await soon(lambda: not connections)


@dataclass
class Asked:
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    pad: int | None = None
    sent: int = 0
    answer: bytes = b""
    trailers: list[tuple[bytes, bytes]] | None = None

    @property
    def expected(self) -> list[list[str]]:
        length = [("content-length", str(len(self.body)))] if self.body else []
        return [list(pair) for pair in (*REQUEST, *self.headers, *length)]


class Client:
    """The `h2` library on a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, window: int = 65_535) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self.resets: list[int] = []

    async def ask(self, *requests: Asked, chunk: int = 100_000) -> None:
        """Send all requests side by side, as far as flow control allows, and read until each is answered."""
        asked = {}
        for request in requests:
            number = self.h2.get_next_available_stream_id()
            pairs = [(name, value) for name, value in request.expected]
            self.h2.send_headers(number, pairs, end_stream=not request.body)
            asked[number] = request
        async with asyncio.timeout(30):
            while any(r.trailers is None and number not in self.resets for number, r in asked.items()):
                for number, request in asked.items():
                    self._send_some(number, request, chunk)
                self.writer.write(self.h2.data_to_send())
                data = await self.reader.read(65_536)
                assert data, "the server closed the connection"
                self._take(asked, self.h2.receive_data(data))

    def _send_some(self, number: int, request: Asked, chunk: int) -> None:
        while request.sent < len(request.body) and request.trailers is None:
            pad = request.pad
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size, chunk)
            room -= 0 if pad is None else pad + 1
            if room <= 0:
                return
            part = request.body[request.sent : request.sent + room]
            request.sent += len(part)
            self.h2.send_data(number, part, end_stream=request.sent == len(request.body), pad_length=pad)

    def _take(self, asked: dict[int, Asked], events: Sequence[h2.events.Event]) -> None:
        for event in events:
            match event:
                case h2.events.DataReceived():
                    asked[event.stream_id].answer += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.TrailersReceived():
                    asked[event.stream_id].trailers = list(event.headers)
                case h2.events.StreamReset():
                    self.resets.append(event.stream_id)
                case h2.events.ConnectionTerminated():
                    raise AssertionError(event)


@asynccontextmanager
async def opened(server: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def connect(server: Running, *, window: int = 65_535) -> AsyncIterator[Client]:
    async with opened(server) as (reader, writer):
        yield Client(reader, writer, window=window)


def check(request: Asked) -> None:
    said, _, body = request.answer.partition(b"\n")
    assert json.loads(said) == request.expected
    assert body == request.body
    assert request.trailers == [(b"grpc-status", b"0")]


# What a client may do


HEADERS_SENT = st.lists(
    st.tuples(st.sampled_from(["x-one", "x-two", "grpc-timeout"]), st.sampled_from(["", "1", "b" * 50, "ü" * 9])),
    max_size=4,
    unique_by=lambda pair: pair[0],
)
REQUESTS = st.builds(
    Asked,
    headers=HEADERS_SENT,
    body=st.integers(0, 3000).map(lambda size: bytes(number % 251 for number in range(size))),
    pad=st.none() | st.integers(0, 200),
)


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.lists(REQUESTS, min_size=1, max_size=5), min_size=1, max_size=5),
    st.sampled_from([1, 100, 65_535]),
    st.integers(201, 5000),
    st.lists(st.integers(0, 4096), max_size=5),
)
def test_every_request_is_answered_with_its_own_headers_and_body(
    rounds: list[list[Asked]], window: int, chunk: int, table_sizes: list[int]
) -> None:
    async def at_once() -> None:
        async with running() as server, connect(server, window=window) as client:
            for number, requests in enumerate(rounds):
                if number < len(table_sizes):
                    client.h2.encoder.header_table_size = table_sizes[number]
                await client.ask(*requests, chunk=chunk)
                for request in requests:
                    check(request)
            assert server.service.left == []

    asyncio.run(at_once())


@pytest.mark.anyio
async def test_a_header_block_that_comes_again_is_not_read_again() -> None:
    async with running() as server, connect(server) as client:
        for _ in range(5):
            await client.ask(Asked(headers=[("x-one", "1")]))
        assert server.service.read == 2  # the first one fills the table, the second is all indices


@pytest.mark.anyio
async def test_bodies_larger_than_the_window_arrive_one_after_the_other() -> None:
    async with running() as server, connect(server) as client:
        large = [Asked(body=bytes([number]) * 300_000) for number in range(4)]
        small = [Asked(body=b"s" * 1000) for _ in range(4)]
        await client.ask(*large, *small)
        for request in (*large, *small):
            check(request)


@pytest.mark.anyio
async def test_a_client_that_resets_a_stream_or_leaves_is_noticed_once_for_each_request() -> None:
    async with running(silent=True) as server, connect(server) as client:
        for number in (1, 3, 5):
            client.h2.send_headers(number, REQUEST, end_stream=number == 3)
        client.h2.reset_stream(3)
        client.writer.write(client.h2.data_to_send())
        await soon(lambda: server.service.left == [3])
        client.writer.close()
        await soon(lambda: sorted(server.service.left) == [1, 3, 5])


@pytest.mark.anyio
async def test_a_malformed_request_costs_its_own_stream_only() -> None:
    async with running() as server, connect(server) as client:
        await client.ask(Asked(headers=[("x-malformed", "yes")]))
        assert client.resets == [1]
        fine = Asked(body=b"still here")
        await client.ask(fine)
        check(fine)


@pytest.mark.anyio
async def test_a_stream_that_is_sent_more_than_its_window_is_reset_and_the_connection_goes_on() -> None:
    async with running() as server, opened(server) as (reader, writer):
        writer.write(PREFACE + OPEN + frame(DATA, 0, 1, b"x" * 60_000) * 10)
        writer.write(frame(HEADERS, END_HEADERS | END_STREAM, 3, PLAIN))
        reset = None
        async for kind, number, payload in frames_of(reader):
            if kind == RST_STREAM:
                reset = number, int.from_bytes(payload, "big")
            if number == 3:
                break
        assert reset == (1, Fault.FLOW_CONTROL_ERROR)
        assert server.service.left == [1]


@pytest.mark.anyio
async def test_a_server_that_goes_away_answers_what_is_open_and_takes_nothing_new() -> None:
    async with running(silent=True) as server, connect(server) as client:
        client.h2.send_headers(1, REQUEST, end_stream=True)
        client.writer.write(client.h2.data_to_send())
        await soon(lambda: server.service.accepted)
        [connection] = server.connections
        connection.go_away()
        client.h2.send_headers(3, REQUEST, end_stream=True)
        client.writer.write(client.h2.data_to_send())
        assert server.service.stopped == 1
        server.service.accepted[0].stream.send(headers=BEGINNING + FINE, trailers=FINE)
        frames = [(kind, number) async for kind, number, _ in frames_of(client.reader)]
        assert (GOAWAY, 0) in frames
        assert (HEADERS, 1) in frames
        assert (HEADERS, 3) not in frames


# What no client should do


async def frames_of(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, bytes]]:
    """Frames until the server closes: kind, stream and payload."""
    async with asyncio.timeout(20):
        while head := await reader.read(FRAME.size):
            head += await reader.readexactly(FRAME.size - len(head))
            high, low, kind, _, number = FRAME.unpack(head)
            yield kind, number, await reader.readexactly(high << 16 | low)


PLAIN = b"\x83\x86\x84\x41\x01h"  # :method POST, :scheme http, :path /, :authority h
OPEN = frame(HEADERS, END_HEADERS, 1, PLAIN)


def many(unit: bytes) -> bytes:
    return unit * (MOST_IDLE_FRAMES + 1)


FAULTS = {
    "another protocol": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Fault.PROTOCOL_ERROR),
    "a frame over the limit": (PREFACE + frame(DATA, 0, 1, b"x" * (LARGEST_FRAME + 1)), Fault.FRAME_SIZE_ERROR),
    "data for no stream": (PREFACE + frame(DATA, 0, 0, b"x"), Fault.PROTOCOL_ERROR),
    "data for a stream that was never opened": (PREFACE + frame(DATA, 0, 5, b"x"), Fault.PROTOCOL_ERROR),
    "a stream with the server's number": (PREFACE + frame(HEADERS, END_HEADERS, 2, PLAIN), Fault.PROTOCOL_ERROR),
    "a header block that refers to nothing": (PREFACE + frame(HEADERS, END_HEADERS, 1, b"\xff\x7f"), Fault.COMPRESSION_ERROR),
    "a header block that is interrupted": (
        PREFACE + frame(HEADERS, 0, 1, PLAIN) + frame(PING, 0, 0, b"8" * 8), Fault.PROTOCOL_ERROR),
    "a header block that another stream goes on with": (
        PREFACE + frame(HEADERS, 0, 1, PLAIN) + frame(CONTINUATION, END_HEADERS, 3, PLAIN), Fault.PROTOCOL_ERROR),
    "a continuation of nothing": (PREFACE + frame(CONTINUATION, END_HEADERS, 1, PLAIN), Fault.PROTOCOL_ERROR),
    "a header block without an end": (
        PREFACE + frame(HEADERS, 0, 1, PLAIN) + frame(CONTINUATION, 0, 1, b"x" * 10_000) * 3, Fault.ENHANCE_YOUR_CALM),
    "empty continuations": (PREFACE + frame(HEADERS, 0, 1, PLAIN) + many(frame(CONTINUATION, 0, 1)), Fault.ENHANCE_YOUR_CALM),
    "a small block that unpacks to a large one": (
        PREFACE + frame(HEADERS, END_HEADERS, 1, PLAIN + b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 10),
        Fault.ENHANCE_YOUR_CALM),
    "more padding than frame": (PREFACE + OPEN + frame(DATA, PADDED, 1, b"\x05abc"), Fault.PROTOCOL_ERROR),
    "padding without its length": (PREFACE + OPEN + frame(DATA, PADDED, 1), Fault.PROTOCOL_ERROR),
    "settings for a stream": (PREFACE + frame(SETTINGS, 0, 1), Fault.PROTOCOL_ERROR),
    "settings cut off": (PREFACE + frame(SETTINGS, 0, 0, b"12345"), Fault.FRAME_SIZE_ERROR),
    "an acknowledgement with settings": (PREFACE + frame(SETTINGS, 1, 0, b"123456"), Fault.FRAME_SIZE_ERROR),
    "a window beyond its limit": (PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 2**31)), Fault.FLOW_CONTROL_ERROR),
    "frames smaller than may be": (PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HL", 5, 100)), Fault.PROTOCOL_ERROR),
    "a window that grows by nothing": (PREFACE + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), Fault.FLOW_CONTROL_ERROR),
    "a window that overflows": (PREFACE + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), Fault.FLOW_CONTROL_ERROR),
    "a window update cut off": (PREFACE + frame(WINDOW_UPDATE, 0, 0, b"\0\0\1"), Fault.FRAME_SIZE_ERROR),
    "a window for a stream that was never opened": (PREFACE + frame(WINDOW_UPDATE, 0, 7, b"\0\0\0\1"), Fault.PROTOCOL_ERROR),
    "a ping cut off": (PREFACE + frame(PING, 0, 0, b"1234567"), Fault.FRAME_SIZE_ERROR),
    "a ping for a stream": (PREFACE + frame(PING, 0, 1, b"12345678"), Fault.PROTOCOL_ERROR),
    "a push": (PREFACE + OPEN + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + PLAIN), Fault.PROTOCOL_ERROR),
    "a reset cut off": (PREFACE + OPEN + frame(RST_STREAM, 0, 1, b"123"), Fault.FRAME_SIZE_ERROR),
    "a reset of a stream that was never opened": (PREFACE + frame(RST_STREAM, 0, 9, b"\0\0\0\0"), Fault.PROTOCOL_ERROR),
    "pings without end": (PREFACE + many(frame(PING, 0, 0, b"12345678")), Fault.ENHANCE_YOUR_CALM),
    "settings without end": (PREFACE + many(frame(SETTINGS, 0, 0)), Fault.ENHANCE_YOUR_CALM),
    "priorities without end": (PREFACE + many(frame(PRIORITY, 0, 1, b"12345")), Fault.ENHANCE_YOUR_CALM),
    "frames of an unknown kind without end": (PREFACE + many(frame(77, 0, 0)), Fault.ENHANCE_YOUR_CALM),
    "empty data without end": (PREFACE + OPEN + many(frame(DATA, 0, 1)), Fault.ENHANCE_YOUR_CALM),
}  # fmt: skip


def rapid_resets() -> bytes:
    numbers = range(1, 2 * MOST_IDLE_FRAMES + 3, 2)
    return PREFACE + b"".join(
        frame(HEADERS, END_HEADERS | END_STREAM, number, PLAIN) + frame(RST_STREAM, 0, number, b"\0\0\0\x08")
        for number in numbers
    )


FAULTS["streams that are opened to be reset"] = (rapid_resets(), Fault.ENHANCE_YOUR_CALM)


@pytest.mark.anyio
@pytest.mark.parametrize("sent", FAULTS)
async def test_who_breaks_the_protocol_is_told_how_and_nobody_else_notices(sent: str) -> None:
    data, code = FAULTS[sent]
    async with running(silent=True) as server, opened(server) as (reader, writer):
        writer.write(data)
        goodbye = [payload async for kind, _, payload in frames_of(reader) if kind == GOAWAY]
        assert [int.from_bytes(payload[4:8], "big") for payload in goodbye] == [code]
        assert server.closings == [Closing.MALFORMED]
        assert sorted(server.service.left) == sorted(echo.stream.id for echo in server.service.accepted)
        server.service.silent = False
        async with connect(server) as other:
            fine = Asked(body=b"still here")
            await other.ask(fine)
            check(fine)


def bits(frames: bytes) -> Iterator[bytes]:
    """One byte after the other."""
    for number in range(len(frames)):
        yield frames[number : number + 1]


@pytest.mark.anyio
async def test_headers_may_come_padded_with_a_priority_in_pieces_and_byte_by_byte() -> None:
    async with running() as server, opened(server) as (reader, writer):
        padded = b"\x03" + b"\0\0\0\0\x10" + PLAIN + b"\0\0\0"
        pieces = frame(HEADERS, END_STREAM, 3, PLAIN[:2]) + frame(CONTINUATION, END_HEADERS, 3, PLAIN[2:])
        whole = frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITISED, 1, padded)
        for byte in bits(PREFACE + frame(SETTINGS, 0, 0) + whole + pieces):
            writer.write(byte)
            await asyncio.sleep(0)
        answered = set()
        async for kind, number, payload in frames_of(reader):
            if kind == DATA and b":path" in payload:
                answered.add(number)
            if answered == {1, 3}:
                break


# Clients that take their time


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "patience_s"),
    [
        (b"", LIMITS.receive_s),
        (PREFACE[:5], LIMITS.receive_s),
        (PREFACE + OPEN[:4], LIMITS.receive_s),
        (PREFACE + frame(HEADERS, 0, 1, PLAIN), LIMITS.receive_s),
        (PREFACE + frame(SETTINGS, 0, 0), LIMITS.idle_s),
    ],
    ids=["nothing", "half a greeting", "half a frame", "half a header block", "no request"],
)
async def test_a_connection_that_gets_nowhere_is_closed(sent: bytes, patience_s: float) -> None:
    async with running() as server, opened(server) as (reader, writer):
        writer.write(sent)
        await soon(lambda: server.connections)
        ping = frame(PING, 0, 0, b"12345678")
        if sent.startswith(PREFACE) and sent.endswith(frame(SETTINGS, 0, 0)):
            writer.write(ping)  # its answer says that all before it was taken
            async for kind, _, _ in frames_of(reader):
                if kind == PING:
                    break
        else:  # what goes by meanwhile says so
            async with connect(server) as other:
                await other.ask(Asked())
            await soon(lambda: len(server.connections) == 1)
        [connection] = server.connections
        now = asyncio.get_running_loop().time()
        connection.sweep(now + patience_s / 2)
        assert server.connections
        connection.sweep(now + patience_s + 1)
        assert [kind async for kind, _, _ in frames_of(reader)][-1] == GOAWAY
        assert server.connections, "the client is given time to read that"
        assert server.closings == ([Closing.SLOW] if patience_s == LIMITS.receive_s else [])
        connection.sweep(now + patience_s + 1 + 2 * LINGER_S)
        await soon(lambda: not server.connections)


@pytest.mark.anyio
async def test_a_request_that_takes_too_long_is_given_up_and_the_connection_goes_on() -> None:
    async with running() as server, connect(server) as client:
        client.h2.send_headers(1, REQUEST)
        client.writer.write(client.h2.data_to_send())
        await soon(lambda: server.service.accepted)
        [connection] = server.connections
        connection.sweep(asyncio.get_running_loop().time() + LIMITS.receive_s + 1)
        fine = Asked(body=b"still here")
        await client.ask(fine)
        check(fine)
        assert client.resets == [1]


@pytest.mark.anyio
async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async with running() as server, connect(server, window=2**31 - 1) as client:
        client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        first = Asked(headers=[("x-times", "400")], body=b"x" * 50_000)
        client.h2.send_headers(1, [*REQUEST, *first.headers])
        for start in range(0, len(first.body), 10_000):
            client.h2.send_data(1, first.body[start : start + 10_000], end_stream=start == 40_000)
        client.writer.write(client.h2.data_to_send())
        await soon(lambda: server.service.accepted and len(server.service.accepted[0].body) == len(first.body))
        client.h2.send_headers(3, REQUEST, end_stream=True)
        client.writer.write(client.h2.data_to_send())
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(server.service.accepted) == 1
        answers = 0
        async for kind, _, payload in frames_of(client.reader):
            answers += kind == DATA and b":path" in payload
            if answers == 2:
                break
