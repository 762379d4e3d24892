"""A generation of a model with a memory: who asks is in the middle of a sequence, and one engine has what came before.

Requests of one sequence are computed in their order, one at a time, by the engine that it began on; those of different
sequences share batches. A sequence ends with the request that says so, when nobody asks for too long, with its engine, or
with the first of its requests that gets no answer, since what follows would be computed from another state than its client
thinks. Nothing is replayed. After a swap, sequences go on with the generation that they began with.
Source: Triton's sequence extension, and its sequence batcher for what is refused and in which words.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple, TypeAlias

from seatrial.bundle import MAIN
from seatrial.errors import EngineFailed, NotReady, Overloaded, WrongInput
from seatrial.protocol import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START, InferRequest, Parameters, Step, Tensor
from seatrial.settings import Serving
from seatrial.tensors import Signature
from seatrial_monitoring.metrics import ModelMetrics
from seatrial_serving.engines.stateful import Turn
from seatrial_serving.generation import SHORT_COMPUTE_S, SWEEP_S, Generation, Identity, Spawn, State
from seatrial_serving.workers import SLOTS, Batch, Outputs, Request, Worker

Name: TypeAlias = tuple[str, int | str]
"""Whose sequence it is, where that is known, and what they call it: nobody goes on with what is another's."""
MOST_FORGOTTEN = 1000
"""How many ended sequences an engine is told of with one batch."""


@dataclass(slots=True, kw_only=True, eq=False)
class StatefulSequence:
    """One sequence."""

    name: Name
    number: int
    """What its engine knows it by."""
    used: float
    worker: Worker | None
    """The engine that has, or is to have, its state; None while none is up."""
    line: list[Request] = field(default_factory=list)
    """What was asked and not answered; only the first may be in a batch."""
    kept: bool = False
    """Its engine may have a state for it."""

    @property
    def begun(self) -> bool:
        return self.kept or bool(self.line and self.line[0].started)


class Place(NamedTuple):
    """Where a request stands."""

    sequence: StatefulSequence
    step: Step


class StatefulGeneration(Generation):
    stateful = True

    def __init__(
        self,
        identity: Identity,
        graphs: Mapping[str, Signature],
        metrics: ModelMetrics,
        settings: Serving,
        *,
        spawn: Spawn | None = None,
    ) -> None:
        super().__init__(identity, graphs, metrics, settings, spawn=spawn)
        self._most = self.sequences.max_open
        self._idle_s = self.sequences.idle_s
        self.open: dict[Name, StatefulSequence] = {}
        """Those that may be asked."""
        self._alive: set[StatefulSequence] = set()
        """Those, and others that ended but still wait for answers."""
        self.ended: dict[Name, str] = {}
        """Why sequences ended before their clients said so; the latest of them."""
        self._places: dict[Request, Place] = {}
        self._forgotten: dict[Worker, list[int]] = {}
        self._numbers = count(1)
        self.before: list[StatefulGeneration] = []
        """Generations that this one came in place of, which still have sequences."""
        self._looking = self._loop.call_soon(self._look_for_idle)
        self._hastening: asyncio.Handle | None = None

    def join(self, worker: Worker) -> None:
        self._most = min(self.sequences.max_open, max(1, self.sequences.max_bytes // (worker.state_bytes or 1)))
        super().join(worker)

    # From the caller to the queue

    def home(self, request: InferRequest, caller: str) -> Generation:
        step = request.step
        known = (each for each in (self, *self.before) if not step.first and (caller, step.id) in each.open)
        return next(known, self)

    def abandon(self, request: InferRequest, caller: str) -> None:
        self.take_no_more((caller, request.step.id), "its client left")

    def admit(
        self,
        request: InferRequest,
        *,
        arrived: float,
        deadline: float,
        graph: str = MAIN,
        priority: int = 0,
        caller: str = "",
    ) -> Request:
        """As for any model; the requests of a sequence besides wait for each other.

        Raises `WrongInput` also where it belongs to no sequence, or to one that was not started, and `Overloaded` also where
        there are too many.
        """
        step = request.step
        name = caller, step.id
        if self.state is State.CLOSED or (step.first and self.state is not State.SERVING):
            raise NotReady(f"{self.identity} is {self.state}")
        waiting = self._waiting(request, arrived=arrived, deadline=deadline, graph=graph)
        sequence = self._begin(name) if step.first else self._continue(name)
        if priority:
            waiting.level = self._settings.batching.level(priority)
        self._queue.put(waiting)
        self._join(sequence, step, waiting)
        self._dispatch_soon()
        return waiting

    def _begin(self, name: Name) -> StatefulSequence:
        if len(self._alive) >= self._most and name not in self.open:
            raise Overloaded(
                f"{len(self._alive)} sequences of '{self.identity.name}' are open already, the most that "
                "serving.sequences.max_open and max_bytes allow"
            )
        number = next(self._numbers)
        worker = self._workers[number % len(self._workers)] if self._workers else None
        return StatefulSequence(name=name, number=number, used=time.monotonic(), worker=worker)

    def _continue(self, name: Name) -> StatefulSequence:
        if name in self.open:
            return self.open[name]
        why = next((each.ended[name] for each in (self, *self.before) if name in each.ended), "")
        raise WrongInput(
            f"inference request for sequence {name[1]} to model '{self.identity.name}' must specify the START flag on the "
            f"first request of the sequence ({SEQUENCE_START})"
            + (f"; it ended because {why}: start it again" if why else "")
        )

    def _join(self, sequence: StatefulSequence, step: Step, waiting: Request) -> None:
        if step.first:
            for each in (self, *self.before):
                each.take_no_more(sequence.name, "another was started with its id")
            self.ended.pop(sequence.name, None)
            self.open[sequence.name] = sequence
            self._alive.add(sequence)
        if step.last:
            del self.open[sequence.name]
        sequence.used = time.monotonic()
        sequence.line.append(waiting)
        self._places[waiting] = Place(sequence, step)
        waiting.answer.add_done_callback(partial(self._over, waiting))

    # From the queue to the engines

    def _free_worker(self) -> Worker | None:
        """The engine with the least to do of those that may take one more, and that somebody waits for."""
        ahead = SLOTS if self._compute_s < SHORT_COMPUTE_S else 1
        free = sorted((each for each in self._workers if len(each.held) < ahead), key=lambda each: len(each.held))
        return next((worker for worker in free if any(self._may_go(waiting, worker) for waiting in self._queue)), None)

    def _take(self, worker: Worker, now: float) -> list[Request]:
        only = partial(self._may_go, worker=worker)
        taken = self._queue.take(max_rows=self._rows_to_take(), now=now, only=only)
        for waiting in taken:
            self._places[waiting].sequence.worker = worker
        return taken

    def _may_go(self, waiting: Request, worker: Worker) -> bool:
        place = self._places.get(waiting)
        if place is None:  # it is over, and will be dropped
            return False
        return place.sequence.line[0] is waiting and place.sequence.worker in (worker, None)

    def _batch(self, requests: list[Request], worker: Worker, now: float) -> Batch:
        batch = super()._batch(requests, worker, now)
        forgotten = self._forgotten.get(worker, [])
        batch.turns = (*map(Turn, forgotten[:MOST_FORGOTTEN]), *map(self._turn, requests))
        del forgotten[:MOST_FORGOTTEN]
        return batch

    def _turn(self, waiting: Request) -> Turn:
        sequence, step = self._places[waiting]
        return Turn(sequence.number, waiting.rows, step.first, step.last, step.id)

    # What becomes of them

    def _over(self, waiting: Request, answer: "asyncio.Future[Outputs]") -> None:
        sequence, step = self._places.pop(waiting)
        place = sequence.line.index(waiting)
        behind = sequence.line[place + 1 :]
        del sequence.line[place]
        sequence.used = time.monotonic()
        if self.state is State.CLOSED:
            return
        if answer.cancelled() or answer.exception() is not None:
            sequence.kept = sequence.kept or waiting.started > 0
            self._break_off(sequence, behind, "one of its requests was not answered")
        else:
            sequence.kept = not step.last
        self._leave(sequence)
        self._dispatch_soon()

    def take_no_more(self, name: Name, why: str) -> None:
        """Whoever goes on with the sequence `name` is refused, and told why; what was asked is answered."""
        sequence = self.open.pop(name, None)
        if sequence is None:
            return
        if len(self.ended) >= self._most:
            del self.ended[next(iter(self.ended))]
        self.ended[name] = why
        self._leave(sequence)

    def _break_off(self, sequence: StatefulSequence, behind: Sequence[Request], why: str) -> None:
        """Refuse what comes, and the requests `behind`."""
        if self.open.get(sequence.name) is sequence:
            self.take_no_more(sequence.name, why)
        for waiting in behind:
            waiting.fail(EngineFailed(f"the sequence {sequence.name[1]} has ended because {why}: start it again"))

    def _leave(self, sequence: StatefulSequence) -> None:
        """Let its engine forget the sequence, if it has ended and nobody waits for it."""
        if sequence.line or self.open.get(sequence.name) is sequence or sequence not in self._alive:
            return
        self._alive.discard(sequence)
        if sequence.kept and sequence.worker in self._workers:
            self._forgotten.setdefault(sequence.worker, []).append(sequence.number)
        self._note_if_drained()

    def died(self, worker: Worker, held: Sequence[Batch], reason: str) -> None:  # noqa: ARG002 - nothing is replayed
        """Its sequences end; those that it had not come to begin elsewhere."""
        for sequence in [each for each in self._alive if each.worker is worker]:
            if sequence.begun:
                self._break_off(sequence, sequence.line, "the engine that had its state died")
            else:
                sequence.worker = None
        self._forgotten.pop(worker, None)
        super().died(worker, [], reason)

    def _look_for_idle(self) -> None:
        """Now, and every now and then."""
        now = time.monotonic()
        for sequence in list(self.open.values()):
            if not sequence.line and now - sequence.used >= self._idle_s:
                self.take_no_more(sequence.name, f"nobody asked for {self._idle_s:g} s")
        self._looking = self._loop.call_later(max(SWEEP_S, self._idle_s / 4), self._look_for_idle)

    # Swaps and the end

    def follow(self, old: Generation) -> None:
        """Sequences of `old` go on there, and are found here."""
        if isinstance(old, StatefulGeneration):
            self.before = [each for each in (old, *old.before) if each.state is not State.CLOSED]

    async def drain(self, *, sequences_s: float = 0.0) -> None:
        if sequences_s:
            self._hastening = self._loop.call_later(sequences_s, self.hasten)
        else:
            for each in (self, *self.before):
                each.hasten()
        await super().drain()

    def hasten(self) -> None:
        """End the sequences, once what was asked of them is answered."""
        for name in list(self.open):
            self.take_no_more(name, "another version of the model came in its place")

    async def close(self) -> None:
        self._looking.cancel()
        if self._hastening is not None:
            self._hastening.cancel()
        await super().close()

    def _note_if_drained(self) -> None:
        if not self._alive:
            super()._note_if_drained()


def steps(request: InferRequest, signature: Signature) -> Iterator[InferRequest]:
    """Each row of `request` as the next step of its sequence. Raises `WrongInput`."""
    signature.check(request.inputs)
    step, batched = request.step, signature.batch is not None
    rows = request.inputs[0].array.shape[0] if batched else 1
    for row in range(rows):
        ends = {SEQUENCE_START: step.first and row == 0, SEQUENCE_END: step.last and row == rows - 1}
        inputs = [
            Tensor(name, datatype, array[row : row + 1] if batched else array)
            for name, datatype, array in request.inputs
        ]
        yield request._replace(inputs=tuple(inputs), parameters={**request.parameters, **ends}, layout=None)


def in_sequence(request: InferRequest) -> InferRequest:
    """`request` itself, or if it names no sequence all of one of its own."""
    if request.parameters.get(SEQUENCE_ID):
        return request
    own: Parameters = {SEQUENCE_ID: secrets.token_hex(16), SEQUENCE_START: True, SEQUENCE_END: True}
    return request._replace(parameters={**request.parameters, **own})
