"""What was asked of a tuning, and what is known of it so far."""

from dataclasses import dataclass, field
from pathlib import Path

from seatrial.bundle import Bundle
from seatrial.errors import BudgetNotMet
from seatrial.machine import Machine
from seatrial_serving.bench import Protocol
from seatrial_serving.tune.configuration import Configuration, Value
from seatrial_serving.tune.contest import Verdict, judge
from seatrial_serving.tune.search import Measured, Point, finalists


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`what` is anything that `seatrial serve` takes, of one model. `memory_bytes` bounds each server."""

    what: str
    p99_ms: float
    minutes: float = 5.0
    memory_bytes: int | None = None
    rows: int = 1
    recording: Path | None = None
    protocol: Protocol = "rest"


@dataclass(slots=True, kw_only=True)
class Tuned:
    """What is known so far; it grows while `tune` works. The first of `found` are the settings that held before."""

    request: Request
    machine: Machine
    bundle: Bundle | None
    traffic: str
    took_s: float = 0.0
    found: list[Measured] = field(default_factory=list)
    rounds: dict[Configuration, list[Point]] = field(default_factory=dict)
    held: Point | None = None
    """At what rate of due requests the bound was kept: `per_second` is the rate."""
    interrupted: bool = False

    @property
    def present(self) -> Configuration:
        return self.found[0].configuration

    @property
    def best(self) -> Measured | None:
        """The best so far by the search alone, which proves nothing; None where none meets the bound."""
        first = finalists(self.found, p99_ms=self.request.p99_ms, most=1)
        return next((each for each in first if each.best(self.request.p99_ms)), None)

    @property
    def verdict(self) -> Verdict:
        return judge(self.present, self.rounds, p99_ms=self.request.p99_ms)

    @property
    def advice(self) -> dict[str, Value]:
        """The settings to change, by their names below `serving`; empty where those of now are as good or nothing is proved."""
        chosen = self.verdict.chosen or self.present
        return {name: value for name, value in chosen.values if value != self.present[name]}

    @property
    def unmet(self) -> bool:
        """Nothing that was tried keeps the bound."""
        return self.best is None or self.verdict.unmet

    def check(self) -> None:
        """Raise `BudgetNotMet` where nothing that was tried keeps the bound."""
        if self.unmet:
            points = [point for each in self.rounds.values() for point in each]
            points = points or [point for each in self.found for point in each.points]
            closest = min(points, key=lambda point: point.p99_ms)
            raise BudgetNotMet(
                f"nothing that was tried keeps p99 within {self.request.p99_ms:g} ms; what came closest, once, was "
                f"{closest.p99_ms:.3g} ms with {_callers(closest.callers)}"
            )


def _callers(count: int) -> str:
    return "one caller" if count == 1 else f"{count} callers"
