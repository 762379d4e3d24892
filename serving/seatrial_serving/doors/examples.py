"""A request that works, for each model: one row of what its bundle recorded, or zeros of the smallest shape it takes."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from seatrial.errors import BadRequest
from seatrial.protocol import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START, InferRequest, Tensor, encode_request
from seatrial.tensors import DataType, TensorSpec, check_text
from seatrial_serving.doors import rows
from seatrial_serving.doors.schemas import WITHOUT_JSON, sizes
from seatrial_serving.generation import Generation

MOST_ELEMENTS = 2**18
"""A model that takes more has no example: nobody reads or copies one."""
SHORT = 4096
"""Bytes of a request that a command line shows, and of binary data that JSON can carry."""
PLACEHOLDER = "localhost:8000"
"""Where the lines to copy send their requests to; whoever shows them knows better."""


def inputs(generation: Generation) -> tuple[Tensor, ...] | None:
    """None for a model whose smallest request is too large to be shown."""
    given = zeros(generation)
    if sum(tensor.array.size for tensor in given) > MOST_ELEMENTS:
        return None
    batch = generation.signature.batch
    recorded = generation.identity.example
    if batch is not None:
        recorded = tuple(tensor._replace(array=tensor.array[: max(1, batch.min)]) for tensor in recorded)
    with suppress(BadRequest):
        generation.signature.check(recorded)
        check_text(recorded)
        if all(tensor.array.dtype.kind != "f" or np.isfinite(tensor.array).all() for tensor in recorded):
            return recorded
    return given


def zeros(generation: Generation) -> tuple[Tensor, ...]:
    """Each a view of one element, whatever its size."""
    signature = generation.signature
    made = []
    for spec in signature.inputs:
        axes = sizes(signature, spec, max_rows=generation.max_rows)
        shape = [size.least if size.least == size.most else max(1, size.least) for size in axes]
        element = np.array(b"text", object) if spec.datatype is DataType.BYTES else spec.datatype.numpy.type(0)
        made.append(Tensor(spec.name, spec.datatype, np.broadcast_to(element, shape)))
    return tuple(made)


def as_v2(generation: Generation, given: Sequence[Tensor]) -> dict[str, Any] | None:
    """The body in JSON; None for a model that takes tensors which have no JSON form."""
    if any(tensor.datatype in WITHOUT_JSON for tensor in given):
        return None
    body: dict[str, Any] = {
        "inputs": [
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatype,
                "data": rows.as_json(Tensor(name, datatype, array if array.ndim else array.reshape(1))),
            }
            for name, datatype, array in given
        ]
    }
    return body | _parameters(generation)


def as_binary(generation: Generation) -> tuple[str, int] | None:
    """A body with its tensors behind the JSON, and the length of the JSON; None where it is long.

    It is zeros and text, so that it is UTF-8 and a JSON document can hold it.
    """
    given = zeros(generation)
    if sum(tensor.array.nbytes for tensor in given) > SHORT:
        return None
    asked = InferRequest(
        tuple(tensor._replace(array=np.ascontiguousarray(tensor.array)) for tensor in given),
        parameters=_parameters(generation).get("parameters", {}),
    )
    body, length = encode_request(asked)
    return body.decode(), length


def as_rows(generation: Generation, given: Sequence[Tensor]) -> dict[str, Any] | None:
    """The body that the doors for clients of other servers share: rows where the model has them, else whole tensors.
    None for a model that those doors cannot ask."""
    if any(tensor.datatype is DataType.BF16 for tensor in given):
        return None
    written = {tensor.name: rows.as_json(tensor) for tensor in given}
    only = written[given[0].name]
    if generation.signature.batch is None:
        return {"inputs": written if len(written) > 1 else only}
    if len(written) == 1:
        return {"instances": only}
    return {"instances": [dict(zip(written, row, strict=True)) for row in zip(*written.values(), strict=True)]}


def as_fields(given: Sequence[Tensor]) -> dict[str, Any] | None:
    """The body of the generate extension; None for a model that it cannot ask."""
    if any(tensor.datatype is DataType.BF16 for tensor in given):
        return None
    return {tensor.name: rows.as_json(tensor) for tensor in given}


def _parameters(generation: Generation) -> dict[str, Any]:
    """A model whose outputs have no JSON form is asked for binary ones, and one with a memory for a whole sequence."""
    parameters: dict[str, Any] = {}
    if any(spec.datatype in WITHOUT_JSON for spec in generation.signature.outputs):
        parameters["binary_data_output"] = True
    if generation.stateful:
        parameters |= {SEQUENCE_ID: 1, SEQUENCE_START: True, SEQUENCE_END: True}
    return {"parameters": parameters} if parameters else {}


# Lines to copy


def curl(path: str, body: bytes) -> str:
    """A long body is to be saved as a file."""
    data = shlex.quote(body.decode()) if len(body) <= SHORT else "@request.json"
    return f"curl {PLACEHOLDER}{path} -H 'Content-Type: application/json' -d {data}"


def python(generation: Generation, *, version: str) -> str:
    """With tritonclient, tensors as binary data."""
    lines = ["import numpy as np", "import tritonclient.http as triton", ""]
    lines += [f'client = triton.InferenceServerClient("{PLACEHOLDER}")', "inputs = []"]
    for tensor in zeros(generation):
        lines += [
            f"tensor = triton.InferInput({tensor.name!r}, {list(tensor.array.shape)}, {str(tensor.datatype)!r})",
            f"tensor.set_data_from_numpy({_array(tensor)})",
            "inputs.append(tensor)",
        ]
    versioned = f", model_version={version!r}" if version else ""
    lines.append(f"answer = client.infer({generation.identity.name!r}, inputs{versioned})")
    lines += [f"print(answer.as_numpy({spec.name!r}))" for spec in generation.signature.outputs]
    return "\n".join(lines)


def _array(tensor: Tensor) -> str:
    shape = list(tensor.array.shape)
    match tensor.datatype:
        case DataType.BYTES:
            return f'np.full({shape}, "text", object)'
        case DataType.BF16:
            return f"np.zeros({shape}, np.float32)"
        case DataType.BOOL:
            return f"np.zeros({shape}, np.bool_)"
    return f"np.zeros({shape}, np.{tensor.datatype.numpy.name})"


def shape_words(generation: Generation, spec: TensorSpec) -> list[str]:
    """Each axis: its size, or its name and the sizes that it may have."""
    signature = generation.signature
    names = {axis.at[spec.name]: axis.name for axis in signature.dynamic_axes if spec.name in axis.at}
    words = []
    for index, size in enumerate(sizes(signature, spec, max_rows=generation.max_rows)):
        if size.least == size.most:
            words.append(str(size.least))
        else:
            words.append(f"{names.get(index, 'any')} {size.least} to {size.most or 'any'}")
    return words
