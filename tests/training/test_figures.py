"""Pictures, read through matplotlib's own objects: what they say, not how they look."""

import numpy as np

from seatrial_training.figures import MOST_CONFUSIONS, MOST_NAMES, confusion_picture, learning_curves
from seatrial_training.fit import Epoch

EPOCHS = tuple(
    Epoch(number=n, metrics={"training_loss": 2 / n, "validation_loss": 3 / n, "validation_accuracy": 1 - 1 / (n + 1)})
    for n in (1, 2, 3)
)


def test_learning_curves_show_every_epoch_and_mark_the_one_that_was_kept() -> None:
    loss, accuracy = learning_curves(EPOCHS, best=2).axes
    curves = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in loss.lines}
    assert curves["training loss"] == [[1, 2], [2, 1], [3, 2 / 3]]
    assert curves["validation loss"] == [[1, 3], [2, 1.5], [3, 1]]
    assert [x for x, _ in curves["kept: epoch 2"]] == [2, 2]
    assert len(accuracy.lines) == 2


def test_one_epoch_alone_can_be_seen() -> None:
    loss, _ = learning_curves(EPOCHS[:1], best=1).axes
    assert loss.lines[0].get_marker() == "."
    assert [tick for tick in loss.get_xticks() if tick != round(tick)] == []


def test_few_classes_are_named_and_counted() -> None:
    axes = confusion_picture(np.array([[5, 1], [0, 4]]), ("cat", "dog")).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    written = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert {((0, 0), "5"), ((1, 0), "1"), ((1, 1), "4")} <= written


def test_of_many_classes_the_commonest_mistakes_are_listed() -> None:
    classes = MOST_NAMES + 1
    matrix = np.eye(classes, dtype=np.int64) * 10
    matrix[3, 7], matrix[1, 0] = 6, 2
    figure = confusion_picture(matrix, [f"class {number}" for number in range(classes)])
    mistakes = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert mistakes == ["class 3 \N{RIGHTWARDS ARROW} class 7", "class 1 \N{RIGHTWARDS ARROW} class 0"]
    assert {"6 of 16", "2 of 12"} <= {text.get_text() for text in figure.axes[1].texts}
    assert len(mistakes) < MOST_CONFUSIONS
