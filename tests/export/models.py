"""The linear model as a source, and ONNX files that almost are it: each misbehaves in one way."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from seatrial.registry import ModelVersion
from seatrial.tensors import Array, Signature
from seatrial_export.samples import Inputs
from seatrial_export.source import Source
from seatrial_training.retrainable import NotRetrainable
from tests.serving.models import BIAS, SIGNATURE, WEIGHTS, linear_onnx, save

LINEAR = helper.make_node("Gemm", ["x", "W", "b"], ["right"])
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])


def some_rows(number: int = 16) -> dict[str, Array]:
    return {"x": np.random.default_rng(7).normal(size=(number, 4)).astype(np.float32)}


def linear_source(folder: Path, *, rows: Inputs | None = None, signature: Signature = SIGNATURE) -> Source:
    """A model version without data: `y = x W + b`, x of 4 and y of 3 columns."""
    rows = rows or some_rows()
    return Source(
        version=ModelVersion(name="linear", version="1", run_id="", source=""),
        files=folder,
        program=linear_onnx(folder / "source.onnx"),
        signature=signature,
        rows=rows,
        calibration=rows,
        held_out=None,
        dataset=None,
        retrainable=NotRetrainable(reason="it was written by hand"),
        text=None,
        notes=(),
    )


def almost(path: Path, *nodes: NodeProto, constants: Mapping[str, Array] | None = None) -> Path:
    """The linear model, whose `right` answer `nodes` turn into `y`."""
    return save(path, [LINEAR, *nodes], [X], [Y], constants={"W": WEIGHTS, "b": BIAS, **(constants or {})})


def right(path: Path) -> Path:
    return almost(path, helper.make_node("Identity", ["right"], ["y"]))


def wrong_at_batch_of_seven(path: Path) -> Path:
    """0.01 more where the batch has exactly seven rows, as a kernel with a bug in its remainder loop."""
    return almost(
        path,
        helper.make_node("Shape", ["x"], ["rows"], end=1),
        helper.make_node("Equal", ["rows", "seven"], ["is_seven"]),
        helper.make_node("Cast", ["is_seven"], ["one_or_zero"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["one_or_zero", "little"], ["error"]),
        helper.make_node("Add", ["right", "error"], ["y"]),
        constants={"seven": np.array([7]), "little": np.array(0.01, np.float32)},
    )


def heard_by_neighbours(path: Path, *, above: float = 0.0) -> Path:
    """A hundredth of what the loudest row's square has more than one's own, and more than `above`, is added."""
    return almost(
        path,
        helper.make_node("ReduceSumSquare", ["x", "columns"], ["loudness"], keepdims=1),
        helper.make_node("ReduceMax", ["loudness"], ["loudest"], keepdims=1),
        helper.make_node("Sub", ["loudest", "loudness"], ["louder"]),
        helper.make_node("Sub", ["louder", "above"], ["beyond"]),
        helper.make_node("Relu", ["beyond"], ["heard"]),
        helper.make_node("Mul", ["heard", "little"], ["error"]),
        helper.make_node("Add", ["right", "error"], ["y"]),
        constants={
            "columns": np.array([1]),
            "little": np.array(0.01, np.float32),
            "above": np.array(above, np.float32),
        },
    )


def heard_when_loud(path: Path) -> Path:
    """Only a neighbour far beyond the range of real rows is heard, as with weights quantized over the whole batch."""
    return heard_by_neighbours(path, above=100)


def nan_for_zeros(path: Path) -> Path:
    """Divides by the length of a row, and multiplies by it again."""
    return almost(
        path,
        helper.make_node("ReduceL2", ["x", "columns"], ["length"], keepdims=1),
        helper.make_node("Div", ["right", "length"], ["direction"]),
        helper.make_node("Mul", ["direction", "length"], ["y"]),
        constants={"columns": np.array([1])},
    )


def doubles(path: Path) -> Path:
    """Answers in double precision, whatever it was asked to."""
    nodes = [LINEAR, helper.make_node("Cast", ["right"], ["y"], to=TensorProto.DOUBLE)]
    wide = helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 3])
    return save(path, nodes, [X], [wide], constants={"W": WEIGHTS, "b": BIAS})


def one_row_only(path: Path) -> Path:
    """Says that its batch is dynamic, and reshapes to the one row that it was traced with."""
    return almost(path, helper.make_node("Reshape", ["right", "shape"], ["y"]), constants={"shape": np.array([1, 3])})


def one_row_for_all(path: Path) -> Path:
    """Averages over the axis that it should have left alone: one answer for the whole batch."""
    return almost(
        path, helper.make_node("ReduceMean", ["right", "rows"], ["y"], keepdims=1), constants={"rows": np.array([0])}
    )


def another_largest(path: Path) -> Path:
    """Right but for its order: the columns one place on."""
    return almost(
        path, helper.make_node("Gather", ["right", "order"], ["y"], axis=1), constants={"order": np.array([1, 2, 0])}
    )


Break = Callable[[Path], Path]
FLOAT_FAULTS: Sequence[tuple[Break, str]] = (
    (wrong_at_batch_of_seven, "batch 7: 'y' is 0.01 from the source's"),
    (heard_by_neighbours, "batch 2: 'y' is"),
    (heard_when_loud, "10 times the range: 'y' is"),
    (nan_for_zeros, "zeros: 'y' holds NaN"),
    (doubles, r"batch 1: 'y' is float64\[1, 3\], the source's is float32\[1, 3\]"),
    (one_row_only, "became fixed at 1: 2, 3, 7, 64 are not answered .*the engine refused inputs that the source takes"),
    (
        one_row_for_all,
        r"became fixed at 1: 2, 3, 7, 64 .*batch 2: 'y' is float32\[1, 3\], the source's is float32\[2, 3\]",
    ),
    (another_largest, "batch 1: 'y' is"),
)
"""Each with what must be said of it as a float candidate."""

LOSSY_FAULTS: Sequence[tuple[Break, str]] = (
    (wrong_at_batch_of_seven, "a row is answered differently in a batch of 7: 'y' moves by 0.01,"),
    (heard_by_neighbours, "a row is answered differently in a batch of 2"),
    (heard_when_loud, "a row is answered differently beside rows of 10 times the range"),
    (nan_for_zeros, "zeros: 'y' holds NaN"),
    (doubles, "batch 1: 'y' is float64"),
    (one_row_only, "the engine refused inputs that the source takes"),
    (one_row_for_all, r"batch 2: 'y' is float32\[1, 3\]"),
)
"""Each with what must be said of it even as an INT8 candidate, which may be a little off."""
