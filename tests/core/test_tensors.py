import numpy as np
import pytest

from seatrial.errors import WrongInput
from seatrial.tensors import DataType, DynamicAxis, Signature, TensorSpec

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


@pytest.mark.parametrize("datatype", [d for d in DataType if d not in (DataType.BF16, DataType.BYTES)])
def test_every_numpy_type_finds_its_datatype_back(datatype: DataType) -> None:
    assert DataType.of(datatype.numpy) is datatype


def test_text_is_bytes_and_complex_is_refused() -> None:
    assert DataType.of(np.array(["a"]).dtype) is DataType.BYTES
    with pytest.raises(WrongInput, match="complex"):
        DataType.of(np.dtype(np.complex64))
