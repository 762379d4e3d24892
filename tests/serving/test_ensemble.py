"""An ensemble answers what its models would, asked one after the other; what does not fit together is said before it serves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from prometheus_client import CollectorRegistry

from seatrial.errors import DeadlinePassed, EngineFailed, InvalidSource, SeatrialError, UnknownModel
from seatrial.protocol import InferRequest, Tensor
from seatrial.settings import Batching, Serving
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_serving.ensemble import Ensemble, Pipeline, Plan, Step, read_ensemble
from seatrial_serving.generation import Generation
from tests.serving.models import linear
from tests.serving.scripted import IDENTITY, POISON, ScriptedEngine, generation

pytestmark = pytest.mark.anyio

TWICE = Ensemble(
    name="twice",
    steps=(
        Step(model="second", inputs={"x": "hidden"}, outputs={"y": "score"}),
        Step(model="first", outputs={"y": "hidden"}),
    ),
    outputs=("score", "hidden"),
)
"""`second` after `first`, declared in the other order."""
WIDE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "y": 0}, max=16),),
)


class Adding(ScriptedEngine):
    """y = x + 1, on rows of three."""

    def __init__(self) -> None:
        super().__init__(graphs={"main": WIDE})

    def compute(self, x: Array) -> Array:
        return x + 1


class Models:
    """What a data plane finds, without one."""

    def __init__(self) -> None:
        self.by_name: dict[str, Generation] = {}

    def find(self, name: str, version: str = "") -> Generation:
        if name not in self.by_name:
            raise UnknownModel(f"there is no model {name} {version}")
        return self.by_name[name]


@asynccontextmanager
async def ensemble(declared: Ensemble, models: Models, *, serving: Serving | None = None) -> AsyncIterator[Generation]:
    plan = Plan.of(declared, models.find)

    async def spawn(*, wide: bool) -> Pipeline:  # noqa: ARG001 - a pipeline has no cores of its own
        return Pipeline(plan, models.find)

    metrics = ServingMetrics(CollectorRegistry(), 0.1).model(declared.name, "1", "ensemble")
    serving = serving or Serving()
    made = await Generation.start(IDENTITY, spawn, count=declared.pipelines, metrics=metrics, settings=serving)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def twice(first: ScriptedEngine, second: ScriptedEngine) -> AsyncIterator[tuple[Generation, Models]]:
    models = Models()
    async with AsyncExitStack() as stack:
        for name, engine in (("first", first), ("second", second)):
            models.by_name[name] = await stack.enter_async_context(generation(lambda engine=engine: engine))
        yield await stack.enter_async_context(ensemble(TWICE, models)), models


async def ask(on: Generation, x: Array, *, timeout_s: float = 30.0) -> dict[str, Array]:
    now = time.monotonic()
    request = InferRequest((Tensor("x", DataType.FP32, x),))
    return {name: array for name, _, array in await on.admit(request, arrived=now, deadline=now + timeout_s).answer}


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=1, max_size=5), max_size=12))
def test_every_caller_gets_what_the_models_say_one_after_the_other(asked: list[list[list[int]]]) -> None:
    async def all_at_once() -> list[dict[str, Array]]:
        async with twice(ScriptedEngine(), Adding()) as (on, _):
            return await asyncio.gather(*(ask(on, np.array(x, np.float32)) for x in asked))

    for x, answer in zip(asked, asyncio.run(all_at_once()), strict=True):
        assert list(answer) == ["score", "hidden"]
        assert answer["hidden"].tolist() == linear(np.array(x)).tolist()
        assert answer["score"].tolist() == (linear(np.array(x)) + 1).tolist()


async def test_requests_go_through_together() -> None:
    first, second = ScriptedEngine(), Adding()
    async with twice(first, second) as (on, _):
        await asyncio.gather(*(ask(on, np.ones((1, 4), np.float32)) for _ in range(10)))
    assert (first.sizes, second.sizes) == ([10], [10])


async def test_its_signature_is_what_the_models_leave_open() -> None:
    async with twice(ScriptedEngine(), Adding()) as (on, _):
        assert on.signature == Signature(
            inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 4)),),
            outputs=(
                TensorSpec(name="score", datatype=DataType.FP32, shape=(-1, 3)),
                TensorSpec(name="hidden", datatype=DataType.FP32, shape=(-1, 3)),
            ),
            dynamic_axes=(DynamicAxis(name="batch", at={"hidden": 0, "score": 0, "x": 0}, max=16),),
        )


async def test_a_step_that_refuses_one_request_does_not_spoil_the_others() -> None:
    async with twice(ScriptedEngine(), Adding()) as (on, _):
        good = np.ones((1, 4), np.float32)
        poisoned = np.full((1, 4), -POISON, np.float32)
        answers = await asyncio.gather(*(ask(on, x) for x in (good, poisoned, good)), return_exceptions=True)
    assert isinstance(answers[1], EngineFailed)
    for answer in answers[::2]:
        assert isinstance(answer, dict)
        assert answer["hidden"].tolist() == linear(good).tolist()


async def test_a_deadline_holds_over_all_steps() -> None:
    second = Adding()
    second.held_back = True
    async with twice(ScriptedEngine(), second) as (on, models):
        with pytest.raises(DeadlinePassed):
            await ask(on, np.ones((1, 4), np.float32), timeout_s=0.05)
        assert models.by_name["second"].metrics.queue_s.count == 1


async def test_a_swap_of_a_model_is_a_swap_of_its_step() -> None:
    x = np.ones((1, 4), np.float32)
    async with twice(ScriptedEngine(), Adding()) as (on, models), generation(Doubling) as doubling:
        assert (await ask(on, x))["score"].tolist() == (linear(x) + 1).tolist()
        models.by_name["second"] = doubling
        assert (await ask(on, x))["score"].tolist() == (linear(x) * 2).tolist()


class Doubling(Adding):
    def compute(self, x: Array) -> Array:
        return x * 2


async def test_a_model_that_came_to_take_something_else_is_named() -> None:
    async with twice(ScriptedEngine(), Adding()) as (on, models):
        models.by_name["second"] = models.by_name["first"]
        with pytest.raises(EngineFailed, match="'second' takes or answers something else"):
            await ask(on, np.ones((1, 4), np.float32))
        del models.by_name["second"]
        with pytest.raises(UnknownModel):
            await ask(on, np.ones((1, 4), np.float32))


async def test_a_pipeline_that_hangs_is_ended_and_leaves_the_queues() -> None:
    second = Adding()
    second.held_back = True
    async with AsyncExitStack() as stack:
        models = Models()
        for name, engine in (("first", ScriptedEngine()), ("second", second)):
            models.by_name[name] = await stack.enter_async_context(generation(lambda engine=engine: engine))
        on = await stack.enter_async_context(ensemble(TWICE, models, serving=Serving(batching=Batching(max_size=1))))
        asked = [asyncio.ensure_future(ask(on, np.ones((1, 4), np.float32))) for _ in range(3)]
        while not second.held:
            await asyncio.sleep(0)
        pipelines = [worker for worker in on._workers if worker.held]
        second.held_back = False
        for worker in pipelines:
            worker.kill()
        while second.held:
            second.answer()
        answers = await asyncio.gather(*asked)
        assert [answer["hidden"].shape for answer in answers] == [(1, 3)] * 3
        assert on.metrics.engine_deaths == len(pipelines)


# What does not fit together


def step(model: str, **names: dict[str, str]) -> Step:
    return Step(model=model, **names)


@pytest.mark.parametrize(
    ("steps", "outputs", "reason"),
    [
        ([step("first")], ("z",), r"no step of 'e' answers \['z'\]; they answer \['y'\]"),
        ([step("first", inputs={"w": "x"})], ("y",), r"'first' has no input \['w'\]; it has \['x'\]"),
        ([step("first"), step("second")], ("y",), "two steps of 'e' answer 'y'"),
        (
            [step("first", inputs={"x": "b"}, outputs={"y": "a"}), step("first", inputs={"x": "a"}, outputs={"y": "b"})],
            ("a",),
            "wait for each other",
        ),
        (
            [step("first", outputs={"y": "h"}), step("first", inputs={"x": "h"})],
            ("y",),
            r"'h' is FP32 \[-1, 4\] for one step and FP32 \[-1, 3\] for another",
        ),
        ([step("nobody")], ("y",), "there is no model nobody"),
    ],
)
async def test_what_does_not_fit_together_is_refused(steps: list[Step], outputs: tuple[str, ...], reason: str) -> None:
    async with twice(ScriptedEngine(), Adding()) as (_, models):
        with pytest.raises(SeatrialError, match=reason):
            Plan.of(Ensemble(name="e", steps=tuple(steps), outputs=outputs), models.find)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = 1", "declares no ensemble"),
        ("name = 'e'\noutputs = ['y']\nsteps = []", "at least one step"),
        ("name = '../e'\noutputs = ['y']\nsteps = [{model = 'm'}]", "cannot be a model's name"),
        ("name = 'e'\noutputs = ['y']\nsteps = [{model = 'a@b@c'}]", "expected NAME, NAME/VERSION or NAME@ALIAS"),
        ("name = 'e'\noutputs = ['y']\nsteps = [{model = 'e'}]", "a step of itself"),
        ("name = 'e'\noutputs = ['y']\nstep = []", "unknown field `step`"),
        ("\x00", "declares no ensemble"),
    ],
)
def test_a_file_that_declares_no_ensemble_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "e.toml").write_text(text)
    with pytest.raises(InvalidSource, match=reason):
        read_ensemble(tmp_path / "e.toml")


def test_a_step_asks_by_version_or_alias() -> None:
    assert [Step(model=model).asked for model in ("m", "m/3", "m@champion")] == [("m", ""), ("m", "3"), ("m", "@champion")]
