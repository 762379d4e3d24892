"""Models with a memory: whatever the others do, a sequence is answered as if it were alone; and when one ends, nobody goes on."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from prometheus_client import CollectorRegistry

from seatrial.bundle import Bundle, Driver, Manifest
from seatrial.errors import (
    BundleCorrupt,
    DeadlinePassed,
    EngineFailed,
    GoldenMismatch,
    InvalidSource,
    NotReady,
    Overloaded,
    SeatrialError,
    WrongInput,
)
from seatrial.protocol import LONGEST_SEQUENCE_ID, InferRequest, Parameters, Tensor
from seatrial.settings import Batching, Sequences, Serving
from seatrial.tensors import Array, DataType, Signature, State, TensorSpec
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_monitoring.series import Protocol
from seatrial_serving.channel import MAX_MESSAGE, Part, Run, encode
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.engines import open_engine
from seatrial_serving.engines.onnxruntime import OnnxRuntime
from seatrial_serving.engines.proof import prove
from seatrial_serving.engines.stateful import Control, Kind, Stateful, Turn
from seatrial_serving.ensemble import Ensemble, Plan, Step
from seatrial_serving.local import LocalEngine
from seatrial_serving.sequences import MOST_FORGOTTEN, MOST_ROWS, StatefulGeneration
from seatrial_serving.workers import Request, Worker
from tests.conditions import soon
from tests.serving.conftest import load
from tests.serving.models import COINS, GRU, PURSE, gru_onnx, purse_onnx, write_purse, write_stateful
from tests.serving.scripted import IDENTITY, POISON, ScriptedEngine


@pytest.fixture(scope="module")
def purse(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_purse(tmp_path_factory.mktemp("purse"))


@pytest.fixture(scope="module")
def gru(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("gru")
    return write_stateful(place, GRU, gru_onnx(place / ".gru.onnx"), name="gru")


@asynccontextmanager
async def generation(
    spawn: Callable[[], Any], *, count: int = 1, serving: Serving | None = None
) -> AsyncIterator[StatefulGeneration]:
    async def start(*, wide: bool, gently: bool) -> Worker:  # noqa: ARG001 - what the engine is, `spawn` decides
        made = spawn()
        worker: Worker = await made if asyncio.iscoroutine(made) else made
        return worker

    metrics = ServingMetrics(CollectorRegistry(), 0.1).model("purse", "1", "fp32")
    started = await StatefulGeneration.start(
        IDENTITY, start, count=count, metrics=metrics, settings=serving or Serving()
    )
    assert isinstance(started, StatefulGeneration)
    try:
        yield started
    finally:
        await started.close()


def admit(
    on: StatefulGeneration,
    name: int | str,
    value: Any,
    *,
    first: bool = False,
    last: bool = False,
    timeout_s: float = 30.0,
    caller: str = "",
) -> Request:
    spec = on.signature.inputs[0]
    parameters = {"sequence_id": name, "sequence_start": first, "sequence_end": last}
    array = np.array(value, spec.datatype.numpy)
    now = time.monotonic()
    request = InferRequest((Tensor(spec.name, spec.datatype, array),), parameters=parameters)
    return on.home(request, caller).admit(request, arrived=now, deadline=now + timeout_s, caller=caller)


async def ask(on: StatefulGeneration, name: int | str, value: Any, **flags: Any) -> Array:
    return (await admit(on, name, value, **flags).answer)[0].array


def alone(model: Path, signature: Signature, steps: Array) -> Array:
    """What ONNX Runtime says of one sequence, a row at a time."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    [state] = signature.states
    [given, kept] = signature.inputs
    held = np.zeros((1, *kept.shape[1:]), kept.datatype.numpy)
    answers = []
    for row in steps:
        answer, held = session.run(
            [signature.outputs[0].name, state.output], {given.name: row[None], state.input: held}
        )
        answers.append(answer[0])
    return np.array(answers)


SEQUENCES = st.lists(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=5), min_size=1, max_size=6
)
"""Sequences, of requests, of steps."""


@hypothesis_settings(max_examples=20, deadline=None)
@given(sequences=SEQUENCES, chance=st.randoms(use_true_random=False), engines=st.integers(1, 2))
def test_every_sequence_is_answered_as_if_it_were_alone(
    purse: Bundle, sequences: list[list[list[int]]], chance: Any, engines: int
) -> None:
    """All of it is asked at once, in any order that keeps each sequence's own."""

    async def all_at_once() -> dict[int, list[Array]]:
        asked: dict[int, list[asyncio.Future[Any]]] = {number: [] for number in range(len(sequences))}
        order = [number for number, requests in enumerate(sequences) for _ in requests]
        chance.shuffle(order)
        serving = Serving(batching=Batching(max_size=4))
        async with generation(lambda: LocalEngine.start(load(purse.path)), count=engines, serving=serving) as on:
            for number in order:
                place, requests = len(asked[number]), sequences[number]
                first, last = place == 0, place == len(requests) - 1
                coins = np.array(requests[place])[:, None]
                asked[number].append(admit(on, number + 1, coins, first=first, last=last).answer)
            return {number: [(await each)[0].array for each in futures] for number, futures in asked.items()}

    answers = asyncio.run(all_at_once())
    for number, requests in enumerate(sequences):
        steps = np.array([coin for request in requests for coin in request])[:, None]
        expected = alone(purse.file("model.onnx"), PURSE, steps)
        assert np.concatenate(answers[number]).tolist() == expected.tolist()
        assert expected[-1].tolist() == [COINS[steps].sum()]


@pytest.mark.anyio
async def test_a_recurrent_unit_remembers_what_it_would_alone(gru: Bundle) -> None:
    chance = np.random.default_rng(3)
    steps = {name: chance.normal(size=(6, 3)).astype(np.float32) for name in ("a", "b", "c")}
    answers: dict[str, list[Array]] = {name: [] for name in steps}
    async with generation(lambda: LocalEngine.start(load(gru.path))) as on:
        for number in range(6):
            asked = [ask(on, name, rows[number : number + 1], first=not number) for name, rows in steps.items()]
            for name, answer in zip(steps, await asyncio.gather(*asked), strict=True):
                answers[name].append(answer)
    for name, rows in steps.items():
        np.testing.assert_allclose(np.concatenate(answers[name]), alone(gru.file("model.onnx"), GRU, rows), atol=1e-6)


# The engine


def test_the_states_are_not_the_callers(purse: Bundle) -> None:
    engine = open_engine(purse, threads=1)
    assert [spec.name for spec in engine.signature.inputs] == ["coin"]
    assert [spec.name for spec in engine.signature.outputs] == ["total"]
    assert engine.signature.dynamic_axes[0].at == {"coin": 0, "total": 0}
    assert engine.predict({"coin": np.array([[1], [2]])})["total"].tolist() == [[10], [100]], "a sequence each"
    engine.close()


def test_the_rows_of_a_golden_request_are_the_steps_of_a_sequence(tmp_path: Path) -> None:
    assert prove(write_purse(tmp_path / "right")) == 1
    with pytest.raises(GoldenMismatch, match="'total'"):
        prove(write_purse(tmp_path / "forgetful", totals=(10, 1000, 1)))


def opened(tmp_path: Path) -> Stateful:
    model = purse_onnx(tmp_path / "purse.onnx")
    return Stateful(OnnxRuntime({"main": model}, signature=PURSE, options={}, threads=1))


def test_what_is_refused_has_changed_nothing(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    turns = [Turn(1, 1, first=True), Turn(2, 2, first=True)]
    assert engine.advance({"coin": np.array([[0], [1], [1]])}, turns)["total"].tolist() == [[1], [10], [20]]
    with pytest.raises(WrongInput):
        engine.advance({"coin": np.array([[3], [3], [9]])}, [Turn(1, 1), Turn(2, 2)])
    assert engine.advance({"coin": np.array([[0], [1]])}, [Turn(1, 1), Turn(2, 1)])["total"].tolist() == [[2], [30]]


def test_what_has_ended_is_forgotten(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    one = {"coin": np.array([[0]])}
    engine.advance(one, [Turn(1, 1, first=True)])
    engine.advance(one, [Turn(2, 1, first=True, last=True)])
    engine.advance(one, [Turn(1), Turn(3, 1, first=True)])
    for ended in (1, 2):
        with pytest.raises(EngineFailed, match="not here"):
            engine.advance(one, [Turn(ended, 1)])
    assert engine.advance(one, [Turn(3, 1)])["total"].tolist() == [[2]]
    assert engine.state_bytes == 4


@pytest.mark.parametrize(
    ("control", "turns", "expected"),
    [
        (Kind.START, [Turn(1, 2, first=True), Turn(2, 1)], [7, 5, 5]),
        (Kind.END, [Turn(1, 2, last=True), Turn(2, 1)], [5, 7, 5]),
        (Kind.READY, [Turn(1, 2), Turn(2, 1)], [7, 7, 7]),
        (Kind.ID, [Turn(1, 2, id=30), Turn(2, 1, id=40)], [30, 30, 40]),
    ],
)
def test_a_graph_is_told_where_in_its_sequence_a_row_is(control: Kind, turns: list[Turn], expected: list[int]) -> None:
    spec = TensorSpec(name="told", datatype=DataType.INT32, shape=(-1, 1))
    steps = [(turn, number) for turn in turns for number in range(turn.rows)]
    told = Control(spec=spec, kind=control, values=(5, 7)).fill(steps)
    assert told.dtype == np.int32
    assert told.tolist() == [[value] for value in expected]


def test_an_id_that_the_graph_cannot_be_told_is_refused() -> None:
    def told(datatype: DataType, name: int | str) -> Array:
        spec = TensorSpec(name="told", datatype=datatype, shape=(-1, 1))
        return Control(spec=spec, kind=Kind.ID).fill([(Turn(1, 1, id=name), 0)])

    assert told(DataType.BYTES, 7).tolist() == [[b"7"]]
    with pytest.raises(WrongInput, match="this model takes numbers"):
        told(DataType.UINT64, "seven")
    with pytest.raises(WrongInput, match="does not fit"):
        told(DataType.INT64, 2**63)


@pytest.mark.parametrize(
    "states",
    [
        (State(input="nobody", output="purse_after"),),
        (State(input="purse", output="nothing"),),
        (State(input="coin", output="purse_after"),),
    ],
)
def test_a_state_that_does_not_go_round_is_no_signature(states: tuple[State, ...]) -> None:
    with pytest.raises(ValueError, match="no input that is like an output"):
        msgspec.structs.replace(PURSE, states=states)


def test_a_state_of_unknown_size_is_no_signature() -> None:
    def open_ended(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=spec.name, datatype=spec.datatype, shape=(-1, -1)) for spec in specs)

    with pytest.raises(ValueError, match="sizes that vary"):
        msgspec.structs.replace(PURSE, inputs=open_ended(PURSE.inputs), outputs=open_ended(PURSE.outputs))


def test_driver_and_states_belong_together(purse: Bundle) -> None:
    assert purse.manifest.driver is Driver.STATEFUL
    once = msgspec.structs.replace(purse.manifest, driver=Driver.ONCE)
    with pytest.raises(BundleCorrupt, match="the driver 'once' and 1 states"):
        Manifest.decode(once.encode(), where="bundle.json")


def test_a_message_has_room_for_the_most_sequences_of_a_batch() -> None:
    turns = [Turn(10**9, 1, first=True, last=True, id="é" * (LONGEST_SEQUENCE_ID // 2)) for _ in range(MOST_ROWS)]
    turns += [Turn(10**9) for _ in range(MOST_FORGOTTEN)]
    inputs = tuple(Part(2**40, 2**40, (MOST_ROWS,) * 8) for _ in range(100))
    assert len(encode(Run(10**9, 1, "main", inputs, False, tuple(turns)))) < MAX_MESSAGE


# What is refused


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": 0, "sequence_start": True}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": "", "sequence_start": True}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": -3, "sequence_start": True}, "expected a whole number"),
        ({"sequence_id": True, "sequence_start": True}, "expected a whole number"),
        ({"sequence_id": 2.0, "sequence_start": True}, "expected a whole number"),
        ({"sequence_id": 2**64, "sequence_start": True}, "expected a whole number"),
        ({"sequence_id": "x" * 129, "sequence_start": True}, "longer than 128"),
        ({"sequence_id": "é" * 65, "sequence_start": True}, "longer than 128"),
        ({"sequence_id": 1, "sequence_start": 1}, "expected true or false"),
        ({"sequence_id": 1, "sequence_end": "yes"}, "expected true or false"),
        ({"sequence_id": 1}, "sequence 1 to model 'linear' must specify the START flag on the first request"),
        ({"sequence_id": "a"}, "sequence a to model 'linear' must specify the START flag on the first request"),
    ],
)
@pytest.mark.anyio
async def test_a_request_must_say_which_sequence_it_belongs_to(parameters: dict[str, Any], words: str) -> None:
    async with generation(ScriptedEngine) as on:
        request = InferRequest((Tensor("x", DataType.FP32, np.ones((1, 4), np.float32)),), parameters=parameters)
        with pytest.raises(WrongInput, match=words):
            on.home(request, "").admit(request, arrived=0, deadline=1)


X = np.ones((1, 4), np.float32)
POISONED = np.full((1, 4), POISON, np.float32)
REFUSED = np.full((1, 4), -POISON, np.float32)


@pytest.mark.anyio
async def test_one_request_of_a_sequence_is_computed_at_a_time_and_others_join_it() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine) as on:
        asked = [admit(on, name, X, first=not step).answer for name in ("a", "b") for step in range(3)]
        batches = []
        for _ in range(3):
            await soon(lambda: bool(engine.held))
            batches.append([turn.id for turn in engine.held[0].turns])
            assert len(engine.held) == 1
            engine.answer()
        await asyncio.gather(*asked)
    assert batches == [["a", "b"]] * 3


@pytest.mark.anyio
async def test_an_ended_sequence_must_be_started_again() -> None:
    async with generation(ScriptedEngine) as on:
        await ask(on, 5, X, first=True)
        await ask(on, 5, X, last=True)
        with pytest.raises(WrongInput, match=r"must specify the START flag .*\(sequence_start\)$"):
            await ask(on, 5, X)
        await ask(on, 5, X, first=True, last=True)


@pytest.mark.anyio
async def test_nobody_goes_on_with_what_is_another_callers() -> None:
    async with generation(ScriptedEngine) as on:
        await ask(on, 5, X, first=True, caller="a")
        with pytest.raises(WrongInput, match="START"):
            await ask(on, 5, X, caller="b")
        await ask(on, 5, X, first=True, last=True, caller="b")
        await ask(on, 5, X, caller="a")


@pytest.mark.anyio
async def test_a_sequence_started_again_is_another() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine) as on:
        old = [admit(on, 5, X, first=True).answer, admit(on, 5, X).answer]
        new = [admit(on, 5, X, first=True).answer]
        turns = []
        for _ in range(2):
            await soon(lambda: bool(engine.held))
            turns.append({turn.sequence for turn in engine.held[0].turns})
            engine.answer()
        await asyncio.gather(*old, *new)
        assert turns == [{1, 2}, {1}], "both are answered, the old one to its end"
        engine.held_back = False
        await ask(on, 5, X)
        await ask(on, 6, X, first=True)


@pytest.mark.anyio
@pytest.mark.parametrize("sequences", [Sequences(max_open=2), Sequences(max_bytes=8)])
async def test_there_are_only_so_many_sequences(sequences: Sequences) -> None:
    async with generation(lambda: ScriptedEngine(state_bytes=4), serving=Serving(sequences=sequences)) as on:
        await ask(on, 1, X, first=True)
        await ask(on, 2, X, first=True)
        with pytest.raises(Overloaded, match="2 sequences of 'linear' are open already"):
            await ask(on, 3, X, first=True)
        await ask(on, 2, X, first=True)
        await ask(on, 1, X, last=True)
        await ask(on, 3, X, first=True)


@pytest.mark.anyio
async def test_a_sequence_that_nobody_asks_ends_and_its_engine_is_told() -> None:
    engine = ScriptedEngine()
    async with generation(lambda: engine, serving=Serving(sequences=Sequences(idle_s=0.05))) as on:
        await ask(on, 1, X, first=True)
        await soon(lambda: not on.open)
        with pytest.raises(WrongInput, match=r"it ended because nobody asked for 0.05 s: start it again"):
            await ask(on, 1, X)
        engine.held_back = True
        asked = admit(on, 1, X, first=True).answer
        await soon(lambda: bool(engine.held))
        assert engine.held[0].turns == (Turn(1), Turn(2, 1, first=True, id=1))
        engine.answer()
        await asked


@pytest.mark.anyio
async def test_what_waits_is_bounded() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_queue=3))) as on:
        asked = [admit(on, 1, X, first=True).answer]
        await soon(lambda: bool(engine.held))
        asked += [admit(on, 1, X).answer for _ in range(3)]
        with pytest.raises(Overloaded):
            admit(on, 1, X)
        with pytest.raises(Overloaded):
            admit(on, 2, X, first=True)
        engine.held_back = False
        engine.answer()
        await asyncio.gather(*asked)
        with pytest.raises(WrongInput, match="START"):
            admit(on, 2, X)


# One that is not answered


@pytest.mark.anyio
@pytest.mark.parametrize("trouble", ["refused", "left", "late"])
async def test_after_a_request_without_an_answer_nobody_goes_on(trouble: str) -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine) as on:
        first = admit(on, 1, X, first=True).answer
        lost = admit(on, 1, REFUSED if trouble == "refused" else X, timeout_s=0.05 if trouble == "late" else 30)
        behind = admit(on, 1, X).answer
        other = admit(on, 2, X, first=True).answer
        await soon(lambda: bool(engine.held))
        if trouble == "left":
            lost.answer.cancel()
        if trouble == "late":
            with pytest.raises(DeadlinePassed):
                await lost.answer
        engine.held_back = False
        engine.answer()
        assert (await first)[0].array.shape == (1, 3), "what came before is answered"
        with pytest.raises(
            EngineFailed, match="has ended because one of its requests was not answered: start it again"
        ):
            await behind
        with pytest.raises(WrongInput, match="one of its requests was not answered: start it again"):
            await ask(on, 1, X)
        await other
        await ask(on, 2, X)
        await ask(on, 1, X, first=True)


@pytest.mark.anyio
async def test_a_request_that_spoils_a_batch_ends_its_own_sequence_only() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine) as on:
        asked = [admit(on, name, x, first=True).answer for name, x in ((1, X), (2, REFUSED), (3, X))]
        await soon(lambda: bool(engine.held))
        assert engine.held[0].rows == 3
        engine.held_back = False
        engine.answer()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(answer, EngineFailed) for answer in answers] == [False, True, False]
        await ask(on, 1, X)
        await ask(on, 3, X)
        with pytest.raises(WrongInput, match="not answered"):
            await ask(on, 2, X)


@pytest.mark.anyio
async def test_nothing_is_replayed_when_an_engine_dies() -> None:
    engines: list[ScriptedEngine] = []

    def spawn() -> ScriptedEngine:
        engines.append(ScriptedEngine(held_back=True))
        return engines[-1]

    async with generation(spawn, count=2) as on:
        asked = {name: admit(on, name, X, first=True).answer for name in (1, 2)}
        waiting = admit(on, 1, X).answer
        await soon(lambda: all(engine.held for engine in engines))
        victim = next(engine for engine in engines if engine.held[0].turns[0].id == 1)
        late = admit(on, 3, X, first=True).answer  # for the engine that is about to die, or for the other one
        later = admit(on, 4, X, first=True).answer
        victim.kill()
        for future in (asked[1], waiting):
            with pytest.raises(EngineFailed, match="the engine that had its state died: start it again"):
                await future
        with pytest.raises(WrongInput, match="the engine that had its state died: start it again"):
            await ask(on, 1, X)
        await soon(lambda: len(engines) == 3)
        for engine in engines:
            engine.held_back = False
        while any(engine.held for engine in engines if engine is not victim):
            next(engine for engine in engines if engine.held and engine is not victim).answer()
        await asyncio.gather(asked[2], late, later)
        assert victim.sizes == [1]
        await ask(on, 2, X)
        await ask(on, 1, X, first=True)


@pytest.mark.anyio
async def test_who_starts_while_no_engine_is_up_waits_for_one() -> None:
    engines: list[ScriptedEngine] = []

    def spawn() -> ScriptedEngine:
        engines.append(ScriptedEngine())
        return engines[-1]

    async with generation(spawn) as on:
        engines[0].kill()
        assert (await ask(on, 1, X, first=True)).shape == (1, 3)
        assert len(engines) == 2


# Swaps


@pytest.mark.anyio
async def test_after_a_swap_sequences_go_on_where_they_began() -> None:
    one, other = ScriptedEngine(), ScriptedEngine()
    async with generation(lambda: one) as old, generation(lambda: other) as new:
        await ask(old, "goes on", X, first=True)
        await ask(old, "starts again", X, first=True)
        new.follow(old)
        draining = asyncio.ensure_future(old.drain(sequences_s=30))
        await ask(new, "goes on", X)
        await ask(new, "begins", X, first=True)
        await ask(new, "starts again", X, first=True)
        assert (len(one.sizes), len(other.sizes)) == (3, 2)
        assert not draining.done()
        await ask(new, "goes on", X, last=True)
        await draining
        with pytest.raises(WrongInput, match="START"):
            await ask(new, "goes on", X)
        await ask(new, "starts again", X)


@pytest.mark.anyio
async def test_a_request_that_was_on_its_way_in_a_swap_finds_its_sequence() -> None:
    """Its head came before the swap, and its body after."""
    async with generation(ScriptedEngine) as old, generation(ScriptedEngine) as new:
        plane = DataPlane(Serving(), ServingMetrics(CollectorRegistry(), 0.1))
        plane.install(old, default=True)

        def asking(name: str, *, first: bool = False) -> Callable[[], Any]:
            exchange = plane.begin(Protocol.REST, "linear")
            plane.locate(exchange)
            parameters: Parameters = {"sequence_id": name, "sequence_start": first}
            request = InferRequest((Tensor("x", DataType.FP32, X),), parameters=parameters)
            return lambda: plane.submit(exchange, request)

        await asking("old", first=True)()
        goes_on, begins, goes_on_there = asking("old"), asking("new", first=True), asking("new")
        plane.install(new, default=True)
        plane.remove(old)
        new.follow(old)
        draining = asyncio.ensure_future(old.drain(sequences_s=30))
        await asyncio.sleep(0)
        for asked in (goes_on, begins, goes_on_there):
            await asked()
        assert ([*old.open], [*new.open]) == ([("", "old")], [("", "new")])
        old.hasten()
        await draining


@pytest.mark.anyio
async def test_a_swap_waits_only_so_long_for_sequences() -> None:
    one, other = ScriptedEngine(), ScriptedEngine()
    async with generation(lambda: one) as old, generation(lambda: other) as new:
        await ask(old, 1, X, first=True)
        new.follow(old)
        await old.drain(sequences_s=0.05)
        with pytest.raises(WrongInput, match="another version of the model came in its place: start it again"):
            await ask(new, 1, X)


@pytest.mark.anyio
async def test_the_end_of_a_server_waits_for_answers_and_not_for_sequences() -> None:
    engine = ScriptedEngine(held_back=True)
    async with generation(lambda: engine) as on:
        asked = admit(on, 1, X, first=True).answer
        await soon(lambda: bool(engine.held))
        draining = asyncio.ensure_future(on.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            admit(on, 2, X, first=True)
        with pytest.raises(SeatrialError):
            admit(on, 1, X)
        engine.answer()
        await asked
        await draining


@pytest.mark.anyio
async def test_an_ensemble_has_no_steps_with_a_memory() -> None:
    async with generation(ScriptedEngine) as on:
        with pytest.raises(InvalidSource, match="have a memory"):
            Plan.of(Ensemble(name="e", steps=(Step(model="linear"),), outputs=("y",)), lambda *_: on)
