"""At which sizes a program is converted, where a converter wants them fixed."""

import pytest

from seatrial.errors import ConversionFailed
from seatrial.tensors import DataType, DynamicAxis, Padding, Signature, TensorSpec
from seatrial_export.fixed_sizes import name_of, sizes_of


def of(shape: tuple[int, ...], *axes: DynamicAxis, padding: Padding | None = None) -> Signature:
    tensors = [TensorSpec(name=name, datatype=DataType.FP32, shape=shape) for name in ("x", "y")]
    return Signature(inputs=(tensors[0],), outputs=(tensors[1],), dynamic_axes=axes, padding=padding)


def axis(name: str, index: int, most: int, *, least: int = 1) -> DynamicAxis:
    return DynamicAxis(name=name, at={"x": index, "y": index}, min=least, max=most)


def test_a_batch_is_put_together_from_three_sizes_as_far_as_there_is_room() -> None:
    assert sizes_of(of((-1, 4), axis("batch", 0, 64))) == [{"batch": 1}, {"batch": 8}, {"batch": 32}]
    assert sizes_of(of((-1, 4), axis("batch", 0, 16))) == [{"batch": 1}, {"batch": 8}]
    assert sizes_of(of((3, 4))) == [{}]


def test_lengths_that_may_be_padded_are_halved_and_all_others_are_there() -> None:
    batch, tokens = axis("batch", 0, 64), axis("tokens", 1, 100, least=5)
    padded = sizes_of(of((-1, -1), batch, tokens, padding=Padding(axis="tokens", values={"x": 0})))
    assert [size["tokens"] for size in padded] == [13, 25, 50, 100] * 3
    whole = sizes_of(of((-1, -1), batch, axis("columns", 1, 6, least=3)))
    assert [(size["batch"], size["columns"]) for size in whole] == [
        (rows, columns) for rows in (1, 8, 32) for columns in (3, 4, 5, 6)
    ]


def test_there_are_fewer_rows_where_there_are_many_lengths_and_too_many_lengths_are_refused() -> None:
    batch = axis("batch", 0, 64)
    assert {size["batch"] for size in sizes_of(of((-1, -1), batch, axis("columns", 1, 12)))} == {1, 8}
    assert {size["batch"] for size in sizes_of(of((-1, -1), batch, axis("columns", 1, 24)))} == {1}
    with pytest.raises(ConversionFailed, match="fixed sizes alone, a file has 24 at most, and columns has 25"):
        sizes_of(of((-1, -1), batch, axis("columns", 1, 25)))
    rows = DynamicAxis(name="batch", at={"x": 1, "y": 0}, max=64)
    with pytest.raises(ConversionFailed, match="and batch has 64"):
        sizes_of(of((-1, -1), rows))


def test_a_size_is_named_by_its_numbers() -> None:
    assert [name_of(sizes) for sizes in sizes_of(of((-1, 4), axis("batch", 0, 64)))] == ["1", "8", "32"]
    columns = sizes_of(of((-1, -1), axis("batch", 0, 7), axis("columns", 1, 2)))
    assert [name_of(sizes) for sizes in columns] == ["1x1", "1x2"]
    assert [name_of(sizes) for sizes in sizes_of(of((3, 4)))] == ["main"]
