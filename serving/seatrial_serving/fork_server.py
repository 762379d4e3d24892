"""Engine processes that need not import what all of them import: one process has done it, and forks them.

`ForkServer` is the gateway's end. The other is `python -m seatrial_serving.fork_server DESCRIPTOR`: it imports what every
engine process needs and is safe to fork, numpy above all, but no engine library, which may start threads; it forks an
engine process for each socket that it is sent, and tells how each of them ended. It ends when the gateway is gone. If it
dies itself, the engines live on, and the next one is forked by another.
"""

import asyncio
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from contextlib import suppress
from typing import NoReturn

import msgspec

from seatrial.errors import EngineFailed
from seatrial_serving import channel

FRUGAL = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "TOKENIZERS_PARALLELISM": "0"}
"""The engine's own threads are the only ones that an engine process needs: numpy and tokenizers must not bring more."""


class Started(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """From the fork server, with a descriptor of the process: what was asked for next."""

    pid: int


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`code` as `subprocess` gives it: below zero for a signal."""

    pid: int
    code: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Started | Ended).decode


class Forked:
    """A process that the fork server started; made by `ForkServer.fork`."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """`descriptor` is a pidfd, which this object then owns."""
        self.pid = pid
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int | None] = self._loop.create_future()

    def kill(self) -> None:
        if self._descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def wait(self) -> int | None:
        """How it ended; None where nobody is left who could tell."""
        return await asyncio.shield(self._ended)

    def ended(self, code: int | None) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._ended.set_result(code)

    def forsake(self) -> None:
        """There is no fork server any more that would tell of its end."""
        self._loop.add_reader(self._descriptor, self.ended, None)


class ForkServer:
    """Starts its process when it is first needed, and another if that has died. Lives on one event loop."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._link: socket.socket | None = None
        self._asked: deque[asyncio.Future[Forked]] = deque()
        self._forked: dict[int, Forked] = {}
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start the process ahead of the first need."""
        async with self._starting:
            if self._link is not None:
                return
            link, theirs = channel.socket_pair()
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "seatrial_serving.fork_server", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | FRUGAL,
                )
            link.setblocking(False)
            self._link = link
            asyncio.get_running_loop().add_reader(link, self._read, link)

    async def fork(self, theirs: socket.socket) -> Forked:
        """An engine process at the other end of `theirs`. Raises `EngineFailed` where the fork server dies meanwhile."""
        await self.start()
        assert self._link is not None, "a fork server that was started has no link: this is a bug"
        asked = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._link, [b"+"], [theirs.fileno()])
        except OSError as error:
            self._lost(self._link)
            raise EngineFailed(f"the process that starts engines has died: {error}") from error
        self._asked.append(asked)
        forked: Forked = await asyncio.shield(asked)
        return forked

    async def close(self) -> None:
        """End the process; engines that it has forked are not waited for."""
        if self._link is not None:
            self._lost(self._link)
        if self._process is not None:
            await self._process.wait()

    def _read(self, link: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(link, channel.MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if not message:
            self._lost(link)
            return
        match _decode(message):
            case Started(pid):
                forked = self._forked[pid] = Forked(pid, descriptors[0])
                self._asked.popleft().set_result(forked)
            case Ended(pid, code):
                self._forked.pop(pid).ended(code)

    def _lost(self, link: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(link)
        link.close()
        self._link = None
        for asked in self._asked:
            asked.set_exception(EngineFailed("the process that starts engines has died"))
        self._asked.clear()
        for forked in self._forked.values():
            forked.forsake()
        self._forked.clear()


# The other end


def main(descriptor: int) -> None:
    import seatrial_serving.engine_process  # noqa: F401 - for those that are forked

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway decides when we end, by hanging up
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gateway = socket.socket(fileno=descriptor)
    gc.collect()
    gc.freeze()  # so that those that are forked go on sharing it
    engines: dict[int, int] = {}
    poller = select.poll()
    poller.register(gateway, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready == descriptor:
                _, sockets, _, _ = socket.recv_fds(gateway, 1, 1)
                if not sockets:
                    return
                pid = os.fork()
                if not pid:
                    for each in (descriptor, *engines):
                        os.close(each)
                    _be_engine(sockets[0])
                os.close(sockets[0])
                engine = os.pidfd_open(pid)
                engines[engine] = pid
                poller.register(engine, select.POLLIN)
                socket.send_fds(gateway, [_encode(Started(pid))], [engine])
            else:
                poller.unregister(ready)
                os.close(ready)
                pid, status = os.waitpid(engines.pop(ready), 0)
                gateway.send(_encode(Ended(pid, os.waitstatus_to_exitcode(status))))


def _be_engine(descriptor: int) -> NoReturn:
    from seatrial_serving import engine_process

    try:
        engine_process.main(descriptor)
    except BaseException:  # noqa: BLE001 - the last word of this process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
