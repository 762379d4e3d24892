"""The child that takes weights out of a model, fine-tunes what is left and converts it.

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
    from seatrial_training.data import Dataset

Kind: TypeAlias = Literal["channels", "heads", "magnitude", "2:4"]

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
    from seatrial_models import architecture
    from seatrial_models.program import to_program
    from seatrial_training.data import load_dataset
    from seatrial_training.fit import fine_tune
    from seatrial_training.pruning import take_out
    from seatrial_training.recipe import Pruning
    from seatrial_training.retrainable import NotRetrainable, read_retrainable

    retrainable = read_retrainable(Path(job.model))
    if isinstance(retrainable, NotRetrainable):
        raise ConversionFailed(retrainable.reason)
    module = retrainable.module()
    pruning = Pruning(kind=job.kind, sparsity=job.sparsity)
    chosen = architecture(retrainable.architecture)
    example = chosen.example(chosen.configure(retrainable.config), EXAMPLE_ROWS)
    take_out(module, pruning, example)
    recipe = retrainable.recipe
    meant = max(1, round(job.epochs * recipe.epochs))
    tuned = fine_tune(
        module.train(),
        recipe.model_copy(update={"pruning": pruning}),
        with_own_validation(load_dataset(recipe.data, Settings(home=Path(job.home), data=Path(job.data)))),
        epochs=meant,
        learning_rate=recipe.optimizer.learning_rate,
        for_s=None if math.isinf(until) else until - time.monotonic(),
    )
    torch.export.save(to_program(tuned.module, example, retrainable.signature), PROGRAM)
    converted = convert.convert(job.conversion)
    return Pruned(converted=converted, epochs=len(tuned.epochs), meant=meant, whole=not tuned.hurried)


def with_own_validation(dataset: "Dataset") -> "Dataset":
    """The data set with validation rows that were taken from those for training."""
    cut = round(len(dataset.train) * VALIDATION_PART)
    return replace(dataset, train=dataset.train.take(slice(cut, None)), validation=dataset.train.take(slice(cut)))


if __name__ == "__main__":
    child.work(Job, prune)
