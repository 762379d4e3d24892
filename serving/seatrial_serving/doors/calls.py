"""gRPC calls: messages in frames of their own on an HTTP/2 stream, and a status at the end.

Knows nothing of the services behind it: a `Unary` method gets the call and its one message and answers at once or later;
a `Streaming` one is a coroutine that reads and sends. Source: gRPC over HTTP2 (PROTOCOL-HTTP2), compression included.
"""

import asyncio
import logging
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from seatrial.errors import MalformedRequest, SeatrialError, TooLarge
from seatrial_serving.access.caller import CALLER, Caller
from seatrial_serving.access.guard import Guard, credential
from seatrial_serving.doors.compression import FORMATS, IDENTITY, compress, expand
from seatrial_serving.doors.http2_heads import Headers, MalformedHead
from seatrial_serving.doors.http2_stream import WINDOW, Stream
from seatrial_serving.doors.status import Code, grpc_code

PREFIX = struct.Struct(">BL")
HEADER_OVERHEAD = 32
"""What RFC 9113 (6.5.2) adds to each header when it measures a list of them."""
LARGEST_COMPRESSED = 64 * 1024
"""An answer over this is sent as it is: everybody else would wait for its compression."""
MOST_WORDS = 650
"""Characters of a status message: with twelve bytes for each, they and the other trailers are within the 8 KiB above which gRPC's
own clients may refuse trailers, each time by chance."""
PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What a status message need not escape."""
SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

log = logging.getLogger(__name__)


def literal(name: bytes, value: bytes) -> bytes:
    """A header as HPACK writes one that no table needs to remember (RFC 7541, 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    size -= 127
    encoded = bytearray((127,))
    while size >= 128:
        encoded.append(size & 127 | 128)
        size >>= 7
    return bytes((*encoded, size)) + text


BEGINNING = b"\x88" + literal(b"content-type", b"application/grpc")  # 0x88 is `:status: 200`
ACCEPTED = literal(b"grpc-accept-encoding", ",".join((IDENTITY, *FORMATS)).encode())
FINE = literal(b"grpc-status", b"0")
NO_GRPC = literal(b":status", b"415") + literal(b"content-length", b"0")
TOO_MANY_HEADERS = (
    BEGINNING
    + literal(b"grpc-status", b"%d" % Code.RESOURCE_EXHAUSTED)
    + literal(b"grpc-message", b"the metadata is larger than serving.limits.header_bytes")
)


class Head(NamedTuple):
    """What the headers of a call say."""

    path: str
    timeout_s: float | None
    encoding: str
    takes: frozenset[str]
    """Encodings that the client reads."""
    refusal: bytes
    """The header block to answer with, if the headers alone rule the call out."""
    shown: bytes
    """A key or token."""


class Unary(NamedTuple):
    answer: "Callable[[UnaryCall, bytes], None]"


class Streaming(NamedTuple):
    talk: "Callable[[Conversation], Coroutine[Any, Any, None]]"


Methods: TypeAlias = Mapping[str, Unary | Streaming]


@dataclass(frozen=True, slots=True)
class Calls:
    """The service of an HTTP/2 connection that answers gRPC calls; `methods` by path, `/package.Service/Method`. With a
    guard, all but the `unguarded` ones ask who calls."""

    methods: Methods
    max_message: int
    max_headers: int
    guard: Guard | None = None
    unguarded: Container[str] = ()

    def read_head(self, headers: Headers) -> Head:
        given = dict(headers)
        if b":path" not in given or given.get(b":method") != b"POST":
            raise MalformedHead("gRPC requests are POST, with a path")
        timeout = given.get(b"grpc-timeout")
        return Head(
            path=given[b":path"].decode("latin-1"),
            timeout_s=None if timeout is None else _seconds(timeout),
            encoding=given.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1"),
            takes=frozenset(given.get(b"grpc-accept-encoding", b"").decode("latin-1").replace(" ", "").split(",")),
            refusal=self._refusal(headers, given.get(b"content-type", b"")),
            shown=credential(headers) if self.guard is not None else b"",
        )

    def _refusal(self, headers: Headers, content_type: bytes) -> bytes:
        if not content_type.startswith(b"application/grpc"):
            return NO_GRPC
        size = sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in headers)
        return TOO_MANY_HEADERS if size > self.max_headers else b""

    def accept(self, stream: Stream[Head], head: Head) -> "UnaryCall | Conversation":
        if head.refusal:
            stream.send(trailers=head.refusal)
            return UnaryCall(stream, head, self.max_message, _unknown)
        method = self.methods.get(head.path, Unary(_unknown))
        if self.guard is not None and head.path not in self.unguarded:
            return self._accept_known(stream, head, method, self.guard)
        if isinstance(method, Unary):
            return UnaryCall(stream, head, self.max_message, method.answer)
        return Conversation(stream, head, self.max_message, method.talk)

    def _accept_known(
        self, stream: Stream[Head], head: Head, method: "Unary | Streaming", guard: Guard
    ) -> "UnaryCall | Conversation":
        """As `accept`, from a caller that the guard knows. Of a conversation it is asked again with each message."""
        identify = partial(guard.identify, head.shown, stream.connection.subjects)
        try:
            caller = identify()
        except SeatrialError as error:
            guard.turned_away(error)
            refused = UnaryCall(stream, head, self.max_message, _unknown)
            refused.fail(error)
            return refused
        if isinstance(method, Unary):
            return UnaryCall(stream, head, self.max_message, partial(_on_behalf, caller, method.answer))
        return Conversation(stream, head, self.max_message, method.talk, identify)


def _on_behalf(caller: Caller, answer: "Callable[[UnaryCall, bytes], None]", call: "UnaryCall", message: bytes) -> None:
    before = CALLER.set(caller)
    try:
        answer(call, message)
    finally:
        CALLER.reset(before)


def _unknown(call: "UnaryCall", _: bytes) -> None:
    call.end(Code.UNIMPLEMENTED, f"there is no method {call.head.path}")


def _seconds(timeout: bytes) -> float:
    number, unit = timeout[:-1], timeout[-1:]
    if not number.isdigit() or len(number) > 8 or unit not in SECONDS:
        raise MalformedHead(f"grpc-timeout is {timeout!r}")
    return int(number) * SECONDS[unit]


class Call:
    """One call, and the way back to its client. What is sent to a client that has gone is dropped."""

    __slots__ = ("_begun", "_max_message", "_stream", "head")

    def __init__(self, stream: Stream[Head], head: Head, max_message: int) -> None:
        self.head = head
        self._stream, self._max_message = stream, max_message
        self._begun = False

    @property
    def open(self) -> bool:
        return self._stream.sending

    def send(self, message: bytes) -> None:
        """One message of several."""
        self._stream.send(headers=self._beginning(), data=self._framed(message))

    def answer(self, message: bytes) -> None:
        """The only message, or the last; and all is well."""
        self._stream.send(headers=self._beginning(), data=self._framed(message), trailers=FINE)

    def end(self, code: Code = Code.OK, words: str = "") -> None:
        trailers = literal(b"grpc-status", b"%d" % code)
        if words:
            trailers += literal(b"grpc-message", quote(words[:MOST_WORDS], safe=PLAIN).encode())
        self._stream.send(trailers=trailers if self._begun else self._beginning() + trailers)

    def fail(self, error: BaseException) -> None:
        """End with the status of `error`; one that is not ours is a bug, and its words stay here."""
        if isinstance(error, SeatrialError):
            self.end(grpc_code(error), str(error))
        else:
            log.error("%s could not be answered; this is a bug", self.head.path, exc_info=error)
            self.end(Code.INTERNAL, "internal error")

    def _beginning(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        if self.head.encoding == IDENTITY:
            return BEGINNING
        encoding = literal(b"grpc-encoding", self.head.encoding.encode()) if self._compresses else b""
        return BEGINNING + ACCEPTED + encoding

    @property
    def _compresses(self) -> bool:
        """Answers are compressed as the request was, if its client reads that."""
        return self.head.encoding in FORMATS and self.head.encoding in self.head.takes

    def _framed(self, message: bytes) -> bytes:
        if self.head.encoding != IDENTITY and len(message) <= LARGEST_COMPRESSED and self._compresses:
            packed = compress(message, self.head.encoding)
            if packed is not None:
                return PREFIX.pack(1, len(packed)) + packed
        return PREFIX.pack(0, len(message)) + message

    def _length(self, data: bytes | bytearray) -> int:
        """How long the message is, with its prefix, that `data` begins with. Raises `TooLarge`."""
        _, length = PREFIX.unpack_from(data)
        if length > self._max_message:
            raise TooLarge(f"a message of {length} bytes; {self._max_message} is the most (serving.limits.body_bytes)")
        return PREFIX.size + int(length)

    def _unframed(self, data: bytes) -> bytes:
        """What is in the framed message `data`. Raises `MalformedRequest`, `TooLarge` or `UnsupportedEncoding`."""
        message = data[PREFIX.size :]
        if not data[0]:
            return message
        if data[0] > 1 or self.head.encoding == IDENTITY:
            raise MalformedRequest("the message is marked as compressed, but no grpc-encoding says how")
        return expand(message, self.head.encoding, max_body=self._max_message)


class UnaryCall(Call):
    __slots__ = ("_answer", "_body", "_whole", "leave")

    def __init__(
        self, stream: Stream[Head], head: Head, max_message: int, answer: "Callable[[UnaryCall, bytes], None]"
    ) -> None:
        super().__init__(stream, head, max_message)
        self._answer = answer
        self._body = bytearray()
        self._whole = 0
        self.leave: Callable[[], None] | None = None
        """Called when the client goes before it was answered."""

    def received(self, data: bytes, *, last: bool) -> None:
        try:
            if self._body or not last:
                self._body += data
                if not self._whole and len(self._body) >= PREFIX.size:
                    self._whole = self._length(self._body)
                    if self._whole > WINDOW:
                        self._stream.expect(self._whole - WINDOW)
                if not last:
                    return
                data = bytes(self._body)
            if len(data) < PREFIX.size or len(data) != self._length(data):
                raise MalformedRequest("the call does not carry exactly one whole message")
        except SeatrialError as error:
            self.fail(error)
            return
        if data[0]:  # in a thread, so that nobody else waits for it
            unpacking = asyncio.get_running_loop().run_in_executor(None, self._unframed, data)
            unpacking.add_done_callback(self._unpacked)
        else:
            self._answer(self, data[PREFIX.size :])

    def _unpacked(self, message: "asyncio.Future[bytes]") -> None:
        error = message.exception()
        if error is not None:
            self.fail(error)
        elif self.open:  # its client may have gone
            self._answer(self, message.result())

    def stop(self) -> None:
        """Its answer is waited for."""

    def left(self) -> None:
        if self.leave is not None:
            self.leave()

    def too_slow(self) -> None:
        self.end(Code.DEADLINE_EXCEEDED, "the request took too long to arrive (serving.limits.receive_s)")


class Conversation(Call):
    """A call with any number of messages each way. Iterate over what the client sends; it ends when the client does.

    Raises `MalformedRequest`, `TooLarge` or `UnsupportedEncoding` from the iteration.
    """

    __slots__ = ("_body", "_heard", "_identify", "_messages", "_more", "_task", "_trouble", "_whole", "stopping")

    def __init__(
        self,
        stream: Stream[Head],
        head: Head,
        max_message: int,
        talk: "Callable[[Conversation], Coroutine[Any, Any, None]]",
        identify: Callable[[], Caller] | None = None,
    ) -> None:
        super().__init__(stream, head, max_message)
        self._identify = identify
        self._body = bytearray()
        self._whole = 0
        self._messages: deque[bytes] = deque()
        self._more = True
        self._trouble: SeatrialError | None = None
        self._heard = asyncio.Event()
        self.stopping = False
        """Whether the server stops: answer what was asked, and return."""
        self._task = asyncio.get_running_loop().create_task(self._hold(talk))

    def received(self, data: bytes, *, last: bool) -> None:
        self._body += data
        try:
            self._cut()
            if last and self._body:
                raise MalformedRequest("the call ends in the middle of a message")
        except SeatrialError as error:
            self._trouble = error
        self._more = not last and self._trouble is None
        self._heard.set()

    def _cut(self) -> None:
        """Cut whole messages off what has come."""
        while len(self._body) >= PREFIX.size:
            if not self._whole:
                self._whole = self._length(self._body)
                if self._whole > WINDOW:
                    self._stream.expect(self._whole - WINDOW)
            if len(self._body) < self._whole:
                return
            self._messages.append(bytes(self._body[: self._whole]))
            del self._body[: self._whole]
            self._whole = 0

    async def messages(self) -> AsyncIterator[bytes]:
        while True:
            while self._messages:
                framed = self._messages.popleft()
                self._use_up(len(framed))
                if self._identify is not None:
                    CALLER.set(self._identify())  # in the context of this conversation's own task
                yield await asyncio.to_thread(self._unframed, framed) if framed[0] else framed[PREFIX.size :]
            if self._trouble is not None:
                raise self._trouble
            if not self._more or self.stopping:
                return
            self._heard.clear()
            await self._heard.wait()

    def _use_up(self, size: int) -> None:
        if size > WINDOW:
            self._stream.connection.release(self._stream)
        if self._more and self.open:
            self._stream.allow(min(size, WINDOW))

    async def drained(self) -> None:
        """Return once the client has room for what it was sent."""
        await self._stream.writable()

    async def _hold(self, talk: "Callable[[Conversation], Coroutine[Any, Any, None]]") -> None:
        try:
            await talk(self)
        except Exception as error:  # noqa: BLE001 - the caller is told, whatever it is
            self.fail(error)
        else:
            self.end(*((Code.UNAVAILABLE, "the server is stopping") if self.stopping else ()))

    def stop(self) -> None:
        self.stopping = True
        self._heard.set()

    def left(self) -> None:
        self._task.cancel()

    def too_slow(self) -> None:
        """A conversation may have its pauses."""
