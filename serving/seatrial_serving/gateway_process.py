"""A further gateway, in a process that `ForkServer` forks.

Receives its settings and sockets from the supervisor over the inherited socket, and then what it serves: generations, and
channels to their engines. Decides nothing itself, and ends when the supervisor is gone.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path

import uvloop

from seatrial.protocol import decode_request
from seatrial.settings import Serving
from seatrial_monitoring.metrics import Counted
from seatrial_serving import control
from seatrial_serving.channel import Slot
from seatrial_serving.control import Done, Link, Said, Told
from seatrial_serving.ensemble import Pipeline
from seatrial_serving.gateway import Gateway, gateway
from seatrial_serving.generation import Generation
from seatrial_serving.remote import EngineChannel
from seatrial_serving.repository import Listed
from seatrial_serving.run import log_to_standard_error
from seatrial_serving.workers import Worker

NAME = "seatrial-gate"
"""What `ps` and `top` call it."""

log = logging.getLogger(__name__)


def main(descriptor: int) -> None:
    Path("/proc/self/comm").write_text(NAME)
    # Ctrl-C and a service manager signal the whole group; the supervisor decides when we end.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log_to_standard_error()
    with contextlib.suppress(EOFError), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=descriptor)))


async def _serve(end: socket.socket) -> None:
    begin, (http, grpc, log_lock) = control.receive(end)
    assert isinstance(begin, control.Begin), f"the first message was {begin!r}: this is a bug"
    serving = Serving.model_validate_json(begin.serving)
    async with contextlib.AsyncExitStack() as stack:
        doors = await stack.enter_async_context(gateway(serving, gateways=begin.gateways, log_lock=log_lock))
        further = FurtherGateway(doors, end, sockets=(socket.socket(fileno=http), socket.socket(fileno=grpc)))
        await further.stopping.wait()
        await further.close()


class FurtherGateway:
    """Does as the supervisor says."""

    def __init__(self, doors: Gateway, end: socket.socket, *, sockets: tuple[socket.socket, socket.socket]) -> None:
        self.stopping = asyncio.Event()
        self._doors, self._plane, self._sockets = doors, doors.plane, sockets
        self._link = Link(end, self._heard, self._orphaned)
        self._generations: dict[int, Generation] = {}
        self._listening = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._plane.repository = FarRepository(self._link)
        self._plane.everywhere = self._everywhere

    async def close(self) -> None:
        """Answer what is in flight, and end."""
        if self._listening:
            patience_s = self._plane.settings.limits.request_s
            await asyncio.gather(self._doors.grpc.stop(patience_s), self._doors.http.stop())
        await asyncio.gather(*(generation.close() for generation in self._generations.values()))

    def _heard(self, said: Said, descriptors: list[int], number: int) -> None:
        match said:
            case control.Expect(name):
                self._plane.expect(name)
            case control.Forget(name):
                self._plane.forget(name)
            case control.Introduce():
                self._generations[said.number] = self._introduced(said)
            case control.Engine():
                self._join(said, descriptors)
            case control.Install(generation, default):
                self._plane.place(self._generations[generation], default=default)
            case control.Remove(generation):
                self._plane.remove(self._generations[generation])
                self._run(self._drain(generation, number))
            case control.Listen():
                self._run(self._listen(number))
            case control.Drain():
                self._plane.accepting = False
            case control.Settle():
                self._link.answer(number, Done())
            case control.Count():
                self._link.answer(number, Told(self._plane.metrics.counted()))
            case control.Stop():
                self._plane.accepting = False
                self.stopping.set()
            case unexpected:
                raise AssertionError(f"the supervisor said {unexpected!r}: this is a bug")
        self._doors.grpc.announce()

    def _introduced(self, said: control.Introduce) -> Generation:
        example = decode_request(said.example, json_length=said.example_json).inputs
        identity = replace(said.identity, example=example)
        metrics = self._plane.metrics.model(identity.name, identity.version, identity.variant)
        settings = Serving.model_validate_json(said.serving)
        if said.plan is None:
            return Generation(identity, said.graphs, metrics, settings)
        plan = said.plan

        async def spawn(*, wide: bool, gently: bool) -> Worker:  # noqa: ARG001 - a pipeline has no cores of its own
            return Pipeline(plan, self._plane.resolve)

        generation = Generation(identity, said.graphs, metrics, settings, spawn=spawn)
        for _ in range(plan.ensemble.pipelines):
            generation.join(Pipeline(plan, self._plane.resolve))
        return generation

    def _join(self, said: control.Engine, descriptors: list[int]) -> None:
        link, *slots = descriptors
        generation = self._generations.get(said.number)
        if generation is None:  # it was drained meanwhile
            for descriptor in descriptors:
                os.close(descriptor)
            return
        channel = socket.socket(fileno=link)
        channel.setblocking(False)
        kill = control.Kill(said.pid)
        generation.join(
            EngineChannel(
                *(said.pid, channel, said.ready, [Slot(each) for each in slots]), kill=lambda: self._link.tell(kill)
            )
        )

    async def _listen(self, number: int) -> None:
        await self._doors.open(*self._sockets)
        self._listening = True
        self._doors.open_rest()
        self._link.answer(number, Done())

    async def _drain(self, number: int, question: int) -> None:
        await self._generations[number].drain()
        del self._generations[number]
        self._link.answer(question, Done())

    async def _everywhere(self) -> Counted:
        told = await self._link.ask(control.Total())
        assert isinstance(told, Told), f"asked for what was counted, the supervisor said {told!r}: this is a bug"
        return told.counted

    def _orphaned(self) -> None:
        log.error("the supervisor has gone: this gateway ends")
        if self._doors.log is not None:
            self._doors.log.close()
        os._exit(1)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a task of a gateway failed; this is a bug", exc_info=error)


class FarRepository:
    """The supervisor's."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def index(self) -> list[Listed]:
        listing = await self._link.ask(control.Index())
        assert isinstance(listing, control.Listing), (
            f"asked for the index, the supervisor said {listing!r}: this is a bug"
        )
        return list(listing.listed)

    async def load(self, name: str) -> None:
        await self._link.ask(control.Load(name))

    async def unload(self, name: str) -> None:
        await self._link.ask(control.Unload(name))
