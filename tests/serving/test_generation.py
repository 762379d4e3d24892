"""A generation answers each caller with its own rows, whatever happens to the engines and to the other callers."""

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

from seatrial.bundle import Bundle
from seatrial.errors import DeadlinePassed, EngineFailed, GoldenMismatch, NotReady, Overloaded, WrongInput
from seatrial.protocol import InferRequest, Tensor, decode_request, encode_request
from seatrial.settings import Batching, Engines, Serving
from seatrial.tensors import Array, DataType
from seatrial_serving.generation import Generation
from seatrial_serving.local import LocalEngine
from seatrial_serving.remote import EngineProcess
from seatrial_serving.workers import SLOTS, Request
from tests.conditions import soon
from tests.serving.conftest import load
from tests.serving.models import SIGNATURE, LinearBundle, gather_onnx, linear, save
from tests.serving.scripted import POISON, ScriptedEngine, generation

pytestmark = pytest.mark.anyio


def ask(on: Generation, x: Array | Sequence[Sequence[float]], *, timeout_s: float = 30.0, priority: int = 0) -> Request:
    now = time.monotonic()
    tensor = Tensor("x", DataType.FP32, np.asarray(x, np.float32))
    return on.admit(InferRequest((tensor,)), arrived=now, deadline=now + timeout_s, priority=priority)


async def answer(request: Request) -> list[list[float]]:
    [tensor] = await request.answer
    rows: list[list[float]] = tensor.array.tolist()
    return rows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return LinearBundle().write(tmp_path_factory.mktemp("generation"))


# Truths of batching


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=3), max_size=20),
    st.integers(3, 16),
)
def test_batched_is_alone_and_every_answer_reaches_its_caller(asked: list[list[list[int]]], max_size: int) -> None:
    async def all_at_once() -> list[list[list[float]]]:
        serving = Serving(batching=Batching(max_size=max_size))
        async with generation(ScriptedEngine, count=2, serving=serving) as on:
            return await asyncio.gather(*(answer(ask(on, x)) for x in asked))

    assert asyncio.run(all_at_once()) == [linear(np.array(x)).tolist() for x in asked]


async def test_requests_that_arrive_together_share_batches_within_the_bound() -> None:
    engine = ScriptedEngine()
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=8))) as on:
        await asyncio.gather(*(answer(ask(on, [[n, 0, 0, 0]])) for n in range(20)))
        assert engine.sizes == [8, 8, 4]


async def test_requests_to_different_graphs_share_no_batch() -> None:
    engine = ScriptedEngine(graphs={"main": SIGNATURE, "other": SIGNATURE}, held_back=True)
    async with generation(lambda: engine) as on:
        request = InferRequest((Tensor("x", DataType.FP32, np.ones((1, 4), np.float32)),))
        waiting = [on.admit(request, arrived=0, deadline=math.inf, graph=graph) for graph in ("main", "other", "main")]
        await asyncio.sleep(0)
        assert [(batch.graph, batch.rows) for batch in engine.held] == [("main", 2), ("other", 1)]
        engine.answer()
        engine.answer()
        await asyncio.gather(*map(answer, waiting))


async def test_a_small_batch_waits_for_company_only_as_long_as_the_settings_want() -> None:
    engine = ScriptedEngine()
    serving = Serving(batching=Batching(max_size=4, max_delay_ms=20))
    async with generation(lambda: engine, serving=serving) as on:
        first = ask(on, [[1, 0, 0, 0]])
        await asyncio.sleep(0.001)
        second = ask(on, [[2, 0, 0, 0]])
        await asyncio.gather(answer(first), answer(second))
        assert engine.sizes == [2]
        full = [ask(on, [[n, 0, 0, 0]]) for n in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.sizes == [2, 4], "a full batch does not wait"
        await asyncio.gather(*map(answer, full))


async def test_batches_are_cut_to_the_largest_preferred_size_that_is_there() -> None:
    engine = ScriptedEngine()
    sizes = Batching(max_size=8, preferred_sizes=(2, 5), max_delay_ms=20)
    async with generation(lambda: engine, serving=Serving(batching=sizes)) as on:
        await asyncio.gather(*(answer(ask(on, [[n, 0, 0, 0]])) for n in range(8)))
        assert engine.sizes == [5, 2, 1], "the last one waited for company in vain"


async def test_the_most_urgent_are_computed_first() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=1, priority_levels=3))) as on:
        waiting = [ask(on, [[n, 0, 0, 0]], priority=priority) for n, priority in enumerate((3, 0, 9, 2, 1))]
        order: list[float] = []
        for _ in waiting:
            await asyncio.sleep(0)
            order.append(engine.held[0].requests[0].item[0][0, 0])
            engine.answer()
        assert order == [4, 1, 2, 3, 0], "none, and one that is not there, mean the middle"
        await asyncio.gather(*map(answer, waiting))


async def test_who_waits_too_long_for_an_engine_is_told_and_never_computed() -> None:
    engine = ScriptedEngine(held_back=True)
    serving = Serving(batching=Batching(max_size=1, queue_timeout_ms=10))
    async with generation(lambda: engine, serving=serving) as on:
        held = [ask(on, [[n, 0, 0, 0]]) for n in range(SLOTS)]
        await asyncio.sleep(0)
        with pytest.raises(DeadlinePassed, match="queue_timeout_ms"):
            await asyncio.wait_for(ask(on, [[9, 0, 0, 0]]).answer, 5)
        while engine.held:
            engine.answer()
        await asyncio.gather(*map(answer, held))
        assert len(engine.sizes) == SLOTS


async def test_short_batches_are_sent_ahead_and_long_ones_kept_back() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=1))) as on:
        waiting = [ask(on, [[n, 0, 0, 0]]) for n in range(3)]
        await asyncio.sleep(0)
        assert len(engine.held) == SLOTS
        on._compute_s = 1.0
        while engine.held:
            engine.answer()
        assert engine.sizes == [1, 1, 1]
        await asyncio.gather(*map(answer, waiting))


async def test_where_requests_share_no_batch_none_waits_for_company() -> None:
    engine = ScriptedEngine()
    async with generation(
        lambda: engine, serving=Serving(batching=Batching(together=False, max_delay_ms=60_000))
    ) as on:
        waiting = [ask(on, [[n, 0, 0, 0]] * 2) for n in range(3)]
        await asyncio.wait_for(asyncio.gather(*map(answer, waiting)), 5)
        assert engine.sizes == [2, 2, 2]


# Callers who leave, wait too long, or ask for too much


@pytest.mark.parametrize("moment", ["queued", "in hand"])
async def test_one_caller_leaving_touches_nobody_else(moment: str) -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=3))) as on:
        requests = [ask(on, [[n, 0, 0, 0]]) for n in range(3)]
        if moment == "in hand":
            await asyncio.sleep(0)
        requests[1].answer.cancel()
        await asyncio.sleep(0)
        engine.answer()
        assert await answer(requests[0]) == linear(np.array([[0, 0, 0, 0]])).tolist()
        assert await answer(requests[2]) == linear(np.array([[2, 0, 0, 0]])).tolist()
        assert engine.sizes == ([2] if moment == "queued" else [3])


@pytest.mark.parametrize("moment", ["queued", "in hand"])
async def test_a_passed_deadline_is_told_at_once(moment: str) -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=1))) as on:
        busy = [ask(on, [[n, 0, 0, 0]]) for n in range(SLOTS if moment == "queued" else 0)]
        late = ask(on, [[9, 0, 0, 0]], timeout_s=0.01)
        with pytest.raises(DeadlinePassed):
            await asyncio.wait_for(late.answer, 5)
        while engine.held:
            engine.answer()
        await asyncio.gather(*map(answer, busy))
        assert len(engine.sizes) == max(1, len(busy)), "an expired request never reaches the engine"


async def test_a_full_queue_refuses_and_the_rest_is_answered() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_queue=3))) as on:
        held = [ask(on, [[n, 0, 0, 0]]) for n in range(3)]
        with pytest.raises(Overloaded):
            ask(on, [[3, 0, 0, 0]])
        await asyncio.sleep(0)
        engine.answer()
        assert len(await asyncio.gather(*map(answer, held))) == 3


async def test_what_does_not_fit_the_signature_is_refused_before_the_queue() -> None:
    async with generation(ScriptedEngine, serving=Serving(batching=Batching(max_size=2))) as on:
        with pytest.raises(WrongInput, match="shape"):
            ask(on, [[1, 2, 3]])
        with pytest.raises(WrongInput, match="at most 2 at once"):
            ask(on, np.zeros((3, 4)))


async def test_a_known_request_is_checked_against_each_model_s_own_signature() -> None:
    [spec] = SIGNATURE.inputs
    wide = msgspec.structs.replace(SIGNATURE, inputs=(msgspec.structs.replace(spec, shape=(-1, 5)),))
    body, head = encode_request(InferRequest((Tensor("x", DataType.FP32, np.zeros((1, 4), np.float32)),)))
    async with generation(ScriptedEngine) as on, generation(lambda: ScriptedEngine(graphs={"main": wide})) as other:
        for _ in range(2):
            request = decode_request(body, json_length=head)
            assert (await on.admit(request, arrived=0, deadline=math.inf).answer)[0].array.shape == (1, 3)
            with pytest.raises(WrongInput, match=r"shape \[1, 4\], expected \[-1, 5\]"):
                other.admit(request, arrived=0, deadline=math.inf)


# Engines that fail, die or hang


async def test_a_request_that_the_engine_refuses_spoils_nobody_elses_answer() -> None:
    engine = ScriptedEngine()
    async with generation(lambda: engine) as on:
        requests = [ask(on, [[-POISON if n == 1 else n, 0, 0, 0]]) for n in range(3)]
        assert await answer(requests[0]) == linear(np.array([[0, 0, 0, 0]])).tolist()
        assert await answer(requests[2]) == linear(np.array([[2, 0, 0, 0]])).tolist()
        with pytest.raises(EngineFailed, match="refused"):
            await requests[1].answer
        assert engine.sizes == [3, 1, 1, 1]


async def test_a_request_that_keeps_killing_engines_is_answered_with_an_error_and_the_others_with_answers() -> None:
    engines: list[ScriptedEngine] = []

    def spawn() -> ScriptedEngine:
        engines.append(ScriptedEngine())
        return engines[-1]

    async with generation(spawn, serving=Serving(engines=Engines(max_deaths=2))) as on:
        requests = [ask(on, [[POISON if n == 1 else n, 0, 0, 0]]) for n in range(3)]
        assert await answer(requests[0]) == linear(np.array([[0, 0, 0, 0]])).tolist()
        assert await answer(requests[2]) == linear(np.array([[2, 0, 0, 0]])).tolist()
        with pytest.raises(EngineFailed, match="2 engines died with this request in hand"):
            await requests[1].answer
        assert await answer(ask(on, [[5, 0, 0, 0]])) == linear(np.array([[5, 0, 0, 0]])).tolist()
        assert on.metrics.engine_deaths == 2
        assert len(engines) == 3


async def test_a_hung_engine_is_killed_and_its_batch_given_to_another() -> None:
    engines: list[ScriptedEngine] = []

    def spawn() -> ScriptedEngine:
        engines.append(ScriptedEngine(held_back=not engines))
        return engines[-1]

    async with generation(spawn, serving=Serving(engines=Engines(answer_s=0.05))) as on:
        assert await answer(ask(on, [[1, 2, 3, 4]])) == linear(np.array([[1, 2, 3, 4]])).tolist()
        assert len(engines) == 2


async def test_replacements_come_later_and_later_if_they_keep_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    really_sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await really_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    async with generation(ScriptedEngine, serving=Serving(engines=Engines(max_deaths=5))) as on:
        with pytest.raises(EngineFailed):
            await ask(on, [[POISON, 0, 0, 0]]).answer
    assert slept[0] == 0
    assert slept[1:4] == [0.05, 0.1, 0.2]


async def test_draining_answers_everybody_and_takes_nobody() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_size=1))) as on:
        waiting = [ask(on, [[n, 0, 0, 0]]) for n in range(4)]
        draining = asyncio.create_task(on.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            ask(on, [[9, 0, 0, 0]])
        assert not draining.done()
        while engine.held:
            engine.answer()
        assert len(await asyncio.gather(*map(answer, waiting))) == 4
        await draining
        assert engine.closed


# The real thing


@pytest.mark.parametrize("start", [EngineProcess.start, LocalEngine.start], ids=["process", "local"])
async def test_real_engines_answer_each_caller_with_its_own_rows(start: Callable[..., object], bundle: Bundle) -> None:
    async with generation(lambda: start(load(bundle.path, bundle.digest)), count=2) as on:
        asked = [np.full((1 + n % 3, 4), n) for n in range(50)]
        answers = await asyncio.gather(*(answer(ask(on, x)) for x in asked))
        assert answers == [linear(x).tolist() for x in asked]
        assert on.metrics.compute_s.total > 0
        assert sum(on.metrics.batch_rows.counts) < 50, "some shared a batch"


async def test_killed_engines_cost_latency_not_answers(bundle: Bundle) -> None:
    async with generation(lambda: EngineProcess.start(load(bundle.path, bundle.digest)), count=2) as on:
        for deaths in (1, 2, 3):
            asked = [np.full((1, 4), deaths * 100 + n) for n in range(100)]
            requests = [ask(on, x) for x in asked]
            await asyncio.sleep(0)
            os.kill(on.pids[0], signal.SIGKILL)
            answers = await asyncio.gather(*map(answer, requests))
            assert answers == [linear(x).tolist() for x in asked]
            await soon(lambda n=deaths: on.metrics.engine_deaths == n and len(on.pids) == 2)  # type: ignore[misc] # n


async def test_a_stopped_engine_process_is_taken_for_hung(bundle: Bundle) -> None:
    serving = Serving(engines=Engines(answer_s=0.2))
    async with generation(lambda: EngineProcess.start(load(bundle.path, bundle.digest)), serving=serving) as on:
        os.kill(on.pids[0], signal.SIGSTOP)
        assert await answer(ask(on, [[1, 0, 0, 0]])) == linear(np.array([[1, 0, 0, 0]])).tolist()


async def test_a_bad_row_in_a_real_batch_spoils_nobody_elses_answer(tmp_path: Path) -> None:
    path = gather_onnx(tmp_path / "gather.onnx")
    async with generation(lambda: EngineProcess.start(load(path))) as on:

        def ask_ids(*ids: int) -> Request:
            tensor = Tensor("ids", DataType.INT64, np.array([ids]))
            return on.admit(InferRequest((tensor,)), arrived=time.monotonic(), deadline=time.monotonic() + 30)

        good, bad, longer = ask_ids(0, 1), ask_ids(0, 9), ask_ids(1, 2, 3)
        assert [tensor.array.shape for tensor in await good.answer] == [(1, 2, 3)]
        assert [tensor.array.shape for tensor in await longer.answer] == [(1, 3, 3)]
        with pytest.raises(
            WrongInput, match="refuses a value of the request: indices element out of data bounds, idx=9"
        ):
            await bad.answer


async def test_text_that_is_not_utf8_is_refused_before_it_reaches_company(tmp_path: Path) -> None:
    path = save(
        tmp_path / "echo.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["batch", 1])],
    )
    async with generation(lambda: EngineProcess.start(load(path))) as on:

        def say(*words: bytes) -> Request:
            tensor = Tensor("x", DataType.BYTES, np.array([[word] for word in words], object))
            return on.admit(InferRequest((tensor,)), arrived=time.monotonic(), deadline=time.monotonic() + 30)

        good = [say(b"caf\xc3\xa9", b"\0"), say(b"")]
        with pytest.raises(WrongInput, match="element 1 of input 'x' is text and must be UTF-8"):
            say(b"fine", b"caf\xe9")
        said = [[item for [item] in (await each.answer)[0].array.tolist()] for each in good]
        assert said == [["café".encode(), b"\0"], [b""]]
        assert on.metrics.retried == 0
        assert on.metrics.batch_rows.count == 1, "who is well was computed in one batch"


async def test_closing_leaves_no_process(bundle: Bundle) -> None:
    async with generation(lambda: EngineProcess.start(load(bundle.path, bundle.digest)), count=2) as on:
        pids = on.pids
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


async def test_one_engine_that_refuses_ends_the_others(tmp_path: Path, bundle: Bundle) -> None:
    wrong = LinearBundle(golden_scale=2).write(tmp_path)
    good: list[EngineProcess] = []
    paths = [bundle.path, wrong.path]

    async def spawn() -> EngineProcess:
        process = await EngineProcess.start(load(paths.pop(0)))
        good.append(process)
        return process

    with pytest.raises(GoldenMismatch):
        async with generation(spawn, count=2):
            pass
    assert not psutil.pid_exists(good[0].pid)
