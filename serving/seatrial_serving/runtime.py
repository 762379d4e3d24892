"""A runtime that is not ours (Triton, BentoML), run as a child process: started, waited for, ended with us."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from seatrial.errors import EngineFailed
from seatrial_serving.doors.http import listen

READY_S = 120.0
END_S = 15.0
LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """`health` is the address that answers 200 once it is ready; what the process says goes to `log`."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    health: str
    log: Path
    cwd: Path | None = None


async def run(runtime: Runtime, *, ready: Callable[[], None], stop: asyncio.Event | None = None) -> None:
    """Until SIGTERM, SIGINT or `stop`. Raises `EngineFailed`, with its last words, if it ends by itself."""
    stopping = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with runtime.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *runtime.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(runtime.environment),
            cwd=runtime.cwd,
            start_new_session=True,  # Ctrl-C is ours to pass on, and its children end with it
        )
    try:
        await _until(process, runtime, stopping, ready)
    finally:
        await _end(process)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _until(
    process: asyncio.subprocess.Process, runtime: Runtime, stopping: asyncio.Event, ready: Callable[[], None]
) -> None:
    ended = asyncio.create_task(process.wait())
    stopped = asyncio.create_task(stopping.wait())
    healthy = asyncio.create_task(_healthy(runtime.health))
    try:
        await asyncio.wait({ended, stopped, healthy}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        if healthy.done() and not ended.done():
            ready()
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        elif not stopped.done() and not ended.done():
            raise EngineFailed(f"{runtime.name} was not ready after {READY_S:g} s:\n{_last_words(runtime)}")
        if ended.done() and not stopped.done():
            raise EngineFailed(f"{runtime.name} ended with {ended.result()}:\n{_last_words(runtime)}")
    finally:
        for task in (ended, stopped, healthy):
            task.cancel()


async def _healthy(address: str) -> None:
    async with httpx.AsyncClient() as client:
        while True:
            with suppress(httpx.TransportError):  # it does not listen yet
                if (await client.get(address)).is_success:
                    return
            await asyncio.sleep(LOOK_EVERY_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask it to end, then make the whole group end."""
    if process.returncode is None:
        process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _last_words(runtime: Runtime) -> str:
    return runtime.log.read_text(errors="replace")[-3000:]


def free_port(host: str, port: int) -> int:
    """`port` itself, seen to be free, or a free one for 0. Raises `PortInUse`."""
    with listen(host, port) as probe:
        chosen: int = probe.getsockname()[1]
    return chosen
