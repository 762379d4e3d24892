"""HTTP/2 against bytes that no client should send: whoever sends them is told why its connection ends."""

import struct

import pytest

from seatrial_monitoring.series import Closing
from seatrial_serving.doors.http2 import LARGEST_FRAME, MOST_IDLE_FRAMES
from seatrial_serving.doors.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fault,
    frame,
)
from tests.serving.echoes import OPEN, PLAIN, Asked, check, connect, frames_of, opened, running


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
