import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from seatrial.errors import WrongInput
from seatrial.protocol import Tensor
from seatrial.tensors import DataType
from seatrial_serving.doors.classification import classify


def best(array: object, classes: int, *labels: str, datatype: DataType = DataType.FP32, batched: bool = True) -> object:
    scores = Tensor("y", datatype, np.array(array, datatype.numpy))
    name, kind, texts = classify(scores, classes, labels=labels, batched=batched)
    assert (name, kind) == ("y", DataType.BYTES)
    return texts.tolist()


def test_each_row_s_highest_scores_with_their_places() -> None:
    assert best([[1.5, 3.5, 0.5], [9, 7, 8]], 2) == [[b"3.500000:1", b"1.500000:0"], [b"9.000000:0", b"8.000000:2"]]


def test_labels_are_added_where_there_is_one_for_each_class() -> None:
    assert best([[1, 3]], 1, "cat", "dög") == [["3.000000:1:dög".encode()]]
    assert best([[1, 3]], 1, "cat", "dog", "eel") == [[b"3.000000:1"]]


def test_without_a_batch_all_of_it_is_one_row() -> None:
    assert best([[1, 3], [4, 2]], 3, batched=False) == [b"4.000000:2", b"3.000000:1", b"2.000000:3"]


def test_more_classes_than_there_are_mean_all_of_them() -> None:
    assert best([[1, 2]], 5) == [[b"2.000000:1", b"1.000000:0"]]


def test_equals_come_in_their_order_and_what_is_not_a_number_last() -> None:
    assert best([[1, np.nan, 1, np.inf]], 4) == [[b"inf:3", b"1.000000:0", b"1.000000:2", b"nan:1"]]


def test_whole_numbers_are_ranked_exactly_at_their_limits() -> None:
    smallest = -(2**63)
    ranked = best([[smallest, 2**63 - 1, 2**63 - 2]], 3, datatype=DataType.INT64)
    assert ranked == [[b"%d:1" % (2**63 - 1), b"%d:2" % (2**63 - 2), b"%d:0" % smallest]]
    assert best([[0, 2**64 - 1, 2**64 - 2]], 2, datatype=DataType.UINT64) == [
        [b"%d:1" % (2**64 - 1), b"%d:2" % (2**64 - 2)]
    ]


@pytest.mark.parametrize("datatype", [DataType.BOOL, DataType.BYTES, DataType.BF16])
def test_what_has_no_order_is_refused(datatype: DataType) -> None:
    with pytest.raises(WrongInput, match="cannot be ranked"):
        best([[1, 0]], 1, datatype=datatype)


@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(0, 3))), st.integers(1, 9))
def test_the_places_are_those_of_the_sorted_scores(scores: np.ndarray, classes: int) -> None:
    texts = classify(Tensor("y", DataType.INT16, scores), classes, labels=(), batched=True).array
    for row, said in zip(scores.reshape(len(scores), -1), texts, strict=True):
        order = sorted(range(row.size), key=lambda n: (-int(row[n]), n))[:classes]
        assert said.tolist() == [b"%d:%d" % (row[n], n) for n in order]
