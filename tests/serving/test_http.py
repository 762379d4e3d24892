"""One connection and its limits, in this process: whatever way the bytes come, each request gets its own answer."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry

from seatrial.protocol import InferRequest, Tensor, encode_request
from seatrial.settings import Batching, Limits, Serving
from seatrial.tensors import DataType
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Outcome, Protocol
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.http import LONGEST_HEAD, MOST_HEADS, Application, Heads, HttpServer, listen
from seatrial_serving.doors.infer import Ask, Scope
from tests.conditions import soon
from tests.serving.models import linear
from tests.serving.scripted import POISON, ScriptedEngine, generation

pytestmark = pytest.mark.anyio
SETTINGS = Serving(limits=Limits(receive_s=0.3, idle_s=1), batching=Batching(max_queue=40))


@dataclass
class Running:
    """A server in this process. `parsed` counts the requests that took the long way."""

    plane: DataPlane
    engine: ScriptedEngine
    http: HttpServer
    address: tuple[str, int]
    parsed: int = 0

    def ended(self, outcome: Outcome) -> int:
        [generation] = self.plane.generations()
        return generation.metrics.requests[Protocol.REST][outcome]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


@asynccontextmanager
async def running(*, held_back: bool = False) -> AsyncIterator[Running]:
    engine = ScriptedEngine(held_back=held_back)
    async with generation(lambda: engine, serving=SETTINGS) as on:
        plane = DataPlane(SETTINGS, ServingMetrics(CollectorRegistry(), 0.1))
        plane.install(on, default=True)
        application = Application(plane)

        async def counting(scope: Scope, receive: Any, send: Any) -> None:
            server.parsed += 1
            await application(scope, receive, send)

        http = HttpServer(counting, SETTINGS.limits, door=application.infer)
        listener = listen("127.0.0.1", 0)
        server = Running(plane, engine, http, listener.getsockname())
        await http.start(listener)
        try:
            yield server
        finally:
            await http.stop()


def post(body: bytes, *headers: str, model: str = "linear") -> bytes:
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


def binary(*x: float, datatype: DataType = DataType.FP32) -> bytes:
    """A binary request for one row; its answer is binary too."""
    tensor = Tensor("x", datatype, np.array([x], datatype.numpy))
    body, head = encode_request(InferRequest((tensor,), parameters={"binary_data_output": True}))
    return post(body, f"Inference-Header-Content-Length: {head}")


def text(*x: float, **change: Any) -> bytes:
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": x} | change]
    return post(json.dumps({"inputs": inputs}).encode())


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> bytes:
        """What is JSON of it."""
        return self.body[: int(self.headers.get("inference-header-content-length", len(self.body)))]

    @property
    def y(self) -> list[float]:
        if (length := self.headers.get("inference-header-content-length")) is not None:
            values: list[float] = np.frombuffer(self.body[int(length) :], np.float32).tolist()
            return values
        return list(json.loads(self.body)["outputs"][0]["data"])


async def read(reader: asyncio.StreamReader) -> Answer:
    async with asyncio.timeout(20):
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header twice: {lines}"
        return Answer(int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


async def ask(to: Running, *requests: bytes) -> list[Answer]:
    """One after the other, on one connection."""
    reader, writer = await to.connect()
    answers = []
    for request in requests:
        writer.write(request)
        answers.append(await read(reader))
    writer.close()
    return answers


ROW = (1.0, 2.0, 3.0, 4.0)
TRUTH = linear([ROW])[0].tolist()


async def test_a_head_is_parsed_once_and_after_that_the_same_bytes_mean_the_same() -> None:
    async with running() as server:
        rows = [(float(n), 0.0, 1.0, -n) for n in range(5)]
        answers = await ask(server, *(binary(*row) for row in rows))
        again = await ask(server, *(binary(*row) for row in rows))
        assert server.parsed == 1, "the head is known to every connection"
        assert [each.y for each in answers + again] == [linear([row])[0].tolist() for row in rows] * 2
        assert {each.headers.keys() == answers[0].headers.keys() for each in answers} == {True}
        assert server.ended(Outcome.OK) == 10


async def test_what_an_answer_begins_with_is_that_of_who_answers() -> None:
    async with running() as server:
        heads = [json.loads(each.text) for each in await ask(server, binary(*ROW), binary(*ROW))]
        assert [head["model_version"] for head in heads] == ["1", "1"]
        [on] = server.plane.generations()
        on.identity = replace(on.identity, version="2")
        heads = [json.loads(each.text) for each in await ask(server, binary(*ROW), binary(*ROW))]
        assert [head["model_version"] for head in heads] == ["2", "2"]


KINDS: dict[str, tuple[bytes, int]] = {
    "binary": (binary(*ROW), 200),
    "json": (text(*ROW), 200),
    "json of another length": (text(*(each / 7 for each in ROW)), 200),
    "binary of another shape": (binary(*ROW, 5.0), 400),
    "binary of another datatype": (binary(*ROW, datatype=DataType.FP64), 400),
    "wrong name": (text(*ROW, name="z"), 400),
    "no request": (post(b"{}"), 400),
    "another model": (post(b"{}", model="nobody"), 404),
    "refused by the engine": (text(-POISON, 0, 0, 0), 500),
    "chunked": (
        b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        400,
    ),
    "health": (b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n", 200),
}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=12), st.data())
def test_however_a_stream_of_requests_is_cut_up_the_answers_are_those_of_each_alone(
    kinds: Sequence[str], data: st.DataObject
) -> None:
    stream = b"".join(KINDS[kind][0] for kind in kinds)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))

    async def at_once() -> None:
        async with running() as server:
            alone = {kind: (await ask(server, KINDS[kind][0], KINDS[kind][0]))[1] for kind in sorted(set(kinds))}
            assert {kind: answer.status for kind, answer in alone.items()} == {kind: KINDS[kind][1] for kind in alone}
            reader, writer = await server.connect()
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                writer.write(stream[start:end])
                await asyncio.sleep(0)
            for kind in kinds:
                answer = await read(reader)
                assert (answer.status, answer.body) == (alone[kind].status, alone[kind].body)
            writer.close()

    asyncio.run(at_once())


async def learned(server: Running) -> None:
    """Let the server see the head of `binary` once; its engine answers when told."""
    learning = asyncio.create_task(ask(server, binary(*ROW)))
    await soon(lambda: server.engine.held)
    server.engine.answer()
    await learning


async def in_hand(server: Running, *, known: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client whose request the engine has."""
    if known:
        await learned(server)
    reader, writer = await server.connect()
    writer.write(binary(*ROW))
    await soon(lambda: server.engine.held)
    return reader, writer


async def test_what_came_with_a_request_is_read_before_what_comes_after_its_answer() -> None:
    async with running(held_back=True) as server:
        await learned(server)
        reader, writer = await server.connect()
        one, other = binary(*ROW), binary(4, 3, 2, 1)
        writer.write(one + other[:-20])
        await soon(lambda: server.engine.held)
        server.engine.answer()
        client = writer.get_extra_info("socket").fileno()
        asyncio.get_running_loop().call_soon(os.write, client, other[-20:])  # in the turn that writes the answer
        assert (await read(reader)).y == TRUTH
        await soon(lambda: server.engine.held)
        server.engine.answer()
        assert (await read(reader)).y == linear([(4, 3, 2, 1)])[0].tolist()
        writer.close()


@pytest.mark.parametrize("known", [False, True])
async def test_a_client_that_leaves_is_counted_and_hurts_nobody(known: bool) -> None:
    async with running(held_back=True) as server:
        _, writer = await in_hand(server, known=known)
        writer.close()
        await soon(lambda: server.ended(Outcome.ABANDONED) == 1)
        _, half = await server.connect()
        half.write(binary(*ROW)[:-3])
        await half.drain()
        half.close()
        await soon(lambda: server.ended(Outcome.ABANDONED) == 2)
        server.engine.answer()
        staying = asyncio.create_task(ask(server, binary(*ROW)))
        await soon(lambda: server.engine.held)
        server.engine.answer()
        assert (await staying)[0].y == TRUTH


@pytest.mark.parametrize("known", [False, True])
async def test_a_client_that_half_closes_is_taken_for_gone(known: bool) -> None:
    async with running(held_back=True) as server:
        if known:
            await learned(server)
        for number, sent in enumerate((binary(*ROW), binary(*ROW)[:-3]), 1):
            reader, writer = await server.connect()
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == b""
            await soon(lambda n=number: server.ended(Outcome.ABANDONED) == n)  # type: ignore[misc] # n
            writer.close()


async def test_who_is_slow_with_the_body_behind_a_known_head_is_given_up() -> None:
    async with running() as server:
        await ask(server, binary(*ROW))
        reader, writer = await server.connect()
        writer.write(binary(*ROW)[:-1])
        assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        assert server.parsed == 1
        await soon(lambda: server.ended(Outcome.ABANDONED) == 1)
        writer.close()


async def test_a_long_wait_for_the_engine_is_no_idleness() -> None:
    async with running(held_back=True) as server:
        for _ in range(2):  # the long way, and the short one
            reader, writer = await in_hand(server, known=False)
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 2 * SETTINGS.limits.idle_s)
            server.engine.answer()
            assert (await read(reader)).y == TRUTH
            writer.close()
        assert server.parsed == 1


@pytest.mark.parametrize("known", [False, True])
async def test_a_stopping_server_answers_what_is_in_hand_and_closes(known: bool) -> None:
    async with running(held_back=True) as server:
        reader, writer = await in_hand(server, known=known)
        stopping = asyncio.create_task(server.http.stop())
        with suppress(OSError):
            while True:  # until no new connection is taken
                _, late = await server.connect()
                late.close()
        server.engine.answer()
        answer = await read(reader)
        assert answer.y == TRUTH
        assert answer.headers["connection"] == "close"
        assert await reader.read() == b""
        await stopping
        writer.close()


@pytest.mark.parametrize(
    "header",
    ["Transfer-Encoding: chunked", "Content-Encoding: gzip", "Expect: 100-continue", "Connection: close",
     "Inference-Header-Content-Length: 7\r\nInference-Header-Content-Length: 8", "x: 1\n y"],
)  # fmt: skip
async def test_a_head_that_asks_for_more_is_never_learned(header: str) -> None:
    async with running() as server:
        sent = text(*ROW).replace(b"host: x", b"host: x\r\n" + header.encode())
        for turn in range(1, 3):
            reader, writer = await server.connect()
            writer.write(sent)
            await reader.read(1)
            assert server.parsed in (0, turn)
            writer.close()


async def test_empty_lines_before_a_request_are_not_taken_for_its_head() -> None:
    async with running() as server:
        reader, writer = await server.connect()
        writer.write(b"\r\n\r\n" + binary(*ROW))
        assert (await read(reader)).y == TRUTH
        writer.close()
        reader, writer = await server.connect()
        writer.write(b"\r\n\r\n" + KINDS["health"][0])
        assert (await read(reader)).status == 200
        writer.close()


def test_what_is_remembered_is_bounded() -> None:
    heads, asked = Heads(), Ask("m", "", 1)
    for n in range(MOST_HEADS + 10):
        heads.learn(b"POST %d\r\n" % n, asked)
    known = [n for n in range(MOST_HEADS + 10) if heads.find(b"POST %d\r\n" % n)]
    assert known == list(range(10, MOST_HEADS + 10))
    for head in (b"POST " + b"x" * LONGEST_HEAD, b"POST a\n\nb\r\n\r\n", b"\r\n\r\n"):
        heads.learn(head, asked)
        assert heads.find(head) is None
