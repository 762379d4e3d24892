"""A generation on this event loop whose engines do what a test tells them."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry

from seatrial.errors import EngineFailed
from seatrial.protocol import Tensor
from seatrial.settings import Serving
from seatrial.tensors import Array, DataType, Signature
from seatrial_monitoring.metrics import ServingMetrics
from seatrial_serving.generation import Generation, Identity
from seatrial_serving.workers import SLOTS, Batch, Owner, Worker, slice_outputs
from tests.serving.models import SIGNATURE, linear

IDENTITY = Identity(
    name="linear", version="1", variant="fp32", digest="", alias="", platform="test", labels=(), verified=True
)
POISON = 666.0


@dataclass(eq=False)
class ScriptedEngine:
    """An engine on this loop that answers when told, dies of one value, and refuses another."""

    graphs: Mapping[str, Signature] = field(default_factory=lambda: {"main": SIGNATURE})
    load_s: float = 0.0
    golden: int = 0
    pid: int = field(default_factory=os.getpid)
    held: list[Batch] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    held_back: bool = False
    wide: bool = False
    state_bytes: int | None = None
    compute_s: dict[bool, float] = field(default_factory=lambda: {False: 0.001, True: 0.001})
    """What it says a batch took, on its share of the cores and on all."""
    widths: list[bool] = field(default_factory=list)
    closed: bool = False
    owner: Owner | None = None

    def attach(self, owner: Owner) -> None:
        self.owner = owner

    def run(self, batch: Batch) -> bool:
        assert len(self.held) < SLOTS
        self.held.append(batch)
        self.sizes.append(batch.rows)
        self.widths.append(batch.wide)
        if not self.held_back:
            asyncio.get_running_loop().call_soon(self.answer)
        return True

    def answer(self) -> None:
        assert self.owner is not None
        if not self.held or self.closed:
            return
        batch = self.held.pop(0)
        x = np.concatenate([request.item[0] for request in batch.requests])
        if (x == POISON).any():
            held, self.held = [batch, *self.held], []
            self.owner.died(self, held, "poisoned")
        elif (x == -POISON).any():
            self.owner.failed(self, batch, EngineFailed("refused"))
        else:
            outputs = [Tensor("y", DataType.FP32, self.compute(x))]
            self.owner.answered(self, batch, slice_outputs(outputs, batch.requests), self.compute_s[batch.wide])

    def compute(self, x: Array) -> Array:
        return linear(x)

    def kill(self) -> None:
        assert self.owner is not None
        held, self.held = self.held, []
        self.owner.died(self, held, "killed")

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def generation(
    spawn: Callable[[], object], *, count: int = 1, serving: Serving | None = None
) -> AsyncIterator[Generation]:
    async def start(*, wide: bool, gently: bool) -> Worker:  # noqa: ARG001 - what the engine is, `spawn` decides
        made = spawn()
        return await made if asyncio.iscoroutine(made) else made  # type: ignore[return-value] # either

    metrics = ServingMetrics(CollectorRegistry(), 0.1)
    started = await Generation.start(
        IDENTITY, start, count=count, metrics=metrics.model("linear", "1", "fp32"), settings=serving or Serving()
    )
    try:
        yield started
    finally:
        await started.close()
