"""One generation: an exact bundle, the engines that hold it, and the requests that wait for them.

Takes requests out of its queue whenever an engine is free, answers each caller with its own rows, and keeps a failure to
those it belongs to: what was in the hands of an engine that died is given to another one, and a request that was in
company when something went wrong is tried alone before anybody is blamed.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from seatrial.bundle import MAIN
from seatrial.errors import DeadlinePassed, EngineFailed, NotReady, SeatrialError, WrongInput
from seatrial.machine import resident_bytes
from seatrial.protocol import InferRequest, Tensor
from seatrial.settings import Serving
from seatrial.tensors import Array, Signature, check_text
from seatrial_monitoring.metrics import GenerationFacts, ModelMetrics
from seatrial_serving.batching import Queue, Waiting
from seatrial_serving.breadth import Breadth
from seatrial_serving.padding import likeness
from seatrial_serving.workers import SLOTS, Batch, Inputs, Outputs, Request, Worker

SWEEP_S = 0.05
SHORT_COMPUTE_S = 0.002
"""Batches shorter than this are sent ahead, so that an engine never waits for the gateway; longer ones are kept back,
because whoever arrives meanwhile may still join."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 10.0
HEALTHY_AFTER_S = 30.0
MOST_FORMS = 1024
"""Forms of requests (names, datatypes and shapes) that are remembered."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which model a generation serves. `alias` is what was followed to it, empty where the version is pinned."""

    name: str
    version: str
    variant: str
    digest: str
    alias: str
    platform: str
    labels: tuple[str, ...]
    verified: bool
    stateful: bool = False
    """It keeps a state from one request of a sequence to the next."""
    example: tuple[Tensor, ...] = field(default=(), compare=False, repr=False)
    """Inputs that the bundle recorded, as far as they are small."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


class State(StrEnum):
    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"


class Fit(NamedTuple):
    """What requests of one form have in common, for a graph that they fit. `order` finds the signature's inputs in theirs."""

    order: tuple[int, ...]
    rows: int
    size_bytes: int
    kind: Hashable
    length: int
    batched: bool
    text: bool
    """The form does not tell all: texts are looked at each time."""


class Spawn(Protocol):
    """Starts an engine; a `wide` one is to hold, where that is worth it, a second session on all cores. `gently`: others
    serve meanwhile, and are not to notice it."""

    def __call__(self, *, wide: bool, gently: bool) -> Awaitable[Worker]: ...


class Generation:
    """Created by `start`, when all its engines are ready; in a further gateway without engines, which then `join`, and
    without `spawn`: others join in place of those that die. Lives on one event loop."""

    stateful = False
    """Whether its requests come in sequences."""

    def __init__(
        self,
        identity: Identity,
        graphs: Mapping[str, Signature],
        metrics: ModelMetrics,
        settings: Serving,
        *,
        spawn: Spawn | None = None,
    ) -> None:
        self.identity, self.metrics, self.state = identity, metrics, State.SERVING
        self.graphs = graphs
        self.signature = self.graphs[MAIN]
        self.load_s = 0.0
        self.joined: Callable[[Worker], None] | None = None
        """Is told of every engine that takes the place of a dead one."""
        self._workers: list[Worker] = []
        self._spawn, self._settings = spawn, settings
        self.batching, self.sequences = settings.batching, settings.sequences
        self._queue: Queue[Inputs, Outputs] = Queue(
            max_requests=settings.batching.max_queue,
            max_bytes=settings.batching.max_queue_bytes,
            max_tokens=settings.batching.max_tokens,
        )
        batch = self.signature.batch
        self.max_rows = min(settings.batching.max_size, batch.max) if batch else 1
        self._preferred = sorted(size for size in settings.batching.preferred_sizes if size <= self.max_rows)
        self._enough = min(self._preferred, default=self.max_rows) if settings.batching.together else 1
        self._default_level = settings.batching.level(0)
        self._queue_s = (settings.batching.queue_timeout_ms or math.inf) / 1000
        self._fits: dict[Hashable, Fit] = {}
        self._compute_s = 0.0
        self._breadth = Breadth()
        self._dispatching: asyncio.Handle | None = None
        self._sweeping: asyncio.Handle | None = None
        self._drained = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._backoff_s, self._last_death = 0.0, 0.0

    @classmethod
    async def start(
        cls,
        identity: Identity,
        spawn: Spawn,
        *,
        count: int,
        metrics: ModelMetrics,
        settings: Serving,
        gently: bool = False,
    ) -> "Generation":
        """Start `count` engines at once, one of them wide. Raises what the first refused with; then none is left behind."""
        spawning = (spawn(wide=not number, gently=gently) for number in range(count))
        started = await asyncio.gather(*spawning, return_exceptions=True)
        workers = [worker for worker in started if not isinstance(worker, BaseException)]
        refused = next((refusal for refusal in started if isinstance(refusal, BaseException)), None)
        if refused is not None:
            await asyncio.gather(*(worker.close() for worker in workers))
            raise refused
        generation = cls(identity, workers[0].graphs, metrics, settings, spawn=spawn)
        for worker in workers:
            generation.join(worker)
        return generation

    def join(self, worker: Worker) -> None:
        """Give batches to `worker` from now on."""
        self.load_s = max(self.load_s, worker.load_s)
        self._workers.append(worker)
        worker.attach(self)
        self._dispatch()

    def admit(
        self,
        request: InferRequest,
        *,
        arrived: float,
        deadline: float,
        graph: str = MAIN,
        priority: int = 0,
        caller: str = "",  # noqa: ARG002 - whose sequence it is, where there are some
    ) -> Request:
        """Check `request` and put it in line; the answer is awaited on what is returned.

        Raises `WrongInput`, `Overloaded` or `NotReady`.
        """
        if self.state is not State.SERVING:
            raise NotReady(f"{self.identity} is {self.state}")
        waiting = self._waiting(request, arrived=arrived, deadline=deadline, graph=graph)
        if priority:
            waiting.level = self._settings.batching.level(priority)
        self._queue.put(waiting)
        self._dispatch_soon()
        return waiting

    def home(self, request: InferRequest, caller: str) -> "Generation":  # noqa: ARG002 - there are no sequences here
        """The generation that has the sequence which `request` goes on with, else this one. Raises `WrongInput`."""
        return self

    def abandon(self, request: InferRequest, caller: str) -> None:
        """The client of the sequence that `request` belongs to has gone."""

    def facts(self) -> GenerationFacts:
        return GenerationFacts(
            model=self.identity.name,
            version=self.identity.version,
            variant=self.identity.variant,
            digest=self.identity.digest,
            alias=self.identity.alias,
            verified=self.identity.verified,
            engines=len(self._workers),
            queue_depth=len(self._queue),
            in_flight=sum(len(batch.requests) for worker in self._workers for batch in worker.held),
            load_s=self.load_s,
            resident_bytes=sum(resident_bytes(worker.pid) for worker in self._workers),
        )

    @property
    def ready(self) -> bool:
        return self.state is State.SERVING and bool(self._workers)

    @property
    def settings(self) -> Serving:
        return self._settings

    @property
    def workers(self) -> Sequence[Worker]:
        return self._workers

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    def follow(self, old: "Generation") -> None:
        """This one comes in place of `old`, which is about to be drained."""

    async def drain(self, *, sequences_s: float = 0.0) -> None:  # noqa: ARG002 - there are none here
        """Take no new request, answer those that wait, then end the engines. Sequences may go on for `sequences_s`."""
        self.state = State.DRAINING
        self._note_if_drained()
        await self._drained.wait()
        await self.close()

    async def close(self) -> None:
        """End the engines now; whoever still waits is refused."""
        self.state = State.CLOSED
        self._queue.clear(NotReady(f"{self.identity} was stopped"))
        for worker in self._workers:
            for batch in worker.held:
                for waiting in batch.requests:
                    waiting.fail(NotReady(f"{self.identity} was stopped"))
        for handle in (self._dispatching, self._sweeping):
            if handle is not None:
                handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers))
        self._workers.clear()
        self._drained.set()

    # What workers report

    def answered(self, worker: Worker, batch: Batch, outputs: Sequence[Outputs], compute_s: float) -> None:  # noqa: ARG002
        self._dispatch()  # first of all: the engine waits
        for waiting, answer in zip(batch.requests, outputs, strict=True):
            waiting.deliver(answer)
        self._compute_s += 0.1 * (compute_s - self._compute_s)
        if batch.alone:
            self._breadth.learn(batch.size_bytes, wide=batch.wide, took_s=compute_s)
        self.metrics.computed(compute_s, rows=batch.rows, requests=len(batch.requests))
        if batch.longest:
            real = sum(waiting.rows * waiting.length for waiting in batch.requests)
            self.metrics.tokens += real
            self.metrics.padding += batch.rows * batch.longest - real
        self._dispatch()

    def failed(self, worker: Worker, batch: Batch, error: SeatrialError) -> None:  # noqa: ARG002
        """The engine is well but refused the batch: one request of several must not spoil the others' answers."""
        if len(batch.requests) == 1:
            batch.requests[0].fail(error)
        else:
            self._try_again_alone(batch)
        self._dispatch()

    def died(self, worker: Worker, held: Sequence[Batch], reason: str) -> None:
        log.error("%s: engine process %d died (%s); %d batches in hand", self.identity, worker.pid, reason, len(held))
        self.metrics.engine_deaths += 1
        self._workers.remove(worker)
        computed = [batch for batch in held[:1] if batch.begun]
        for ahead in reversed(held[len(computed) :]):  # lay ready; the engine had not come to them
            self._queue.put_back(ahead.requests)
        for batch in computed:
            for waiting in batch.requests:
                waiting.deaths += 1
            self._try_again_alone(batch)
        self._start(self._replace(worker, self._spawn) if self._spawn is not None else worker.close())
        self._dispatch()

    def _try_again_alone(self, batch: Batch) -> None:
        again = []
        for waiting in batch.requests:
            if waiting.deaths >= self._settings.engines.max_deaths:
                self.metrics.quarantined += 1
                waiting.fail(
                    EngineFailed(f"{waiting.deaths} engines died with this request in hand; it is not tried again")
                )
            elif not waiting.answer.done():
                waiting.alone = True
                again.append(waiting)
        self.metrics.retried += len(again)
        self._queue.put_back(again)

    async def _replace(self, dead: Worker, spawn: Spawn) -> None:
        """Start an engine in place of `dead`, at once the first time, later and later if they keep dying."""
        await dead.close()
        now = time.monotonic()
        self._backoff_s = self._backoff_s * 2 or FIRST_BACKOFF_S if now - self._last_death < HEALTHY_AFTER_S else 0.0
        self._last_death = now
        while self.state is not State.CLOSED:
            await asyncio.sleep(min(self._backoff_s, LONGEST_BACKOFF_S))
            try:
                wide = not any(each.wide for each in self._workers)
                worker = await spawn(wide=wide, gently=bool(self._workers))
            except SeatrialError as error:
                log.error("%s: no replacement for the dead engine: %s", self.identity, error)
                self._backoff_s = max(FIRST_BACKOFF_S, self._backoff_s * 2)
                continue
            self.join(worker)
            if self.joined is not None:
                self.joined(worker)
            return

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s: a task failed; this is a bug", self.identity, exc_info=error)

    # From the queue to the engines

    def _waiting(self, request: InferRequest, *, arrived: float, deadline: float, graph: str) -> Request:
        given = request.inputs
        form = graph, request.layout or tuple([(name, datatype, array.shape) for name, datatype, array in given])
        fit = self._fits.get(form)
        if fit is None or fit.text:
            fit = self._fit(form, request, graph)
        rows = fit.rows
        if rows > self.max_rows:
            raise WrongInput(f"the request has {rows} rows; this server runs at most {self.max_rows} at once: split it")
        return Waiting(
            item=tuple([given[index].array for index in fit.order]),
            rows=rows,
            size_bytes=fit.size_bytes,
            kind=fit.kind,
            graph=graph,
            length=fit.length,
            arrived=arrived,
            deadline=deadline,
            answer=self._loop.create_future(),
            level=self._default_level,
            queue_deadline=arrived + self._queue_s,
            alone=not fit.batched or not self.batching.together,
        )

    def _fit(self, form: Hashable, request: InferRequest, graph: str) -> "Fit":
        """Raises `WrongInput`. What is found is remembered for requests of the same form."""
        signature = self.graphs[graph]
        signature.check(request.inputs)
        check_text(request.inputs)
        names = [tensor.name for tensor in request.inputs]
        order = tuple(names.index(spec.name) for spec in signature.inputs)
        inputs = [request.inputs[index].array for index in order]
        batched = signature.batch is not None
        kind, length = likeness(graph, signature, inputs)
        fit = Fit(
            order=order,
            rows=inputs[0].shape[0] if batched else 1,
            size_bytes=sum(map(_size_bytes, inputs)),
            kind=kind,
            length=length,
            batched=batched,
            text=any(array.dtype.hasobject for array in inputs),
        )
        if len(self._fits) >= MOST_FORMS:
            del self._fits[next(iter(self._fits))]
        self._fits[form] = fit
        return fit

    def _dispatch_soon(self) -> None:
        """Once for all requests that arrive in this turn of the loop, so that they may share a batch."""
        if self._dispatching is None:
            self._dispatching = self._loop.call_soon(self._dispatch)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)

    def _dispatch(self) -> None:
        if self._dispatching is not None:
            self._dispatching.cancel()
            self._dispatching = None
        while self._queue and (worker := self._free_worker()) and not self._wait_for_company():
            now = time.monotonic()
            requests = self._take(worker, now)
            if not requests:
                break
            if not worker.run(self._batch(requests, worker, now)):
                self._queue.put_back(requests)
                continue
            for waiting in requests:
                waiting.started = now
                self.metrics.queue_s.observe(now - waiting.arrived)
        self._note_if_drained()

    def _take(self, worker: Worker, now: float) -> list[Request]:  # noqa: ARG002 - whoever is free
        return self._queue.take(max_rows=self._rows_to_take(), now=now)

    def _batch(self, requests: list[Request], worker: Worker, now: float) -> Batch:
        rows = sum(waiting.rows for waiting in requests)
        graph = requests[0].graph
        longest = max(waiting.length for waiting in requests) if self.graphs[graph].padding else 0
        batch = Batch(requests=requests, rows=rows, sent=now, graph=graph, longest=longest)
        for each in self._workers:
            if each.wide:
                for held in each.held:
                    held.alone = False  # it has company now
        if worker.wide:
            batch.alone = not self._queue and not any(each.held for each in self._workers)
            batch.wide = batch.alone and self._breadth.choose(batch.size_bytes)
        return batch

    def _wait_for_company(self) -> bool:
        """Whether the batch is small and its first request young enough to be held back, as the settings may want."""
        delay_s = self._settings.batching.max_delay_ms / 1000
        if not delay_s or self.state is State.DRAINING or self._queue.rows >= self._enough:
            return False
        oldest = self._queue.oldest
        if oldest is None or time.monotonic() - oldest >= delay_s:
            return False
        self._dispatching = self._loop.call_later(oldest + delay_s - time.monotonic(), self._dispatch)
        return True

    def _rows_to_take(self) -> int:
        """The largest preferred size that those who wait can fill; without one, as many rows as there may be."""
        if not self._preferred:
            return self.max_rows
        rows = self._queue.rows
        return max((size for size in self._preferred if size <= rows), default=self.max_rows)

    def _free_worker(self) -> Worker | None:
        """The engine with the least to do, if it may take one more."""
        ahead = SLOTS if self._compute_s < SHORT_COMPUTE_S else 1
        least = min(self._workers, key=lambda worker: (len(worker.held), not worker.wide), default=None)
        return least if least is not None and len(least.held) < ahead else None

    def _sweep(self) -> None:
        """Tell those whose deadline passed, and end engines that hang."""
        now = time.monotonic()
        self._queue.expire(now)
        busy = bool(self._queue)
        for worker in self._workers:
            for batch in worker.held:
                busy = True
                for waiting in batch.requests:
                    if now >= waiting.deadline:
                        waiting.fail(DeadlinePassed(f"no answer after {now - waiting.arrived:.3f} s"))
            if worker.held and now - worker.held[0].sent > self._settings.engines.answer_s:
                log.error("%s: engine process %d hangs; it is killed", self.identity, worker.pid)
                worker.kill()
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep) if busy else None
        self._note_if_drained()

    def _note_if_drained(self) -> None:
        if self.state is State.DRAINING and not self._queue and not any(worker.held for worker in self._workers):
            self._drained.set()


def _size_bytes(array: Array) -> int:
    """What the array takes, with its texts: an array of objects counts their addresses alone."""
    return array.nbytes if not array.dtype.hasobject else sum(map(len, array.ravel()))
