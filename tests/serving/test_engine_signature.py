"""A bundle's signature against what runs it, where neither is there: the words are all that is needed."""

from pathlib import Path

import pytest

from seatrial.errors import BundleCorrupt, EngineUnavailable
from seatrial.tensors import DataType, Signature, TensorSpec
from seatrial_serving.engines.signature import Told, check_datatypes, check_told

SPECS = (
    TensorSpec(name="ids", datatype=DataType.INT64, shape=(-1, -1)),
    TensorSpec(name="by", datatype=DataType.FP32, shape=(-1, 4)),
)
RIGHT: dict[str, Told] = {"ids": ("int64", (8, 12)), "by": ("float32", (8, 4))}


def test_sizes_of_open_axes_and_the_order_of_tensors_are_free() -> None:
    check_told(Path("file"), "Runtime", RIGHT, SPECS)
    check_told(Path("file"), "Runtime", dict(reversed(RIGHT.items())), SPECS)
    check_told(Path("file"), "Runtime", {}, ())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"by": ("float16", (8, 4))}, r"'by' float16\[8, 4\]"),
        ({"by": ("float32", (8, 5))}, r"'by' float32\[8, 5\]"),
        ({"by": ("float32", (8, 4, 1))}, r"'by' float32\[8, 4, 1\]"),
        ({"more": ("bool", ())}, r"'by' float32\[8, 4\], 'more' bool\[\]"),
    ],
)
def test_other_tensors_are_told_beside_those_of_the_signature(change: dict[str, Told], said: str) -> None:
    wanted = r"in file, and its signature has 'ids' int64\[-1, -1\], 'by' float32\[-1, 4\]"
    with pytest.raises(BundleCorrupt, match=rf"Runtime found the tensors 'ids' int64\[8, 12\], {said} {wanted}"):
        check_told(Path("file"), "Runtime", RIGHT | change, SPECS)


def test_a_tensor_that_is_missing_is_missed() -> None:
    with pytest.raises(BundleCorrupt, match="found the tensors nothing in file"):
        check_told(Path("file"), "Runtime", {}, SPECS)


def test_a_datatype_that_a_runtime_does_not_take_is_named_with_its_tensor() -> None:
    text = TensorSpec(name="text", datatype=DataType.BYTES, shape=(-1,))
    check_datatypes(Signature(inputs=SPECS, outputs=SPECS[:1]), "Runtime")
    with pytest.raises(EngineUnavailable, match="wants Runtime for 'text', and Runtime takes no BYTES here"):
        check_datatypes(Signature(inputs=SPECS, outputs=(text,)), "Runtime")
    with pytest.raises(EngineUnavailable, match="wants Runtime for 'by', and Runtime takes no FP32 here"):
        check_datatypes(Signature(inputs=SPECS, outputs=()), "Runtime", not_taken=(DataType.FP32,))
