"""Processes that need not import what all of their kind import: one process has done it, and forks them.

`ForkServer` is the end of the process that asks. The other end has imported a kind's modules, ENGINES or GATEWAYS, of which
none may start a thread; for each socket that it is sent it forks a process, which calls the `main` of the first module with
it, and it tells how each of them ended. It ends when the process that asks is gone. If it dies itself, those that it has
forked live on, as children of that process, and the next one is forked by another fork server.
"""

import asyncio
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from seatrial.errors import EngineFailed

ENGINES = ("seatrial_serving.engine_process", "seatrial_serving.engines.onnxruntime")
GATEWAYS = ("seatrial_serving.gateway_process",)
NAME = "seatrial-forks"
"""What `ps` and `top` call it."""
FRUGAL = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "TOKENIZERS_PARALLELISM": "0",
    "ORT_DISABLE_TELEMETRY": "1",
}
"""The engine's own threads are the only ones that an engine process needs: numpy and tokenizers must not bring more, and
ONNX Runtime starts one at its import, with a database of events in the home of whoever runs it, unless it is told not to."""
MAX_MESSAGE = 4096
ADOPT_ORPHANS = 36
"""`PR_SET_CHILD_SUBREAPER`, prctl(2)."""


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
        self._ended: asyncio.Future[int] = self._loop.create_future()

    def kill(self) -> None:
        if self._descriptor >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    async def wait(self) -> int:
        """How it ended, as `subprocess` gives it."""
        return await asyncio.shield(self._ended)

    def ended(self, code: int) -> None:
        os.close(self._descriptor)
        self._descriptor = -1
        self._ended.set_result(code)

    def adopted(self) -> None:
        """The fork server has died: it is our own child now."""
        self._loop.add_reader(self._descriptor, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self.ended(os.waitstatus_to_exitcode(status))


class ForkServer:
    """Starts its process when it is first needed, or ahead of that by `execute` or `split`; and another if that has died.

    Everything else is for one event loop.
    """

    def __init__(self, modules: tuple[str, ...]) -> None:
        """`modules` are ENGINES or GATEWAYS."""
        self._modules = modules
        self._pid = 0
        self._link: socket.socket | None = None
        self._attended = False
        self._asked: deque[asyncio.Future[Forked]] = deque()
        self._forked: dict[int, Forked] = {}

    def execute(self) -> None:
        """Start the process, which imports by itself meanwhile."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "seatrial_serving.fork_server", str(theirs.fileno()), *self._modules],
                os.environ | FRUGAL,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            )
        self._linked(ours)

    def split(self) -> None:
        """Start the process as a fork of this one, so that it shares what is imported here. This one may have no other thread
        and no event loop yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            _only(_be_fork_server, theirs.detach(), self._modules)
        theirs.close()
        self._linked(ours)

    def _linked(self, link: socket.socket) -> None:
        ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
        link.setblocking(False)
        self._link, self._attended = link, False

    def start(self) -> None:
        """Start the process ahead of the first need, if it has not been."""
        if self._link is None:
            self.execute()
        assert self._link is not None, "a fork server that was started has no link: this is a bug"
        if not self._attended:
            asyncio.get_running_loop().add_reader(self._link, self._read, self._link)
            self._attended = True

    async def fork(self, theirs: socket.socket) -> Forked:
        """A process at the other end of `theirs`. Raises `EngineFailed` where the fork server dies meanwhile."""
        self.start()
        assert self._link is not None, "a fork server that was started has no link: this is a bug"
        asked = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._link, [b"+"], [theirs.fileno()])
        except OSError as error:
            self._lost()
            raise EngineFailed(f"the process that starts others has died: {error}") from error
        self._asked.append(asked)
        forked: Forked = await asyncio.shield(asked)
        return forked

    def close(self) -> None:
        """End the process; those that it has forked are not waited for."""
        if self._link is not None:
            self._lost()

    def _read(self, link: socket.socket) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(link, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        if not message:
            self._lost()
            return
        match _decode(message):
            case Started(pid):
                forked = self._forked[pid] = Forked(pid, descriptors[0])
                self._asked.popleft().set_result(forked)
            case Ended(pid, code):
                self._forked.pop(pid).ended(code)

    def _lost(self) -> None:
        assert self._link is not None, "a fork server that was never started is lost: this is a bug"
        if self._attended:
            asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        self._link = None
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for asked in self._asked:
            asked.set_exception(EngineFailed("the process that starts others has died"))
        self._asked.clear()
        for forked in self._forked.values():
            forked.adopted()
        self._forked.clear()


# The other end


def main(descriptor: int, modules: tuple[str, ...]) -> None:
    for each in modules:
        importlib.import_module(each)
    _be_fork_server(descriptor, modules)


def _be_fork_server(descriptor: int, modules: tuple[str, ...]) -> None:
    Path("/proc/self/comm").write_text(NAME)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # who asks decides when we end, by hanging up
    asking = socket.socket(fileno=descriptor)
    gc.collect()
    gc.freeze()  # so that those that are forked go on sharing it
    forked: dict[int, int] = {}
    poller = select.poll()
    poller.register(asking, select.POLLIN)
    while True:
        for ready, _ in poller.poll():
            if ready == descriptor:
                _, sockets, _, _ = socket.recv_fds(asking, 1, 1)
                if not sockets:
                    return
                pid = os.fork()
                if not pid:
                    _only(importlib.import_module(modules[0]).main, sockets[0])
                os.close(sockets[0])
                process = os.pidfd_open(pid)
                forked[process] = pid
                poller.register(process, select.POLLIN)
                with suppress(OSError):  # it has hung up: the next look finds out
                    socket.send_fds(asking, [_encode(Started(pid))], [process])
            else:
                poller.unregister(ready)
                os.close(ready)
                pid, status = os.waitpid(forked.pop(ready), 0)
                with suppress(OSError):
                    asking.send(_encode(Ended(pid, os.waitstatus_to_exitcode(status))))


def _only(main: Callable[..., None], descriptor: int, *arguments: object) -> NoReturn:
    """Be a process that does this and nothing else, and holds no other descriptor than this one and the standard ones."""
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for other in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
            if other > 2 and other != descriptor:
                with suppress(OSError):  # the one that listed them
                    os.close(other)
        main(descriptor, *arguments)
    except BaseException:  # noqa: BLE001 - the last word of this process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), tuple(sys.argv[2:]))
