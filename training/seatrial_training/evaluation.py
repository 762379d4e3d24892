"""How good a predict function is on labelled rows.

Whatever maps inputs to logits is scored alike, a module or an engine, so that a variant can be compared with its source
row by row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from seatrial.tensors import Array, Signature
from seatrial_training.data import Labels, Split

Predict: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From inputs to outputs by name; every array has one row for each row given."""

OUTPUT = "logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`value` is the metric over all rows; `predicted` the class given to each row, `correct` whether it was right.

    `logits` are the answers themselves, one row for each.
    """

    metric: str
    value: float
    rows: int
    predicted: Labels
    correct: NDArray[np.bool_]
    logits: Array


def predictor(module: nn.Module, signature: Signature) -> Predict:
    """Ask `module`, on the CPU and in its present mode; a module or the module of an exported program."""

    def predict(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            output = module(*(torch.from_numpy(inputs[spec.name]) for spec in signature.inputs))
        outputs = (output,) if isinstance(output, torch.Tensor) else output
        return {spec.name: tensor.numpy() for spec, tensor in zip(signature.outputs, outputs, strict=True)}

    return predict


def score(predict: Predict, split: Split, *, batch_size: int) -> Score:
    """The accuracy of `predict` on `split`, asked in batches of `batch_size` and a rest. NaN is never right."""
    batches = (split.take(slice(start, start + batch_size)) for start in range(0, len(split), batch_size))
    logits = np.concatenate([predict(batch.inputs)[OUTPUT] for batch in batches])
    predicted = _classes(logits)
    correct = predicted == split.labels
    return Score(
        metric="accuracy",
        value=float(correct.mean()),
        rows=len(split),
        predicted=predicted,
        correct=correct,
        logits=logits,
    )


def _classes(logits: Array) -> Labels:
    classes: Labels = logits.argmax(axis=-1).astype(np.int64)
    classes[~np.isfinite(logits).all(axis=-1)] = -1
    return classes


def confusion_matrix(predicted: Labels, truth: Labels, *, classes: int) -> NDArray[np.int64]:
    """How many rows of each true class (row) were given each class (column). Non-answers (-1) are left out."""
    matrix = np.zeros((classes, classes), np.int64)
    answered = predicted >= 0
    np.add.at(matrix, (truth[answered], predicted[answered]), 1)
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassResult:
    """`recall` is how many rows of the class were found, `precision` how many of those given the class belong to it."""

    label: str
    rows: int
    recall: float
    precision: float


def class_results(predicted: Labels, truth: Labels, *, labels: Sequence[str]) -> tuple[ClassResult, ...]:
    """One result for each class, in the order of `labels`. A ratio over no rows is 0."""
    matrix = confusion_matrix(predicted, truth, classes=len(labels))
    found, given = np.diag(matrix), matrix.sum(axis=0)
    rows = np.bincount(truth, minlength=len(labels))
    return tuple(
        ClassResult(
            label=label,
            rows=int(rows[i]),
            recall=float(found[i] / max(rows[i], 1)),
            precision=float(found[i] / max(given[i], 1)),
        )
        for i, label in enumerate(labels)
    )
