"""Start a server as its users do, and end it.

What it prints goes to a file, as in production: a request log that nobody reads would stop it. Seatrial's own commands print
one JSON line when they are ready, with the addresses that they took; of others, an address is asked until it answers.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TypeAlias

import psutil

from benchmarks.rounds import Lost

READY_S = 120
END_S = 20
LOOK_EVERY_S = 0.01

Addresses: TypeAlias = Mapping[str, str]
Ready: TypeAlias = Callable[[bytes], Addresses | None]
"""The addresses, once it listens; told what the process has printed so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """`ready_s` is the time from starting the command to its being ready."""

    addresses: Addresses
    ready_s: float
    process: subprocess.Popen[bytes]
    out: IO[bytes]

    @property
    def processes(self) -> list[psutil.Process]:
        """It and all that it started, as they are now."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    @property
    def resident_bytes(self) -> int:
        """What all processes hold together; a page that several map counts once for each."""
        return sum(process.memory_info().rss for process in self.processes)

    @property
    def own_bytes(self) -> int:
        """What all processes hold together, a shared page counted once."""
        return sum(process.memory_full_info().pss for process in self.processes)

    def settle(self) -> None:
        """Ask for what is not the hot path, on so many connections that each gateway gets some: part of it is imported after a
        server is ready, and its memory counts."""
        for _ in range(16):
            with urllib.request.urlopen(f"http://{self.addresses['http']}/v2", timeout=READY_S) as answer:
                answer.read()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def forget_output(self) -> None:
        """Empty the file that it prints to, so that a long run does not fill the disk."""
        self.out.truncate(0)


@contextmanager
def started(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`python -m COMMAND` of our own, until the block ends."""
    with launched([sys.executable, "-m", *command], ready=_first_line, environment=environment) as running:
        yield running


def _first_line(printed: bytes) -> Addresses | None:
    """None too for what is no such line: the first words of an error."""
    line, _, _ = printed.partition(b"\n")
    try:
        addresses: Addresses = json.loads(line)
    except ValueError:
        return None
    return addresses


@contextmanager
def launched(
    command: Sequence[str], *, ready: Ready, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Running]:
    """A process until the block ends; then nothing of its group is left. Raises `Lost` if it does not become ready."""
    with tempfile.NamedTemporaryFile("ab") as out, tempfile.TemporaryFile() as errors, ExitStack() as stack:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            env=os.environ | (environment or {}),
            cwd=cwd,
            start_new_session=True,
        )
        stack.callback(_end, process)
        while (addresses := ready(Path(out.name).read_bytes())) is None:
            if process.poll() is not None or time.perf_counter() - began > READY_S:
                words = (Path(out.name).read_bytes()[-1000:] + _said(errors)).decode(errors="replace")
                raise Lost(f"{' '.join(command)} did not start:\n{words}")
            time.sleep(LOOK_EVERY_S)
        yield Running(addresses=addresses, ready_s=time.perf_counter() - began, process=process, out=out.file)
        if process.poll() is not None:
            last = _said(errors).decode(errors="replace")
            print(f"{' '.join(command)} ended by itself with {process.returncode}:\n{last}", file=sys.stderr)


def _said(errors: IO[bytes]) -> bytes:
    errors.seek(0)
    return errors.read()[-3000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C ends it; whatever does not end by that is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Revived:
    """A server that is started when it is first asked for, and again when it has ended by itself."""

    def __init__(self, start: Callable[[], AbstractContextManager[Running]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._running: Running | None = None

    def __enter__(self) -> "Revived":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def running(self) -> Running:
        """Raises `Lost` if it does not start."""
        if self._running is not None and not self._running.alive:
            self._running = None
            self._stack.close()
        if self._running is None:
            self._running = self._stack.enter_context(self._start())
        self._running.forget_output()
        return self._running

    def address(self, kind: str) -> str:
        return self.running.addresses[kind]
