"""Scores, on answers that one can count by hand."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seatrial.tensors import Array, DataType, Signature, TensorSpec
from seatrial_training.data import Split
from seatrial_training.evaluation import class_results, confusion_matrix, predictor, score

TRUTH = np.array([0, 0, 1, 1, 2, 2])
GIVEN = np.array([0, 1, 1, 1, 2, 0])
SPLIT = Split(inputs={"given": np.eye(3, dtype=np.float32)[GIVEN]}, labels=TRUTH)


def repeat(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"logits": inputs["given"]}


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_the_score_does_not_depend_on_the_batches(batch_size: int) -> None:
    scored = score(repeat, SPLIT, batch_size=batch_size)
    assert (scored.metric, scored.value, scored.rows) == ("accuracy", 4 / 6, 6)
    assert scored.predicted.tolist() == GIVEN.tolist()
    assert scored.correct.tolist() == [True, False, True, True, True, False]


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf])
def test_a_row_with_nonsense_is_wrong_whatever_its_largest_is(nonsense: float) -> None:
    logits = np.eye(3, dtype=np.float32)[TRUTH]
    logits[0, 2] = nonsense
    scored = score(repeat, Split(inputs={"given": logits}, labels=TRUTH), batch_size=6)
    assert scored.predicted.tolist() == [-1, 0, 1, 1, 2, 2]
    assert scored.value == 5 / 6


def test_a_confusion_matrix_has_the_truth_in_its_rows() -> None:
    assert confusion_matrix(GIVEN, TRUTH, classes=3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1))
def test_every_answer_is_in_the_confusion_matrix_once(pairs: list[tuple[int, int]]) -> None:
    predicted, truth = np.array(pairs).T
    matrix = confusion_matrix(predicted, truth, classes=4)
    assert matrix.sum() == (predicted >= 0).sum()
    assert np.trace(matrix) == (predicted == truth).sum()


def test_recall_and_precision_of_each_class() -> None:
    results = class_results(GIVEN, TRUTH, labels=("a", "b", "c", "absent"))
    assert [(r.label, r.rows, r.recall, r.precision) for r in results] == [
        ("a", 2, 0.5, 0.5),
        ("b", 2, 1.0, 2 / 3),
        ("c", 2, 0.5, 1.0),
        ("absent", 0, 0.0, 0.0),
    ]


def test_a_predictor_names_what_goes_in_and_comes_out() -> None:
    class Difference(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    spec = [TensorSpec(name=name, datatype=DataType.FP32, shape=(-1, 1)) for name in ("left", "right", "logits")]
    ask = predictor(Difference(), Signature(inputs=tuple(spec[:2]), outputs=(spec[2],)))
    five, three = (np.array([[value]], np.float32) for value in (5, 3))
    assert ask({"right": three, "left": five})["logits"].tolist() == [[2.0]]
    assert torch.is_grad_enabled()
