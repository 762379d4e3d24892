"""What a dashboard, a rule, an alert and its proof are: the types that everything generated is made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["page", "ticket"]
Unit = Literal["reqps", "s", "short", "bytes", "percentunit", "ops"]
"""As Grafana calls them."""


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one for each combination of labels. `steady` says why it stands still on a server at work, if it does."""

    expr: str
    legend: str
    steady: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit
    alerts: tuple[str, ...] = ()
    """The alerts whose runbook sections belong to it."""
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    from_zero: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    name: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """A number that is watched, and the bound that it must not pass."""

    signal: str
    operator: Literal[">", ">=", "=="]
    bound: float

    def __str__(self) -> str:
        return f"{self.signal} {self.operator} {self.bound:.6g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The runbook's section."""

    meaning: str
    impact: str
    look: tuple[str, ...]
    act: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Series, as promtool writes them with a sample each minute, that make an alert fire at minute `fires`, not at `quiet`.

    `labels` are those of the alert beside its own; `value` is how the annotations show the number.
    """

    series: Mapping[str, str]
    quiet: int
    fires: int
    labels: Mapping[str, str]
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """All of `conditions` together, for `hold_m` minutes; the first one's number is the alert's value."""

    name: str
    severity: Severity
    conditions: tuple[Condition, ...]
    summary: str
    description: str
    hold_m: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def expr(self) -> str:
        return "\nand\n".join(map(str, self.conditions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`advice` has a section for each alert name; several alerts may share one."""

    recordings: tuple[Recording, ...]
    alerts: tuple[Alert, ...]
    advice: Mapping[str, Advice]
