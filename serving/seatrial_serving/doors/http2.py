"""HTTP/2, the server's side: a connection, its flow control, and bounds on what a client can make us do.

Knows nothing of gRPC: what a request means, and its answer, is the `Service`'s. Source: RFC 9113.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Generic

from seatrial.settings import Limits
from seatrial.tls import subjects
from seatrial_monitoring.series import Closing
from seatrial_serving.doors.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    Fault,
    frame,
    unpadded,
)
from seatrial_serving.doors.http2_heads import H, Heads, MalformedHead
from seatrial_serving.doors.http2_stream import WINDOW, Service, Stream

MOST_STREAMS = 1024
LARGEST_FRAME = 65_536
LINGER_S = 1.0
"""How long a client is given to close a connection that we have ended."""
MOST_IDLE_FRAMES = MOST_STREAMS
"""Frames between two sweeps that carry no request forward (pings, resets, empty data): more of them is an attack."""


class Connection(asyncio.Protocol, Generic[H]):
    """One client's connection. `made` is called when it is there, which over TLS is after the handshake if it succeeds, and
    then `lost` when it is gone; `closing` is told why, where we end it."""

    def __init__(
        self,
        service: Service[H],
        limits: Limits,
        *,
        made: "Callable[[Connection[H]], None]",
        lost: "Callable[[Connection[H]], None]",
        closing: Callable[[Closing], None],
    ) -> None:
        self._service, self._limits, self._made, self._lost, self._closing = service, limits, made, lost, closing
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self.subjects: tuple[str, ...] = ()
        """The names in the client's certificate."""
        self._left_over = b""
        self._greeted = self._going = self._closed = False
        self._since = self._loop.time()
        """When the connection last had nothing to do, or the frame began that is still incomplete."""
        self._heads = Heads(service.read_head, limits.header_bytes)
        self._block: tuple[int, int, bytearray] | None = None
        """A header block that goes on in the next frame: its stream, flags and bytes so far."""
        self._streams: dict[int, Stream[H]] = {}
        self._last = 0
        self._credit = self._credits = limits.body_bytes + WINDOW
        self._promised = 0
        self._to_promise: deque[tuple[Stream[H], int]] = deque()
        self._idle_frames = 0
        self._stream_window = WINDOW
        self.window = WINDOW
        """Bytes that we may send on all streams together."""
        self.largest_frame = 16_384
        """The largest frame that the client takes."""
        self.blocked: dict[int, Stream[H]] = {}
        self._take = {
            DATA: self._data,
            HEADERS: self._headers,
            PRIORITY: self._ignored,
            RST_STREAM: self._rst_stream,
            SETTINGS: self._settings,
            PUSH_PROMISE: self._push_promise,
            PING: self._ping,
            GOAWAY: self._ignored,
            WINDOW_UPDATE: self._window_update,
            CONTINUATION: self._continuation,
        }

    # What the event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # that of a TCP server
        self._transport = transport
        self._made(self)
        self.subjects = subjects(transport)
        settings = {
            MAX_CONCURRENT_STREAMS: MOST_STREAMS,
            INITIAL_WINDOW_SIZE: WINDOW,
            MAX_FRAME_SIZE: LARGEST_FRAME,
            MAX_HEADER_LIST_SIZE: self._limits.header_bytes,
        }
        self.write(frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*setting) for setting in settings.items())))
        self.allow(0, self._credits - WINDOW)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self._left_over:
            data = self._left_over + data
        try:
            self._left_over = self._frames(data) if self._greeted else self._greeting(data)
        except ConnectionFault as fault:
            self._closing(Closing.MALFORMED)
            self._close(fault.code, str(fault))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        self._closed = True
        self._leave_streams()
        self._lost(self)

    def _leave_streams(self) -> None:
        for stream in list(self._streams.values()):
            stream.end()
            stream.request.left()

    def pause_writing(self) -> None:
        """The client does not read: it is given nothing more to do until it does."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def eof_received(self) -> bool:
        """The client will say no more: it may still read what it asked for. gRPC's clients never do that."""
        return False

    # What the server calls

    def sweep(self, now: float) -> None:
        """End what takes its client too long: a request, a frame, or doing nothing at all."""
        self._idle_frames = 0
        if self._closed:
            if now - self._since > LINGER_S:
                self.abort()
            return
        for stream in list(self._streams.values()):
            if stream.receiving and now - stream.began > self._limits.receive_s:
                stream.request.too_slow()
        unfinished = self._left_over or not self._greeted or self._block
        if unfinished and now - self._since > self._limits.receive_s:
            self._closing(Closing.SLOW)
            self._close(Fault.NO_ERROR, "a frame took too long")
        elif not self._streams and now - self._since > self._limits.idle_s:
            self._close(Fault.NO_ERROR, "idle")

    def go_away(self) -> None:
        """Take no new stream; close when those that are open have ended."""
        if not self._going and not self._closed:
            self._going = True
            self.write(frame(GOAWAY, 0, 0, struct.pack(">LL", self._last, Fault.NO_ERROR)))
            for stream in list(self._streams.values()):
                stream.request.stop()
            self._close_if_done()

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport

    def abort(self) -> None:
        self._transport.abort()

    # What streams call

    def write(self, data: bytes) -> None:
        if data and not self._closed:
            self._transport.write(data)

    def promise(self, stream: Stream[H], size: int) -> None:
        self._to_promise.append((stream, size))
        self._keep_promises()

    def forget(self, stream: Stream[H]) -> None:
        if self._streams.pop(stream.id, None) is None:
            return
        self.blocked.pop(stream.id, None)
        if not self._streams:
            self._since = self._loop.time()
        self.release(stream)
        self._close_if_done()

    def release(self, stream: Stream[H]) -> None:
        """What was promised to `stream` has come, and been used up."""
        self._promised -= stream.promised
        stream.promised = 0
        self._keep_promises()

    def _keep_promises(self) -> None:
        """Allow large bodies, the first to ask first, as long as all of them together are no larger than one may be."""
        while self._to_promise:
            stream, size = self._to_promise[0]
            if stream.receiving:
                if self._promised and self._promised + size > self._limits.body_bytes:
                    return
                self._promised += size
                stream.promised += size
                stream.allow(size)
            self._to_promise.popleft()

    def allow(self, stream: int, size: int) -> None:
        self.write(frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big")))

    # Frames

    def _greeting(self, data: bytes) -> bytes:
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "this port speaks gRPC, over HTTP/2 without TLS")
        if len(data) < len(PREFACE):
            return data
        self._greeted = True
        return self._frames(data[len(PREFACE) :])

    def _frames(self, data: bytes) -> bytes:
        """Take every whole frame; what is left is the beginning of the next."""
        at, size = 0, len(data)
        while at + FRAME.size <= size:
            high, low, kind, flags, stream = FRAME.unpack_from(data, at)
            length = high << 16 | low
            if length > LARGEST_FRAME:
                raise ConnectionFault(Fault.FRAME_SIZE_ERROR, f"a frame of {length} bytes; {LARGEST_FRAME} is the most")
            start = at + FRAME.size
            if start + length > size:
                break
            at = start + length
            self._frame(kind, flags, stream & LARGEST_WINDOW, data[start:at])
        if at < size and (at or not self._left_over):
            self._since = self._loop.time()
        return data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a header block was interrupted")
        self._take.get(kind, self._ignored)(flags, stream, payload)

    def _idle(self) -> None:
        self._idle_frames += 1
        if self._idle_frames > MOST_IDLE_FRAMES:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, "too many frames that carry no request forward")

    def _ignored(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - one signature for all frames
        self._idle()

    def _push_promise(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002
        raise ConnectionFault(Fault.PROTOCOL_ERROR, "a client cannot push")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._credit -= size
        if self._credit < 0:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        if self._credit < self._credits // 2:
            self.allow(0, self._credits - self._credit)
            self._credit = self._credits
        stream = self._streams.get(number)
        if stream is None or not stream.receiving:
            self._on_closed(number, stream)
            return
        stream.credit -= size
        if stream.credit < 0:
            self._break(stream, Fault.FLOW_CONTROL_ERROR)
            return
        if flags & PADDED:
            payload = unpadded(payload)
        last = bool(flags & END_STREAM)
        if not payload and not last:
            self._idle()
        if last:
            stream.receiving = False
        elif size > len(payload):
            stream.allow(size - len(payload))  # padding counts, RFC 9113 section 6.9.1, and is used up at once
        stream.request.received(payload, last=last)

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & PRIORITISED:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._whole_block(number, flags, payload)
        else:
            self._block = number, flags, bytearray(payload)
            self._since = self._loop.time()

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "the continuation of no header block")
        self._idle()
        _, first_flags, block = self._block
        block += payload
        if len(block) > self._heads.longest:
            raise ConnectionFault(Fault.ENHANCE_YOUR_CALM, f"a header block of more than {len(block)} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._whole_block(number, first_flags, bytes(block))

    def _whole_block(self, number: int, flags: int, block: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, f"a client cannot open stream {number}")
        if number > self._last:
            self._open_stream(number, block, last=bool(flags & END_STREAM))
            return
        self._heads.pass_over(block)  # trailers mean nothing to us
        stream = self._streams.get(number)
        if stream is None or not stream.receiving:
            self._on_closed(number, stream)
        elif not flags & END_STREAM:
            self._break(stream, Fault.PROTOCOL_ERROR)
        else:
            stream.receiving = False
            stream.request.received(b"", last=True)

    def _open_stream(self, number: int, block: bytes, *, last: bool) -> None:
        self._last = number
        stream = Stream(self, number, window=self._stream_window, began=self._loop.time())
        try:
            head = self._heads[block]
        except MalformedHead:
            self._idle()
            stream.reset(Fault.PROTOCOL_ERROR)
            return
        if self._going or len(self._streams) >= MOST_STREAMS:
            self._idle()
            stream.reset(Fault.REFUSED_STREAM)
            return
        self._streams[number] = stream
        stream.receiving = not last
        stream.request = self._service.accept(stream, head)
        if last:
            stream.request.received(b"", last=True)

    def _rst_stream(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        self._idle()
        stream = self._streams.get(number)
        if stream is not None:
            stream.end()
            stream.request.left()
        elif number > self._last or not number:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a stream was reset that was never opened")

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "settings belong to the connection, not to a stream")
        if len(payload) % SETTING.size or (flags & ACK and payload):
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
        self._idle()
        if flags & ACK:
            return
        for name, value in SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                self._resize_windows(value)
            elif name == MAX_FRAME_SIZE:
                if not 16_384 <= value < 2**24:
                    raise ConnectionFault(Fault.PROTOCOL_ERROR, f"a largest frame of {value} bytes")
                self.largest_frame = value
        self.write(frame(SETTINGS, ACK, 0))

    def _resize_windows(self, size: int) -> None:
        if size > LARGEST_WINDOW:
            raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, f"a window of {size} bytes")
        change, self._stream_window = size - self._stream_window, size
        for stream in list(self._streams.values()):
            stream.window += change
            if stream.window > LARGEST_WINDOW:
                raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "a window over its limit")
        self._pump()

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "PING has 8 bytes")
        if number:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a ping belongs to the connection, not to a stream")
        self._idle()
        if not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise ConnectionFault(Fault.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        size = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if not number:
            self.window += size
            if not size or self.window > LARGEST_WINDOW:
                raise ConnectionFault(Fault.FLOW_CONTROL_ERROR, "the connection's window grew by nothing or too much")
            self._pump()
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size
            if not size or stream.window > LARGEST_WINDOW:
                self._break(stream, Fault.FLOW_CONTROL_ERROR)
            elif number in self.blocked:
                stream.pump()
        elif number > self._last:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, "a window for a stream that was never opened")

    def _pump(self) -> None:
        for stream in list(self.blocked.values()):
            stream.pump()

    def _on_closed(self, number: int, stream: Stream[H] | None) -> None:
        """A frame came for a stream that is not open: late, if we were the ones to end it."""
        self._idle()
        if not number or number > self._last:
            raise ConnectionFault(Fault.PROTOCOL_ERROR, f"stream {number} was never opened")
        if stream is not None:
            self._break(stream, Fault.STREAM_CLOSED)

    def _break(self, stream: Stream[H], code: Fault) -> None:
        stream.reset(code)
        stream.request.left()

    def _close(self, code: Fault, words: str) -> None:
        if not self._closed:
            self.write(frame(GOAWAY, 0, 0, struct.pack(">LL", self._last, code) + words.encode()))
            self._hang_up()

    def _close_if_done(self) -> None:
        if self._going and not self._streams and not self._closed:
            self._hang_up()

    def _hang_up(self) -> None:
        """Say no more, and let the client close: to close on it what it sent meanwhile would make it lose what we said."""
        self._closed, self._since = True, self._loop.time()
        self._leave_streams()
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS says its own goodbye
