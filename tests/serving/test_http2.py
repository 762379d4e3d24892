"""HTTP/2 against a client that others wrote: what a client may do, and for how long."""

import asyncio
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from seatrial_monitoring.series import Closing
from seatrial_serving.doors.calls import BEGINNING, FINE
from seatrial_serving.doors.http2 import LINGER_S
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
    PRIORITISED,
    RST_STREAM,
    SETTINGS,
    Fault,
    frame,
)
from tests.conditions import soon
from tests.serving.echoes import LIMITS, OPEN, PLAIN, REQUEST, Asked, check, connect, frames_of, opened, running

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
    st.integers(202, 5000),  # with its padding, a frame has room for one byte at least
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
async def test_padding_takes_nothing_from_what_a_body_may_have() -> None:
    async with running() as server, connect(server) as client:
        padded = Asked(body=b"p" * 1000, pad=200)
        await client.ask(padded, chunk=202)
        check(padded)


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
