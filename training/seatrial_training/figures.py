"""Pictures of a training run, drawn without a display."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seatrial_training.fit import Epoch

MOST_NAMES = 30
"""With more classes, names and counts would be too small to read."""


def learning_curves(epochs: Sequence[Epoch], *, best: int) -> Figure:
    """Losses and accuracy by epoch, with the epoch marked whose weights were kept."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in epochs]
    for axes, title, names in (
        (loss, "loss", ("training_loss", "validation_loss")),
        (accuracy, "accuracy", ("validation_accuracy",)),
    ):
        for name in names:
            axes.plot(numbers, [epoch.metrics[name] for epoch in epochs], label=name.replace("_", " "))
        axes.axvline(best, color="grey", linestyle=":", label=f"kept: epoch {best}")
        axes.set(title=title, xlabel="epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def confusion_picture(matrix: NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """Each row shows what a true class was taken for, as a share of the class."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="what each class was taken for", xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="share of the true class")
    if len(labels) <= MOST_NAMES:
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(matrix), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    return figure
