"""The child that takes weights out of a model, has the whole model teach what is left, and converts that.

`python -P -m seatrial_export.prune job.json`. How weights are taken out, training knows.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from seatrial.errors import ConversionFailed
from seatrial_export import child, convert

if TYPE_CHECKING:
    from torch import nn

    from seatrial_models.architecture import Inputs
    from seatrial_training.data import Dataset
    from seatrial_training.fit import Fitted
    from seatrial_training.recipe import Pruning
    from seatrial_training.retrainable import Retrainable

Kind: TypeAlias = Literal["channels", "heads", "gated", "magnitude", "2:4"]

PROGRAM = "pruned.pt2"
VALIDATION_PART = 0.1
"""Of the training rows, which choose the best epoch: the rows that judge the variant must not."""
EXAMPLE_ROWS = 4


class Job(child.Bounded, frozen=True, kw_only=True):
    """`model` is an MLflow model's directory with what it takes to train on; `epochs` is a part of the recipe's.
    `kind` and `sparsity` as in a recipe's pruning. After `for_s` the best until then is converted."""

    model: str
    kind: Kind
    sparsity: float
    home: str
    data: str
    epochs: float
    conversion: convert.Job


class Pruned(child.Bound, frozen=True, kw_only=True):
    """`PROGRAM` and the converted model lie in the child's folder. It was trained for `epochs` of those that were `meant`."""

    converted: convert.Converted
    epochs: int
    meant: int


def prune(job: Job) -> Pruned:
    until = job.until(time.monotonic())
    import torch

    from seatrial.settings import Settings
    from seatrial_models.program import to_program
    from seatrial_training.data import load_dataset
    from seatrial_training.recipe import Pruning
    from seatrial_training.retrainable import NotRetrainable, read_retrainable

    retrainable = read_retrainable(Path(job.model))
    if isinstance(retrainable, NotRetrainable):
        raise ConversionFailed(retrainable.reason)
    data = load_dataset(retrainable.recipe.data, Settings(home=Path(job.home), data=Path(job.data)))
    pruning = Pruning(kind=job.kind, sparsity=job.sparsity)
    meant = max(1, round(job.epochs * retrainable.recipe.epochs))
    for_s = None if math.isinf(until) else until - time.monotonic()
    tuned = taught(retrainable, pruning, with_own_validation(data), epochs=meant, for_s=for_s)
    torch.export.save(to_program(tuned.module, _example(retrainable), retrainable.signature), PROGRAM)
    converted = convert.convert(job.conversion)
    return Pruned(converted=converted, epochs=len(tuned.epochs), meant=meant, whole=not tuned.hurried)


def taught(
    retrainable: "Retrainable", pruning: "Pruning", dataset: "Dataset", *, epochs: int, for_s: float | None = None
) -> "Fitted":
    """What `pruning` leaves of the module, trained on labels and on what the whole one answers."""
    return teach(take(retrainable, pruning), retrainable, pruning, dataset, epochs=epochs, for_s=for_s)


def take(retrainable: "Retrainable", pruning: "Pruning") -> "nn.Module":
    """What `pruning` leaves of the module, not yet taught. Raises `InvalidRecipe` if nothing can go."""
    from seatrial_training.pruning import take_out

    module = retrainable.module()
    take_out(module, pruning, _example(retrainable))
    return module


def teach(
    module: "nn.Module",
    retrainable: "Retrainable",
    pruning: "Pruning",
    dataset: "Dataset",
    *,
    epochs: int,
    for_s: float | None = None,
) -> "Fitted":
    """Train `module`, which is changed, on labels and on what the whole one answers."""
    from seatrial_training.fit import fine_tune

    recipe = retrainable.recipe
    return fine_tune(
        module.train(),
        recipe.model_copy(update={"pruning": pruning}),
        dataset,
        epochs=epochs,
        learning_rate=recipe.optimizer.learning_rate,
        for_s=for_s,
        teacher=retrainable.module(),
    )


def _example(retrainable: "Retrainable") -> "Inputs":
    from seatrial_models import architecture

    chosen = architecture(retrainable.architecture)
    return chosen.example(chosen.configure(retrainable.config), EXAMPLE_ROWS)


def with_own_validation(dataset: "Dataset") -> "Dataset":
    """The data set with validation rows that were taken from those for training."""
    cut = round(len(dataset.train) * VALIDATION_PART)
    return replace(dataset, train=dataset.train.take(slice(cut, None)), validation=dataset.train.take(slice(cut)))


if __name__ == "__main__":
    child.work(Job, prune)
