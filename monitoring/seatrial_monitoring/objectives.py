"""What is promised to callers, how it is counted, and how fast its error budget may burn.

Two objectives for each model: availability (requests that did not end badly through our doing) and latency (requests within
the latency budget). Both are ratios of counters; where there was no traffic they have no value, so nothing is wrong.
Burn rates and windows are those of the SRE workbook, for an error budget of 30 days.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from seatrial.errors import InvalidSettings
from seatrial_monitoring.promql import BY_MODEL, grown, per_second, ratio, select, total
from seatrial_monitoring.series import REQUEST_DURATION, REQUESTS, Outcome, le
from seatrial_monitoring.spec import Severity

BAD = (Outcome.REFUSED, Outcome.DEADLINE, Outcome.SERVER_ERROR)
NOT_COUNTED = (Outcome.CLIENT_ERROR, Outcome.ABANDONED)
"""A wrong request is the caller's; one who left got no answer to judge, and shows in the latency."""
LOWEST = 0.95
"""Below it, 14.4 times the budget would be more than all requests, and the page could never come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    availability: float = 0.999
    latency: float = 0.99
    """Which part of the requests is answered within `latency_s`."""
    latency_s: float = 0.1
    """The server's `serving.latency_budget_ms`: it must be an edge of its histograms."""
    least_bad: int = 5
    """With fewer bad requests in its long window than this, no burn alert fires, whatever the ratio."""
    runbook: str = "docs/runbook.md"
    """Where the runbook can be read, as alerts and panels link to it."""

    def __post_init__(self) -> None:
        for name in ("availability", "latency"):
            if not LOWEST <= getattr(self, name) < 1:
                raise InvalidSettings(
                    f"the objective {name} is {100 * getattr(self, name):g} %; it must be at least {100 * LOWEST:g} and below 100"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """The budget burns `factor` times too fast, over `long` and still over `short`."""

    factor: float
    long: str
    short: str
    severity: Severity


BURNS = (
    Burn(factor=14.4, long="1h", short="5m", severity="page"),
    Burn(factor=6, long="6h", short="30m", severity="page"),
    Burn(factor=3, long="1d", short="2h", severity="ticket"),
    Burn(factor=1, long="3d", short="6h", severity="ticket"),
)
LONG_WINDOWS = tuple(burn.long for burn in BURNS)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Indicator(ABC):
    """One objective as PromQL. `slo` is its label on everything recorded."""

    slo: str
    objective: float
    title: str
    promise: str
    alert: str

    @property
    def budget(self) -> float:
        return 1 - self.objective

    @abstractmethod
    def error_ratio(self, window: str) -> str:
        """Which part of the requests broke the promise; no value where there were none."""

    @abstractmethod
    def bad(self, window: str) -> str:
        """How many did."""

    @abstractmethod
    def example(self, labels: str, *, counted: str, good: str, bad: str) -> dict[str, str]:
        """Series of a model with `labels` in which requests are counted so, in promtool's notation, for the rules' tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability(Indicator):
    def error_ratio(self, window: str) -> str:
        bad, counted = (total(BY_MODEL, per_second(each, window)) for each in (_ended(BAD), _counted()))
        return ratio(bad, counted)

    def bad(self, window: str) -> str:
        return total(BY_MODEL, grown(_ended(BAD), window))

    def example(self, labels: str, *, counted: str, good: str, bad: str) -> dict[str, str]:
        by_outcome = {Outcome.OK: good, Outcome.SERVER_ERROR: bad, **dict.fromkeys(NOT_COUNTED, counted)}
        name = REQUESTS.exposed[0]
        return {f'{name}{{{labels}, protocol="rest", outcome="{each}"}}': values for each, values in by_outcome.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Indicator):
    latency_s: float

    def error_ratio(self, window: str) -> str:
        fast, counted = (total(BY_MODEL, per_second(each, window)) for each in (self._fast(), _answered()))
        return f"1 - {ratio(fast, counted)}"

    def bad(self, window: str) -> str:
        fast, counted = (total(BY_MODEL, grown(each, window)) for each in (self._fast(), _answered()))
        return f"{counted} - {fast}"

    def example(self, labels: str, *, counted: str, good: str, bad: str) -> dict[str, str]:  # noqa: ARG002
        buckets, count = (f"{REQUEST_DURATION.name}_{part}" for part in ("bucket", "count"))
        return {
            f'{buckets}{{{labels}, le="{le(self.latency_s)}"}}': good,
            f'{buckets}{{{labels}, le="+Inf"}}': counted,
            f"{count}{{{labels}}}": counted,
        }

    def _fast(self) -> str:
        return select(REQUEST_DURATION, f'le="{le(self.latency_s)}"', part="bucket")


def _ended(outcomes: tuple[Outcome, ...]) -> str:
    return select(REQUESTS, f'outcome=~"{"|".join(outcomes)}"')


def _counted() -> str:
    return select(REQUESTS, f'outcome!~"{"|".join(NOT_COUNTED)}"')


def _answered() -> str:
    return select(REQUEST_DURATION, part="count")


def indicators(objectives: Objectives) -> tuple[Indicator, ...]:
    return (
        Availability(
            slo="seatrial-availability",
            objective=objectives.availability,
            title="availability",
            promise="ended badly (refused, too late or failed)",
            alert="SeatrialAvailabilityBurn",
        ),
        Latency(
            slo="seatrial-latency",
            objective=objectives.latency,
            title="latency",
            promise=f"took longer than {1000 * objectives.latency_s:g} ms",
            alert="SeatrialLatencyBurn",
            latency_s=objectives.latency_s,
        ),
    )
