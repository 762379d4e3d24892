"""Somebody's own wish, `--search`: finer forms of static INT8 than the candidates that everybody gets.

A child tries many on a few rows (`study.py`). Those on its Pareto front that are worth it become candidates like all others: they
are built, verified on all held-out rows, and timed. So do the two of several sparsities that a second child thinks best
(`sparsity.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from seatrial.errors import ConversionFailed
from seatrial_export.build import Built, Workshop, unbuilt
from seatrial_export.candidate import CANDIDATES, HALF, ON_REQUEST, Calibration, Candidate, Lost
from seatrial_export.choose import Budget
from seatrial_export.mix import MOST, Tried, could_be_mixed, nearest
from seatrial_export.quality import HeldOut
from seatrial_export.samples import Inputs, count
from seatrial_export.sparsity import Taught
from seatrial_export.study import SEED, Rows, Studied, Trial
from seatrial_export.trial import Verified

FINALISTS = 4
"""Forms of a target that are built: each is verified on all rows, and timed, which is dear."""
ASKED = 512
"""Most rows that a form is tried on, and at most half of those that judge."""


class Sparsities(msgspec.Struct, frozen=True, kw_only=True):
    """Which parts of the channels were tried, for the report; `why_not` says why none.

    `built` are the names of the candidates that came of it.
    """

    rows: int = 0
    taught: tuple[Taught, ...] = ()
    built: tuple[str, ...] = ()
    cut_short: bool = False
    why_not: str = ""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried, for the report. `base` is what the forms are forms of; `why_not` says why there are none.

    `built` are the names of those that became candidates, by the number of the trial, counted from 0.
    """

    target: str
    base: str = ""
    seed: int = SEED
    rows: int = 0
    trials: tuple[Trial, ...] = ()
    built: dict[int, str] = {}
    cut_short: bool = False
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`finalists` have been examined as every candidate is."""

    search: Search
    finalists: tuple[Verified | Lost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Searcher:
    """`rows` are what forms are tried on; `examine` verifies and scores what was built, on all rows."""

    workshop: Workshop
    examine: Callable[[Built], Verified | Lost]
    budget: Budget
    rows: Rows
    trials: int

    def search(self, target: str, tried: Sequence[Tried]) -> Found:
        """Among the forms of the static INT8 model for `target` that comes nearest to the source."""
        bases = [
            (built, found)
            for built, found in tried
            if isinstance(built, Built) and could_be_mixed(built.candidate, target=target)
        ]
        if not bases:
            return Found(search=Search(target=target, why_not=f"there is no static INT8 model for {target}"))
        base = nearest(bases)
        try:
            asked = self.workshop.sensitivity(base.candidate, base)
            layers = [layer.name for layer in asked]
            studied = self.workshop.study(
                target, base, layers=layers[: int(MOST * len(layers))], rows=self.rows, trials=self.trials
            )
        except ConversionFailed as error:
            return Found(search=Search(target=target, base=base.candidate.name, why_not=error.reason))
        chosen = {number: form_of(base.candidate, studied.trials[number]) for number in finalists(studied, self.budget)}
        return Found(
            search=Search(
                target=target,
                base=base.candidate.name,
                seed=studied.seed,
                rows=studied.rows,
                trials=studied.trials,
                built={number: candidate.name for number, candidate in chosen.items()},
                cut_short=not studied.whole,
            ),
            finalists=tuple(self._try(candidate, base, layers) for candidate in chosen.values()),
        )

    def _try(self, candidate: Candidate, base: Built, layers: Sequence[str]) -> Verified | Lost:
        try:
            return self.examine(self.workshop.refine(candidate, base, layers))
        except ConversionFailed as error:
            return unbuilt(candidate, error)


def pruned_static(targets: Sequence[str], percents: Sequence[int]) -> tuple[Candidate, ...]:
    """Static INT8 with so many percent of the channels gone, for those of `targets` that have such candidates."""
    halves = [
        each for each in (*CANDIDATES, *ON_REQUEST) if each.target in targets and each.static and each.pruning == HALF
    ]
    return tuple(replace(half, pruning=replace(HALF, percent=percent)) for half in halves for percent in percents)


def form_of(base: Candidate, trial: Trial) -> Candidate:
    return replace(base, calibration=Calibration.PERCENTILE, cut_ppm=trial.cut_ppm, floats=trial.floats)


def finalists(studied: Studied, budget: Budget) -> list[int]:
    """The numbers of the trials on the front that are worth being built: the cheapest that seem to keep the accuracy, then those
    that come nearest to it."""
    front = [number for number, trial in enumerate(studied.trials) if trial.on_front]

    def rank(number: int) -> tuple[float, float]:
        trial = studied.trials[number]
        return max(0.0, trial.lost - budget.accuracy_drop), trial.in_float

    return sorted(front, key=rank)[:FINALISTS]


def some_rows(rows: Inputs, held_out: HeldOut | None) -> Rows:
    """At most half of the rows that judge, so that a form which only pleases these does not please all."""
    inputs = held_out.split.inputs if held_out else rows
    number = min(ASKED, max(1, count(inputs) // 2))
    chosen = np.sort(np.random.default_rng(SEED).permutation(count(inputs))[:number])
    return Rows(
        inputs={name: array[chosen] for name, array in inputs.items()},
        labels=held_out.split.labels[chosen] if held_out else None,
    )
