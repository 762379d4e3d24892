"""Tensors as plain JSON writes them: nested lists, with neither datatype nor shape. The signature says what they are.

Shared by the doors whose clients send rows or columns. Numbers stay finite: NaN is no JSON on the way in, and `null` on the
way out. Bytes that are not text travel as `{"b64": "..."}`, which is how TensorFlow Serving writes them. BF16 goes out as
numbers, and does not come in: no JSON number says which of its neighbours it means.
"""

import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from seatrial.errors import MalformedRequest, WrongInput
from seatrial.protocol import MAX_RANK, InferRequest, Tensor, elements_as_array
from seatrial.tensors import Array, DataType, Signature, TensorSpec

BASE64 = "b64"


def read_json(body: bytes) -> Any:
    """Raises `MalformedRequest`."""
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from error


def read_object(body: bytes) -> dict[str, Any]:
    """Raises `MalformedRequest`."""
    found = read_json(body)
    if not isinstance(found, dict):
        raise MalformedRequest(f"the body is a JSON {type(found).__name__}, expected an object")
    return found


def write_json(content: Any) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


# In


def as_tensor(spec: TensorSpec, data: Any) -> Tensor:
    """A value or nested lists, whose nesting is the shape. Raises `WrongInput` or `NonFinite`."""
    shape, elements = _unnest(data, name=spec.name)
    if spec.datatype is DataType.BF16:
        raise WrongInput(f"input '{spec.name}' is BF16, which has no JSON form; use /v2 with binary data")
    array = _as_bytes(spec, elements) if spec.datatype is DataType.BYTES else elements_as_array(elements, spec)
    return Tensor(spec.name, spec.datatype, array.reshape(shape))


def from_columns(signature: Signature, given: Any) -> InferRequest:
    """Whole tensors: by name, or for the only input alone."""
    if isinstance(given, dict) and not _is_base64(given):
        specs = by_name(signature, given)
        return InferRequest(tuple(as_tensor(specs[name], data) for name, data in given.items()))
    return InferRequest((as_tensor(only_input(signature), given),))


def from_rows(signature: Signature, rows: Any) -> InferRequest:
    """A list of rows: each an object with every input by name, or what the only input takes."""
    if not isinstance(rows, list) or not rows:
        raise WrongInput("the rows are not a list with at least one row")
    objects = sum(isinstance(row, dict) and not _is_base64(row) for row in rows)
    if not objects:
        return InferRequest((as_tensor(only_input(signature), rows),))
    names = rows[0].keys() if isinstance(rows[0], dict) else ()
    if objects < len(rows) or any(row.keys() != names for row in rows):
        raise WrongInput(
            f"the rows do not agree: each must be an object with {[spec.name for spec in signature.inputs]}"
        )
    return from_columns(signature, {name: [row[name] for row in rows] for name in names})


def from_table(signature: Signature, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> InferRequest:
    """Rows of cells under named columns, one column for each input; or, for the only input, all columns side by side in the
    order in which they come. A flat row is reshaped to what the input wants."""
    if any(len(row) != len(columns) for row in rows):
        raise WrongInput(f"there are {len(columns)} columns, but not in every row so many cells")
    if columns_are_inputs(signature, columns):
        specs = by_name(signature, columns)
        return InferRequest(
            tuple(_as_wanted(specs[name], [row[index] for row in rows]) for index, name in enumerate(columns))
        )
    return InferRequest((_as_wanted(only_input(signature), [list(row) for row in rows]),))


def columns_are_inputs(signature: Signature, columns: Sequence[str]) -> bool:
    """Whether each column is an input of its own, rather than a part of the only one."""
    return len(signature.inputs) > 1 or list(columns) == [signature.inputs[0].name]


def by_name(signature: Signature, names: Iterable[str]) -> Mapping[str, TensorSpec]:
    """The inputs. Raises `WrongInput` for a name that is none."""
    specs = {spec.name: spec for spec in signature.inputs}
    if unknown := [name for name in names if name not in specs]:
        raise WrongInput(f"there is no input {unknown[0]!r}; the inputs are {list(specs)}")
    return specs


def only_input(signature: Signature) -> TensorSpec:
    if len(signature.inputs) > 1:
        raise WrongInput(f"this model has the inputs {[spec.name for spec in signature.inputs]}: send each by its name")
    return signature.inputs[0]


def _as_wanted(spec: TensorSpec, data: Any) -> Tensor:
    """As `as_tensor`, with flat rows in the form that `spec` gives to rows of as many elements."""
    tensor = as_tensor(spec, data)
    count, row = len(tensor.array), spec.shape[1:]
    if tensor.array.ndim <= 2 and -1 not in row and tensor.array.size == count * math.prod(row):
        return tensor._replace(array=tensor.array.reshape(count, *row))
    return tensor


def _unnest(data: Any, *, name: str) -> tuple[list[int], list[Any]]:
    shape: list[int] = []
    level = [data]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(not isinstance(inner, list) or len(inner) != size for inner in level):
            raise WrongInput(f"input '{name}' is ragged: its lists at depth {len(shape) + 1} are not all {size} long")
        shape.append(size)
        if len(shape) > MAX_RANK:
            raise WrongInput(f"input '{name}' has more than {MAX_RANK} dimensions")
        level = list(chain.from_iterable(level))
    return shape, level


def _as_bytes(spec: TensorSpec, elements: Sequence[Any]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = [_bytes_of(element, spec.name) for element in elements]
    return array


def _bytes_of(element: Any, name: str) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if not _is_base64(element):
        raise WrongInput(
            f"input '{name}' is BYTES, but its data holds {type(element).__name__}; send text or {{'b64': …}}"
        )
    try:
        return base64.b64decode(element[BASE64], validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongInput(f"input '{name}' holds base64 that does not decode: {error}") from error


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {BASE64} and isinstance(value[BASE64], str)


# Out


def as_json(output: Tensor, *, binary: bool = False) -> Any:
    """What `write_json` can write. Bytes become text where they are UTF-8 and `binary` does not say that they are none."""
    array = output.array
    if output.datatype is DataType.BYTES:
        return _nested_text(array, binary=binary)
    if output.datatype is DataType.BF16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(array) if array.ndim else array[()]


def by_output(outputs: Sequence[Tensor]) -> Any:
    """The only output alone, else each by its name."""
    written = {output.name: as_json(output) for output in outputs}
    return written if len(written) > 1 else written[outputs[0].name]


def _nested_text(array: Array, *, binary: bool) -> Any:
    texts = np.empty(array.shape, dtype=object)
    texts.ravel()[:] = [_text_of(item, binary=binary) for item in array.ravel()]
    return texts.tolist()


def _text_of(item: Any, *, binary: bool) -> Any:
    if isinstance(item, str):
        item = item.encode()
    try:
        return _base64(item) if binary else item.decode()
    except UnicodeDecodeError:
        return _base64(item)


def _base64(item: bytes) -> dict[str, str]:
    return {BASE64: base64.b64encode(item).decode()}
