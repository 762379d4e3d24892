"""HTTP/2 on real sockets in this process: a service that echoes what it is asked, and a client that others wrote."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from seatrial.settings import Limits
from seatrial_monitoring.series import Closing
from seatrial_serving.doors.calls import BEGINNING, FINE
from seatrial_serving.doors.http import listen
from seatrial_serving.doors.http2 import Connection
from seatrial_serving.doors.http2_frames import END_HEADERS, FRAME, HEADERS, Fault, frame
from seatrial_serving.doors.http2_heads import Headers, MalformedHead
from seatrial_serving.doors.http2_stream import WINDOW, Stream
from tests.conditions import soon

LIMITS = Limits(body_bytes=400_000, header_bytes=4096, receive_s=5, idle_s=60)
REQUEST = [(":method", "POST"), (":scheme", "http"), (":authority", "here"), (":path", "/")]
PLAIN = b"\x83\x86\x84\x41\x01h"  # :method POST, :scheme http, :path /, :authority h
OPEN = frame(HEADERS, END_HEADERS, 1, PLAIN)


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


async def frames_of(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int, bytes]]:
    """Frames until the server closes: kind, stream and payload."""
    async with asyncio.timeout(20):
        while head := await reader.read(FRAME.size):
            head += await reader.readexactly(FRAME.size - len(head))
            high, low, kind, _, number = FRAME.unpack(head)
            yield kind, number, await reader.readexactly(high << 16 | low)
