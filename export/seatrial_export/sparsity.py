"""The child that asks how many of a model's channels may go, by Optuna: `python -P -m seatrial_export.sparsity job.json`.

With some part gone, what is left is taught for a little while and asked rows that were kept out of this teaching. It goes on,
each time for as long again as until then, while it is among the better half of those that came as far (asynchronous successive
halving, Li et al. 2020); what is tried next, a Gaussian process says. The two best are worth being taught to the end, verified
and timed. Nothing is proved here.
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

PERCENTS = (5, 70)
"""Of the channels: the least and the most that may go."""
START = (30, 50, 15)
"""What is tried first."""
TRIALS = 8
RUNGS = (1 / 16, 1 / 8, 1 / 4)
"""How much of a whole fine-tuning those have had that get so far."""
USUAL_PART = 3 / 16
"""About what a trial takes of a fine-tuning, by which the time is shared out."""
MOST_ASKED = 5
"""Proposals for each trial: most are no other model than one that was tried, where channels go in whole registers."""
FINALISTS = 2
SEED = 0

Attempt: TypeAlias = Callable[[int, float, float], float | None]
"""Teach what is left without so many percent, for this part of a fine-tuning more, in at most this part of the time that there
still is; what is lost then, or None if that is no other model than one that was tried."""


class Job(child.Bounded, frozen=True, kw_only=True):
    """As of `prune.py`. `allowed` is how much accuracy may be lost. After `for_s` nothing further is tried."""

    model: str
    home: str
    data: str
    epochs: float
    allowed: float
    start: tuple[int, ...] = START
    trials: int = TRIALS


class Taught(msgspec.Struct, frozen=True, kw_only=True):
    """`part` is how much of a fine-tuning it had. `lost` is how much less accurate than the source it is on rows that the source
    has learnt: more than it will be on others."""

    percent: int
    part: float
    lost: float


class Searched(child.Bound, frozen=True, kw_only=True):
    """`finalists` are the percentages of those that are worth a whole fine-tuning, the best first."""

    taught: tuple[Taught, ...]
    rows: int
    finalists: tuple[int, ...]


def search(job: Job) -> Searched:
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

    def over() -> bool:
        return time.monotonic() > until

    taught = climb(attempt, allowed=job.allowed, start=job.start, trials=job.trials, over=over)
    if not taught:
        raise ConversionFailed("there is no layer whose channels could go")
    return Searched(
        taught=tuple(sorted(taught, key=lambda each: each.percent)),
        rows=len(data.validation),
        finalists=tuple(each.percent for each in finalists(taught, job.allowed)),
        whole=not hurried and (len(taught) == job.trials or not over()),
    )


def climb(
    attempt: Attempt, *, allowed: float, start: Sequence[int], trials: int, over: Callable[[], bool]
) -> list[Taught]:
    """What became of each that was tried: `start`, then what Optuna proposes, up to `trials` different models, or until the time
    is `over`."""
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan = optuna.create_study(
        sampler=optuna.samplers.GPSampler(seed=SEED, n_startup_trials=len(start)),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    for percent in start:
        plan.enqueue_trial({"percent": percent})
    found = dict[int, Taught]()
    for _ in range(MOST_ASKED * trials):
        if len(found) == trials or (found and over()):
            break
        trial = plan.ask()
        percent = trial.suggest_int("percent", *PERCENTS)
        for rung, part in enumerate(RUNGS if percent not in found else ()):
            had = RUNGS[rung - 1] if rung else 0.0
            more, later = part - had, trials - len({*found, percent})
            share = more / (RUNGS[-1] - had + later * USUAL_PART)
            if (lost := attempt(percent, more, share)) is None:
                break
            found[percent] = Taught(percent=percent, part=part, lost=lost)
            trial.report(cost(found[percent], allowed), 2**rung)
            if trial.should_prune():
                break
        if percent in found:  # the sampler learns of those, too, that got no further
            plan.tell(trial, cost(found[percent], allowed))
        else:
            plan.tell(trial, state=TrialState.FAIL)
    return list(found.values())


def finalists(taught: Sequence[Taught], allowed: float) -> list[Taught]:
    """Those that were taught for longest, the best first."""
    return sorted(taught, key=lambda each: (-each.part, cost(each, allowed)))[:FINALISTS]


def cost(taught: Taught, allowed: float) -> float:
    """The smallest of those that lose no more than is allowed cost least, then those that come nearest to it."""
    return excess if (excess := taught.lost - allowed) > 0 else -taught.percent / 100


if __name__ == "__main__":
    child.work(Job, search)
