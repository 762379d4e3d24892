"""Tensors as the Open Inference Protocol names them, and the signature of a model.

Knows datatypes, shapes and axes that may vary. Knows nothing of bundles, wires or engines.
Source: Open Inference Protocol, "Tensor Data Types" and "Tensor Data".
"""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from seatrial.errors import WrongInput

Array: TypeAlias = NDArray[Any]

BATCH = "batch"
"""The name of the axis along which requests are put together."""


class DataType(StrEnum):
    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def numpy(self) -> np.dtype[Any]:
        """How numpy holds it. BF16, which numpy lacks, is held as its bits (uint16); BYTES as objects of `bytes`."""
        return _NUMPY[self]

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> "DataType":
        """The datatype of a numpy array; unicode, bytes and object arrays are BYTES."""
        if dtype.kind in "OSU":
            return cls.BYTES
        try:
            return _BY_NUMPY[dtype]
        except KeyError:
            raise WrongInput(f"no tensor datatype corresponds to numpy {dtype}; use one of {list(cls)}") from None


_NUMPY: Mapping[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype(np.uint8),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.INT8: np.dtype(np.int8),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.BF16: np.dtype("<u2"),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.BYTES: np.dtype(object),
}
_BY_NUMPY = {dtype: name for name, dtype in _NUMPY.items() if name not in (DataType.BF16, DataType.BYTES)}


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input or output: -1 in `shape` is an axis whose size the request decides."""

    name: str
    datatype: DataType
    shape: tuple[int, ...]

    def check(self, array: Array, *, datatype: DataType) -> None:
        """Raise `WrongInput` unless `array`, declared by its sender as `datatype`, fits."""
        if datatype is not self.datatype:
            raise WrongInput(f"input '{self.name}' has datatype {datatype}, expected {self.datatype}")
        if len(array.shape) != len(self.shape) or any(
            expected not in (-1, got) for got, expected in zip(array.shape, self.shape, strict=True)
        ):
            raise WrongInput(f"input '{self.name}' has shape {list(array.shape)}, expected {list(self.shape)}")

    def check_value(self, value: float) -> None:
        """Raise `ValueError` unless an element of the tensor can be `value`, to within its rounding."""
        held: Any = None
        if self.datatype not in (DataType.BYTES, DataType.BF16):
            with suppress(OverflowError), np.errstate(over="ignore"):
                held = np.array(value, self.datatype.numpy).item()
        if held is None or (math.isinf(held) if isinstance(held, float) else held != value):
            raise ValueError(f"'{self.name}' is {self.datatype}, which cannot be padded with {value}")


def check_text(given: Iterable[tuple[str, DataType, Array]]) -> None:
    """Raise `WrongInput` unless every element of every BYTES tensor is UTF-8."""
    for name, datatype, array in given:
        if datatype is DataType.BYTES:
            for position, item in enumerate(array.ravel()):
                try:
                    item.decode()
                except UnicodeDecodeError as error:
                    raise WrongInput(
                        f"element {position} of input '{name}' is text and must be UTF-8: {error}"
                    ) from error


class DynamicAxis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An axis of variable size that several tensors share, with the sizes that were verified.

    `at` maps a tensor's name to the index of the axis in it.
    """

    name: str
    at: dict[str, int]
    min: int = 1
    max: int


class Padding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows of different sizes along the dynamic axis `axis` may share a batch, once the short ones are made longer.

    `values` says for every input that has the axis what stands beyond the end of a short row; for a mask that is 0. No
    row's answer depends on how much of it there is, and outputs that have the axis are cut back to the row's own size.
    """

    axis: str
    values: dict[str, int | float]


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a graph with a memory is given in `input` at each step of a sequence: zeros at the first, and then what it answered
    in `output` at the step before. Callers see neither."""

    input: str
    output: str


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dynamic_axes: tuple[DynamicAxis, ...] = ()
    padding: Padding | None = None
    states: tuple[State, ...] = ()

    def __post_init__(self) -> None:
        if self.padding is not None:
            self._check_padding(self.padding)
        for state in self.states:
            self._check_state(state)

    @property
    def batch(self) -> DynamicAxis | None:
        """The batch axis, if every input and output has it first: only then may requests share a batch."""
        axis = next((axis for axis in self.dynamic_axes if axis.name == BATCH), None)
        if axis and all(axis.at.get(tensor.name) == 0 for tensor in (*self.inputs, *self.outputs)):
            return axis
        return None

    @property
    def sequence(self) -> DynamicAxis | None:
        """The axis that short rows may be padded along."""
        if self.padding is None:
            return None
        return next(axis for axis in self.dynamic_axes if axis.name == self.padding.axis)

    def without(self, names: Container[str]) -> "Signature":
        """What is left for callers where the tensors `names` are not theirs; it has no states."""
        return Signature(
            inputs=tuple(spec for spec in self.inputs if spec.name not in names),
            outputs=tuple(spec for spec in self.outputs if spec.name not in names),
            dynamic_axes=tuple(
                DynamicAxis(name=axis.name, at=at, min=axis.min, max=axis.max)
                for axis in self.dynamic_axes
                if (at := {name: index for name, index in axis.at.items() if name not in names})
            ),
        )

    def _check_state(self, state: State) -> None:
        """Raise `ValueError` unless what comes out can go in again, and its size is known beforehand."""
        given = next((spec for spec in self.inputs if spec.name == state.input), None)
        kept = next((spec for spec in self.outputs if spec.name == state.output), None)
        if given is None or kept is None or (given.datatype, given.shape) != (kept.datatype, kept.shape):
            raise ValueError(f"the state '{state.input}' is no input that is like an output '{state.output}'")
        sizes = given.shape[1:] if self.batch else given.shape
        if min(sizes, default=1) < 0 or given.datatype is DataType.BYTES or self.padding is not None:
            raise ValueError(f"the state '{state.input}' is text, or has sizes that vary, or stands beside padding")

    def _check_padding(self, padding: Padding) -> None:
        """Raise `ValueError` unless every input that has the axis can be padded and every output can be cut back."""
        axis = next((axis for axis in self.dynamic_axes if axis.name == padding.axis), None)
        if axis is None or axis == self.batch or self.batch is None:
            raise ValueError(f"padding is along '{padding.axis}', which is no dynamic axis beside a batch")
        padded = {spec.name: spec for spec in self.inputs if spec.name in axis.at}
        if not padded or padding.values.keys() != padded.keys():
            raise ValueError(f"padding has values for {sorted(padding.values)}; the axis is that of {sorted(padded)}")
        for name, value in padding.values.items():
            padded[name].check_value(value)
        tensors = (*self.inputs, *self.outputs)
        vary = {(spec.name, index) for spec in tensors for index, size in enumerate(spec.shape) if size < 0}
        named = {place for each in self.dynamic_axes for place in each.at.items()}
        if not axis.at.items() <= vary <= named:
            raise ValueError(f"padding needs every size that varies, {sorted(vary)}, to be that of a dynamic axis")

    def check(self, given: Sequence[tuple[str, DataType, Array]]) -> None:
        """Raise `WrongInput` unless `given` is exactly the inputs, each fitting, shared axes agreeing in size."""
        arrays: dict[str, Array] = {}
        specs = {spec.name: spec for spec in self.inputs}
        for name, datatype, array in given:
            if name not in specs:
                raise WrongInput(f"there is no input '{name}'; the inputs are {list(specs)}")
            if name in arrays:
                raise WrongInput(f"input '{name}' was given twice")
            specs[name].check(array, datatype=datatype)
            arrays[name] = array
        if len(arrays) < len(specs):
            raise WrongInput(f"missing input {sorted(specs.keys() - arrays.keys())}; the inputs are {list(specs)}")
        for axis in self.dynamic_axes:
            axis_sizes = {arrays[name].shape[index] for name, index in axis.at.items() if name in arrays}
            self._check_axis(axis, axis_sizes)

    @staticmethod
    def _check_axis(axis: DynamicAxis, sizes: set[int]) -> None:
        if len(sizes) > 1:
            raise WrongInput(f"the axis '{axis.name}' has sizes {sorted(sizes)} in one request; they must be equal")
        for size in sizes:
            if not axis.min <= size <= axis.max:
                raise WrongInput(
                    f"the axis '{axis.name}' has size {size}; this model was verified for {axis.min} to {axis.max}"
                )
