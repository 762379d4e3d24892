"""A batch that is alone takes all cores where that is faster, and only there."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from onnx import TensorProto, helper

from seatrial.errors import SeatrialError
from seatrial.protocol import InferRequest, Tensor
from seatrial.tensors import DataType
from seatrial_serving.batching import Waiting
from seatrial_serving.breadth import TRIES, TRY_AGAIN_AFTER, Breadth
from seatrial_serving.generation import Generation
from seatrial_serving.remote import EngineProcess
from seatrial_serving.workers import Batch, Load, Outputs, Request, Worker
from tests.conditions import soon
from tests.serving.models import linear_onnx, save
from tests.serving.scripted import ScriptedEngine, generation

SIZE = 4096
WEIGHTS = np.random.default_rng(0).integers(-1, 2, (SIZE, SIZE)).astype(np.float32)


def learn(breadth: Breadth, took_s: dict[bool, float], *, batches: int, size: int = 100) -> list[bool]:
    ways = []
    for _ in range(batches):
        ways.append(breadth.choose(size))
        breadth.learn(size, wide=ways[-1], took_s=took_s[ways[-1]])
    return ways


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_both_ways_are_tried_in_turn_and_then_the_faster_one_is_taken(narrow_s: float, wide_s: float) -> None:
    ways = learn(Breadth(), {False: narrow_s, True: wide_s}, batches=20)
    assert ways[: 2 * TRIES] == [True, False] * TRIES
    assert ways[2 * TRIES :] == [wide_s < narrow_s] * (20 - 2 * TRIES)


def test_the_slower_way_is_tried_again_now_and_then_and_taken_when_it_has_become_the_faster() -> None:
    breadth = Breadth()
    ways = learn(breadth, {False: 1.0, True: 0.5}, batches=2 * TRY_AGAIN_AFTER + 10)
    assert ways.count(False) == TRIES + 1
    beside_a_neighbour = learn(breadth, {False: 1.5, True: 8.0}, batches=100)
    assert beside_a_neighbour.count(True) <= 3
    alone_again = learn(breadth, {False: 1.0, True: 0.5}, batches=20 * TRY_AGAIN_AFTER)
    assert alone_again[-TRY_AGAIN_AFTER:].count(True) >= TRY_AGAIN_AFTER - 1


def test_one_that_looked_worse_by_accident_is_taken_within_a_few_seconds_of_work() -> None:
    breadth = Breadth()
    learn(breadth, {False: 0.05, True: 0.06}, batches=2 * TRIES)
    ways = learn(breadth, {False: 0.05, True: 0.025}, batches=200)
    assert ways[-50:].count(True) >= 49


def test_each_size_is_learned_by_itself() -> None:
    breadth = Breadth()
    learn(breadth, {False: 1.0, True: 2.0}, batches=10, size=100)
    learn(breadth, {False: 9.0, True: 5.0}, batches=10, size=10_000)
    assert not breadth.choose(100)
    assert breadth.choose(10_000)


async def ask(on: Generation, count: int) -> None:
    now = time.monotonic()
    requests = [
        on.admit(
            InferRequest((Tensor("x", DataType.FP32, np.ones((1, 4), np.float32)),)), arrived=now, deadline=now + 30
        )
        for _ in range(count)
    ]
    await asyncio.gather(*(request.answer for request in requests))


@pytest.mark.anyio
@pytest.mark.parametrize("faster", [True, False])
async def test_a_lone_batch_goes_the_faster_way_and_company_never_goes_wide(faster: bool) -> None:
    engine = ScriptedEngine(wide=True, compute_s={True: 0.01, False: 0.02 if faster else 0.005})
    async with generation(lambda: engine) as on:
        for _ in range(10):
            await ask(on, 1)
        assert engine.widths[2 * TRIES :] == [faster] * (10 - 2 * TRIES)
        engine.widths.clear()
        engine.held_back = True
        first = asyncio.create_task(ask(on, 1))
        await soon(lambda: engine.held)
        others = asyncio.create_task(ask(on, 3))

        def answered() -> bool:
            engine.answer()
            return first.done() and others.done()

        await soon(answered)
        assert engine.widths[0] == faster


@pytest.mark.anyio
async def test_what_comes_while_another_batch_runs_stays_narrow() -> None:
    wide, narrow = ScriptedEngine(wide=True, held_back=True), ScriptedEngine(held_back=True)
    engines = iter([wide, narrow])
    async with generation(lambda: next(engines), count=2) as on:
        asking = []
        for _ in range(2):
            asking.append(asyncio.create_task(ask(on, 1)))
            await soon(lambda: len(wide.widths + narrow.widths) == len(asking))
        assert (wide.widths, narrow.widths) == ([True], [False])
        wide.answer()
        narrow.answer()
        await asyncio.gather(*asking)
        assert not on._breadth._took_s, "it learned nothing of what had company"


def heavy_onnx(path: Path) -> Path:
    """Some milliseconds of work for one row; exact in float32, because every sum is of small whole numbers."""
    return save(
        path,
        [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("MatMul", ["h", "W"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIZE])],
        constants={"W": WEIGHTS},
    )


class Answers:
    """Hears what a worker reports."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[Outputs] = asyncio.Queue()

    def answered(self, worker: Worker, batch: Batch, outputs: Sequence[Outputs], compute_s: float) -> None:  # noqa: ARG002
        self.got.put_nowait(outputs[0])

    def failed(self, worker: Worker, batch: Batch, error: SeatrialError) -> None:  # noqa: ARG002
        raise error

    def died(self, worker: Worker, held: Sequence[Batch], reason: str) -> None:  # noqa: ARG002
        raise AssertionError(reason)


def request(x: np.ndarray) -> Request:
    future = asyncio.get_running_loop().create_future()
    return Waiting(item=(x,), rows=len(x), size_bytes=x.nbytes, kind=(), arrived=0, deadline=0, answer=future)


@pytest.mark.anyio
async def test_an_engine_holds_both_ways_and_they_agree(tmp_path: Path) -> None:
    load = Load(
        path=heavy_onnx(tmp_path / "heavy.onnx"), digest="", threads=1, warm_up=(1,), start_s=60, wide_threads=2
    )
    worker = await EngineProcess.start(load)
    try:
        assert worker.wide
        answers = Answers()
        worker.attach(answers)
        x = np.random.default_rng(1).integers(-2, 3, (1, SIZE)).astype(np.float32)
        for wide in (False, True):
            worker.run(Batch(requests=[request(x)], rows=1, wide=wide))
            [y] = await answers.got.get()
            assert np.array_equal(y.array, x @ WEIGHTS @ WEIGHTS)
    finally:
        await worker.close()


@pytest.mark.anyio
async def test_for_a_cheap_model_there_is_no_second_session(tmp_path: Path) -> None:
    load = Load(path=linear_onnx(tmp_path / "m.onnx"), digest="", threads=1, warm_up=(1,), start_s=60, wide_threads=2)
    worker = await EngineProcess.start(load)
    await worker.close()
    assert not worker.wide
