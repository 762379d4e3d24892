"""The course of a soak: everything at once for the time that was asked for, and what was read meanwhile.

It begins with one mishap of each kind, so that whatever is made once and kept is there before anything is compared. Then
all is quiet, what the processes hold is read, the time begins, and at its end all is quiet again.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np

from benchmarks.soak.ledger import Key, Ledger, count
from benchmarks.soak.mishaps import MISHAPS
from benchmarks.soak.nuisances import NUISANCES
from benchmarks.soak.subject import Subject, Taken
from benchmarks.soak.voices import VOICES

PAUSE_S = 0.03
"""Of a voice between two requests, in the mean; nuisances and mishaps take longer ones."""
NUISANCE_S, MISHAP_S = 0.3, 2.0
NUISANCE_ACTORS = 4
READ_EVERY_S = 1.0
LOOK_EVERY_S = 0.5
QUIET_S = 30.0
"""How long what was asked may take to be counted, and connections to be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    at_s: float
    answered: int
    failed: int
    p99_ms: float
    """Of what was answered since the reading before; NaN for nothing."""
    taken: Taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    before: Taken
    after: Taken
    readings: list[Reading]
    ledger: Ledger
    counted: Counter[Key]
    mishaps: list[tuple[float, str]]
    """When each began, and what it was."""


@dataclass(slots=True)
class _Run:
    subject: Subject
    random: Random
    ledger: Ledger = field(default_factory=Ledger)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    began: float = field(default_factory=time.monotonic)
    readings: list[Reading] = field(default_factory=list)
    mishaps: list[tuple[float, str]] = field(default_factory=list)

    @property
    def at_s(self) -> float:
        return time.monotonic() - self.began

    async def pause(self, seconds: float) -> None:
        """Or less, when it is time to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)

    async def speak(self, name: str, random: Random) -> None:
        async with VOICES[name](self.subject.server) as speak:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    key = await speak(random)
                except Exception as error:  # noqa: BLE001 - whatever it is, the request failed
                    self.ledger.fail(name, error)
                else:
                    self.ledger.answer(key, time.monotonic() - began)
                await self.pause(random.uniform(0, 2 * PAUSE_S))

    async def disturb(self, random: Random) -> None:
        while not self.stop.is_set():
            nuisance = random.choice(NUISANCES)
            try:
                self.ledger.note(await nuisance(self.subject.server))
            except Exception as error:  # noqa: BLE001 - it was told otherwise than it should have been
                self.ledger.fail(nuisance.__name__, error)
            await self.pause(random.uniform(0, 2 * NUISANCE_S))

    async def meet(self, name: str, random: Random) -> None:
        self.mishaps.append((self.at_s, name))
        try:
            await asyncio.to_thread(MISHAPS[name], self.subject, random)
        except Exception as error:  # noqa: BLE001 - it was not mended, or the server did not say so
            self.ledger.fail(name, error)

    async def sail(self, random: Random) -> None:
        """One of each kind, in any order, again and again."""
        to_come: list[str] = []
        while not self.stop.is_set():
            to_come = to_come or random.sample(list(MISHAPS), len(MISHAPS))
            await self.meet(to_come.pop(), random)
            await self.pause(random.uniform(0, 2 * MISHAP_S))

    async def read(self) -> None:
        while not self.stop.is_set():
            taken = await asyncio.to_thread(self.subject.taken)
            took_s, self.ledger.took_s = self.ledger.took_s, []
            p99_ms = 1000 * float(np.percentile(took_s, 99)) if took_s else float("nan")
            failed = len(self.ledger.failures)
            self.readings.append(
                Reading(at_s=self.at_s, answered=self.ledger.answered, failed=failed, p99_ms=p99_ms, taken=taken)
            )
            await self.pause(READ_EVERY_S)


async def run(subject: Subject, *, seconds: float, seed: int, tell: Callable[[float], None]) -> Course:
    """`tell` is called now and then with the seconds that have passed."""
    warm = _Run(subject, Random(seed))
    async with _traffic(warm):
        for name in MISHAPS:
            await warm.meet(name, warm.random)
    before = await _quiet(subject, warm.ledger, None)
    taking = _Run(subject, Random(seed + 1))
    taking.ledger = warm.ledger
    async with _traffic(taking):
        sailing = asyncio.create_task(taking.sail(Random(seed + 2)))
        reading = asyncio.create_task(taking.read())
        while taking.at_s < seconds and not sailing.done():
            tell(taking.at_s)
            await asyncio.sleep(min(1.0, seconds - taking.at_s))
        taking.stop.set()
        await asyncio.gather(sailing, reading)
    after = await _quiet(subject, taking.ledger, before)
    return Course(
        before=before,
        after=after,
        readings=taking.readings,
        ledger=taking.ledger,
        counted=await asyncio.to_thread(count, subject.server),
        mishaps=taking.mishaps,
    )


@contextlib.asynccontextmanager
async def _traffic(run: _Run) -> AsyncIterator[None]:
    """All voices and nuisances while the block runs; each ends with the request that it has sent."""
    async with asyncio.TaskGroup() as tasks:
        for name in VOICES:
            tasks.create_task(run.speak(name, Random(run.random.random())))
        for _ in range(NUISANCE_ACTORS):
            tasks.create_task(run.disturb(Random(run.random.random())))
        try:
            yield
        finally:
            run.stop.set()


async def _quiet(subject: Subject, ledger: Ledger, before: Taken | None) -> Taken:
    """What is held once all that was asked is counted, and nothing goes away any more or no more is left than before; at
    the latest when the patience is over, whatever is held then."""
    deadline = time.monotonic() + QUIET_S
    last: Taken | None = before
    while True:
        taken = await asyncio.to_thread(subject.taken)
        differences = ledger.differences(await asyncio.to_thread(count, subject.server))
        if time.monotonic() > deadline or (last is not None and _no_more(taken, last) and not differences):
            return taken
        last = before or taken
        await asyncio.sleep(LOOK_EVERY_S)


def _no_more(taken: Taken, than: Taken) -> bool:
    return taken.descriptors <= than.descriptors and taken.threads <= than.threads and taken.children <= than.children
