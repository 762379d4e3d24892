"""Which variant becomes the bundle: the cheapest that meets the whole budget, and why each other one lost.

What a variant costs is cores x time: what a row in a full batch takes, times the threads that work on it. All variants of an
export have the same number of threads, so the time orders them. Whoever is proved, by rounds in which both took part, to be
within 3 % of every other one counts as being as cheap as they: of those the more accurate is taken, and of equals the simpler.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import ge
from typing import Protocol

from seatrial.bundle.evidence import Quality, Timing
from seatrial.errors import InvalidSettings
from seatrial.spelling import did_you_mean
from seatrial_export.candidate import Candidate, Verdict
from seatrial_export.measure import ratio
from seatrial_export.quality import ENOUGH_ROWS, least_cosine
from seatrial_export.verify import Proof

ALIKE = 1.03
"""A ratio of times that is not worth a worse answer."""
FAR = 1.25
"""Nobody whose median is so many times the lowest can be as cheap, whatever their rounds say."""
FLOORS = ("metric", "throughput")
"""What must be at least as large as its limit; all else at most."""


class Objective(StrEnum):
    """What is wanted most, of variants that meet the budget; where that leaves several, the cheapest of them is taken."""

    CHEAPEST = "cheapest"
    SIZE = "size"
    ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a variant must meet. None is no limit."""

    accuracy_drop: float = 0.01
    """At most so much accuracy lost, at the upper end of the 95 % interval; without labels, so much disagreement."""
    metric: float | None = None
    """At least so good at the task, by its own metric on the held-out rows."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    """Latency of the smallest batch that is timed: of one row alone, unless other sizes are named."""
    throughput: float | None = None
    """At least so many rows a second from one engine, in the largest batch that is timed."""
    size_mb: float | None = None
    """Of the model file, in 10^6 bytes."""
    memory_mb: float | None = None
    """Memory that a process takes for the engine, above what it had before, in 10^6 bytes."""
    load_s: float | None = None
    """From opening the bundle to the first answer, in a process that has the engine's library imported."""

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
    """A candidate that was verified and measured.

    `alone` and `throughput` are of the smallest and of the largest batch, `more` of the sizes between; `rounds` has what a call
    of `throughput` took, by the number of the round. `row_ms` is what a row costs: of `throughput`, but comparable with variants
    that took part in other rounds.
    """

    candidate: Candidate
    proof: Proof
    quality: Quality
    alone: Timing
    throughput: Timing
    row_ms: float
    rounds: Mapping[int, float]
    size_bytes: int
    memory_bytes: int
    load_s: float
    more: tuple[Timing, ...] = ()

    @property
    def timings(self) -> tuple[Timing, ...]:
        """Each once, that of the latency first."""
        return tuple(dict.fromkeys((self.alone, self.throughput, *self.more)))

    @property
    def rows_per_second(self) -> float:
        return 1000 / self.row_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A variant's verdict, with the reason in one sentence. `on_front`: see `on_front`."""

    variant: Variant
    verdict: Verdict
    reason: str
    on_front: bool


def choose(
    variants: Sequence[Variant], budget: Budget, objective: Objective = Objective.CHEAPEST
) -> tuple[Judgement, ...]:
    """One judgement for each variant, in their order; at most one is `CHOSEN`."""
    refusals = {variant.candidate: _refusal(variant, budget) for variant in variants}
    admitted = [variant for variant in variants if refusals[variant.candidate] is None]
    winner = _as_cheap(_wanted(admitted, objective)) if admitted else None
    return tuple(
        _judgement(variant, refusals[variant.candidate], winner, objective, on_front=on_front(variant, variants))
        for variant in variants
    )


def halved(variants: Sequence[Variant], budget: Budget, objective: Objective) -> Sequence[Variant]:
    """Who is worth more rounds: of those whose answers the budget admits the better half, and who may still be the fastest.

    What one costs puts it behind the others and not out: that was measured in few rounds.
    """

    def rank(variant: Variant) -> tuple[bool, float]:
        return _cost_refusal(variant, budget) is not None, _aim(variant, objective)

    fit = [variant for variant in variants if quality_refusal(variant, budget) is None]
    best_first = sorted(fit, key=lambda variant: (rank(variant), variant.row_ms))
    half = max(2, math.ceil(len(fit) / 2))
    return best_first[:half] + [
        variant
        for variant in best_first[half:]
        if rank(variant) == rank(best_first[0]) and ratio(variant.rounds, best_first[0].rounds).low <= ALIKE
    ]


def undecided(variants: Sequence[Variant], budget: Budget, objective: Objective) -> tuple[Variant, ...]:
    """Those between whom more rounds may change the choice: the winner, the fastest, and who may be as cheap as that one.

    A winner that is not proved to be within 3 % of such a one may be too dear; one that is preferred to the winner, but not
    proved to be as cheap, may be the right one. Empty where the choice is clear.
    """
    admitted = [variant for variant in variants if _refusal(variant, budget) is None]
    wanted = _wanted(admitted, objective)
    if not wanted:
        return ()
    fastest, winner = min(wanted, key=lambda variant: variant.row_ms), _as_cheap(wanted)
    near = [
        each
        for each in wanted
        if each.row_ms <= FAR * fastest.row_ms and ratio(each.rounds, fastest.rounds).low <= ALIKE
    ]

    def may_change_it(each: Variant) -> bool:
        is_preferred = _preferred([both for both in wanted if both is winner or both is each]) is each
        return each is not winner and (is_preferred or ratio(winner.rounds, each.rounds).high > ALIKE)

    rivals = [each for each in near if may_change_it(each)]
    return tuple({each.candidate: each for each in (fastest, winner, *rivals)}.values()) if rivals else ()


def halved_by_target(variants: Sequence[Variant], *, budget: Budget, objective: Objective) -> list[Variant]:
    """As `halved`, among the variants of each target."""
    return [each for some in by_target(variants).values() for each in halved(some, budget, objective)]


def undecided_by_target(
    variants: Sequence[Variant], *, budget: Budget, objective: Objective
) -> list[tuple[Variant, ...]]:
    """As `undecided`, among the variants of each target."""
    return [pair for some in by_target(variants).values() if (pair := undecided(some, budget, objective))]


def by_target(variants: Sequence[Variant]) -> dict[str, list[Variant]]:
    found: dict[str, list[Variant]] = {}
    for variant in variants:
        found.setdefault(variant.candidate.target, []).append(variant)
    return found


def noise(group: Sequence[Variant]) -> str:
    """What is said of some that stayed undecided, in a clause; the first of them is the fastest."""
    fastest, *others = group
    found = [ratio(other.rounds, fastest.rounds) for other in others]
    names = ", ".join(other.candidate.name for other in others)
    return (
        f"{fastest.candidate.name} and {names} could not be told apart within {100 * (ALIKE - 1):.0f} % in "
        f"{len(fastest.rounds)} rounds: this machine is too noisy, the {'others take' if others[1:] else 'second takes'} "
        f"{min(each.low for each in found):.3f} to {max(each.high for each in found):.3f} of the first's time"
    )


def _refusal(variant: Variant, budget: Budget) -> tuple[Verdict, str] | None:
    return quality_refusal(variant, budget) or _cost_refusal(variant, budget)


def quality_refusal(variant: Scored, budget: Budget) -> tuple[Verdict, str] | None:
    """What the budget says about the answers, and not about what they cost."""
    return _drop_refusal(variant, budget.accuracy_drop) or _metric_refusal(variant.quality, budget.metric)


def _drop_refusal(variant: Scored, allowed: float) -> tuple[Verdict, str] | None:
    """None for a float variant without compression: its answers are the source's, within rounding, by proof."""
    quality = variant.quality
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
    if cosine < (least := least_cosine(allowed)):
        return Verdict.OVER_BUDGET, f"its outputs have cosine {cosine:.5f} to the source's; {least:.5g} is asked"
    return None


def _metric_refusal(quality: Quality, floor: float | None) -> tuple[Verdict, str] | None:
    """The floor is held against the metric itself: the rows are the same for every variant."""
    if floor is None:
        return None
    if quality.basis == "agreement":
        return Verdict.NOT_ENOUGH_EVIDENCE, "the budget has a floor for the metric, and no labels came with the model"
    if quality.value < floor:
        return Verdict.OVER_BUDGET, f"its {quality.metric} is {quality.value:.4f}; the budget asks for {floor:g}"
    return None


def _cost_refusal(variant: Variant, budget: Budget) -> tuple[Verdict, str] | None:
    costs = (
        ("its median latency is", variant.alone.p50_ms, budget.p50_ms, "ms"),
        ("its p99 latency is", variant.alone.p99_ms, budget.p99_ms, "ms"),
        ("its model file has", variant.size_bytes / 1e6, budget.size_mb, "MB"),
        ("its engine takes", variant.memory_bytes / 1e6, budget.memory_mb, "MB of memory"),
        ("its engine takes", variant.load_s, budget.load_s, "s to load"),
    )
    for what, found, allowed, unit in costs:
        if allowed is not None and found > allowed:
            return Verdict.OVER_BUDGET, f"{what} {found:.4g} {unit}; the budget is {allowed:g}"
    if budget.throughput is not None and variant.rows_per_second < budget.throughput:
        found = variant.rows_per_second
        return Verdict.OVER_BUDGET, f"it answers {found:.4g} rows a second; the budget asks for {budget.throughput:g}"
    return None


def _wanted(admitted: Sequence[Variant], objective: Objective) -> Sequence[Variant]:
    """Those of which none is better by the objective itself."""
    best = min((_aim(variant, objective) for variant in admitted), default=0.0)
    return [variant for variant in admitted if _aim(variant, objective) == best]


def _aim(variant: Variant, objective: Objective) -> float:
    """The less the better; the same for all where cost alone decides."""
    return {Objective.SIZE: variant.size_bytes, Objective.ACCURACY: -variant.quality.value}.get(objective, 0.0)


def _as_cheap(admitted: Sequence[Variant]) -> Variant:
    """The most accurate of the cheapest, the first of equals: that is the simplest."""
    least = min(variant.row_ms for variant in admitted)
    near = [variant for variant in admitted if variant.row_ms <= FAR * least]
    regrets = [_regret(variant, near) for variant in near]
    bound = max(ALIKE, min(regrets))
    alike = [variant for variant, regret in zip(near, regrets, strict=True) if regret <= bound]
    return _preferred(alike)


def _preferred(alike: Sequence[Variant]) -> Variant:
    """Of some that are as cheap."""
    return max(alike, key=lambda variant: variant.quality.value)


def _regret(variant: Variant, others: Sequence[Variant]) -> float:
    """How many times what another one costs it may cost, at the upper end of the interval."""
    return max((ratio(variant.rounds, other.rounds).high for other in others if other is not variant), default=1.0)


def _judgement(
    variant: Variant,
    refusal: tuple[Verdict, str] | None,
    winner: Variant | None,
    objective: Objective,
    *,
    on_front: bool,
) -> Judgement:
    if refusal is not None:
        verdict, reason = refusal
    elif variant is winner:
        verdict, reason = Verdict.CHOSEN, _why(variant, objective)
    else:
        assert winner is not None, "one that meets the budget and no winner: this is a bug"
        verdict, reason = Verdict.ADMITTED, _why_not(variant, winner, objective)
    return Judgement(variant=variant, verdict=verdict, reason=reason, on_front=on_front)


def _why(winner: Variant, objective: Objective) -> str:
    if objective is Objective.SIZE:
        return f"the smallest that meets the budget: {winner.size_bytes / 1e6:.4g} MB"
    if objective is Objective.ACCURACY:
        return f"the best that meets the budget: {winner.quality.metric} {winner.quality.value:.4f}"
    return f"the cheapest that meets the budget: {winner.row_ms:.4g} ms a row"


def _why_not(variant: Variant, winner: Variant, objective: Objective) -> str:
    name, quality = winner.candidate.name, winner.quality
    if objective is Objective.SIZE and variant.size_bytes > winner.size_bytes:
        return f"larger: {variant.size_bytes / 1e6:.4g} MB, {name} has {winner.size_bytes / 1e6:.4g}"
    if objective is Objective.ACCURACY and variant.quality.value < quality.value:
        return f"less accurate: {quality.metric} {variant.quality.value:.4f}, {name} has {quality.value:.4f}"
    found = ratio(variant.rounds, winner.rounds)
    if found.low > 1:
        return f"slower: {variant.row_ms:.4g} ms a row, {name} takes {winner.row_ms:.4g}"
    if found.high > ALIKE:
        return f"it may take up to {found.high:.3g} times as long as {name}: the rounds could not tell them apart"
    better = "more accurate" if quality.value > variant.quality.value else "simpler"
    return f"as fast as {name} within {100 * (ALIKE - 1):.0f} %, but that one is {better}"


def on_front(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Whether no other variant is at least as good, fast, small and light in memory, and better in one of the four."""
    ours = _merits(variant)
    return not any(theirs != ours and all(map(ge, theirs, ours)) for theirs in map(_merits, variants))


def _merits(variant: Variant) -> tuple[float, float, int, int]:
    """The more the better. Memory counts in whole MiB: less is the allocator's mood."""
    return variant.quality.value, -variant.row_ms, -variant.size_bytes, -round(variant.memory_bytes / 2**20)
