"""What runs batches for a generation, in whatever process: the contract, and what goes over it.

A worker takes a batch only while it has a free slot, and reports every batch exactly once to its `Owner`. It knows
nothing of queues: what happens to a batch that failed or was lost is the generation's business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from seatrial.bundle import MAIN
from seatrial.errors import SeatrialError
from seatrial.protocol import Tensor
from seatrial.tensors import Array, DynamicAxis, Signature
from seatrial_serving.batching import Waiting
from seatrial_serving.engines.stateful import Turn
from seatrial_serving.padding import cut_back

Inputs: TypeAlias = tuple[Array, ...]
Outputs: TypeAlias = tuple[Tensor, ...]
Request: TypeAlias = Waiting[Inputs, Outputs]

SLOTS = 2
"""Batches that a worker may hold: one that it computes and one that lies ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker is to load: a bundle, a model of a Triton repository, or a bare ONNX file, of which none has a digest."""

    path: Path
    digest: str
    threads: int
    warm_up: tuple[int, ...]
    start_s: float
    wide_threads: int = 0
    """Threads of a second session, for batches that are alone; 0 for none."""
    gently: bool = False
    """At the lowest priority until it is ready, because others serve meanwhile."""


@dataclass(slots=True, kw_only=True, eq=False)
class Batch:
    requests: list[Request]
    rows: int
    sent: float = 0.0
    graph: str = MAIN
    longest: int = 0
    """How long its rows are, with padding; 0 where requests of different lengths share no batch."""
    alone: bool = False
    """Nothing else was being computed when it was sent, nor has been since."""
    wide: bool = False
    """It runs on all cores."""
    slot: int = -1
    """Where the worker that holds it has put it."""
    turns: tuple[Turn, ...] = ()
    """Whose rows they are, of a model with a memory."""
    begun: bool = True
    """Once its engine has died: whether that had come to it."""

    @property
    def size_bytes(self) -> int:
        return sum(request.size_bytes for request in self.requests)


class Owner(Protocol):
    """Hears what became of batches, on the event loop."""

    def answered(self, worker: "Worker", batch: Batch, outputs: Sequence[Outputs], compute_s: float) -> None: ...

    def failed(self, worker: "Worker", batch: Batch, error: SeatrialError) -> None: ...

    def died(self, worker: "Worker", held: Sequence[Batch], reason: str) -> None: ...


class Worker(Protocol):
    graphs: Mapping[str, Signature]
    load_s: float
    golden: int
    wide: bool
    """Whether it can run a batch on all cores."""
    state_bytes: int | None
    """What one sequence takes; None where the model has no memory."""

    @property
    def pid(self) -> int: ...

    @property
    def held(self) -> Sequence[Batch]:
        """Batches that were taken and not reported yet, oldest first."""

    def attach(self, owner: Owner) -> None:
        """Report to `owner` from now on."""

    def run(self, batch: Batch) -> bool:
        """Take a batch; only while `len(held) < SLOTS`. False, having reported its death, where it turns out to be gone."""

    def kill(self) -> None:
        """End it at once; it reports what it held as died."""

    async def close(self) -> None:
        """End it in peace; what it still holds is not reported."""


def slice_outputs(
    outputs: Sequence[Tensor], requests: Sequence[Request], sequence: DynamicAxis | None = None
) -> list[Outputs]:
    """Each request's own rows of the batch's outputs; of outputs that have the axis `sequence`, its own length of them.

    The batch is copied, once; where nothing is cut off, the rows are views of the copy.
    """
    if len(requests) == 1:
        return [tuple(Tensor(name, datatype, array.copy()) for name, datatype, array in outputs)]
    if sequence is not None and any(tensor.name in sequence.at for tensor in outputs):
        return _cut_outputs(outputs, requests, sequence)
    copies = [(name, datatype, array.copy()) for name, datatype, array in outputs]
    answers = []
    start = 0
    for request in requests:
        end = start + request.rows
        answers.append(tuple([Tensor(name, datatype, array[start:end]) for name, datatype, array in copies]))
        start = end
    return answers


def _cut_outputs(outputs: Sequence[Tensor], requests: Sequence[Request], sequence: DynamicAxis) -> list[Outputs]:
    lengths = [(request.rows, request.length) for request in requests]
    ends = list(accumulate(rows for rows, _ in lengths))
    pieces = [
        cut_back(array, axis=sequence.at[name], lengths=lengths, name=name)
        if name in sequence.at
        else np.split(array.copy(), ends[:-1])
        for name, _, array in outputs
    ]
    return [
        tuple([Tensor(name, datatype, part) for (name, datatype, _), part in zip(outputs, parts, strict=True)])
        for parts in zip(*pieces, strict=True)
    ]
