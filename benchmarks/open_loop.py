"""Requests that are due at a steady rate, whatever the server does: `python -m benchmarks.open_loop` with a plan in JSON.

Latency counts from when a request was due, not from when it could be sent. A process of its own, so that nobody's work
delays the sending; it prints one line when its connections stand, asks until its standard input is closed, and writes the
columns due (monotonic clock, seconds), latency (seconds) and well (1 or 0) to a file.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop
from numpy.typing import NDArray

from seatrial_serving.bench import OK, Call, Plan, callers

LONGEST_S = 60.0
"""How long answers that are still due at the end are waited for."""


@dataclass(slots=True)
class Asked:
    """What was asked; filled when the load has ended."""

    due_s: NDArray[np.float64]
    took_s: NDArray[np.float64]
    well: NDArray[np.bool_]

    @property
    def failed(self) -> int:
        return int((~self.well).sum())

    def p99_ms(self, *windows: tuple[float, float]) -> float:
        """Of the requests that were due in one of the windows and were answered; NaN without one."""
        inside = np.zeros(len(self.due_s), bool)
        for begin, end in windows:
            inside |= (self.due_s >= begin) & (self.due_s < end)
        took = self.took_s[inside & self.well]
        return float(1000 * np.percentile(took, 99)) if len(took) else float("nan")


@contextmanager
def load(plan: Plan) -> Iterator[Asked]:
    """Asks as `plan` says (its `seconds` do not matter) until the block ends."""
    asked = Asked(np.empty(0), np.empty(0), np.empty(0, bool))
    with TemporaryDirectory(prefix="seatrial-load-") as folder:
        to = Path(folder) / "asked.npy"
        command = [sys.executable, "-m", "benchmarks.open_loop", json.dumps(_plain(plan)), str(to)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None, "asked for a pipe and got none: this is a bug"
            if not process.stdout.readline():
                raise SystemExit(f"the load did not start: {plan}")
            try:
                yield asked
            finally:
                process.communicate(timeout=LONGEST_S)
        asked.due_s, asked.took_s, well = np.load(to)
        asked.well = well.astype(bool)


def _plain(plan: Plan) -> dict[str, object]:
    return {"url": plan.url, "model": plan.model, "protocol": plan.protocol, "callers": plan.callers, "rate": plan.rate}


async def ask(plan: Plan, to: Path) -> None:
    assert plan.rate, "an open loop without a rate: this is a bug"
    noted: list[tuple[float, float, bool]] = []
    free: asyncio.Queue[Call] = asyncio.Queue()

    async def ask_once(due: float) -> None:
        call = await free.get()
        try:
            outcome = await call()
        finally:
            free.put_nowait(call)
        noted.append((due, time.monotonic() - due, outcome == OK))

    async with AsyncExitStack() as stack:
        for each in await stack.enter_async_context(callers(plan)):
            free.put_nowait(each)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        print("asking", flush=True)
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while not ended.is_set():
                while (due := began + number / plan.rate) <= time.monotonic():
                    tasks.create_task(ask_once(due))
                    number += 1
                await asyncio.sleep(due - time.monotonic())
    np.save(to, np.array(noted, np.float64).reshape(-1, 3).T)


if __name__ == "__main__":
    uvloop.run(ask(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2])))
