"""Several contenders, asked in turn, round after round, so that what disturbs the machine disturbs all alike.

What fails is lost for that round and said; the others go on. Ratios are taken within a round, of the rounds that have both.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from rich.progress import Progress

from benchmarks.intervals import Interval
from benchmarks.tables import table
from seatrial_serving.bench import Result

Figure: TypeAlias = Callable[[Result], float]


class Lost(Exception):
    """A measurement that cannot be used, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measurement of a contender; `case` says under what load. `take` may raise `Lost`."""

    of: str
    case: str
    take: Callable[[], Result]


def per_second(result: Result) -> float:
    return result.per_second


def p50_ms(result: Result) -> float:
    return result.p50_ms


def p99_ms(result: Result) -> float:
    return result.p99_ms


@dataclass(slots=True)
class Rounds:
    """What was found, round by round; None where it was lost."""

    found: dict[tuple[str, str], list[Result | None]] = field(default_factory=lambda: defaultdict(list))
    lost: list[str] = field(default_factory=list)

    def note(self, trial: Trial) -> None:
        try:
            result = trial.take()
            if not result.requests:
                raise Lost(f"nothing was answered in {result.seconds:.1f} s")
            if result.failed:
                raise Lost(f"{result.failed} of {result.requests} requests failed: {result.outcomes}")
        except Lost as lost:
            self.lost.append(f"{trial.of}, {trial.case}, round {len(self.found[trial.of, trial.case]) + 1}: {lost}")
            print(f"lost: {self.lost[-1]}", file=sys.stderr)
            self.found[trial.of, trial.case].append(None)
        else:
            self.found[trial.of, trial.case].append(result)

    def values(self, of: str, case: str, what: Figure = per_second) -> list[float]:
        return [what(result) for result in self.found.get((of, case), ()) if result is not None]

    def median(self, of: str, case: str, what: Figure = per_second) -> float:
        return Interval.of(self.values(of, case, what)).middle

    def ratio(self, of: str, to: str, case: str, what: Figure = per_second, *, to_case: str = "") -> Interval:
        return Interval.of([this / that for this, that in self._pairs((of, case), (to, to_case or case), what)])

    def difference(self, of: str, to: str, case: str, what: Figure, *, to_case: str = "") -> Interval:
        return Interval.of([this - that for this, that in self._pairs((of, case), (to, to_case or case), what)])

    def _pairs(self, these: tuple[str, str], those: tuple[str, str], what: Figure) -> list[tuple[float, float]]:
        pairs = zip(self.found.get(these, ()), self.found.get(those, ()), strict=False)
        return [(what(this), what(that)) for this, that in pairs if this is not None and that is not None]

    # As text

    def throughput(self, names: Sequence[str], cases: Sequence[str]) -> str:
        return self._table("requests/s", names, cases, lambda name, case: f"{self.median(name, case):,.0f}")

    def latency(self, names: Sequence[str], cases: Sequence[str]) -> str:
        def cell(name: str, case: str) -> str:
            return f"{self.median(name, case, p50_ms):.2f} / {self.median(name, case, p99_ms):.2f}"

        return self._table("p50 / p99 ms", names, cases, cell)

    def _table(self, title: str, names: Sequence[str], cases: Sequence[str], cell: Callable[[str, str], str]) -> str:
        rows = [[name, *(cell(name, case) if self.values(name, case) else "-" for case in cases)] for name in names]
        return table([title, *cases], rows)

    def losses(self) -> str:
        """Empty where nothing was lost."""
        return (
            "\n".join(["Lost, each for its round only:", "", *(f"- {_brief(words)}" for words in self.lost)])
            if self.lost
            else ""
        )


def _brief(words: str) -> str:
    return " ".join(words.split())[:200]


def play(trials: Sequence[Trial], *, rounds: int, progress: Progress, title: str) -> Rounds:
    """Every trial once a round; each round begins with another contender."""
    result = Rounds()
    owners = list(dict.fromkeys(trial.of for trial in trials))
    task = progress.add_task(title, total=rounds * len(trials))
    for number in range(rounds):
        first = number % len(owners)
        for owner in owners[first:] + owners[:first]:
            for trial in trials:
                if trial.of == owner:
                    result.note(trial)
                    progress.advance(task)
    return result
