"""The child that takes half of a model's channels out, fine-tunes what is left and converts it.

`python -P -m seatrial_export.prune job.json`. Structured: whole channels go, with all that depends on them, so that
what is left is a smaller dense model; zeros in a mask would be multiplied like any other number. The method: Fang et
al., "DepGraph: towards any structural pruning" (2023).
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from seatrial.errors import ConversionFailed
from seatrial_export import child, convert

if TYPE_CHECKING:
    from torch import nn

    from seatrial_models.architecture import Inputs
    from seatrial_training.data import Dataset

PROGRAM = "pruned.pt2"
RATIO = 0.5
VALIDATION_PART = 0.1
"""Of the training rows, which choose the best epoch: the rows that judge the variant must not."""
EXAMPLE_ROWS = 4


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`model` is an MLflow model's directory with what it takes to train on; `epochs` is a part of the recipe's."""

    model: str
    home: str
    data: str
    epochs: float
    conversion: convert.Job


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """`PROGRAM` and the converted model lie in the child's folder. `parameters` before and after."""

    parameters: tuple[int, int]
    converted: convert.Converted


def prune(job: Job) -> Pruned:
    import torch

    from seatrial.settings import Settings
    from seatrial_models import architecture
    from seatrial_models.program import to_program
    from seatrial_training.data import load_dataset
    from seatrial_training.fit import fine_tune
    from seatrial_training.retrainable import NotRetrainable, read_retrainable

    retrainable = read_retrainable(Path(job.model))
    if isinstance(retrainable, NotRetrainable):
        raise ConversionFailed(retrainable.reason)
    module = retrainable.module()
    before = _parameters(module)
    chosen = architecture(retrainable.architecture)
    example = chosen.example(chosen.configure(retrainable.config), EXAMPLE_ROWS)
    take_half_out(module, example)
    after = _parameters(module)
    if after == before:
        raise ConversionFailed("there is no layer whose channels could go")
    recipe = retrainable.recipe
    tuned = fine_tune(
        module.train(),
        recipe,
        with_own_validation(load_dataset(recipe.data, Settings(home=Path(job.home), data=Path(job.data)))),
        epochs=max(1, round(job.epochs * recipe.epochs)),
        learning_rate=recipe.optimizer.learning_rate,
    )
    torch.export.save(to_program(tuned, example, retrainable.signature), PROGRAM)
    return Pruned(parameters=(before, after), converted=convert.convert(job.conversion))


def take_half_out(module: "nn.Module", example: "Inputs") -> None:
    """Remove the half of each layer's channels whose weights are smallest, together with what reads them."""
    import torch_pruning

    with warnings.catch_warnings():
        # Says that it takes parameters outside of layers for what they are not; we let it prune none of those.
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=_kept_whole(module),
            forward_fn=lambda model, inputs: model(**inputs),
        ).step()


def _kept_whole(module: "nn.Module") -> list["nn.Module"]:
    """The outputs, which are the classes; of a Transformer all but the hidden layers of its feed-forward parts."""
    from seatrial_models.bert import Bert
    from seatrial_models.transformer import TextTransformer

    if isinstance(module, TextTransformer | Bert):
        hidden = [name for name, _ in module.named_modules() if name.endswith("feed_forward.0")]
        return [each for name, each in module.named_modules() if _has_channels(each) and name not in hidden]
    return [each for name, each in module.named_modules() if name == "output"]


def _has_channels(module: "nn.Module") -> bool:
    from torch import nn

    return isinstance(module, nn.Linear | nn.Embedding)


def with_own_validation(dataset: "Dataset") -> "Dataset":
    """The data set with validation rows that were taken from those for training."""
    cut = round(len(dataset.train) * VALIDATION_PART)
    return replace(dataset, train=dataset.train.take(slice(cut, None)), validation=dataset.train.take(slice(cut)))


def _parameters(module: "nn.Module") -> int:
    return sum(weight.numel() for weight in module.parameters())


if __name__ == "__main__":
    child.work(Job, prune)
