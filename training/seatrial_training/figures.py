"""Pictures of a training run, drawn without a display."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from seatrial_training.fit import Epoch

MOST_NAMES = 30
"""With more classes, names and counts would be too small to read."""
MOST_CONFUSIONS = 20
"""How many of the commonest mistakes are listed instead."""


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
            axes.plot(numbers, [epoch.metrics[name] for epoch in epochs], marker=".", label=name.replace("_", " "))
        axes.axvline(best, color="grey", linestyle=":", label=f"kept: epoch {best}")
        axes.set(title=title, xlabel="epoch", xlim=(numbers[0] - 0.5, numbers[-1] + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def confusion_picture(matrix: NDArray[np.int64], labels: Sequence[str]) -> Figure:
    """Each row shows what a true class was taken for, as a share of the class; of many classes, the commonest mistakes."""
    if len(labels) <= MOST_NAMES:
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.subplots()
        _name_and_count(axes, matrix, labels)
    else:
        figure = Figure(figsize=(13, 6), layout="constrained")
        axes, mistakes = figure.subplots(1, 2, width_ratios=(7, 5))
        _list_mistakes(mistakes, matrix, labels)
    image = axes.imshow(_shares(matrix), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    axes.set(title="what each class was taken for", xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def _shares(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def _name_and_count(axes: Axes, matrix: NDArray[np.int64], labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    shares = _shares(matrix)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        color = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)


def _list_mistakes(axes: Axes, matrix: NDArray[np.int64], labels: Sequence[str]) -> None:
    wrong = matrix - np.diag(np.diag(matrix))
    commonest = np.argsort(wrong, axis=None, kind="stable")[::-1][:MOST_CONFUSIONS]
    pairs = [
        (row, column)
        for row, column in zip(*np.unravel_index(commonest, wrong.shape), strict=True)
        if wrong[row, column]
    ]
    names = [f"{labels[row]} \N{RIGHTWARDS ARROW} {labels[column]}" for row, column in pairs]
    bars = axes.barh(range(len(pairs)), [wrong[pair] for pair in pairs], color="tab:blue")
    axes.bar_label(
        bars, [f"{wrong[row, column]} of {matrix[row].sum()}" for row, column in pairs], padding=3, fontsize=8
    )
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(title="the commonest mistakes", xlabel="rows (true \N{RIGHTWARDS ARROW} predicted)")
