"""All gateways of a server as one: that of this process, and further ones in processes of their own, where they are needed.

Each further gateway holds connections, queues and counters of its own, on the same ports: the system gives it its part of the
connections. It serves what this one serves, with the same engines, and does as it is told. One that dies is replaced, and
told everything anew; its connections are lost, and nobody else's.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from seatrial.errors import EngineFailed, NotReady, SeatrialError
from seatrial.protocol import InferRequest, encode_request
from seatrial.settings import Serving
from seatrial_monitoring.metrics import Counted
from seatrial_serving import control
from seatrial_serving.channel import socket_pair
from seatrial_serving.control import Link, Said, Told
from seatrial_serving.data_plane import DataPlane
from seatrial_serving.doors.http import bind
from seatrial_serving.ensemble import Pipeline
from seatrial_serving.fork_server import GATEWAYS, Forked, ForkServer
from seatrial_serving.generation import FIRST_BACKOFF_S, HEALTHY_AFTER_S, LONGEST_BACKOFF_S, Generation
from seatrial_serving.remote import EngineProcess, how_ended
from seatrial_serving.repository import Repository
from seatrial_serving.workers import Worker

COUNT_S = 1.0
"""How long a scrape waits for a gateway; of one that does not answer, what it said last is taken."""
BRIEF_S = 0.0005
SETTLE_S = 60.0
"""How long a gateway may take over what it is told, its start included."""

log = logging.getLogger(__name__)


class Gateways:
    """Everything that becomes known or changes is told to all of them, in the same order. Without `start`, there is one."""

    def __init__(
        self, plane: DataPlane, *, count: int = 1, at_need: bool = False, forks: ForkServer | None = None
    ) -> None:
        """There are `count` of them; `at_need`, not before a model is served that one of them cannot keep busy."""
        self._plane, self._count, self._at_need = plane, count, at_need
        self._starting: asyncio.Task[None] | None = None
        self._forks = forks or ForkServer(GATEWAYS)
        self._others: list[_Further] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._ending: list[asyncio.Task[None]] = []
        self._numbers: dict[Generation, int] = {}
        self._last = 0
        self._leaving: dict[Generation, list[asyncio.Future[Said]]] = {}
        self._gone = Counted()
        """What gateways that have ended had counted."""
        self.deaths = 0
        self._listening = False
        self._spawn: Callable[[_Heard], Awaitable[_Further]]

    @property
    def several(self) -> bool:
        return self._count > 1

    @property
    def running(self) -> int:
        return 1 + len(self._others)

    def counted(self) -> Sequence[Counted]:
        """By the further ones, when they were last asked."""
        return [self._gone, *(each.counted for each in self._others)] if self.several else ()

    # Their processes

    async def start(self, serving: Serving, listeners: Sequence[socket.socket], *, log_lock: int) -> None:
        """Start the further ones, to share the ports of `listeners`, unless they are not needed yet."""
        addresses = [each.getsockname()[:2] for each in listeners]
        self._spawn = partial(_spawn, self._forks, serving, self._count, addresses, log_lock)
        if not self._at_need:
            await self._bring_up_all()

    async def _bring_up_all(self) -> None:
        try:
            for _ in range(self._count - 1):
                keeping = self._keep(await self._bring_up())
                self._keeping.append(asyncio.get_running_loop().create_task(keeping))
        except (OSError, SeatrialError) as error:
            log.error("further gateways cannot be started, so %d must do: %s", self.running, error)

    async def listen(self) -> None:
        """Let them take connections, and return when they do."""
        self._listening = True
        await self._all(control.Listen())

    def alone(self) -> None:
        """End the further ones for good, in the background."""
        self._at_need = False
        if self._others:
            log.warning("a model with a memory is served, which takes one gateway: the others end")
            self.stop_soon()

    def drain(self) -> None:
        """Readiness says no everywhere."""
        self._plane.accepting = False
        for each in self._others:
            each.link.tell(control.Drain())

    def stop_soon(self) -> None:
        """Tell the further ones to answer what they have in hand, and to end."""
        for task in (*self._keeping, *filter(None, [self._starting])):
            task.cancel()
        others, self._others = self._others, []
        for each in others:
            each.link.tell(control.Stop())
            self._gone = self._gone.plus(replace(each.counted, generations=()))
            self._ending.append(asyncio.get_running_loop().create_task(self._see_off(each)))

    async def stop(self) -> None:
        """Return when they have ended."""
        self.stop_soon()
        await asyncio.gather(*self._keeping, *self._ending, return_exceptions=True)
        self._forks.close()

    async def _see_off(self, further: "_Further") -> None:
        await further.end(self._patience_s)
        further.link.close()

    async def _keep(self, further: "_Further") -> None:
        """Put another in its place whenever it ends; later and later if that is soon."""
        backoff_s = 0.0
        while True:
            began = time.monotonic()
            code = await further.process.wait()
            self._others.remove(further)
            self._gone = self._gone.plus(replace(further.counted, generations=()))
            self.deaths += 1
            further.link.close()
            log.error("a gateway ended with %s: its connections are lost; it is started again", how_ended(code))
            healthy = time.monotonic() - began >= HEALTHY_AFTER_S
            backoff_s = 0.0 if healthy else min(backoff_s * 2 or FIRST_BACKOFF_S, LONGEST_BACKOFF_S)
            further = await self._bring_up_again(backoff_s)

    async def _bring_up_again(self, backoff_s: float) -> "_Further":
        while True:
            await asyncio.sleep(backoff_s)
            try:
                return await self._bring_up()
            except (OSError, SeatrialError) as error:
                log.error("no gateway can be started in place of the one that ended: %s", error)
                backoff_s = LONGEST_BACKOFF_S

    async def _bring_up(self) -> "_Further":
        """Start one, and tell it everything that the others know."""
        further = await self._spawn(self._heard)
        self._others.append(further)
        for name in self._plane.expected:
            further.link.tell(control.Expect(name))
        for generation, default in self._plane.installed():
            self._introduce(further, generation)
            further.link.tell(control.Install(self._numbers[generation], default))
        if self._listening:
            further.link.ask(control.Listen())
        if not self._plane.accepting:
            further.link.tell(control.Drain())
        return further

    @property
    def _patience_s(self) -> float:
        """A request is answered within its deadline, and what an engine has in hand before that is taken for hung."""
        return self._plane.settings.limits.request_s + self._plane.settings.engines.answer_s

    # What they serve

    def expect(self, name: str) -> None:
        self._plane.expect(name)
        self._tell(control.Expect(name))

    def forget(self, name: str) -> None:
        self._plane.forget(name)
        self._tell(control.Forget(name))

    def install(self, generation: Generation, *, default: bool) -> None:
        """As `DataPlane.install`, everywhere; the further ones follow within a moment. A model with a memory has it in one
        gateway: the others end."""
        if generation.stateful:
            self.alone()
        self._plane.install(generation, default=default)
        if not self.several:
            return
        if generation not in self._numbers:
            self._last += 1
            self._numbers[generation] = self._last
            generation.joined = partial(self._joined, generation)
            for each in self._others:
                self._introduce(each, generation)
        self._tell(control.Install(self._numbers[generation], dict(self._plane.installed())[generation]))
        if self._at_need and self._starting is None and _is_brief(generation):
            self._starting = asyncio.get_running_loop().create_task(self._bring_up_all())

    async def settle(self) -> None:
        """Return when the further ones have done what they were told, and those that are needed are there."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._all(control.Settle())

    def remove(self, generation: Generation) -> None:
        """As `DataPlane.remove`, everywhere. `drained` is to be awaited before it is drained here."""
        self._plane.remove(generation)
        if generation in self._numbers:
            number = self._numbers[generation]
            self._leaving[generation] = [each.link.ask(control.Remove(number)) for each in self._others]

    async def drained(self, generation: Generation) -> None:
        """Return when the further ones have answered the last request to `generation`, which was removed: then it may be
        drained here, and its engines end."""
        if leaving := self._leaving.pop(generation, []):
            await asyncio.wait(leaving, timeout=self._patience_s)
        self._numbers.pop(generation, None)
        generation.joined = None

    def _introduce(self, further: "_Further", generation: Generation) -> None:
        identity, number = generation.identity, self._numbers[generation]
        example, example_json = encode_request(InferRequest(identity.example))
        plans = [each.plan for each in generation.workers if isinstance(each, Pipeline)]
        further.link.tell(
            control.Introduce(
                number=number,
                identity=replace(identity, example=()),
                example=example,
                example_json=example_json,
                graphs=dict(generation.graphs),
                serving=generation.settings.model_dump_json(),
                plan=plans[0] if plans else None,
            )
        )
        for worker in generation.workers:
            self._offer(further, number, worker)

    def _joined(self, generation: Generation, worker: Worker) -> None:
        for each in self._others:
            self._offer(each, self._numbers[generation], worker)

    def _offer(self, further: "_Further", number: int, worker: Worker) -> None:
        if isinstance(worker, EngineProcess) and (descriptors := worker.share()):
            further.link.tell(control.Engine(number, worker.pid, worker.ready), descriptors)

    # What they say

    async def count(self) -> Counted:
        """What all gateways have counted."""
        for further, answer in (await self._ask(control.Count(), within_s=COUNT_S)).items():
            if answer.done() and answer.exception() is None and isinstance(told := answer.result(), Told):
                further.counted = told.counted
        return self._plane.metrics.total()

    def _tell(self, said: Said) -> None:
        for each in self._others:
            each.link.tell(said)

    async def _all(self, said: Said) -> None:
        """Return when all have done what they were told. One that hangs is ended, and replaced."""
        for further, answer in (await self._ask(said, within_s=SETTLE_S)).items():
            if not answer.done():
                log.error("a gateway does not answer; it is ended")
                further.process.kill()

    async def _ask(self, said: Said, *, within_s: float) -> "dict[_Further, asyncio.Future[Said]]":
        """All of them. Returns when the last one has answered or ended, or the time is over."""
        asked = {each: each.link.ask(said) for each in self._others}
        if asked:
            await asyncio.wait(asked.values(), timeout=within_s)
        return asked

    def _heard(self, further: "_Further", said: Said, number: int) -> None:
        match said:
            case control.Kill(pid):
                for worker in self._workers():
                    if worker.pid == pid:
                        worker.kill()
            case _:
                further.run(self._reply(further, said, number))

    async def _reply(self, further: "_Further", said: Said, number: int) -> None:
        try:
            answer = await self._answer(said)
        except SeatrialError as error:
            answer = control.Refusal(type(error).__name__, str(error))
        except Exception:
            log.exception("a gateway's question could not be answered; this is a bug")
            answer = control.Refusal(EngineFailed.__name__, "internal error")
        further.link.answer(number, answer)

    async def _answer(self, said: Said) -> Said:
        match said:
            case control.Index():
                return control.Listing(tuple(await self._repository.index()))
            case control.Load(name):
                await self._repository.load(name)
                return control.Done()
            case control.Unload(name):
                await self._repository.unload(name)
                return control.Done()
            case control.Total():
                return Told(await self.count())
            case unexpected:
                raise EngineFailed(f"a gateway said {unexpected!r}")

    @property
    def _repository(self) -> Repository:
        if self._plane.repository is None:
            raise NotReady("the server is starting")
        return self._plane.repository

    def _workers(self) -> Iterator[Worker]:
        for generation in self._numbers:
            yield from list(generation.workers)


def _is_brief(generation: Generation) -> bool:
    """Whether its engines are done with a row sooner than one gateway gives them the next."""
    return any(isinstance(worker, EngineProcess) and worker.ready.row_s < BRIEF_S for worker in generation.workers)


class _Further:
    """A further gateway's process, and this end of the link to it."""

    def __init__(self, process: Forked, end: socket.socket, heard: "_Heard") -> None:
        self.process = process
        self.counted = Counted()
        self.link = Link(end, lambda said, _, number: heard(self, said, number), process.kill)
        self._tasks: set[asyncio.Task[None]] = set()

    async def end(self, patience_s: float) -> None:
        """Return when it has ended by itself, or was made to."""
        try:
            async with asyncio.timeout(patience_s):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    def run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_Heard: TypeAlias = Callable[[_Further, Said, int], None]
"""Called with who said it, what, and the number to answer."""


async def _spawn(
    forks: ForkServer,
    serving: Serving,
    gateways: int,
    addresses: Sequence[tuple[str, int]],
    log_lock: int,
    heard: _Heard,
) -> _Further:
    with contextlib.ExitStack() as unless_started:
        listeners = [unless_started.enter_context(bind(host, port, shared=True)) for host, port in addresses]
        lock = os.open(f"/proc/self/fd/{log_lock}", os.O_RDONLY)  # opened anew: who shares an open file shares its lock
        unless_started.callback(os.close, lock)
        ours, theirs = socket_pair()
        unless_started.enter_context(ours)
        with theirs:
            process = await forks.fork(theirs)
        unless_started.pop_all()
    further = _Further(process, ours, heard)
    begin = control.Begin(serving=serving.model_dump_json(), gateways=gateways)
    further.link.tell(begin, [*(each.detach() for each in listeners), lock])
    return further
