"""What is said of a variant that answers differently: which rows, which classes, how sure, and when that is chance."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seatrial.tensors import Array, DataType, DynamicAxis, Signature, TensorSpec
from seatrial_export.deltas import Deltas, compare, judge
from seatrial_export.deltas.confusion import confusion
from seatrial_export.deltas.distance import BARS, distances
from seatrial_export.deltas.pairs import mcnemar, pair
from seatrial_export.deltas.reliability import BINS, calibration, confidence, reliability
from seatrial_export.deltas.slices import lengths, slices
from seatrial_models.architecture import text_classifier
from seatrial_training.data import Labels, Split
from seatrial_training.evaluation import Score, score

LABELS = ("cat", "dog", "owl")
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.FP32, shape=(-1, 3)),),
    outputs=(TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, 3)),),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "logits": 0}, max=64),),
)


def answered(logits: Array, truth: Labels) -> Score:
    return score(lambda inputs: inputs, held_out(truth, logits=logits), batch_size=64)


def held_out(truth: Labels, **inputs: Array) -> Split:
    return Split(inputs=inputs or {"x": np.zeros((len(truth), 3), np.float32)}, labels=truth)


def said(*classes: int, sure: float = 5.0) -> NDArray[np.float32]:
    """Logits of which that of the class named is larger than the others."""
    return (sure * np.eye(3)[list(classes)]).astype(np.float32)


def deltas(source: Array, variant: Array, truth: Labels, *, signature: Signature = SIGNATURE) -> Deltas:
    return judge(
        "int8", answered(source, truth), answered(variant, truth), held_out(truth), signature=signature, labels=LABELS
    )


def test_rows_that_change_their_class_are_named_with_what_became_of_them() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    found = deltas(said(0, 0, 0, 1, 2, 1), said(1, 0, 1, 1, 1, 0), truth)
    assert found.judged is not None
    confusion = found.judged.confusion
    assert (confusion.lost, confusion.gained, confusion.still_wrong) == (2, 1, 1)
    assert [(move.truth, move.source, move.variant, move.rows, move.kind) for move in confusion.moves] == [
        ("cat", "cat", "dog", (0, 2), "lost"),
        ("dog", "owl", "dog", (4,), "gained"),
        ("owl", "dog", "cat", (5,), "still wrong"),
    ]
    assert confusion.p_value == 1.0
    assert [
        (part.name, part.pairs.lost, part.pairs.gained) for part in found.judged.slices if part.kind == "class"
    ] == [
        ("cat", 2, 0),
        ("dog", 0, 1),
        ("owl", 0, 0),
    ]
    cats = pair(np.array([True, True, True]), np.array([False, True, False]), among=3)
    assert found.judged.slices[0].pairs == cats, "three classes are looked at together"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Deltas) == found


def test_a_variant_that_answers_the_same_has_changed_nothing() -> None:
    truth = np.array([0, 1, 2, 2])
    found = deltas(said(0, 1, 2, 1), said(0, 1, 2, 1), truth)
    assert found.judged is not None
    assert found.judged.confusion.moves == ()
    assert found.judged.calibration.source == found.judged.calibration.variant
    assert (found.judged.calibration.change_low, found.judged.calibration.change_high) == (0, 0)
    assert set(found.distances[0].percentiles) == {0}
    assert not any(part.pairs.worse or part.pairs.better for part in found.judged.slices)


def test_the_rows_that_moved_most_come_first() -> None:
    source = said(0, 1, 2)
    variant = source + np.array([[0.1], [0.3], [0.2]], np.float32)
    found = deltas(source, variant, np.array([0, 1, 0]))
    assert found.judged is not None
    assert [(row.row, round(row.distance, 3)) for row in found.judged.changed] == [(1, 0.3), (2, 0.2), (0, 0.1)]
    assert found.judged.changed[1].truth == "cat"
    (before, sure), (after, still) = found.judged.changed[1].source, found.judged.changed[1].variant
    assert (before, after) == ("owl", "owl")
    assert [sure, still] == pytest.approx([0.9867, 0.9867], abs=1e-4)


def test_classes_without_names_and_rows_without_an_answer_have_words() -> None:
    logits = said(0, 1)
    broken = np.where([[True], [False]], np.nan, logits).astype(np.float32)
    truth = np.array([0, 1])
    found = judge(
        "v", answered(logits, truth), answered(broken, truth), held_out(truth), signature=SIGNATURE, labels=()
    )
    assert found.judged is not None
    [move] = found.judged.confusion.moves
    assert (move.truth, move.source, move.variant) == ("0", "0", "no answer")
    assert found.distances[0].rows == 1, "a distance to nothing is none"


def test_a_slice_of_five_rows_does_not_cry_wolf_and_one_of_five_hundred_does() -> None:
    few, many = (pair(np.ones(n, bool), np.arange(n) >= n * 3 // 5, among=10) for n in (5, 500))
    assert few.lost == 3
    assert not few.worse
    assert many.lost == 300
    assert many.worse
    assert not many.better


def test_of_many_slices_that_differ_by_chance_alone_hardly_ever_one_is_called_worse() -> None:
    """A hundred exports with 30 classes of 40 rows, a tenth of which answer anew at random: at most 5 of the hundred."""
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(100):
        source, anew, redone = random.random((3, 30, 40))
        before, after = source < 0.9, np.where(redone < 0.1, anew, source) < 0.9
        pairs = [pair(*both, among=30) for both in zip(before, after, strict=True)]
        alarms += any(each.worse or each.better for each in pairs)
    assert alarms <= 5


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_test_is_a_probability_and_even_handed(lost: int, gained: int) -> None:
    assert 0 <= mcnemar(lost, gained) == mcnemar(gained, lost) <= 1
    assert mcnemar(lost, lost) == 1


def test_mcnemars_test_of_a_known_table() -> None:
    """10 to 2: twice the 79 of 4096 ways that are as uneven."""
    assert mcnemar(10, 2) == pytest.approx(2 * 79 / 4096)


def test_the_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    """Ten rows at 0.9 of which seven are right, ten at 0.55 of which five are: (10 x 0.2 + 10 x 0.05) / 20."""
    sure = np.repeat([0.9, 0.55], 10)
    correct = np.tile(np.arange(10), 2) < np.repeat([7, 5], 10)
    found = reliability(sure, correct)
    assert found.error == pytest.approx(0.125)
    assert [(each.rows, each.accuracy) for each in found.bins] == [(10, 0.5), (10, 0.7)]
    assert [each.confidence for each in found.bins] == pytest.approx([0.55, 0.9])
    assert all(each.low < each.confidence <= each.high for each in found.bins)


def test_one_that_is_surer_of_the_same_answers_is_worse_calibrated_beyond_doubt() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=600)
    classes = np.where(random.random(600) < 0.6, truth, (truth + 1) % 3)
    found = calibration(answered(said(*classes, sure=1), truth), answered(said(*classes, sure=6), truth))
    assert found.variant.error > found.source.error + 0.2
    assert 0 < found.change_low < found.variant.error - found.source.error < found.change_high


def test_confidence_is_softmax_and_large_logits_do_not_overflow() -> None:
    found = confidence(np.array([[0, 0, 0], [np.log(2), 0, 0], [1e4, 0, -1e4], [np.nan, 0, 0]], np.float32))
    assert found == pytest.approx([1 / 3, 0.5, 1, 0])
    assert len(reliability(found, np.ones(4, bool)).bins) == 4 <= BINS


def test_distances_are_counted_row_by_row() -> None:
    source: dict[str, Array] = {"y": np.zeros((100, 2), np.float32), "ids": np.zeros(100, np.int64)}
    moved = np.zeros((100, 2), np.float32)
    moved[:, 1] = -np.arange(100) / 100
    [found] = compare("v", source, {"y": moved, "ids": source["ids"]}).distances
    assert found.output == "y"
    assert found.percentiles == pytest.approx((0.495, 0.891, 0.9801, 0.99))
    assert (len(found.histogram), sum(found.histogram)) == (BARS, 100)
    assert distances(source, source)[0].percentiles[-1] == 0


def test_rows_are_as_long_as_they_are_without_their_padding() -> None:
    ids = np.array([[5, 0, 7, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 2, 3, 4]])
    signature = text_classifier(max_tokens=8, classes=3)
    found = lengths({"token_ids": ids}, signature)
    assert found is not None
    assert found.tolist() == [3, 0, 1, 4]
    assert lengths({"x": ids}, SIGNATURE) is None
    truth = np.array([0, 1, 2, 0])
    rows = Split(inputs={"token_ids": ids}, labels=truth)
    source = answered(said(0, 1, 2, 0), truth)
    parts = [part for part in slices(source, source, rows, signature=signature, labels=LABELS) if part.kind == "length"]
    assert sum(part.pairs.rows for part in parts) == 4
    assert [part.name for part in parts] == ["0", "1", "3", "4"]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_every_row_is_in_one_slice_of_each_kind_and_in_one_move_if_it_moved(rows: list[tuple[int, int, int]]) -> None:
    truth, source, variant = (np.array(column) for column in zip(*rows, strict=True))
    scores = answered(said(*source), truth), answered(said(*variant), truth)
    parts = slices(*scores, held_out(truth), signature=SIGNATURE, labels=LABELS)
    for kind in {part.kind for part in parts}:
        assert sum(part.pairs.rows for part in parts if part.kind == kind) == len(rows)
    found = confusion(*scores, truth, labels=LABELS)
    moved = [row for move in found.moves for row in move.rows]
    assert sorted(moved) == np.flatnonzero(source != variant).tolist()
    assert found.lost - found.gained == int((source == truth).sum()) - int((variant == truth).sum())
