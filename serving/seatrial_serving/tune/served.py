"""A real `seatrial serve` with the settings that are tried: started, asked, watched, and ended with all that it started.

It costs only itself: one that does not start, hangs, dies or takes too much memory is `Lost`, in words. What callers would
have to prove or could be refused for (keys, TLS) is off, and so is the response cache, which would answer in the model's
place; it listens on free ports of this machine's own address.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import uvloop

from seatrial.errors import SeatrialError
from seatrial.machine import tree_bytes
from seatrial.settings import Access, Serving, Tls
from seatrial_serving.bench import Plan, Protocol, Result, bench

LOOK_EVERY_S = 0.02
WEIGH_EVERY_S = 0.5
LAST_WORDS = 600
MIB = 2**20


class Lost(Exception):
    """Why something cannot be measured, in words."""


class Disturbed(Lost):
    """Nobody could be asked, for want of a processor: that says nothing of the server."""


class Served:
    """Its process and what it listens on. `peak_bytes` is the most memory that it was seen to take."""

    def __init__(self, process: subprocess.Popen[bytes], out: IO[bytes], errors: IO[bytes], *, most_bytes: int) -> None:
        self._process, self._out, self._errors, self._most_bytes = process, out, errors, most_bytes
        self._addresses: Mapping[str, str] = {}
        self._ending = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="seatrial-tune-memory", daemon=True)
        self.peak_bytes = 0
        self.model = ""
        self._watching.start()

    def await_ready(self, within_s: float) -> None:
        until = time.monotonic() + within_s
        while (ready := self._said_ready()) is None:
            if self._process.poll() is not None:
                raise Lost(self._why("did not start"))
            if time.monotonic() > until:
                raise Lost(f"was not ready within {within_s:.1f} s")
            time.sleep(LOOK_EVERY_S)
        if len(ready["models"]) != 1:
            raise Lost(f"serves {len(ready['models'])} models, {', '.join(ready['models'])}, and this tunes one")
        self.model, _, _ = ready["models"][0].rpartition("/")
        self._addresses = ready

    def ask(self, plan: Plan, *, within_s: float) -> Result:
        """Put the load of `plan` on it. Raises `Lost` where that does not come to an end, or nothing is answered well."""
        os.ftruncate(self._out.fileno(), 0)  # the request log: nobody reads it
        try:
            result = uvloop.run(_within(plan, within_s))
        except (SeatrialError, OSError, TimeoutError, ExceptionGroup) as error:
            why = f"hung: no end after {within_s:.1f} s" if isinstance(error, TimeoutError) else str(error)
            raise Lost(self._why(why)) from error
        if not result.requests:
            raise Disturbed("nothing was asked in time: this machine is too busy")
        if result.failed == result.requests:
            raise Lost(self._why(f"all of {result.requests} requests failed: {result.outcomes}"))
        return result

    def address(self, protocol: Protocol) -> str:
        return self._addresses["grpc" if protocol == "grpc" else "http"]

    def end(self) -> None:
        self._ending.set()
        self._kill()
        self._process.wait()
        self._watching.join()

    def _why(self, otherwise: str) -> str:
        """How it ended, or that it has not ended."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=LOOK_EVERY_S)
            if self.peak_bytes > self._most_bytes:
                return (
                    f"took {self.peak_bytes / MIB:.0f} MiB of memory, more than the {self._most_bytes / MIB:.0f} allowed "
                    "(--memory), and was killed"
                )
            return f"ended with {signal.Signals(-code).name if code < 0 else code}: {self._last_words()}"
        return otherwise

    def weigh(self) -> None:
        self.peak_bytes = max(self.peak_bytes, tree_bytes(self._process.pid))

    def _watch(self) -> None:
        """Kill it as soon as it is seen to take too much."""
        while not self._ending.wait(WEIGH_EVERY_S):
            self.weigh()
            if self.peak_bytes > self._most_bytes:
                self._kill()
                return

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _said_ready(self) -> dict[str, Any] | None:
        """None too for what is no such line: the first of an error."""
        line, _, _ = os.pread(self._out.fileno(), 64 * 1024, 0).partition(b"\n")
        try:
            ready: dict[str, Any] = json.loads(line)
        except ValueError:
            return None
        return ready

    def _last_words(self) -> str:
        size = os.fstat(self._errors.fileno()).st_size
        words = os.pread(self._errors.fileno(), LAST_WORDS, max(0, size - LAST_WORDS)).decode(errors="replace")
        return words.strip() or "it said nothing"


@contextmanager
def served(what: str, serving: Serving, *, most_bytes: int, within_s: float) -> Iterator[Served]:
    """WHAT with these settings, until the block ends. Raises `Lost` where it does not start."""
    with tempfile.NamedTemporaryFile("a+b") as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "seatrial_serving.tune.child", str(os.getpid()), "serve", what, "--json"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=_environment(serving), start_new_session=True,
        )  # fmt: skip
        server = Served(process, out, errors, most_bytes=most_bytes)
        try:
            server.await_ready(within_s)
            yield server
        finally:
            server.end()


async def _within(plan: Plan, within_s: float) -> Result:
    async with asyncio.timeout(within_s):
        return await bench(plan)


def _environment(serving: Serving) -> dict[str, str]:
    """Ours, with every setting of serving as it is to be, whatever a file or our own variables say."""
    alone = serving.model_copy(
        update={
            "host": "127.0.0.1", "http_port": 0, "grpc_port": 0, "metrics_port": 0, "management_port": None,
            "tls": Tls(), "access": Access(), "cache_bytes": 0, "tuned": False,
        }
    )  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEATRIAL_SERVING")}
    return kept | {"SEATRIAL_SERVING": alone.model_dump_json()}
