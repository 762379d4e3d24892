"""From values to pixels: what the report's plots share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A linear scale from values to pixels, with some room at both ends; nothing lies below a value of zero."""

    first: float
    last: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float], *, low: float, high: float) -> "Scale":
        room = 0.08 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
        first = 0.0 if min(values) == 0 else min(values) - room
        return Scale(first=first, last=max(values) + room, low=low, high=high)

    def place(self, value: float) -> float:
        return self.low + (value - self.first) / (self.last - self.first) * (self.high - self.low)

    def marked(self, form: str) -> tuple[Tick, ...]:
        return tuple(Tick(at=self.place(value), words=form.format(value)) for value in self.ticks())

    def ticks(self) -> list[float]:
        """Three to six round numbers within the scale."""
        rough = (self.last - self.first) / 4
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * min((1, 2, 5, 10), key=lambda factor: abs(factor * unit - rough))
        return [step * i for i in range(math.ceil(self.first / step), math.floor(self.last / step) + 1)]
