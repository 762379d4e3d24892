"""The time that there is for one export, and how it went."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from seatrial_export.build import Tell
from seatrial_export.measure import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """`minutes` from when it `began`, or as long as it takes. `seconds` has how long each step took; `tell` hears of them."""

    minutes: float | None = None
    tell: Tell = lambda *_: None
    clock: Clock = time.monotonic
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What is done in several parts counts together."""
        if name not in self.seconds:
            self.tell(name, "")
        before, started = self.seconds.setdefault(name, 0.0), time.monotonic()
        yield
        self.seconds[name] = round(before + time.monotonic() - started, 3)

    def left_s(self, part: float = 1.0) -> float:
        """Until this part of the time has passed that there is for all of it."""
        if self.minutes is None:
            return math.inf
        return self.began + 60 * part * self.minutes - self.clock()
