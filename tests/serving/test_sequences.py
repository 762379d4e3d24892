"""Rows of different lengths share batches: nobody's answer shows it, and short rows do not pay for long ones."""

import asyncio
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from seatrial.bundle import Bound, Bundle, Draft, EngineSpec, ModelName, VariantName, write_bundle
from seatrial.errors import EngineFailed
from seatrial.protocol import InferRequest, Tensor
from seatrial.settings import Batching, Serving
from seatrial.tensors import Array, DataType, DynamicAxis, Padding, Signature, TensorSpec
from seatrial_models.transformer import UNSEEN, EncoderLayer, TextTransformerConfig
from seatrial_serving.batching import CALL_TOKENS, Queue, Waiting
from seatrial_serving.engines import open_engine
from seatrial_serving.generation import Generation
from seatrial_serving.local import LocalEngine
from seatrial_serving.padding import Pad, cut_back, likeness, together
from seatrial_serving.remote import EngineProcess
from seatrial_serving.workers import Request, slice_outputs
from tests.serving.conftest import load
from tests.serving.models import EncoderBundle, embedding
from tests.serving.scripted import ScriptedEngine, generation

WIDTH, VOCABULARY, LONGEST = 16, 50, 24
TOLERANCE = 1e-5
SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1)),
        TensorSpec(name="mask", datatype=DataType.BOOL, shape=(-1, -1)),
    ),
    outputs=(
        TensorSpec(name="states", datatype=DataType.FP32, shape=(-1, -1, WIDTH)),
        TensorSpec(name="pooled", datatype=DataType.FP32, shape=(-1, WIDTH)),
    ),
    dynamic_axes=(
        DynamicAxis(name="batch", at={"ids": 0, "mask": 0, "states": 0, "pooled": 0}, max=64),
        DynamicAxis(name="tokens", at={"ids": 1, "mask": 1, "states": 1}, max=LONGEST),
    ),
    padding=Padding(axis="tokens", values={"ids": 7, "mask": 0}),
)
"""The id that pads is an ordinary token: the mask alone must keep it out."""


class Encoder(nn.Module):
    """Two layers of attention over what the mask shows."""

    def __init__(self) -> None:
        super().__init__()
        config = TextTransformerConfig(
            vocabulary=VOCABULARY, max_tokens=LONGEST, classes=2, width=WIDTH, heads=4, feed_forward=32
        )
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LONGEST, WIDTH))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(2))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        bias = torch.where(mask, 0.0, UNSEEN)[:, None, None, :]
        for layer in self.layers:
            states = layer(states, bias)
        weight = mask[..., None].to(states.dtype)
        return states, (states * weight).sum(1) / weight.sum(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("encoder")
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=1, max=LONGEST)}
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # those of the exporter's own libraries
        torch.manual_seed(0)
        torch.onnx.export(
            Encoder().eval(),
            (),
            place / "encoder.onnx",
            kwargs={"ids": torch.ones(2, 3, dtype=torch.long), "mask": torch.ones(2, 3, dtype=torch.bool)},
            input_names=["ids", "mask"],
            output_names=["states", "pooled"],
            dynamic_shapes={"ids": axes, "mask": axes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    bounds = {name: Bound(absolute=TOLERANCE) for name in ("states", "pooled")}
    draft = Draft(
        model=ModelName(name="encoder", version="1"),
        variant=VariantName(name="fp32", target="onnx-cpu", precision="fp32"),
        signature=SIGNATURE,
        engine=EngineSpec(name="onnxruntime"),
        graphs={"main": "encoder.onnx"},
        files={"encoder.onnx": place / "encoder.onnx"},
        golden=(),
        source_bounds=bounds,
        rerun_bounds=bounds,
    )
    return write_bundle(draft, place / "bundles")


@pytest.fixture(scope="module")
def alone(bundle: Bundle) -> Callable[[Sequence[int]], dict[str, Array]]:
    """What the encoder answers a row that shares no batch."""
    engine = open_engine(bundle, threads=1)
    return lambda ids: engine.predict({"ids": np.array([ids]), "mask": np.ones((1, len(ids)), bool)})


@pytest.fixture(scope="module", params=[EngineProcess.start, LocalEngine.start], ids=["process", "local"])
def served(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[tuple[asyncio.Runner, Generation]]:
    """A generation that lives through all examples, and the loop that it lives on."""
    with asyncio.Runner() as runner:
        life = generation(lambda: request.param(load(bundle.path, bundle.digest)))
        yield runner, runner.run(life.__aenter__())
        runner.run(life.__aexit__(None, None, None))


def ask(on: Generation, ids: Sequence[int], *, rows: int = 1) -> Request:
    tensors = (
        Tensor("ids", DataType.INT64, np.tile(np.array(ids), (rows, 1))),
        Tensor("mask", DataType.BOOL, np.ones((rows, len(ids)), bool)),
    )
    now = time.monotonic()
    return on.admit(InferRequest(tensors), arrived=now, deadline=now + 30)


async def answers(on: Generation, texts: Sequence[Sequence[int]]) -> list[tuple[Tensor, ...]]:
    return await asyncio.gather(*(ask(on, ids).answer for ids in texts))


TEXTS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=LONGEST)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=12))
def test_in_company_is_alone_whatever_the_lengths_and_every_answer_reaches_its_caller(
    served: tuple[asyncio.Runner, Generation],
    alone: Callable[[Sequence[int]], dict[str, Array]],
    texts: list[list[int]],
) -> None:
    runner, on = served
    for ids, (states, pooled) in zip(texts, runner.run(answers(on, texts)), strict=True):
        expected = alone(ids)
        assert states.array.shape == (1, len(ids), WIDTH)
        assert np.allclose(states.array, expected["states"], atol=TOLERANCE)
        assert np.allclose(pooled.array, expected["pooled"], atol=TOLERANCE)


def test_what_was_added_is_counted_and_rows_of_one_length_are_never_padded(
    served: tuple[asyncio.Runner, Generation],
) -> None:
    runner, on = served
    before = on.metrics.tokens, on.metrics.padding, on.metrics.compute_s.count
    runner.run(answers(on, [[1] * 3, [1] * 5, [1] * 4]))
    assert on.metrics.compute_s.count == before[2] + 1, "they shared a batch"
    assert (on.metrics.tokens, on.metrics.padding) == (before[0] + 12, before[1] + 3)
    runner.run(answers(on, [[1] * 5] * 4))
    assert (on.metrics.tokens, on.metrics.padding) == (before[0] + 32, before[1] + 3)


def test_rows_of_one_request_stay_together(served: tuple[asyncio.Runner, Generation]) -> None:
    runner, on = served

    async def both() -> list[tuple[Tensor, ...]]:
        return list(await asyncio.gather(ask(on, [1, 2, 3], rows=3).answer, ask(on, [4] * 6, rows=2).answer))

    assert [answer[0].array.shape for answer in runner.run(both())] == [(3, 3, WIDTH), (2, 6, WIDTH)]


# Which lengths come together

Make: TypeAlias = Callable[..., Waiting[int, int]]


@pytest.fixture(scope="module")
def waiting() -> Iterator[Make]:
    """Makes requests; their futures want a loop, which never runs."""
    loop = asyncio.new_event_loop()

    def make(number: int, length: int, **facts: Any) -> Waiting[int, int]:
        about: dict[str, Any] = {"rows": 1, "kind": "a", "deadline": math.inf} | facts
        return Waiting(item=number, length=length, size_bytes=length, arrived=0.0, answer=loop.create_future(), **about)

    yield make
    loop.close()


def queue(*line: Waiting[int, int], max_tokens: float = math.inf) -> Queue[int, int]:
    made: Queue[int, int] = Queue(max_requests=100, max_bytes=10**6, max_tokens=max_tokens)
    for each in line:
        made.put(each)
    return made


def batches(of: Queue[int, int], *, max_rows: int = 64) -> Iterator[list[Waiting[int, int]]]:
    while batch := of.take(max_rows=max_rows, now=0.0):
        yield batch


LINES = st.lists(
    st.fixed_dictionaries(
        {
            "length": st.integers(1, 60),
            "rows": st.integers(1, 4),
            "kind": st.sampled_from("ab"),
            "level": st.integers(1, 2),
            "alone": st.booleans(),
        }
    ),
    max_size=30,
)


@given(LINES, st.integers(20, 300), st.integers(4, 20))
def test_no_batch_has_more_tokens_than_it_may_unless_it_is_a_single_request(
    waiting: Make, asked: list[dict[str, Any]], max_tokens: int, max_rows: int
) -> None:
    line = [waiting(number, **facts) for number, facts in enumerate(asked)]
    q = queue(*line, max_tokens=max_tokens)
    taken = []
    while len(q):
        first = next(iter(q))
        batch = q.take(max_rows=max_rows, now=0.0)
        assert batch[0] is first, "who is first in line is in the next batch"
        rows = sum(each.rows for each in batch)
        assert len(batch) == 1 or rows * max(each.length for each in batch) <= max_tokens
        assert rows <= max_rows
        assert len({each.kind for each in batch}) == 1
        assert len(batch) == 1 or not any(each.alone for each in batch)
        taken += [each.item for each in batch]
    assert sorted(taken) == list(range(len(line)))
    assert q._bytes == 0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40))
def test_a_batch_costs_no_more_a_token_than_its_first_request_alone(waiting: Make, lengths: list[int]) -> None:
    for batch in batches(queue(*map(waiting, range(len(lengths)), lengths))):
        real, whole = sum(each.length for each in batch), len(batch) * max(each.length for each in batch)
        assert (CALL_TOKENS + whole) / real <= (CALL_TOKENS + batch[0].length) / batch[0].length + 1e-9


@given(st.lists(st.integers(1, 20), max_size=30))
def test_nobody_is_passed_over_for_ever(waiting: Make, newcomers: list[int]) -> None:
    """Whoever comes later and fits better: the third in line is computed in the third batch at the latest."""
    q = queue(waiting(0, 10), waiting(1, 11), waiting(2, 1000))
    seen: list[int] = []
    for number in range(3):
        for length in newcomers:
            q.put(waiting(99, length))
        seen += [each.item for each in q.take(max_rows=8, now=0.0)]
        assert number in seen


def test_the_nearest_in_length_join_and_the_others_wait(waiting: Make) -> None:
    line = [waiting(number, length) for number, length in enumerate((10, 30, 11, 29, 12))]
    assert [[each.item for each in batch] for batch in batches(queue(*line))] == [[0, 2, 4], [1, 3]]
    line = [waiting(number, length) for number, length in enumerate((10, 12, 10, 11))]
    assert [each.item for each in queue(*line).take(max_rows=3, now=0.0)] == [0, 2, 3]


def test_the_more_urgent_join_before_those_who_are_nearer(waiting: Make) -> None:
    q = queue(waiting(0, 10), waiting(1, 10, level=2), waiting(2, 11))
    assert [each.item for each in q.take(max_rows=2, now=0.0)] == [0, 2]


async def in_batches(engine: ScriptedEngine, on: Generation, requests: Sequence[InferRequest], graph: str) -> list[int]:
    """The sizes of the batches that the requests form while the engine holds the first of them."""
    waiting_ = [on.admit(request, arrived=0.0, deadline=math.inf, graph=graph) for request in requests]
    await asyncio.sleep(0)
    on._compute_s = 1.0  # one batch at a time
    sizes = []
    while engine.held:
        sizes.append(len(engine.held[0].requests))
        for each in engine.held.pop(0).requests:
            each.deliver(())
        on._dispatch()
    assert all(each.answer.done() for each in waiting_)
    return sizes


@pytest.mark.anyio
async def test_texts_are_grouped_by_their_bytes_before_they_are_tokens() -> None:
    text = Signature(
        inputs=(TensorSpec(name="text", datatype=DataType.BYTES, shape=(-1,)),),
        outputs=(TensorSpec(name="y", datatype=DataType.FP32, shape=(-1, 3)),),
        dynamic_axes=(DynamicAxis(name="batch", at={"text": 0, "y": 0}, max=64),),
    )
    engine = ScriptedEngine(graphs={"main": SIGNATURE, "text": text}, held_back=True)
    said = [np.array([b"x" * size], object) for size in (20, 2000, 24, 2020, 16)]
    requests = [InferRequest((Tensor("text", DataType.BYTES, each),)) for each in said]
    async with generation(lambda: engine, serving=Serving(batching=Batching(max_tokens=4096))) as on:
        assert await in_batches(engine, on, requests, "text") == [3, 2]
        assert on.metrics.tokens == 0, "nobody has counted them"
    assert [likeness("text", text, [each])[1] for each in said] == [6, 501, 7, 506, 5]


@pytest.mark.anyio
async def test_texts_and_token_ids_in_mixed_company_are_embedded_as_if_alone(tmp_path: Path) -> None:
    made = EncoderBundle().write(tmp_path)
    words = ["a ship", "a ship at sea", "a ship in harbour is safe", "sea"]
    async with generation(lambda: LocalEngine.start(load(made.path, made.digest))) as on:
        texts = [Tensor("text", DataType.BYTES, np.array([each.encode()], object)) for each in words]
        asked = [on.admit(InferRequest((each,)), arrived=0, deadline=math.inf, graph="text") for each in texts]
        ids = [np.array([[2, *[4] * number, 3]]) for number in range(1, 5)]
        tokens = [
            InferRequest(
                (
                    Tensor("input_ids", DataType.INT64, each),
                    Tensor("attention_mask", DataType.INT64, np.ones_like(each)),
                )
            )
            for each in ids
        ]
        counted = [on.admit(each, arrived=0, deadline=math.inf, graph="tokens") for each in tokens]
        for said, waiting_ in zip(words, asked, strict=True):
            assert np.allclose((await waiting_.answer)[0].array, [embedding(said)], atol=1e-6)
        for number, waiting_ in enumerate(counted, start=1):
            got, count = await waiting_.answer
            assert np.allclose(got.array, [embedding(" ".join(["a"] * number))], atol=1e-6)
            assert count.array.tolist() == [number + 2]
        assert on.metrics.batch_rows.count == 2


# Laying together and cutting back

PIECES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=5)


@given(PIECES, st.integers(1, 2), st.integers(-1, 1))
def test_what_is_laid_together_is_cut_back_to_what_it_was(sizes: list[tuple[int, int]], axis: int, value: int) -> None:
    shapes = [(rows, length, 2) if axis == 1 else (rows, 2, length) for rows, length in sizes]
    pieces = [np.random.default_rng(number).integers(5, 9, shape) for number, shape in enumerate(shapes)]
    whole = together(pieces, Pad(axis, value))
    assert (whole == value).sum() == whole.size - sum(piece.size for piece in pieces)
    for piece, back in zip(pieces, cut_back(whole, axis=axis, lengths=sizes, name="y"), strict=True):
        assert np.array_equal(piece, back)


def test_an_output_of_another_length_than_its_batch_is_the_engines_fault(waiting: Make) -> None:
    requests = [waiting(0, 3), waiting(1, 5)]
    states = Tensor("states", DataType.FP32, np.zeros((2, 4, WIDTH), np.float32))
    with pytest.raises(EngineFailed, match="output 'states' is 4 long for a batch that is 5 long"):
        slice_outputs([states], requests, SIGNATURE.sequence)  # type: ignore[arg-type] # what they ask is not looked at
