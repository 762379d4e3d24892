"""A stream of HTTP/2: one request and its answer, within what flow control allows; and what a service makes of it.

What the headers of a request mean is decided by `Service.read_head`, what becomes of its body by the `Request` that
`Service.accept` makes for its stream. Source: RFC 9113, sections 5 and 6.9.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol

from seatrial_serving.doors.http2_frames import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Fault, frame
from seatrial_serving.doors.http2_heads import H, Headers

if TYPE_CHECKING:  # each knows the other
    from seatrial_serving.doors.http2 import Connection

WINDOW = 65_535
"""Bytes of a body that a client may send before it is told to go on; with `MOST_STREAMS` this bounds what is buffered."""


class Request(Protocol):
    """What becomes of a stream. All is called on the event loop; `left` comes last, if it comes."""

    def received(self, data: bytes, *, last: bool) -> None: ...

    def stop(self) -> None:
        """The server stops: what was asked is answered, and nothing more is taken."""

    def left(self) -> None:
        """The client reset the stream or went away before its answer was complete."""

    def too_slow(self) -> None:
        """The client has taken longer than `limits.receive_s` over its request."""


class Service(Protocol[H]):
    def read_head(self, headers: Headers) -> H:
        """Raises `MalformedHead`."""

    def accept(self, stream: "Stream[H]", head: H) -> Request: ...


class Stream(Generic[H]):
    """One request and its answer, on a connection."""

    __slots__ = (
        *("connection", "id", "request", "began", "receiving", "sending"),
        *("credit", "promised", "window", "_unsent", "_trailers", "_writable"),
    )

    def __init__(self, connection: "Connection[H]", number: int, *, window: int, began: float) -> None:
        self.connection, self.id = connection, number
        self.request: Request
        self.began = began
        self.receiving = self.sending = True
        self.credit = WINDOW
        """Bytes that the client may still send."""
        self.promised = 0
        """Bytes beyond `WINDOW` that it was allowed to send."""
        self.window = window
        """Bytes that we may send; negative where the client has made its window smaller meanwhile."""
        self._unsent: deque[memoryview] = deque()
        self._trailers: bytes | None = None
        self._writable: asyncio.Future[None] | None = None

    def send(self, *, headers: bytes = b"", data: bytes = b"", trailers: bytes | None = None) -> None:
        """Send header block, data and closing header block, each if given; what flow control holds back goes later, in order.

        Nothing is sent on a stream that has ended.
        """
        if not self.sending:
            return
        connection = self.connection
        parts = [frame(HEADERS, END_HEADERS, self.id, headers)] if headers else []
        size = len(data)
        if self._unsent or size > min(self.window, connection.window, connection.largest_frame):
            connection.write(b"".join(parts))
            if data:
                self._unsent.append(memoryview(data))
            self._trailers = trailers
            self.pump()
            return
        if data:
            parts.append(frame(DATA, 0, self.id, data))
            self.window -= size
            connection.window -= size
        if trailers is not None:
            parts.append(frame(HEADERS, END_HEADERS | END_STREAM, self.id, trailers))
        connection.write(b"".join(parts))
        if trailers is not None:
            self._sent()

    def pump(self) -> None:
        """Send what waits, as far as flow control allows now."""
        connection = self.connection
        while self._unsent and (room := min(self.window, connection.window, connection.largest_frame)) > 0:
            head, tail = self._unsent[0][:room], self._unsent[0][room:]
            connection.write(frame(DATA, 0, self.id, bytes(head)))
            self.window -= len(head)
            connection.window -= len(head)
            if tail:
                self._unsent[0] = tail
            else:
                self._unsent.popleft()
        if self._unsent:
            connection.blocked[self.id] = self
            return
        connection.blocked.pop(self.id, None)
        self._wake()
        if self._trailers is not None:
            connection.write(frame(HEADERS, END_HEADERS | END_STREAM, self.id, self._trailers))
            self._sent()

    async def writable(self) -> None:
        """Return once nothing is held back, or the stream has ended."""
        if self._unsent and self.sending:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def allow(self, size: int) -> None:
        """Let the client send `size` bytes more: so many have been used up."""
        self.credit += size
        self.connection.allow(self.id, size)

    def expect(self, size: int) -> None:
        """Let the client send `size` bytes beyond `WINDOW`; large bodies wait for each other."""
        self.connection.promise(self, size)

    def reset(self, code: Fault) -> None:
        """End the stream both ways, at once."""
        if self.sending:
            self.connection.write(frame(RST_STREAM, 0, self.id, code.to_bytes(4, "big")))
            self.end()

    def end(self) -> None:
        self.receiving = self.sending = False
        self._unsent.clear()
        self._wake()
        self.connection.forget(self)

    def _sent(self) -> None:
        if self.receiving:  # the rest of the request is of no interest
            self.reset(Fault.NO_ERROR)
        else:
            self.end()

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
