"""JSON Schemas (2020-12) of what a signature takes and answers: tensors as `/v2` writes them, and nested lists.

The bounds are those that a request is checked by. Left to the server is what no schema can say: that data fill their shape,
and that an axis which several tensors share has one size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from seatrial.protocol import CLASSIFICATION, MAX_RANK
from seatrial.tensors import DataType, Signature, TensorSpec

Schema: TypeAlias = dict[str, Any]

WITHOUT_JSON = (DataType.FP16, DataType.BF16)
"""Datatypes that `/v2` carries as binary data alone."""
LARGEST: dict[DataType, float] = {
    DataType.FP16: float(np.finfo(np.float16).max),
    DataType.FP32: float(np.finfo(np.float32).max),
}
TEXT = {"type": "string"}
PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}


class Size(NamedTuple):
    """How long an axis may be; `most` is None where nothing but the body bounds it."""

    least: int
    most: int | None


def sizes(signature: Signature, spec: TensorSpec, *, max_rows: int) -> tuple[Size, ...]:
    """Of each axis of `spec`, for a server that runs at most `max_rows` at once."""
    found = [Size(0, None) if size < 0 else Size(size, size) for size in spec.shape]
    for axis in signature.dynamic_axes:
        if spec.name in axis.at:
            most = min(axis.max, max_rows) if axis == signature.batch else axis.max
            found[axis.at[spec.name]] = Size(axis.min, most)
    return tuple(found)


def record(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


# Tensors of /v2


def request(signature: Signature, *, max_rows: int) -> Schema:
    inputs = [_tensor(spec, sizes(signature, spec, max_rows=max_rows)) for spec in signature.inputs]
    wanted = record(
        {"name": {"enum": [spec.name for spec in signature.outputs]}},
        parameters=_parameters(binary_data={"type": "boolean"}, **{CLASSIFICATION: {"type": "integer", "minimum": 0}}),
    )
    return record(
        {
            "inputs": {
                "type": "array", "prefixItems": inputs, "items": False, "minItems": len(inputs),
                "description": "every input once; the server takes them in any order",
            }
        },
        outputs={"type": "array", "items": wanted, "description": "those to be answered; without it, all"},
        id=TEXT,
        parameters=_parameters(
            binary_data_output={"type": "boolean"},
            priority={"type": "integer", "minimum": 0},
            timeout={"type": "integer", "minimum": 0, "description": "microseconds"},
        ),
    )  # fmt: skip


def answer(signature: Signature, *, name: str, version: str, max_rows: int) -> Schema:
    outputs = [_answered(spec, sizes(signature, spec, max_rows=max_rows)) for spec in signature.outputs]
    return record(
        {
            "model_name": {"const": name},
            "model_version": {"const": version},
            "outputs": {"type": "array", "items": {"anyOf": [*outputs, _classes(signature)]}},
        },
        id=TEXT,
    )


def _tensor(spec: TensorSpec, axes: Sequence[Size]) -> Schema:
    shape: Schema = {"type": "array", "items": False, "minItems": len(axes)}
    if axes:
        shape["prefixItems"] = [_integer(size.least, size.most) for size in axes]
    if spec.datatype in WITHOUT_JSON:
        return _named(spec, shape, {"parameters": _parameters(binary_data_size={"type": "integer", "minimum": 0})})
    element = _element(spec.datatype)
    flat = {"type": "array", "items": element, **_bounds(_product(axes))}
    data = flat if len(axes) < 2 else {"anyOf": [_nested(axes, element), flat]}
    return _named(spec, shape, {"data": data}, parameters=PARAMETERS)


def _answered(spec: TensorSpec, axes: Sequence[Size]) -> Schema:
    """NOTE: its shape has no `prefixItems`: Schemathesis 4.32 takes a schema of an answer that has them for a wrong one."""
    shape = {"type": "array", "items": _integer(0, None), "minItems": len(axes), "maxItems": len(axes)}
    data = {"type": "array", "items": _element(spec.datatype, answered=True), **_bounds(_product(axes))}
    return _named(spec, shape, {}, data=data, parameters=PARAMETERS)


def _named(spec: TensorSpec, shape: Schema, required: dict[str, Schema], **optional: Schema) -> Schema:
    fixed = {"name": {"const": spec.name}, "shape": shape, "datatype": {"const": spec.datatype}}
    return record({**fixed, **required}, **optional) | {"title": spec.name}


def _classes(signature: Signature) -> Schema:
    """An output whose best classes were asked for."""
    return record(
        {
            "name": {"enum": [spec.name for spec in signature.outputs]},
            "shape": {"type": "array", "items": _integer(0, None), "maxItems": MAX_RANK},
            "datatype": {"const": DataType.BYTES},
        },
        data={"type": "array", "items": TEXT},
        parameters=PARAMETERS,
    ) | {"title": "best classes"}


def _parameters(**known: Schema) -> Schema:
    return {**PARAMETERS, "properties": known}


# Nested lists


def rows(signature: Signature, specs: Sequence[TensorSpec], *, max_rows: int, answered: bool = False) -> Schema:
    """A row each, as an object where there are several tensors; any list for a model that has no rows."""
    batch = signature.batch
    if batch is None:
        return {"type": "array"}
    row = by_name(signature, specs, max_rows=max_rows, without=1, answered=answered)
    return {"type": "array", "items": row, **_bounds(Size(batch.min, min(batch.max, max_rows)))}


def nested(
    signature: Signature, spec: TensorSpec, *, max_rows: int, without: int = 0, answered: bool = False
) -> Schema:
    """`spec`, `without` so many of its first axes."""
    axes = sizes(signature, spec, max_rows=max_rows)[without:]
    element = _element(spec.datatype, answered=answered)
    if spec.datatype is DataType.BYTES:
        element = {"anyOf": [element, record({"b64": TEXT})]}
    return _nested(axes, element)


def by_name(
    signature: Signature, specs: Sequence[TensorSpec], *, max_rows: int, without: int = 0, answered: bool = False
) -> Schema:
    """The only tensor alone, else each by its name."""
    each = {spec.name: nested(signature, spec, max_rows=max_rows, without=without, answered=answered) for spec in specs}
    return record(each) if len(each) > 1 else each[specs[0].name]


def _nested(axes: Sequence[Size], element: Schema) -> Schema:
    schema = element
    for size in reversed(axes):
        schema = {"type": "array", "items": schema, **_bounds(size)}
    return schema


def _bounds(size: Size) -> Schema:
    return {"minItems": size.least} | ({} if size.most is None else {"maxItems": size.most})


def _product(axes: Sequence[Size]) -> Size:
    least = most = 1
    open_ended = False
    for size in axes:
        least *= size.least
        most *= size.most or 0
        open_ended = open_ended or size.most is None
    return Size(least, None if open_ended else most)


# Elements


def _element(datatype: DataType, *, answered: bool = False) -> Schema:
    """In an answer, a number that is not finite is `null`."""
    if datatype is DataType.BYTES:
        return TEXT
    if datatype is DataType.BOOL:
        return {"type": "boolean"}
    if datatype in WITHOUT_JSON or datatype.numpy.kind == "f":
        if answered:
            return {"type": ["number", "null"]}
        largest = LARGEST.get(datatype)
        return {"type": "number"} | ({} if largest is None else {"minimum": -largest, "maximum": largest})
    limits = np.iinfo(datatype.numpy)
    return _integer(int(limits.min), int(limits.max))


def _integer(least: int, most: int | None) -> Schema:
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})
