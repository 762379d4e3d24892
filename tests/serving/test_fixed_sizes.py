"""Batches of any size, put together from programs of a few fixed sizes."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seatrial.tensors import Array, DataType, DynamicAxis, Padding, Signature, TensorSpec
from seatrial_serving.engines.fixed_sizes import Ask, FixedSizes

TOKENS = DynamicAxis(name="tokens", at={"x": 1, "each": 1}, min=1, max=8)
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype=DataType.INT64, shape=(-1, -1)),),
    outputs=(
        TensorSpec(name="each", datatype=DataType.INT64, shape=(-1, -1)),
        TensorSpec(name="sum", datatype=DataType.INT64, shape=(-1,)),
    ),
    dynamic_axes=(DynamicAxis(name="batch", at={"x": 0, "each": 0, "sum": 0}, max=64), TOKENS),
    padding=Padding(axis="tokens", values={"x": 0}),
)


class Asked:
    """Programs that take one size, and the sizes in which they were asked."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def program(self, rows: int, length: int) -> Ask:
        def ask(x: Array) -> Mapping[str, Array]:
            assert x.shape == (rows, length)
            self.sizes.append((rows, length))
            return {"each": x * 10, "sum": x.sum(axis=1)}

        return ask


def programs(asked: Asked, *sizes: tuple[int, int]) -> FixedSizes:
    found = FixedSizes(SIGNATURE)
    for size in sizes:
        found.add({"x": size}, asked.program(*size))
    return found


@given(rows=st.integers(1, 70), length=st.integers(1, 8))
def test_a_batch_of_any_size_is_answered_as_if_there_were_a_program_for_it(rows: int, length: int) -> None:
    every = programs(Asked(), *((rows, length) for rows in (1, 8, 32) for length in (2, 8)))
    x = np.arange(rows * length).reshape(rows, length)
    answer = every.answer({"x": x})
    assert answer["each"].tolist() == (x * 10).tolist()
    assert answer["sum"].tolist() == x.sum(axis=1).tolist()
    assert list(answer) == ["each", "sum"]


def test_the_largest_that_fit_come_first_and_rows_are_padded_to_the_next_length() -> None:
    asked = Asked()
    every = programs(asked, *((rows, length) for rows in (1, 8, 32) for length in (2, 4, 8)))
    every.answer({"x": np.ones((42, 3), np.int64)})
    assert asked.sizes == [(32, 4), (8, 4), (1, 4), (1, 4)]
    assert len(every) == 9


def test_what_there_is_no_program_for_is_refused() -> None:
    some = programs(Asked(), (8, 4), (32, 4))
    with pytest.raises(ValueError, match=r"no program for the shapes \{'x': \(8, 5\)\}"):
        some.answer({"x": np.ones((8, 5), np.int64)})
    with pytest.raises(ValueError, match=r"programs for \[8, 32\] rows, which do not add up to 41"):
        some.answer({"x": np.ones((41, 4), np.int64)})
    with pytest.raises(ValueError, match="have other axes than the signature"):
        some.answer({"x": np.ones(8, np.int64)})


def test_without_a_batch_axis_there_is_one_program_for_each_shape() -> None:
    spec = TensorSpec(name="x", datatype=DataType.INT64, shape=(2, 3))
    one = FixedSizes(Signature(inputs=(spec,), outputs=(TensorSpec(name="y", datatype=DataType.INT64, shape=(2, 3)),)))
    assert not one
    one.add({"x": (2, 3)}, lambda x: {"y": x + 1})
    assert one.answer({"x": np.zeros((2, 3), np.int64)})["y"].tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match="no program for the shapes"):
        one.answer({"x": np.zeros((1, 3), np.int64)})
