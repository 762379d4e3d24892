"""A stream goes no faster than its client takes it, and no further than its client stays."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from seatrial.settings import Limits, Serving
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Outcome, Protocol
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.http import EVERY_ACT
from seatrial_serving.doors.rest import build
from seatrial_serving.generation import Identity
from seatrial_serving.sequences import StatefulGeneration
from seatrial_serving.workers import Worker
from tests.conditions import soon
from tests.serving.scripted import ScriptedEngine

IDENTITY = Identity(
    name="linear", version="1", variant="fp32", digest="", alias="", platform="test", labels=(), verified=True
)
STEPS = 5
BODY = {"x": [[1, 2, 3, 4]] * STEPS, "sequence_id": "s", "sequence_start": True}


class Client:
    """The other end of one request: takes parts of the answer only when it is told to."""

    def __init__(self) -> None:
        self._asked = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]
        self._room = asyncio.Semaphore(0)
        self._gone = asyncio.Event()
        self.came: list[dict[str, Any]] = []

    def take(self, parts: int) -> None:
        for _ in range(parts):
            self._room.release()

    def leave(self) -> None:
        self._gone.set()
        self.take(100)  # as uvicorn: what is sent to nobody does not wait

    async def receive(self) -> dict[str, Any]:
        if self._asked:
            return self._asked.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self._room.acquire()
        self.came.append(message)

    @property
    def events(self) -> int:
        return sum(message.get("body", b"").startswith(b"data: ") for message in self.came)


@asynccontextmanager
async def streaming(
    engine: ScriptedEngine, *, idle_s: float = 60.0
) -> AsyncIterator[tuple[Client, StatefulGeneration, "asyncio.Task[None]"]]:
    async def spawn(*, wide: bool, gently: bool) -> Worker:  # noqa: ARG001 - there is one kind
        return engine

    serving = Serving(limits=Limits(idle_s=idle_s))
    metrics = ServingMetrics(CollectorRegistry(), 0.1)
    generation = await StatefulGeneration.start(
        IDENTITY, spawn, count=1, metrics=metrics.model("linear", "1", "fp32"), settings=serving
    )
    assert isinstance(generation, StatefulGeneration)
    plane = DataPlane(serving, metrics)
    plane.install(generation, default=True)
    client = Client()
    scope = {
        "type": "http", "method": "POST", "path": "/v2/models/linear/generate_stream", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "app": None,
    }  # fmt: skip
    answering = asyncio.ensure_future(build(plane, EVERY_ACT)(scope, client.receive, client.send))
    try:
        yield client, generation, answering
    finally:
        await generation.close()


def _computed(engine: ScriptedEngine, steps: int) -> bool:
    return len(engine.sizes) == steps


def outcomes(generation: StatefulGeneration) -> dict[Outcome, int]:
    return {outcome: count for outcome, count in generation.metrics.requests[Protocol.REST].items() if count}


@pytest.mark.anyio
async def test_the_next_step_waits_for_room() -> None:
    engine = ScriptedEngine()
    async with streaming(engine) as (client, generation, answering):
        for taken in range(1, STEPS):
            client.take(1)
            await soon(partial(_computed, engine, taken))
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(engine.sizes) == taken, "nothing is computed that nobody has room for"
        client.take(10)
        await answering
        assert client.events == STEPS
        assert client.came[-1] == {"type": "http.response.body", "body": b""}
        assert outcomes(generation) == {Outcome.OK: 1}


@pytest.mark.anyio
async def test_no_step_is_computed_for_one_who_has_left() -> None:
    engine = ScriptedEngine()
    async with streaming(engine) as (client, generation, answering):
        client.take(2)
        await soon(lambda: client.events == 1)
        client.leave()
        await answering
        assert len(engine.sizes) <= 3
        assert outcomes(generation) == {Outcome.ABANDONED: 1}
        assert not generation.open, "its sequence has ended"


@pytest.mark.anyio
async def test_one_who_takes_nothing_is_left() -> None:
    async with streaming(ScriptedEngine(), idle_s=0.05) as (client, generation, answering):
        client.take(2)
        await answering
        assert client.events == 1
        assert outcomes(generation) == {Outcome.ABANDONED: 1}
        assert not generation.open
