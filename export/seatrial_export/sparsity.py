"""The child that asks how many of a model's channels may go: `python -P -m seatrial_export.sparsity job.json`.

Successive halving (Jamieson and Talwalkar 2016): with each of several parts gone, what is left is taught for a
little while and asked rows that were kept out of this teaching; the better half goes on for twice as long, until two are left.
Those are worth being taught to the end, verified and timed. Nothing is proved here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from seatrial.errors import ConversionFailed, InvalidRecipe
from seatrial_export import child

PERCENTS = (10, 20, 30, 40, 50, 60)
FIRST_PART = 1 / 16
"""Of a whole fine-tuning, in the first rung. All rungs together take 1.25 of it."""
FINALISTS = 2

Attempt: TypeAlias = Callable[[int, float, float], float | None]
"""Teach what is left without so many percent, for this part of a fine-tuning, in at most this part of the time that there still
is; what is lost then, or None if that is no other model than one that was tried."""


class Job(child.Bounded, frozen=True, kw_only=True):
    """As of `prune.py`. `allowed` is how much accuracy may be lost."""

    model: str
    home: str
    data: str
    epochs: float
    allowed: float
    percents: tuple[int, ...] = PERCENTS


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """`part` is how much of a fine-tuning it had. `lost` is how much less accurate than the source it is on rows that the source
    has learnt: more than it will be on others."""

    percent: int
    part: float
    lost: float


class Halved(child.Bound, frozen=True, kw_only=True):
    """`finalists` are the percentages of those that stayed, the best first."""

    taught: tuple[Taught, ...]
    rows: int
    finalists: tuple[int, ...]


def halve(job: Job) -> Halved:
    until = job.until(time.monotonic())
    from torch import nn

    from seatrial.settings import Settings
    from seatrial_export.prune import take, teach, with_own_validation
    from seatrial_training.data import load_dataset
    from seatrial_training.evaluation import predictor, score
    from seatrial_training.fit import EVALUATION_BATCH, MONITORED
    from seatrial_training.pruning import parameters
    from seatrial_training.recipe import Pruning
    from seatrial_training.retrainable import NotRetrainable, read_retrainable

    retrainable = read_retrainable(Path(job.model))
    if isinstance(retrainable, NotRetrainable):
        raise ConversionFailed(retrainable.reason)
    data = with_own_validation(
        load_dataset(retrainable.recipe.data, Settings(home=Path(job.home), data=Path(job.data)))
    )
    whole = score(
        predictor(retrainable.module(), retrainable.signature), data.validation, batch_size=EVALUATION_BATCH
    ).value
    meant = job.epochs * retrainable.recipe.epochs
    modules, sizes, hurried = dict[int, nn.Module](), set[int](), False

    def attempt(percent: int, part: float, share: float) -> float | None:
        nonlocal hurried
        pruning = Pruning(kind="channels", sparsity=percent / 100)
        if percent not in modules:
            try:
                module = take(retrainable, pruning)
            except InvalidRecipe:
                return None  # so little that whole registers stay
            if parameters(module) in sizes:
                return None
            modules[percent] = module
            sizes.add(parameters(module))
        epochs = max(1, int(part * meant))
        few = replace(data, train=data.train.take(slice(math.ceil(min(1, part * meant / epochs) * len(data.train)))))
        for_s = None if math.isinf(until) else max(0.0, share * (until - time.monotonic()))
        tuned = teach(modules[percent], retrainable, pruning, few, epochs=epochs, for_s=for_s)
        hurried |= tuned.hurried
        return whole - tuned.epochs[tuned.best - 1].metrics[MONITORED]

    taught = rungs(job.percents, attempt, allowed=job.allowed)
    if not taught:
        raise ConversionFailed("there is no layer whose channels could go")
    return Halved(
        taught=tuple(sorted(taught, key=lambda each: each.percent)),
        rows=len(data.validation),
        finalists=tuple(each.percent for each in finalists(taught, job.allowed)),
        whole=not hurried,
    )


def rungs(percents: Sequence[int], attempt: Attempt, *, allowed: float) -> list[Taught]:
    """What became of each. Half of them go on, at least so many as may be finalists, each time for twice as long."""
    found = dict[int, Taught]()
    staying, part = list(percents), FIRST_PART
    while True:
        for number, percent in enumerate(staying):
            share = part / _parts_left(len(staying), done=number, part=part)
            if (lost := attempt(percent, part, share)) is not None:
                before = found[percent].part if percent in found else 0.0
                found[percent] = Taught(percent=percent, part=before + part, lost=lost)
        staying = [percent for percent in staying if percent in found]
        if len(staying) <= FINALISTS:
            return list(found.values())
        best = best_first([found[percent] for percent in staying], allowed)
        staying, part = [each.percent for each in best[: _half(len(best))]], 2 * part


def finalists(taught: Sequence[Taught], allowed: float) -> list[Taught]:
    """Those that were taught for longest, the best first."""
    longest = max(each.part for each in taught)
    return best_first([each for each in taught if each.part == longest], allowed)[:FINALISTS]


def best_first(taught: Sequence[Taught], allowed: float) -> list[Taught]:
    """The smallest of those that lose no more than is allowed, then those that come nearest to it."""
    return sorted(taught, key=lambda each: (max(0.0, each.lost - allowed), -each.percent))


def _half(number: int) -> int:
    return max(FINALISTS, math.ceil(number / 2))


def _parts_left(number: int, *, done: int, part: float) -> float:
    """Of a fine-tuning, what all take that come now and later, where `number` are in this rung."""
    later = _parts_left(_half(number), done=0, part=2 * part) if number > FINALISTS else 0.0
    return (number - done) * part + later


if __name__ == "__main__":
    child.work(Job, halve)
