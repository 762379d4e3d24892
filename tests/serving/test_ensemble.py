"""An ensemble answers what its models would, asked one after the other; what does not fit together is said before it serves."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import hypothesis.strategies as st
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry

from seatrial.errors import DeadlinePassed, EngineFailed, InvalidSource, SeatrialError, UnknownModel
from seatrial.protocol import InferRequest, Tensor
from seatrial.settings import Batching, Serving
from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_serving.ensemble import Ensemble, Pipeline, Plan, Step, read_ensemble
from seatrial_serving.generation import Generation
from tests.conditions import soon, until
from tests.servers import Server, serving
from tests.serving.models import LinearBundle, linear, save
from tests.serving.scripted import IDENTITY, POISON, ScriptedEngine, generation

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

    async def spawn(*, wide: bool, gently: bool) -> Pipeline:  # noqa: ARG001 - a pipeline has no cores of its own
        return Pipeline(plan, models.find)

    metrics = ServingMetrics(CollectorRegistry(), 0.1).model(declared.name, "1", "ensemble")
    serving = serving or Serving()
    made = await Generation.start(IDENTITY, spawn, count=declared.pipelines, metrics=metrics, settings=serving)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def twice(
    first: ScriptedEngine, second: ScriptedEngine, *, serving: Serving | None = None
) -> AsyncIterator[tuple[Generation, Models]]:
    models = Models()
    async with generation(lambda: first) as one, generation(lambda: second) as other:
        models.by_name = {"first": one, "second": other}
        async with ensemble(TWICE, models, serving=serving) as made:
            yield made, models


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


@pytest.mark.anyio
async def test_requests_go_through_together() -> None:
    first, second = ScriptedEngine(), Adding()
    async with twice(first, second) as (on, _):
        await asyncio.gather(*(ask(on, np.ones((1, 4), np.float32)) for _ in range(10)))
    assert (first.sizes, second.sizes) == ([10], [10])


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_a_step_that_refuses_one_request_does_not_spoil_the_others() -> None:
    async with twice(ScriptedEngine(), Adding()) as (on, _):
        good = np.ones((1, 4), np.float32)
        poisoned = np.full((1, 4), -POISON, np.float32)
        answers = await asyncio.gather(*(ask(on, x) for x in (good, poisoned, good)), return_exceptions=True)
    assert isinstance(answers[1], EngineFailed)
    for answer in answers[::2]:
        assert isinstance(answer, dict)
        assert answer["hidden"].tolist() == linear(good).tolist()


@pytest.mark.anyio
async def test_a_deadline_holds_over_all_steps() -> None:
    second = Adding()
    second.held_back = True
    async with twice(ScriptedEngine(), second) as (on, models):
        with pytest.raises(DeadlinePassed):
            await ask(on, np.ones((1, 4), np.float32), timeout_s=0.05)
        assert models.by_name["second"].metrics.queue_s.count == 1


@pytest.mark.anyio
async def test_a_swap_of_a_model_is_a_swap_of_its_step() -> None:
    x = np.ones((1, 4), np.float32)
    async with twice(ScriptedEngine(), Adding()) as (on, models), generation(Doubling) as doubling:
        assert (await ask(on, x))["score"].tolist() == (linear(x) + 1).tolist()
        models.by_name["second"] = doubling
        assert (await ask(on, x))["score"].tolist() == (linear(x) * 2).tolist()


class Doubling(Adding):
    def compute(self, x: Array) -> Array:
        return x * 2


@pytest.mark.anyio
async def test_a_model_that_came_to_take_something_else_is_named() -> None:
    async with twice(ScriptedEngine(), Adding()) as (on, models):
        models.by_name["second"] = models.by_name["first"]
        with pytest.raises(EngineFailed, match="'second' takes or answers something else"):
            await ask(on, np.ones((1, 4), np.float32))
        del models.by_name["second"]
        with pytest.raises(UnknownModel):
            await ask(on, np.ones((1, 4), np.float32))


@pytest.mark.anyio
async def test_a_pipeline_that_hangs_is_ended_and_leaves_the_queues() -> None:
    second = Adding()
    second.held_back = True
    async with twice(ScriptedEngine(), second, serving=Serving(batching=Batching(max_size=1))) as (on, _):
        asked = [asyncio.ensure_future(ask(on, np.ones((1, 4), np.float32))) for _ in range(3)]
        await soon(lambda: bool(second.held))
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


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("steps", "outputs", "reason"),
    [
        ([step("first")], ("z",), r"no step of 'e' answers \['z'\]; they answer \['y'\]"),
        ([step("first", inputs={"w": "x"})], ("y",), r"'first' has no input \['w'\]; it has \['x'\]"),
        ([step("first"), step("second")], ("y",), "two steps of 'e' answer 'y'"),
        (
            [
                step("first", inputs={"x": "b"}, outputs={"y": "a"}),
                step("first", inputs={"x": "a"}, outputs={"y": "b"}),
            ],
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
    assert [Step(model=model).asked for model in ("m", "m/3", "m@champion")] == [
        ("m", ""),
        ("m", "3"),
        ("m", "@champion"),
    ]


# On a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The linear model, a sum over its outputs, and an ensemble of both that is declared before them."""
    place = tmp_path_factory.mktemp("ensemble")
    bundle = LinearBundle().write(place / "store")
    declared = place / "total.toml"
    declared.write_text(
        """
        name = "total"
        outputs = ["sum", "y"]
        [[steps]]
        model = "summing"
        inputs = {values = "y"}
        [[steps]]
        model = "linear/1"
        """
    )
    summing = save(
        place / "summing.onnx",
        [helper.make_node("ReduceSum", ["values", "axes"], ["sum"], keepdims=1)],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1])],
        constants={"axes": np.array([1], np.int64)},
    )
    environment = {"SEATRIAL_SERVING__ENGINES__COUNT": "1", "SEATRIAL_SERVING__REPOSITORY_CONTROL": "true"}
    with serving(declared, bundle.path, summing, place=place, environment=environment) as running:
        yield running


@pytest.mark.parametrize("library", [triton_http, triton_grpc], ids=["rest", "grpc"])
def test_clients_see_one_more_model(server: Server, library: Any) -> None:
    x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    with library.InferenceServerClient(server.http if library is triton_http else server.grpc) as client:
        given = library.InferInput("x", x.shape, "FP32")
        given.set_data_from_numpy(x)
        answer = client.infer("total", [given])
        assert answer.as_numpy("y").tolist() == linear(x).tolist()
        assert answer.as_numpy("sum").tolist() == linear(x).sum(axis=1, keepdims=True).tolist()
        assert client.is_model_ready("total")
    told = httpx.get(server.url("/v2/models/total")).json()
    assert told["platform"] == "ensemble"
    assert [each["name"] for each in told["inputs"]] == ["x"]
    assert server.total("seatrial_requests_total", model="total", outcome="ok") > 0


def test_a_hang_up_loads_everything_again_and_fails_no_request(server: Server) -> None:
    done = server.total("seatrial_swaps_total", outcome="done")
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    server.process.send_signal(signal.SIGHUP)
    statuses = set()

    def swapped() -> bool:
        statuses.add(httpx.post(server.url("/v2/models/total/infer"), json=body).status_code)
        return server.total("seatrial_swaps_total", outcome="done") == done + 3

    until(swapped, within_s=60)
    assert statuses == {200}
