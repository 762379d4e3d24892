import json
import struct
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from seatrial.errors import BadRequest, MalformedRequest, NonFinite, SeatrialError, WrongInput
from seatrial.protocol import (
    MAX_PARAMETERS,
    MAX_RANK,
    MAX_TENSORS,
    InferRequest,
    Tensor,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from seatrial.tensors import DataType

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NUMERIC = [d for d in DataType if d is not DataType.BYTES]


@st.composite
def tensors(draw: st.DrawFn, *, json: bool = False) -> Tensor:
    datatypes = [d for d in DataType if not (json and d in (DataType.FP16, DataType.BF16))]
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(SHAPES)
    name = draw(st.text(min_size=1, max_size=8))
    if datatype is DataType.BYTES:
        elements = st.text().map(str.encode) if json else st.binary(max_size=20)
        return Tensor(name, datatype, draw(hnp.arrays(object, shape, elements=elements)))
    finite = {"allow_nan": False, "allow_infinity": False} if json and datatype.numpy.kind == "f" else {}
    return Tensor(name, datatype, draw(hnp.arrays(datatype.numpy, shape, elements=finite or None)))


def same(left: Tensor, right: Tensor) -> bool:
    return (
        left[:2] == right[:2]
        and left.array.shape == right.array.shape
        and np.array_equal(left.array, right.array, equal_nan=left.array.dtype.kind == "f")
    )


@given(st.lists(tensors(), max_size=3), st.text(max_size=5))
def test_binary_requests_come_back_as_they_were(inputs: list[Tensor], request_id: str) -> None:
    body, json_length = encode_request(InferRequest(tuple(inputs), id=request_id))
    decoded = decode_request(body, json_length=json_length)
    assert decoded.id == request_id
    assert len(decoded.inputs) == len(inputs)
    assert all(map(same, decoded.inputs, inputs))


@given(st.lists(tensors(), min_size=1, max_size=3), st.integers(1, 3))
def test_a_head_that_was_seen_before_means_the_same_again(inputs: list[Tensor], wrong: int) -> None:
    turned = [Tensor(name, datatype, array.ravel()[::-1].reshape(array.shape)) for name, datatype, array in inputs]
    for sent in (inputs, turned, inputs):
        body, json_length = encode_request(InferRequest(tuple(sent)))
        assert all(map(same, decode_request(body, json_length=json_length).inputs, sent))
        with pytest.raises(MalformedRequest):
            decode_request(body + b"x" * wrong, json_length=json_length)
        if len(body) - wrong >= json_length:
            with pytest.raises(MalformedRequest):
                decode_request(body[:-wrong], json_length=json_length)


@given(tensors(json=True))
def test_json_requests_come_back_as_they_were(tensor: Tensor) -> None:
    body, json_length = encode_request(InferRequest((tensor,)), binary=False)
    assert json_length == len(body)
    assert same(decode_request(body).inputs[0], tensor)


@given(st.lists(tensors(json=True), max_size=3, unique_by=lambda tensor: tensor.name), st.data())
def test_answers_come_back_with_any_mix_of_json_and_binary(outputs: list[Tensor], data: st.DataObject) -> None:
    binary = {tensor.name: data.draw(st.booleans()) for tensor in outputs}
    body, json_length = encode_answer(outputs, model="m", version="1", request_id="7", binary=binary)
    assert all(map(same, decode_answer(body, json_length=json_length), outputs))


def one(data: Any, *, datatype: str = "FP32", shape: list[int] | None = None, **parameters: Any) -> bytes:
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [2] if shape is None else shape}
    if data is not None:
        tensor["data"] = data
    if parameters:
        tensor["parameters"] = parameters
    return json.dumps({"inputs": [tensor]}).encode()  # orjson writes no number beyond 64 bits


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]])
def test_nested_and_flat_data_mean_the_same(data: Any) -> None:
    [tensor] = decode_request(one(data, shape=[2, 2])).inputs
    assert tensor.array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (b"", MalformedRequest, "not an inference request"),
        (b"[]", MalformedRequest, "not an inference request"),
        (b"{}", MalformedRequest, "missing required field `inputs`"),
        (b'{"inputs": ' + b"[" * 100_000, MalformedRequest, "not an inference request"),
        (b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP33"}]}', MalformedRequest, "FP33"),
        (b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [NaN, 1]}]}', MalformedRequest, ""),
        (one([1.0, 1e39]), NonFinite, "too large for FP32"),
        (one([1, 2, 3]), MalformedRequest, "has 3 elements, its shape says 2"),
        (one([1, [2]]), WrongInput, "holds list"),
        (one(None), MalformedRequest, "neither 'data' nor 'binary_data_size'"),
        (one(["1", "2"]), WrongInput, "is FP32, but its data holds str"),
        (one([True, False], datatype="INT32"), WrongInput, "is INT32, but its data holds bool"),
        (one([1.5, 2], datatype="INT64"), WrongInput, "is INT64, but its data holds float"),
        (one([None, 1.0]), WrongInput, "holds null"),
        (one([256, 0], datatype="UINT8"), WrongInput, "a number that UINT8 cannot"),
        (one([-1, 0], datatype="UINT64"), WrongInput, "a number that UINT64 cannot"),
        (one([1, 2], datatype="FP16"), WrongInput, "FP16, which has no JSON form"),
        (one([], shape=[-1]), WrongInput, "cannot be negative"),
        (one([], shape=[0] * 17), WrongInput, "17 dimensions"),
        (one([], shape=[0, 2**62, 2**62]), WrongInput, "multiply to more than"),
        (one(None, shape=[0, 2**63], binary_data_size=0), WrongInput, "multiply to more than"),
        (one([], shape=[7, 7]).replace(b"7", b"7" * 3000), WrongInput, "multiply to more than"),
        (one([1, 2], binary_data_size=8), MalformedRequest, "both 'data' and 'binary_data_size'"),
        (one(None, binary_data_size=True), MalformedRequest, "expected a number of bytes"),
        (one(None, binary_data_size=-8), MalformedRequest, "expected a number of bytes"),
        (one(None, binary_data_size=8), MalformedRequest, "was the body cut off"),
    ],
)
def test_malformed_bodies_get_their_own_error(body: bytes, error: type[SeatrialError], words: str) -> None:
    with pytest.raises(error) as caught:
        decode_request(body)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("binary", "size", "words"),
    [
        (b"\0" * 8, 4, "takes 8 bytes, got 4"),
        (b"\0" * 12, 8, "4 bytes of binary data belong to no tensor"),
        (b"\0" * 7, 8, "was the body cut off"),
    ],
)
def test_binary_data_must_add_up(binary: bytes, size: int, words: str) -> None:
    head = one(None, binary_data_size=size)
    with pytest.raises(MalformedRequest, match=words):
        decode_request(head + binary, json_length=len(head))


@pytest.mark.parametrize("data", [struct.pack("<I", 5) + b"abcd", b"\1\0", struct.pack("<I", 2**32 - 1)])
def test_cut_off_bytes_elements_are_noticed(data: bytes) -> None:
    head = one(None, datatype="BYTES", shape=[1], binary_data_size=len(data))
    with pytest.raises(MalformedRequest, match="cut off"):
        decode_request(head + data, json_length=len(head))


@pytest.mark.parametrize("length", [-1, 10_000])
def test_a_json_length_beyond_the_body_is_refused(length: int) -> None:
    with pytest.raises(MalformedRequest, match="JSON part"):
        decode_request(one([1, 2]), json_length=length)


@given(st.binary(max_size=200), st.integers(-5, 250) | st.none())
def test_no_bytes_get_past_as_anything_but_a_bad_request(body: bytes, json_length: int | None) -> None:
    with suppress(BadRequest):
        decode_request(body, json_length=json_length)


@given(st.data())
def test_a_damaged_request_is_read_or_refused_never_worse(data: st.DataObject) -> None:
    tensor = data.draw(tensors())
    body, json_length = encode_request(InferRequest((tensor,)))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadRequest):
        decode_request(bytes(damaged), json_length=json_length)


MANY = {str(number): number for number in range(MAX_PARAMETERS + 1)}


@pytest.mark.parametrize(
    "change",
    [{"inputs": [{}] * (MAX_TENSORS + 1)}, {"outputs": [{"name": "y"}] * (MAX_TENSORS + 1)}, {"parameters": MANY},
     {"inputs": [{"parameters": MANY}]}, {"outputs": [{"name": "y", "parameters": MANY}]}],
)  # fmt: skip
def test_a_request_names_no_more_than_any_model_has(change: dict[str, Any]) -> None:
    one_input = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    document = {"inputs": [{}]} | change
    document["inputs"] = [one_input | each for each in document["inputs"]]
    with pytest.raises(MalformedRequest, match="length <= "):
        decode_request(orjson.dumps(document))


def test_data_are_nested_no_deeper_than_tensors_are() -> None:
    data: Any = 1.0
    for _ in range(MAX_RANK):
        data = [data]
    assert decode_request(one(data, shape=[1] * MAX_RANK)).inputs[0].array.shape == (1,) * MAX_RANK
    with pytest.raises(WrongInput, match="nested deeper"):
        decode_request(one([data], shape=[1]))


def test_a_non_finite_output_is_null_in_json_and_itself_in_binary() -> None:
    outputs = [Tensor("y", DataType.FP32, np.array([np.nan, 1], np.float32))]
    body, _ = encode_answer(outputs, model="m", version="1", request_id="", binary={"y": False})
    assert orjson.loads(body)["outputs"][0]["data"] == [None, 1.0]
    body, json_length = encode_answer(outputs, model="m", version="1", request_id="", binary={"y": True})
    assert same(decode_answer(body, json_length=json_length)[0], outputs[0])


def test_outputs_without_a_json_form_say_so() -> None:
    half = Tensor("y", DataType.FP16, np.zeros(1, np.float16))
    with pytest.raises(WrongInput, match="ask for it as binary data"):
        encode_answer([half], model="m", version="1", request_id="", binary={"y": False})
    latin = Tensor("y", DataType.BYTES, np.array([b"\xff"], dtype=object))
    with pytest.raises(WrongInput, match="not UTF-8"):
        encode_answer([latin], model="m", version="1", request_id="", binary={"y": False})


FORMS = (
    '{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[%s]}]}',
    '{"inputs": [{"data": [%s], "datatype": "FP64", "shape": [4], "name": "data"}], "outputs": [{"name": "y"}]}',
    '{"inputs":[{"name":"\\"data\\":[","shape":[2,2],"datatype":"FP32","data":[[%s]]}]}',
    '{"parameters":{"data":"[1,2,3,4]"},"inputs":[{"name":"data","shape":[4],"datatype":"FP32","data":[%s]}]}',
    '{"inputs":[{"name":"x","shape":[4],"datatype":"INT64","data":[%s]}]}',
    '{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[9,9,9,9],"data":[%s]}]}',
    '{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":}[%s]]}',  # no JSON
    '{"id":"7","inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[%s]}]}',
)
NUMBERS = ("0", "-0.0", "1", " 2.5", "-1e-3", "0.1", "3e38", "9007199254740993")
NO_NUMBERS = ("4e38", "1e400", "", "true", "null", '"1"', "NaN", "-Infinity", "01", ".5", "[1]", "{}", "1,1", "]")


@given(
    st.sampled_from(FORMS),
    st.lists(st.sampled_from(NUMBERS), min_size=4, max_size=4)
    | st.lists(st.sampled_from(NUMBERS + NO_NUMBERS), min_size=3, max_size=5),
)
def test_json_of_a_form_that_came_before_is_read_as_if_it_had_not(form: str, numbers: list[str]) -> None:
    def outcome(body: bytes | memoryview) -> Any:
        try:
            return decode_request(body)
        except SeatrialError as error:
            return repr(error)

    for each in FORMS:
        outcome((each % "1,2,3,4").encode())
    body = (form % ",".join(numbers)).encode()
    known, unknown = outcome(body), outcome(memoryview(body))
    if isinstance(known, str) or isinstance(unknown, str):
        assert known == unknown
    else:
        assert known[1:4] == unknown[1:4]
        assert all(map(same, known.inputs, unknown.inputs))


def test_json_with_one_flat_list_of_floats_has_a_layout_however_its_numbers_differ() -> None:
    bodies = [(FORMS[0] % numbers).encode() for numbers in ("1,2,3,4", "5.5, -6,7e1,8")]
    first, second = map(decode_request, bodies)
    assert first.layout is second.layout is not None
    assert second.inputs[0].array.tolist() == [[5.5, -6, 70, 8]]
    others = [FORMS[2], FORMS[4], FORMS[5], FORMS[7]]
    assert not any(decode_request((form % "1,2,3,4").encode()).layout for form in others)
    with pytest.raises(NonFinite):
        decode_request((FORMS[0] % "1,2,3,4e38").encode())
