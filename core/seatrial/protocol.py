"""Open Inference Protocol v2 bodies: JSON, with tensors inside it or as binary data behind it.

Turns bytes into named arrays and back. Knows nothing of HTTP, models or signatures: whether the tensors fit a model is
`Signature.check`. The same codec writes the golden requests of a bundle and answers REST clients.
Sources: Open Inference Protocol, "Inference"; Triton's extensions for binary tensor data, parameters, schedule policy,
classification and sequences. Where they leave a choice:
numbers in JSON must be finite and fit the datatype; FP16 and BF16 travel as binary data only; a non-finite output is
`null` in JSON; `data` may be nested or flat, in row-major order.
"""

import math
import struct
from array import array as PlainArray  # noqa: N812 - numpy's are meant everywhere else
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import orjson

from seatrial.errors import MalformedRequest, NonFinite, WrongInput
from seatrial.tensors import Array, DataType, TensorSpec

MAX_RANK = 16
MAX_TENSORS = 1024
"""Inputs or outputs that one request may name."""
MAX_PARAMETERS = 256
MAX_ELEMENTS = 2**48
"""More than any tensor has, and few enough that their bytes can be counted; a size of 0 does not make the others good."""
MOST_HEADS, LONGEST_HEAD = 1024, 8192
"""Bounds of the memory of layouts."""
Parameters = dict[str, str | int | float | bool]
PRIORITY, TIMEOUT, CLASSIFICATION = "priority", "timeout", "classification"
SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END = "sequence_id", "sequence_start", "sequence_end"
LONGEST_SEQUENCE_ID = 128
"""Bytes of one that is a text."""


class Tensor(NamedTuple):
    """A named array; `datatype` tells BF16 from UINT16, which look alike in numpy."""

    name: str
    datatype: DataType
    array: Array


_Parameters = Annotated[Parameters, msgspec.Meta(max_length=MAX_PARAMETERS)]


class RequestedOutput(msgspec.Struct, frozen=True):
    name: str
    parameters: _Parameters = {}

    @property
    def binary(self) -> bool | None:
        """Whether binary data was asked for; None where the request does not say."""
        wanted = self.parameters.get("binary_data")
        return None if wanted is None else bool(wanted)

    @property
    def classes(self) -> int:
        """How many of the best classes are wanted in place of the tensor; 0 for the tensor itself. Raises `WrongInput`."""
        return _count(self.parameters, CLASSIFICATION)


class Step(NamedTuple):
    """Where in which sequence a request stands."""

    id: int | str
    first: bool
    last: bool


class InferRequest(NamedTuple):
    """What a client asks. `outputs` empty means all of them; the arrays are views of the received body."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str = ""
    parameters: Mapping[str, str | int | float | bool] = MappingProxyType({})
    layout: "Layout | None" = None

    @property
    def binary_by_default(self) -> bool:
        return bool(self.parameters.get("binary_data_output", False))

    @property
    def priority(self) -> int:
        """1 is the most urgent; 0 where the request does not say. Raises `WrongInput`."""
        return _count(self.parameters, PRIORITY)

    @property
    def timeout_s(self) -> float:
        """How long the caller will wait; infinite where the request does not say. Raises `WrongInput`."""
        return _count(self.parameters, TIMEOUT) / 1e6 or math.inf

    @property
    def step(self) -> Step:
        """Where it stands in its sequence. Raises `WrongInput` for what says none; 0 and "" are no id."""
        given = self.parameters.get(SEQUENCE_ID, 0)
        if isinstance(given, str):
            if len(given.encode()) > LONGEST_SEQUENCE_ID:
                raise WrongInput(f"'{SEQUENCE_ID}' is longer than {LONGEST_SEQUENCE_ID} bytes")
        else:
            given = _count(self.parameters, SEQUENCE_ID)
        if not given:
            raise WrongInput(
                "the model keeps a state from one request of a sequence to the next: the request must specify a non-zero or "
                f"non-empty correlation ID, in the parameter '{SEQUENCE_ID}'"
            )
        return Step(given, _flag(self.parameters, SEQUENCE_START), _flag(self.parameters, SEQUENCE_END))


def _flag(parameters: Mapping[str, str | int | float | bool], name: str) -> bool:
    given = parameters.get(name, False)
    if not isinstance(given, bool):
        raise WrongInput(f"the parameter '{name}' is {given!r}, expected true or false")
    return given


def _count(parameters: Mapping[str, str | int | float | bool], name: str) -> int:
    given = parameters.get(name, 0)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given < 2**64:
        raise WrongInput(f"the parameter '{name}' is {given!r}, expected a whole number from 0 on, of 64 bits")
    return given


class _TensorHead(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: DataType
    parameters: _Parameters = {}
    data: msgspec.Raw = msgspec.Raw()


class _RequestHead(msgspec.Struct):
    inputs: Annotated[list[_TensorHead], msgspec.Meta(max_length=MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutput], msgspec.Meta(max_length=MAX_TENSORS)] = []
    id: str = ""
    parameters: _Parameters = {}


_decode_head = msgspec.json.Decoder(_RequestHead).decode


class Layout:
    """What the JSON part of a request says where all data follow it as binary: everything but the data themselves.

    Clients send the same JSON again and again; `decode_request` gives requests with equal JSON the same layout, so that
    what was found out about one of them need not be found out again.
    """

    __slots__ = ("_inputs", "_outputs", "_parameters", "_size", "answer")

    def __init__(self, head: _RequestHead, inputs: Sequence[Tensor]) -> None:
        """`inputs` are those that were read from a request with this head."""
        self._inputs = []
        self._size = 0
        for name, datatype, array in inputs:
            self._inputs.append((name, datatype, array.shape, array.dtype, self._size))
            self._size += array.nbytes
        self._outputs, self._parameters = tuple(head.outputs), head.parameters
        self.answer: Any = None
        """What the last answer began with, for whoever writes the next one."""

    def read(self, body: bytes | memoryview, json_length: int) -> InferRequest | None:
        """None where the binary data have another size than this layout's."""
        if len(body) - json_length != self._size:
            return None
        inputs = [
            Tensor(name, datatype, np.ndarray(shape, dtype, body, json_length + offset))
            for name, datatype, shape, dtype, offset in self._inputs
        ]
        return InferRequest(tuple(inputs), self._outputs, "", self._parameters, self)


class ListLayout(Layout):
    """The same of a request whose one tensor stands in the JSON itself, as a flat list of numbers: everything but that list.

    What is not as it was when it was learned is not read: the slow way says what is wrong with it.
    """

    __slots__ = ()

    def read_list(self, text: bytes) -> InferRequest | None:
        """None for what is no list of as many finite numbers."""
        [(name, datatype, shape, dtype, _)] = self._inputs
        try:
            array: Array = np.frombuffer(PlainArray(dtype.char, _decode_floats(text)), dtype)
        except (msgspec.MsgspecError, OverflowError):
            return None
        if array.nbytes != self._size or not np.isfinite(array).all():
            return None
        return InferRequest((Tensor(name, datatype, array.reshape(shape)),), self._outputs, "", self._parameters, self)


_decode_floats = msgspec.json.Decoder(list[float]).decode
_layouts: dict[bytes, Layout] = {}
"""By all of the JSON, or by what is left of it when its list is emptied."""


def decode_request(body: bytes | memoryview, *, json_length: int | None = None) -> InferRequest:
    """Read a request; `json_length` is the value of `Inference-Header-Content-Length` where the client sent it.

    Raises `MalformedRequest`, `NonFinite` or `WrongInput`. The arrays are read-only views of `body` where it is binary.
    """
    if json_length is None:
        json_length = len(body)
        if (request := _read_alike(body)) is not None:
            return request
    elif not 0 <= json_length <= len(body):
        raise MalformedRequest(f"the JSON part is said to be {json_length} bytes long, the body has {len(body)}")
    text = bytes(body[:json_length])
    layout = _layouts.get(text) if json_length <= LONGEST_HEAD else None  # to look up a long one is to hash all of it
    if layout is not None and (request := layout.read(body, json_length)) is not None:
        return request
    try:
        head = _decode_head(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not an inference request: {error}") from error
    binary = _BinaryPart(memoryview(body)[json_length:])
    inputs = tuple([_read_tensor_of(head_input, binary) for head_input in head.inputs])
    binary.check_exhausted()
    return InferRequest(inputs, tuple(head.outputs), head.id, head.parameters, _learn(text, head, inputs))


def _read_alike(body: bytes | memoryview) -> InferRequest | None:
    """A request that differs only in the numbers of its list from one that was learned."""
    if isinstance(body, bytes) and (parts := _cut_list_out(body)) is not None:
        before, numbers, after = parts
        layout = _layouts.get(b"[]".join((before, after)))
        if isinstance(layout, ListLayout):
            return layout.read_list(numbers)
    return None


def _cut_list_out(text: bytes) -> tuple[bytes, bytes, bytes] | None:
    """A JSON text in three parts, the second of which is what follows the first `"data"`, from a bracket to the next one that
    closes. Whether it is the data of a tensor is for `_learn` to make sure of."""
    key = text.find(b'"data"')
    begin = text.find(b"[", key)
    end = text.find(b"]", begin) + 1
    if key < 0 or begin < 0 or not end or len(text) - (end - begin) > LONGEST_HEAD:
        return None
    return text[:begin], text[begin:end], text[end:]


def _learn(text: bytes, head: _RequestHead, inputs: Sequence[Tensor]) -> Layout | None:
    """Remember a head that may come again: it has no id, and all its data are binary, of a size that it decides, or one flat
    list of floats."""
    if head.id or not all(tensor.array.size for tensor in inputs):
        return None
    if not any(tensor.data or tensor.datatype is DataType.BYTES for tensor in head.inputs):
        return _remember(text, Layout(head, inputs)) if len(text) <= LONGEST_HEAD else None
    parts = _cut_list_out(text)
    if parts is None or len(inputs) > 1 or inputs[0].array.dtype.char not in "fd":
        return None
    before, _, after = parts
    try:
        probe = _decode_head(b"[0]".join((before, after)))
    except msgspec.MsgspecError:  # it is nested
        return None
    if bytes(probe.inputs[0].data) != b"[0]":  # it is something else of that name
        return None
    return _remember(b"[]".join((before, after)), ListLayout(head, inputs))


def _remember(form: bytes, layout: Layout) -> Layout:
    if len(_layouts) >= MOST_HEADS:
        del _layouts[next(iter(_layouts))]
    _layouts[form] = layout
    return layout


class _BinaryPart:
    """The bytes behind the JSON, handed out in the order of the tensors."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._offset = view, 0

    def take(self, size: int, *, tensor: str) -> memoryview:
        end = self._offset + size
        if end > len(self._view):
            raise MalformedRequest(
                f"tensor '{tensor}' wants bytes {self._offset} to {end} of the binary data, "
                f"which has {len(self._view)}: was the body cut off?"
            )
        taken = self._view[self._offset : end]
        self._offset = end
        return taken

    def check_exhausted(self) -> None:
        if self._offset != len(self._view):
            raise MalformedRequest(
                f"{len(self._view) - self._offset} bytes of binary data belong to no tensor: "
                "check the binary_data_size of each"
            )


def _read_tensor_of(head: _TensorHead, binary: _BinaryPart) -> Tensor:
    count = element_count(head.shape, name=head.name)
    size = head.parameters.get("binary_data_size")
    if size is None:
        return Tensor(head.name, head.datatype, _read_json(head, count))
    if head.data:
        raise MalformedRequest(f"tensor '{head.name}' has both 'data' and 'binary_data_size'; send one")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedRequest(f"tensor '{head.name}' has binary_data_size {size!r}, expected a number of bytes")
    data = binary.take(size, tensor=head.name)
    return Tensor(head.name, head.datatype, read_tensor(data, head.datatype, head.shape, name=head.name))


def element_count(shape: Sequence[int], *, name: str) -> int:
    """The number of elements of `shape`, which came from outside."""
    if len(shape) > MAX_RANK:
        raise WrongInput(f"tensor '{name}' has {len(shape)} dimensions; at most {MAX_RANK} are accepted")
    if min(shape, default=0) < 0:
        raise WrongInput(f"tensor '{name}' has shape {list(shape)}; a size cannot be negative")
    count = math.prod(shape)
    if count > MAX_ELEMENTS or (not count and math.prod(size or 1 for size in shape) > MAX_ELEMENTS):
        raise WrongInput(f"tensor '{name}' has sizes that multiply to more than {MAX_ELEMENTS}")
    return count


def read_tensor(data: bytes | memoryview, datatype: DataType, shape: Sequence[int], *, name: str) -> Array:
    """Raw bytes, little-endian and row-major, as an array: a read-only view, except for BYTES."""
    count = element_count(shape, name=name)
    if datatype is DataType.BYTES:
        return _read_bytes(memoryview(data), count, name=name).reshape(shape)
    dtype = datatype.numpy
    if len(data) != count * dtype.itemsize:
        raise MalformedRequest(
            f"tensor '{name}' of shape {list(shape)} and datatype {datatype} takes {count * dtype.itemsize} bytes, "
            f"got {len(data)}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def write_tensor(array: Array, datatype: DataType) -> bytes:
    """The inverse of `read_tensor`."""
    if datatype is DataType.BYTES:
        return b"".join(struct.pack("<I", len(item)) + item for item in map(_as_bytes, array.ravel()))
    return array.tobytes() if array.dtype == datatype.numpy else array.astype(datatype.numpy).tobytes()


def _as_bytes(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()


def _read_bytes(data: memoryview, count: int, *, name: str) -> Array:
    """Elements of a BYTES tensor: each a 4-byte little-endian length, then as many bytes."""
    items: list[bytes] = []
    offset = 0
    while offset < len(data):
        start = offset + 4
        end = start + int.from_bytes(data[offset:start], "little")
        if start > len(data) or end > len(data):
            raise MalformedRequest(f"element {len(items)} of BYTES tensor '{name}' is cut off")
        items.append(bytes(data[start:end]))
        offset = end
    if len(items) != count:
        raise MalformedRequest(f"BYTES tensor '{name}' has {len(items)} elements, its shape says {count}")
    array = np.empty(count, dtype=object)
    array[:] = items
    return array


def _read_json(head: _TensorHead, count: int) -> Array:
    if not head.data:
        raise MalformedRequest(f"tensor '{head.name}' has neither 'data' nor 'binary_data_size'")
    if head.datatype in (DataType.FP16, DataType.BF16):
        raise WrongInput(f"tensor '{head.name}' is {head.datatype}, which has no JSON form; send it as binary data")
    try:
        elements: list[Any] = []
        _flatten(orjson.loads(bytes(head.data)), elements, MAX_RANK)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the data of tensor '{head.name}' is not JSON: {error}") from error
    if len(elements) != count:
        raise MalformedRequest(f"tensor '{head.name}' has {len(elements)} elements, its shape says {count}")
    return elements_as_array(elements, head).reshape(head.shape)


def _flatten(data: Any, into: list[Any], depth: int) -> None:
    if not isinstance(data, list):
        into.append(data)
    elif data and isinstance(data[0], list):
        if depth <= 1:
            raise WrongInput(f"the data are nested deeper than the {MAX_RANK} dimensions that are accepted")
        for row in data:
            _flatten(row, into, depth - 1)
    else:
        into.extend(data)


_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}


def elements_as_array(elements: Sequence[Any], head: _TensorHead | TensorSpec) -> Array:
    """What JSON gave as the elements of a tensor, in one dimension. Raises `WrongInput` or `NonFinite`."""
    dtype = head.datatype.numpy
    allowed = _JSON_TYPES[dtype.kind]
    if wrong := set(map(type, elements)) - allowed:
        found = sorted("null" if kind is type(None) else kind.__name__ for kind in wrong)
        raise WrongInput(f"tensor '{head.name}' is {head.datatype}, but its data holds {', '.join(found)}")
    if head.datatype is DataType.BYTES:
        array = np.empty(len(elements), dtype=object)
        array[:] = [text.encode() for text in elements]
        return array
    try:
        if dtype.char in "fd":  # a tenth of numpy's time for a short list
            array = np.frombuffer(PlainArray(dtype.char, elements), dtype)
        else:
            with np.errstate(over="ignore"):
                array = np.array(elements, dtype)
    except OverflowError as error:
        raise WrongInput(f"tensor '{head.name}' holds a number that {head.datatype} cannot: {error}") from error
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise NonFinite(f"tensor '{head.name}' holds a number too large for {head.datatype}")
    return array


def encode_request(request: InferRequest, *, binary: bool = True) -> tuple[bytes, int]:
    """A request body and the length of its JSON part."""
    inputs, parts = _write_tensors(request.inputs, binary=dict.fromkeys((t.name for t in request.inputs), binary))
    head: dict[str, Any] = {"inputs": inputs}
    if request.id:
        head["id"] = request.id
    if request.parameters:
        head["parameters"] = dict(request.parameters)
    if request.outputs:
        head["outputs"] = [{"name": o.name, "parameters": o.parameters} for o in request.outputs]
    text = _dump(head)
    return b"".join((text, *parts)), len(text)


class _AnswerHead(msgspec.Struct):
    outputs: list[_TensorHead]
    model_name: str = ""
    model_version: str = ""
    id: str = ""


_decode_answer_head = msgspec.json.Decoder(_AnswerHead).decode


def decode_answer(body: bytes | memoryview, *, json_length: int | None = None) -> tuple[Tensor, ...]:
    """The outputs of an answer; the inverse of `encode_answer`."""
    view = memoryview(body)
    json_length = len(view) if json_length is None else json_length
    try:
        head = _decode_answer_head(view[:json_length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the body is not an inference answer: {error}") from error
    binary = _BinaryPart(view[json_length:])
    outputs = tuple(_read_tensor_of(output, binary) for output in head.outputs)
    binary.check_exhausted()
    return outputs


def encode_answer(
    outputs: Sequence[Tensor], *, model: str, version: str, request_id: str, binary: dict[str, bool]
) -> tuple[bytes, int | None]:
    """An answer body, and the length of its JSON part if binary data follows it. `binary` says which tensors do."""
    tensors, parts = _write_tensors(outputs, binary=binary)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request_id:
        head["id"] = request_id
    text = _dump(head)
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def _write_tensors(tensors: Sequence[Tensor], *, binary: dict[str, bool]) -> tuple[list[dict[str, Any]], list[bytes]]:
    heads, parts = [], []
    for name, datatype, array in tensors:
        head: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype}
        if binary[name]:
            part = write_tensor(array, datatype)
            head["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        elif datatype in (DataType.FP16, DataType.BF16):
            raise WrongInput(f"output '{name}' is {datatype}, which has no JSON form; ask for it as binary data")
        elif datatype is DataType.BYTES:
            head["data"] = [_as_text(item, name=name) for item in array.ravel()]
        else:
            head["data"] = np.ascontiguousarray(array).reshape(-1)
        heads.append(head)
    return heads, parts


def _as_text(item: Any, *, name: str) -> str:
    try:
        return _as_bytes(item).decode()
    except UnicodeDecodeError as error:
        raise WrongInput(f"output '{name}' is not UTF-8; ask for it as binary data") from error


def _dump(head: dict[str, Any]) -> bytes:
    return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
