"""Nested lists to tensors and back, without a server."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from seatrial.errors import BadRequest, MalformedRequest, WrongInput
from seatrial.protocol import Tensor
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_serving.doors import rows

TEXTS = st.binary(max_size=5)


def spec(datatype: DataType, *shape: int, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=())


@given(st.data())
def test_what_is_written_as_json_is_read_as_it_was(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from([each for each in DataType if each is not DataType.BF16]))
    elements: Any = TEXTS if datatype is DataType.BYTES else None
    if datatype.numpy.kind == "f":
        elements = hnp.from_dtype(datatype.numpy, allow_nan=False, allow_infinity=False)
    array = data.draw(hnp.arrays(datatype.numpy, hnp.array_shapes(max_dims=4, max_side=3), elements=elements))
    text = rows.write_json(rows.as_json(Tensor("x", datatype, array)))
    back = rows.as_tensor(spec(datatype), rows.read_json(text))
    assert back.array.dtype == datatype.numpy
    assert back.array.tolist() == array.tolist()


def test_what_is_not_finite_goes_out_as_null() -> None:
    array = np.array([1, math.nan, -math.inf], np.float32)
    assert rows.write_json(rows.as_json(Tensor("y", DataType.FP32, array))) == b"[1.0,null,null]"


def test_bf16_goes_out_as_the_numbers_that_its_bits_mean() -> None:
    bits = np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16
    assert rows.as_json(Tensor("y", DataType.BF16, bits.astype(np.uint16))).tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("output", "written"),
    [
        (Tensor("y", DataType.FP32, np.array(0.5, np.float32)), b"0.5"),
        (Tensor("y", DataType.FP32, np.zeros((0, 3), np.float32)), b"[]"),
        (Tensor("y", DataType.FP32, np.arange(4, dtype=np.float32).reshape(2, 2).T), b"[[0.0,2.0],[1.0,3.0]]"),
        (Tensor("y", DataType.BYTES, np.array([b"ship", "sea", b"\xff"], object)), b'["ship","sea",{"b64":"/w=="}]'),
    ],
)
def test_scalars_empty_strided_and_binary_outputs_can_be_written(output: Tensor, written: bytes) -> None:
    assert rows.write_json(rows.as_json(output)) == written


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        (DataType.FP32, [[1, 2], [3]], "ragged"),
        (DataType.FP32, [[1, 2], 3], "ragged"),
        (DataType.FP32, [1, [2]], "list"),
        (DataType.FP32, [1, None], "null"),
        (DataType.FP32, [1, {"b64": "AAAA"}], "dict"),
        (DataType.FP32, [1e39], "too large"),
        (DataType.INT32, [1.0], "float"),
        (DataType.INT32, [True], "bool"),
        (DataType.UINT8, [256], "cannot"),
        (DataType.BF16, [1.0], "BF16"),
        (DataType.BYTES, [1], "int"),
        (DataType.BYTES, [{"b64": "***"}], "base64"),
        (DataType.BYTES, [{"b64": "AAAA", "more": 1}], "dict"),
    ],
)
def test_what_a_tensor_cannot_hold_is_refused_in_words(datatype: DataType, data: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        rows.as_tensor(spec(datatype, -1), data)


def test_deep_json_costs_no_stack() -> None:
    with pytest.raises(MalformedRequest):
        rows.read_json(b"[" * 1_000_000)
    deep: list[Any] = [1.0]
    for _ in range(500):
        deep = [deep]
    with pytest.raises(WrongInput, match="dimensions"):
        rows.as_tensor(spec(DataType.FP32, -1), deep)


PAIR = signature(spec(DataType.FP32, -1, 2, name="a"), spec(DataType.INT64, -1, 1, name="n"))
IMAGE = signature(spec(DataType.FP32, -1, 1, 2, 2))


def test_columns_that_are_inputs_go_by_name_in_any_order() -> None:
    asked = rows.from_table(PAIR, ["n", "a"], [[3, [1, 2]], [4, [5, 6]]])
    assert {tensor.name: tensor.array.tolist() for tensor in asked.inputs} == {"n": [[3], [4]], "a": [[1, 2], [5, 6]]}


def test_all_columns_together_are_the_only_input_in_its_own_shape() -> None:
    asked = rows.from_table(IMAGE, ["p0", "p1", "p2", "p3"], [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert asked.inputs[0].array.tolist() == [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]


@pytest.mark.parametrize("columns", [["a"], ["a", "b"], ["a", "n", "m"]])
def test_columns_that_are_no_inputs_are_refused(columns: list[str]) -> None:
    with pytest.raises(WrongInput):
        PAIR.check(rows.from_table(PAIR, columns, [[1] * len(columns)]).inputs)


WHOLE = {"a": [1, 2], "n": [1]}


@pytest.mark.parametrize("given", [None, {}, [], "x", [WHOLE, {"a": [1, 2]}], [WHOLE, 3], [3, 3]])
def test_rows_that_do_not_agree_are_refused(given: Any) -> None:
    with pytest.raises(WrongInput):
        rows.from_rows(PAIR, given)
