"""The gateway's end of one engine process: gives it batches, checks what it says, notices its death.

The first gateway starts engine processes and ends them. Each further one is given a channel of its own to them.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress

from seatrial import errors
from seatrial.errors import Broken, EngineFailed, SeatrialError
from seatrial.protocol import Tensor
from seatrial.tensors import Signature
from seatrial_serving import channel
from seatrial_serving.fork_server import FRUGAL, Forked, ForkServer
from seatrial_serving.padding import pads
from seatrial_serving.workers import SLOTS, Batch, Load, Owner, slice_outputs


class EngineChannel:
    """A gateway's end of a channel to an engine process that is ready."""

    def __init__(
        self,
        pid: int,
        link: socket.socket,
        ready: channel.Ready,
        slots: list[channel.Slot],
        *,
        kill: Callable[[], None],
    ) -> None:
        """`kill` ends the process, whoever started it."""
        self.pid, self.ready, self.kill = pid, ready, kill
        self.graphs: Mapping[str, Signature] = ready.graphs
        self.load_s, self.golden, self.wide = ready.load_s, ready.golden, ready.wide
        self.state_bytes = ready.state_bytes
        self._link, self._slots = link, slots
        self._free = list(range(len(slots)))
        self._held: dict[int, Batch] = {}
        self._pads = {name: pads(signature) for name, signature in ready.graphs.items()}
        self._batched = {name: signature.batch is not None for name, signature in ready.graphs.items()}
        self._next = 0
        self._owner: Owner | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def held(self) -> Sequence[Batch]:
        return list(self._held.values())

    def attach(self, owner: Owner) -> None:
        """Report to `owner` from now on."""
        self._owner = owner
        self._loop.add_reader(self._link, self._read)

    def run(self, batch: Batch) -> bool:
        slot = self._free[-1]
        self._next += 1
        by_request = [request.item for request in batch.requests]
        signature = self.graphs[batch.graph]
        tensors = [
            (spec.datatype, [inputs[index] for inputs in by_request], pad)
            for index, (spec, pad) in enumerate(zip(signature.inputs, self._pads[batch.graph], strict=True))
        ]
        self._slots[slot].begun = False
        parts = self._slots[slot].place(tensors)
        try:
            run = channel.Run(self._next, slot, batch.graph, parts, batch.wide, batch.turns, batch.sent)
            self._link.send(channel.encode(run))
        except OSError as error:
            self._lost(f"its socket broke: {error}")
            return False
        batch.slot = self._free.pop()
        self._held[self._next] = batch
        return True

    async def close(self) -> None:
        self._hang_up()

    def _read(self) -> None:
        try:
            message = self._link.recv(channel.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lost("its process ended")
            return
        try:
            self._take(channel.decode_from_engine(message))
        except Broken as error:
            self._lost(str(error))

    def _take(self, message: channel.FromEngine) -> None:
        assert self._owner is not None, "an engine spoke before anybody listened: this is a bug"
        if not isinstance(message, channel.Ran | channel.Failed):
            raise EngineFailed(f"a ready engine said {message!r}")
        batch = self._held.get(message.batch)
        if batch is None or batch.slot != message.slot:
            raise EngineFailed(
                f"the engine answered batch {message.batch} in slot {message.slot}, which it was not given"
            )
        if isinstance(message, channel.Failed):
            self._release(message.batch)
            self._owner.failed(self, batch, named_error(message.kind, message.message))
        else:
            answers = slice_outputs(self._outputs(batch, message), batch.requests, self.graphs[batch.graph].sequence)
            self._release(message.batch)
            self._owner.answered(self, batch, answers, message.compute_s)

    def _outputs(self, batch: Batch, ran: channel.Ran) -> list[Tensor]:
        signature = self.graphs[batch.graph]
        specs, batched = signature.outputs, self._batched[batch.graph]
        if len(ran.outputs) != len(specs):
            raise EngineFailed(f"the engine gave {len(ran.outputs)} outputs, the signature has {len(specs)}")
        outputs = []
        for spec, part in zip(specs, ran.outputs, strict=True):
            if batched and (not part.shape or part.shape[0] != batch.rows):
                raise EngineFailed(f"output '{spec.name}' has shape {part.shape} for a batch of {batch.rows} rows")
            try:
                outputs.append(
                    Tensor(spec.name, spec.datatype, self._slots[ran.slot].read(part, spec.datatype, name=spec.name))
                )
            except errors.BadRequest as error:  # the codec judges it as it would a client's tensor
                raise EngineFailed(f"the engine's output does not add up: {error}") from error
        return outputs

    def _release(self, batch: int) -> None:
        self._free.append(self._held.pop(batch).slot)

    def _lost(self, reason: str) -> None:
        """The process is gone or not to be trusted any more: make sure of it, then report what it held."""
        assert self._owner is not None, "an engine was lost before anybody listened: this is a bug"
        for batch in self._held.values():
            batch.begun = self._slots[batch.slot].begun
        held = list(self.held)
        self._held.clear()
        self._hang_up()
        self.kill()
        self._owner.died(self, held, reason)

    def _hang_up(self) -> None:
        if self._link.fileno() < 0:
            return
        self._loop.remove_reader(self._link)
        self._link.close()
        for slot in self._slots:
            slot.close()


class EngineProcess(EngineChannel):
    """The same, of the gateway that has started the process and ends it. Created by `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process | Forked,
        link: socket.socket,
        ready: channel.Ready,
        slots: list[channel.Slot],
        others: socket.socket | None = None,
    ) -> None:
        """Over `others` the process is given the channels of further gateways."""
        super().__init__(process.pid, link, ready, slots, kill=self._kill)
        self._process, self._others = process, others

    @classmethod
    async def start(cls, load: Load, *, forks: ForkServer | None = None, shared: bool = False) -> "EngineProcess":
        """Start the process, with `forks` if there is one, and wait until it is ready; a `shared` one can be given further
        gateways. Raises what it refused with, or `EngineFailed` where it died."""
        ours, theirs = channel.socket_pair()
        with theirs:
            process = await (_execute(theirs) if forks is None else forks.fork(theirs))
        slots = [channel.Slot.create(0) for _ in range(SLOTS)]
        start = channel.Start(
            *(str(load.path), load.digest, load.threads, load.warm_up, load.wide_threads, load.gently), shared=shared
        )
        others, asking = channel.socket_pair() if shared else (None, None)
        try:
            with asking or nullcontext():
                given = [*(slot.descriptor for slot in slots), *([asking.fileno()] if asking else [])]
                socket.send_fds(ours, [channel.encode(start)], given)
            ours.setblocking(False)
            if others is not None:
                others.setblocking(False)
            ready = await cls._until_ready(process, ours, load)
        except BaseException:
            ours.close()
            if others is not None:
                others.close()
            for slot in slots:
                slot.close()
            await _reap(process)
            raise
        return cls(process, ours, ready, slots, others)

    @staticmethod
    async def _until_ready(
        process: asyncio.subprocess.Process | Forked, link: socket.socket, load: Load
    ) -> channel.Ready:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(load.start_s):
                message = await loop.sock_recv(link, channel.MAX_MESSAGE)
        except TimeoutError:
            raise EngineFailed(f"the engine for {load.path} was not ready after {load.start_s:g} s") from None
        except ConnectionError:
            message = b""
        if not message:
            code = await process.wait()
            raise EngineFailed(f"the engine process for {load.path} ended with {how_ended(code)} while it loaded")
        match channel.decode_from_engine(message):
            case channel.Ready() as ready:
                return ready
            case channel.Unfit(kind, words):
                raise named_error(kind, words)
            case unexpected:
                raise EngineFailed(f"the engine process said {unexpected!r} before it was ready")

    def share(self) -> list[int]:
        """A channel for a further gateway: the descriptors of its socket and its slots, the caller's to close. Empty where
        the process has ended."""
        assert self._others is not None, "an engine that was not started to be shared is to be: this is a bug"
        gateways, engines = channel.socket_pair()
        shared = [gateways.detach(), *(channel.slot_memory() for _ in range(SLOTS))]
        with engines:
            try:
                socket.send_fds(self._others, [b"+"], [engines.fileno(), *shared[1:]])
            except OSError:
                for descriptor in shared:
                    os.close(descriptor)
                return []
        return shared

    async def close(self) -> None:
        await super().close()
        if self._others is not None:
            self._others.close()
        await _reap(self._process)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


async def _execute(theirs: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "seatrial_serving.engine_process", str(theirs.fileno())),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=os.environ | FRUGAL,
    )


async def _reap(process: asyncio.subprocess.Process | Forked) -> int:
    """Wait for a process that was told to end; a second later it is made to."""
    try:
        async with asyncio.timeout(1):
            return await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def named_error(kind: str, words: str) -> SeatrialError:
    """The error that another process named; what it may not name is its own fault."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, SeatrialError) and known.__init__ is Exception.__init__:
        return known(words)
    return EngineFailed(f"{kind}: {words}")


def how_ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
