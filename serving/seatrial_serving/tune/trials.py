"""Measure a configuration: start its server, let ever more callers ask, and note what they got and what it took."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from seatrial.errors import InvalidSettings
from seatrial.settings import Serving
from seatrial_serving.bench import Plan, Protocol
from seatrial_serving.tune.configuration import Configuration
from seatrial_serving.tune.search import Measured, Point, climb
from seatrial_serving.tune.served import Lost, Served, served
from seatrial_serving.tune.traffic import Traffic

WARM_UP_PART = 0.3
PATIENCE_S = 3.0
"""How much longer than planned a measurement may take before the server counts as hung."""
SPARE = 4
"""How many times as many connections an open loop has, so that nobody waits for a free one while the bound is kept."""

Start: TypeAlias = Callable[..., AbstractContextManager[Served]]
"""As `served`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """`what` is served as `serving` says, with each configuration in turn; each level of load lasts `level_s`.

    Nothing goes on after the moment `until` that each is given, whatever the server does.
    """

    what: str
    serving: Serving
    traffic: Traffic
    protocol: Protocol
    p99_ms: float
    memory_bytes: int
    level_s: float
    start_s: float
    """Longest time from start to ready."""
    start: Start = served
    clock: Callable[[], float] = time.monotonic

    @property
    def ask_s(self) -> float:
        """How long one measurement takes."""
        return self.level_s * (1 + WARM_UP_PART)

    def has_time(self, until: float, *, asks: int = 1) -> bool:
        """Whether so many measurements can end before `until`."""
        return self.clock() + asks * self.ask_s < until

    def measure(self, configuration: Configuration, callers: int, *, until: float) -> Measured:
        points: list[Point] = []
        server, lost = None, ""
        try:
            with self.serve(configuration, until=until) as server:
                asking = partial(self.ask, server, until=until)
                goes_on = partial(self.has_time, until)
                points.extend(climb(asking, first=callers, p99_ms=self.p99_ms, goes_on=goes_on))
                server.weigh()
        except Lost as loss:
            lost = str(loss)
        return Measured(
            configuration=configuration,
            points=tuple(points),
            memory_bytes=server.peak_bytes if server else 0,
            lost=lost,
        )

    def serve(self, configuration: Configuration, *, until: float) -> AbstractContextManager[Served]:
        try:
            serving = configuration.within(self.serving)
        except InvalidSettings as error:
            raise Lost(str(error)) from error
        within_s = min(self.start_s, until - self.clock())
        return self.start(self.what, serving, most_bytes=self.memory_bytes, within_s=within_s)

    def ask(self, server: Served, callers: int, *, until: float) -> Point:
        """A closed loop. Raises `Lost`."""
        return self._ask(server, callers, None, until=until)

    def ask_at(self, server: Served, rate: float, callers: int, *, until: float) -> Point:
        """An open loop: so many requests a second are due, where so many callers got about as many. Raises `Lost`."""
        return self._ask(server, SPARE * callers, rate, until=until)

    def _ask(self, server: Served, callers: int, rate: float | None, *, until: float) -> Point:
        plan = Plan(
            url=server.address(self.protocol),
            model=server.model,
            protocol=self.protocol,
            callers=callers,
            seconds=self.level_s,
            warm_up_s=self.level_s * WARM_UP_PART,
            rate=rate,
            rows=self.traffic.rows,
            requests=self.traffic.requests,
            due=self.traffic.due,
        )
        if not self.has_time(until):
            raise Lost("there was no time left to measure it")
        patience_s = PATIENCE_S + 2 * self.p99_ms / 1000
        result = server.ask(plan, within_s=min(until - self.clock(), self.ask_s + patience_s))
        return Point(callers=callers, per_second=result.per_second, p99_ms=result.p99_ms, failed=result.failed)
