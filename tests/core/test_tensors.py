import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from seatrial.errors import WrongInput
from seatrial.tensors import DataType, DynamicAxis, Padding, Signature, TensorSpec

IMAGE = TensorSpec(name="pixels", datatype=DataType.FP32, shape=(-1, 1, 8, 8))
LOGITS = TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, 10))
DIGITS = Signature(
    inputs=(IMAGE,),
    outputs=(LOGITS,),
    dynamic_axes=(DynamicAxis(name="batch", at={"pixels": 0, "logits": 0}, max=64),),
)
TEXT = Signature(
    inputs=(
        TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1)),
        TensorSpec(name="mask", datatype=DataType.INT64, shape=(-1, -1)),
    ),
    outputs=(LOGITS,),
    dynamic_axes=(
        DynamicAxis(name="batch", at={"ids": 0, "mask": 0, "logits": 0}, max=64),
        DynamicAxis(name="tokens", at={"ids": 1, "mask": 1}, max=128),
    ),
)


def given(name: str, *shape: int, datatype: DataType = DataType.FP32) -> tuple[str, DataType, np.ndarray]:
    return name, datatype, np.zeros(shape, datatype.numpy)


def test_a_fitting_request_passes() -> None:
    DIGITS.check([given("pixels", 3, 1, 8, 8)])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "missing input ['pixels']"),
        ([given("image", 1, 1, 8, 8)], "there is no input 'image'; the inputs are ['pixels']"),
        ([given("pixels", 1, 1, 8, 8)] * 2, "given twice"),
        ([given("pixels", 1, 1, 8, 8, datatype=DataType.FP64)], "datatype FP64, expected FP32"),
        ([given("pixels", 1, 1, 8, 9)], "shape [1, 1, 8, 9], expected [-1, 1, 8, 8]"),
        ([given("pixels", 1, 8, 8)], "shape [1, 8, 8], expected [-1, 1, 8, 8]"),
        ([given("pixels", 65, 1, 8, 8)], "has size 65; this model was verified for 1 to 64"),
        ([given("pixels", 0, 1, 8, 8)], "has size 0"),
    ],
)
def test_what_does_not_fit_is_named(inputs: list[tuple[str, DataType, np.ndarray]], words: str) -> None:
    with pytest.raises(WrongInput) as caught:
        DIGITS.check(inputs)
    assert words in str(caught.value)


def test_inputs_that_share_an_axis_must_agree_on_its_size() -> None:
    with pytest.raises(WrongInput, match="'tokens' has sizes"):
        TEXT.check([given("ids", 2, 7, datatype=DataType.INT64), given("mask", 2, 8, datatype=DataType.INT64)])


def test_requests_may_share_a_batch_only_where_every_tensor_has_the_axis_first() -> None:
    assert DIGITS.batch is not None
    unbatched_output = Signature(
        inputs=(IMAGE,),
        outputs=(TensorSpec(name="mean", datatype=DataType.FP32, shape=(10,)),),
        dynamic_axes=(DynamicAxis(name="batch", at={"pixels": 0}, max=64),),
    )
    assert unbatched_output.batch is None


PADDING = Padding(axis="tokens", values={"ids": 0, "mask": 0})
STATES = TensorSpec(name="logits", datatype=DataType.FP32, shape=(-1, -1, 10))


def test_short_rows_may_be_padded_along_the_axis_that_the_signature_names() -> None:
    assert TEXT.sequence is None
    padded = replace(TEXT, padding=PADDING)
    assert padded.sequence == TEXT.dynamic_axes[1]
    assert msgspec.json.decode(msgspec.json.encode(padded), type=Signature) == padded
    assert b"padding" not in msgspec.json.encode(TEXT), "the digests of those without stay what they were"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"padding": replace(PADDING, axis="batch")}, "'batch', which is no dynamic axis beside a batch"),
        ({"padding": replace(PADDING, axis="time")}, "'time', which is no dynamic axis beside a batch"),
        ({"dynamic_axes": TEXT.dynamic_axes[1:]}, "no dynamic axis beside a batch"),
        (
            {"padding": replace(PADDING, values={"ids": 0})},
            r"has values for \['ids'\]; the axis is that of \['ids', 'mask'\]",
        ),
        ({"padding": replace(PADDING, values={"ids": 0, "mask": 0, "logits": 0})}, "has values for"),
        (
            {"padding": replace(PADDING, values={"ids": 0.5, "mask": 0})},
            "'ids' is INT64, which cannot be padded with 0.5",
        ),
        ({"padding": replace(PADDING, values={"ids": 2**63, "mask": 0})}, "cannot be padded"),
        (
            {"inputs": (replace(TEXT.inputs[0], datatype=DataType.BYTES), TEXT.inputs[1])},
            "BYTES, which cannot be padded",
        ),
        ({"inputs": (replace(TEXT.inputs[0], datatype=DataType.BF16), TEXT.inputs[1])}, "BF16, which cannot be padded"),
        ({"inputs": (replace(TEXT.inputs[0], shape=(-1, 8)), TEXT.inputs[1])}, "needs every size that varies"),
        ({"outputs": (STATES,)}, "needs every size that varies"),
    ],
)
def test_padding_that_does_not_fit_the_tensors_is_refused(changes: dict[str, object], words: str) -> None:
    fine = replace(TEXT, padding=PADDING)
    with pytest.raises(ValueError, match=words):
        replace(fine, **changes)
    fields = {name: changes.get(name, getattr(fine, name)) for name in fine.__struct_fields__}
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(msgspec.json.encode(fields), type=Signature)


@pytest.mark.parametrize(("datatype", "value", "fits"), [
    (DataType.FP32, 0.1, True), (DataType.FP32, 1e40, False), (DataType.FP16, -65504, True), (DataType.UINT8, -1, False),
    (DataType.UINT8, 255, True), (DataType.BOOL, 1, True), (DataType.BOOL, 2, False), (DataType.FP64, 2**2000, False),
])  # fmt: skip
def test_a_padding_value_must_be_one_that_the_tensor_can_hold(datatype: DataType, value: float, fits: bool) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, -1))
    if fits:
        spec.check_value(value)
    else:
        with pytest.raises(ValueError, match="cannot be padded with"):
            spec.check_value(value)


@pytest.mark.parametrize("datatype", [d for d in DataType if d not in (DataType.BF16, DataType.BYTES)])
def test_every_numpy_type_finds_its_datatype_back(datatype: DataType) -> None:
    assert DataType.of(datatype.numpy) is datatype


def test_text_is_bytes_and_complex_is_refused() -> None:
    assert DataType.of(np.array(["a"]).dtype) is DataType.BYTES
    with pytest.raises(WrongInput, match="complex"):
        DataType.of(np.dtype(np.complex64))
