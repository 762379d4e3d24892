"""Which variant becomes the bundle: the cheapest that meets the whole budget, and why each other one lost.

Cheap means latency per row at the throughput batch. Of variants whose intervals overlap the cheapest's, the more
accurate is taken, and of equals the simpler.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from seatrial.bundle.evidence import Quality, Timing
from seatrial.errors import InvalidSettings
from seatrial.spelling import did_you_mean
from seatrial_export.candidate import Candidate, Verdict
from seatrial_export.quality import ENOUGH_ROWS, MIN_COSINE
from seatrial_export.verify import Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a variant must meet. None is no limit."""

    accuracy_drop: float = 0.01
    """At most so much accuracy lost, at the upper end of the 95 % interval; without labels, so much disagreement."""
    p99_ms: float | None = None
    """Latency of one row alone."""
    size_mb: float | None = None
    """Of the model file, in 10^6 bytes."""
    memory_mb: float | None = None
    """Resident memory that a process takes for the engine, above what it had before, in 10^6 bytes."""

    @staticmethod
    def parse(limits: Iterable[str]) -> "Budget":
        """Read `key=value` pairs. Raises `InvalidSettings`, naming the key that was likely meant."""
        known = [field.name for field in fields(Budget)]
        given: dict[str, float] = {}
        for limit in limits:
            key, equals, value = limit.partition("=")
            if key not in known:
                raise InvalidSettings(
                    f"'{key}' is nothing that a budget limits"
                    + did_you_mean(key, known, otherwise=f"it limits {', '.join(known)}")
                )
            try:
                given[key] = float(value)
            except ValueError:
                raise InvalidSettings(f"--budget {limit}: write {key}=NUMBER, as in {key}=0.02") from None
            if not equals or not 0 <= given[key] < float("inf"):
                raise InvalidSettings(f"--budget {limit}: a limit is a number that is not negative")
        return Budget(**given)

    def as_dict(self) -> dict[str, float]:
        return {field.name: limit for field in fields(self) if (limit := getattr(self, field.name)) is not None}


class Scored(Protocol):
    """What is known of a candidate once it was verified and scored."""

    @property
    def candidate(self) -> Candidate: ...
    @property
    def proof(self) -> Proof: ...
    @property
    def quality(self) -> Quality: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A candidate that was verified and measured."""

    candidate: Candidate
    proof: Proof
    quality: Quality
    alone: Timing
    throughput: Timing
    size_bytes: int
    memory_bytes: int | None = None

    @property
    def row_ms(self) -> float:
        return self.throughput.p50_ms / self.throughput.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A variant's verdict, with the reason in one sentence. `on_front`: no other is both better and faster."""

    variant: Variant
    verdict: Verdict
    reason: str
    on_front: bool


def choose(variants: Sequence[Variant], budget: Budget) -> tuple[Judgement, ...]:
    """One judgement for each variant, in their order; at most one is `CHOSEN`."""
    refusals = {variant.candidate: _refusal(variant, budget) for variant in variants}
    admitted = [variant for variant in variants if refusals[variant.candidate] is None]
    winner = _cheapest(admitted) if admitted else None
    return tuple(
        _judgement(variant, refusals[variant.candidate], winner, on_front=on_front(variant, variants))
        for variant in variants
    )


def _refusal(variant: Variant, budget: Budget) -> tuple[Verdict, str] | None:
    return quality_refusal(variant, budget) or _cost_refusal(variant, budget)


def quality_refusal(variant: Scored, budget: Budget) -> tuple[Verdict, str] | None:
    """None for a float variant without compression: its answers are the source's, within rounding, by proof."""
    quality, allowed = variant.quality, budget.accuracy_drop
    if not variant.candidate.lossy:
        return None
    if quality.basis == "agreement":
        return _agreement_refusal(variant, allowed)
    drop = quality.source_value - quality.value
    if quality.drop_upper <= allowed:
        return None
    if drop > allowed:
        return Verdict.OVER_BUDGET, f"{quality.metric} falls by {drop:.4f}; the budget is {allowed:g}"
    return (
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"{quality.metric} falls by {drop:.4f} on {quality.rows} rows, and the 95 % interval of that reaches "
        f"{quality.drop_upper:.4f}; the budget is {allowed:g}",
    )


def _agreement_refusal(variant: Scored, allowed: float) -> tuple[Verdict, str] | None:
    quality, cosine = variant.quality, variant.proof.agreement.cosine
    if quality.rows < ENOUGH_ROWS:
        return (
            Verdict.NOT_ENOUGH_EVIDENCE,
            f"without labels it takes {ENOUGH_ROWS} rows to judge it and there are {quality.rows}; give more with "
            "--samples FILE",
        )
    if quality.value < 1 - allowed:
        return (
            Verdict.OVER_BUDGET,
            f"it agrees with the source in {quality.value:.2%} of the rows; {1 - allowed:.2%} are asked",
        )
    if cosine < MIN_COSINE:
        return Verdict.OVER_BUDGET, f"its outputs have cosine {cosine:.5f} to the source's; {MIN_COSINE} is asked"
    return None


def _cost_refusal(variant: Variant, budget: Budget) -> tuple[Verdict, str] | None:
    costs = (
        ("its p99 latency is", variant.alone.p99_ms, budget.p99_ms, "ms"),
        ("its model file has", variant.size_bytes / 1e6, budget.size_mb, "MB"),
        (
            "its engine takes",
            None if variant.memory_bytes is None else variant.memory_bytes / 1e6,
            budget.memory_mb,
            "MB of memory",
        ),
    )
    for what, found, allowed, unit in costs:
        if found is not None and allowed is not None and found > allowed:
            return Verdict.OVER_BUDGET, f"{what} {found:.4g} {unit}; the budget is {allowed:g}"
    return None


def _cheapest(admitted: Sequence[Variant]) -> Variant:
    fastest = min(admitted, key=lambda variant: variant.row_ms)
    alike = [variant for variant in admitted if _cannot_be_told_apart(variant, fastest)]
    return max(alike, key=lambda variant: variant.quality.value)  # the first of equals, which is the simplest


def _cannot_be_told_apart(one: Variant, other: Variant) -> bool:
    a, b = one.throughput, other.throughput
    return a.low_ms <= b.high_ms and b.low_ms <= a.high_ms


def _judgement(
    variant: Variant, refusal: tuple[Verdict, str] | None, winner: Variant | None, *, on_front: bool
) -> Judgement:
    if refusal is not None:
        verdict, reason = refusal
    elif variant is winner:
        verdict, reason = Verdict.CHOSEN, f"the cheapest that meets the budget: {variant.row_ms:.4g} ms a row"
    else:
        assert winner is not None, "one that meets the budget and no winner: this is a bug"
        verdict, reason = Verdict.ADMITTED, _why_not(variant, winner)
    return Judgement(variant=variant, verdict=verdict, reason=reason, on_front=on_front)


def _why_not(variant: Variant, winner: Variant) -> str:
    if _cannot_be_told_apart(variant, winner):
        better = "is more accurate" if winner.quality.value > variant.quality.value else "is simpler"
        return f"as fast as {winner.candidate.name}, within what can be told apart, but that one {better}"
    return f"slower: {variant.row_ms:.4g} ms a row, {winner.candidate.name} takes {winner.row_ms:.4g}"


def on_front(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Whether no other variant is at least as good and as fast, and better in one of the two."""

    def dominates(other: Variant) -> bool:
        better, faster = other.quality.value - variant.quality.value, variant.row_ms - other.row_ms
        return better >= 0 and faster >= 0 and (better > 0 or faster > 0)

    return not any(dominates(other) for other in variants)
