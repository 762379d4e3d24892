"""What is judged: one model on one server, as they describe themselves, and valid requests for it.

Inputs are random, of a fixed seed: floating point in [0, 1), integers and booleans 0 or 1, short texts; axes of unknown size
are small. A model that wants others gets them from a request of its user's (`samples`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from seatrial.errors import InvalidSource, SeatrialError
from seatrial.protocol import Tensor, decode_request
from seatrial.tensors import Array, DataType
from seatrial_serving.conformance.check import Failed, NotApplicable
from seatrial_serving.conformance.expectations import agree, refused
from seatrial_serving.conformance.rest import Rest
from seatrial_serving.conformance.wire import Answer, Ask, Form, Input, ModelMetadata, Refusal, TensorMetadata, Wire

SIZE_WHERE_UNKNOWN = 4
MOST_ELEMENTS = 2**24
BINARY = "binary_tensor_data"


class Subject:
    """Learns from the REST end, when it is first asked; raises then what the server did wrong."""

    def __init__(self, rest: Rest, model: str, samples: Sequence[Tensor] = ()) -> None:
        self.rest, self.model, self._samples = rest, model, samples

    # What it says of itself

    @cached_property
    def extensions(self) -> frozenset[str]:
        try:
            return frozenset(self.rest.server().extensions)
        except (Failed, Refusal):
            return frozenset()  # a check of its own says so

    @cached_property
    def metadata(self) -> ModelMetadata:
        return self.rest.metadata(self.model)

    @property
    def batched(self) -> bool:
        """Whether every tensor has a first axis of any size: rows, as far as one can tell."""
        return all(tensor.shape[:1] == (-1,) for tensor in (*self.metadata.inputs, *self.metadata.outputs))

    def version(self) -> str:
        """One that can be asked for by name."""
        if not self.metadata.versions:
            raise NotApplicable("the metadata name no versions")
        return self.metadata.versions[-1]

    # Requests

    def ask(self, *, rows: int = 1, seed: int = 0, **changes: Any) -> Ask:
        """A valid request; another `seed` asks for something else. `changes` are fields of `Ask`."""
        return replace(Ask(model=self.model, inputs=self._inputs(rows, seed), form=self._form), **changes)

    def _inputs(self, rows: int, seed: int) -> tuple[Input, ...]:
        if self._samples:
            self._check_samples()
            return tuple(_sampled(tensor, rows, seed, batched=self.batched) for tensor in self._samples)
        random = np.random.default_rng(seed)
        return tuple(_random(tensor, rows if self.batched else 1, random) for tensor in self.metadata.inputs)

    def _check_samples(self) -> None:
        given, wanted = (sorted(each.name for each in tensors) for tensors in (self._samples, self.metadata.inputs))
        if given != wanted:
            raise InvalidSource(f"the samples are of {given}, but the inputs of '{self.model}' are {wanted}")

    @property
    def _form(self) -> Form:
        tensors = (*self.metadata.inputs, *self.metadata.outputs)
        half = [tensor.datatype for tensor in tensors if tensor.datatype in (DataType.FP16, DataType.BF16)]
        if half and BINARY not in self.extensions:
            raise NotApplicable(f"{half[0]} has no form in JSON, and the server does not have {BINARY}")
        return Form.BINARY if half else Form.PLAIN

    @property
    def json_ask(self) -> Ask:
        """As `ask`, where the model's tensors can be written in JSON."""
        ask = self.ask()
        if ask.form is not Form.PLAIN:
            raise NotApplicable("the model has tensors that have no form in JSON")
        return ask

    @cached_property
    def reference(self) -> Answer:
        """What REST answers to `ask()`, twice."""
        first, second = self.rest.infer(self.ask()), self.rest.infer(self.ask())
        try:
            agree(second.outputs, first.outputs, of="the second answer")
        except Failed as failed:
            raise NotApplicable(f"the model answers the same request in different ways: {failed}") from failed
        return first

    def see_comparable(self) -> None:
        """Raise `NotApplicable` where the model answers the same request in different ways."""
        _ = self.reference

    def refused(self, wire: Wire, act: Callable[[], object], *, message: bool = True) -> str:
        """As `expectations.refused`, and see that the server is well afterwards."""
        with self.unharmed(wire):
            return refused(act, message=message)

    @contextmanager
    def unharmed(self, wire: Wire) -> Iterator[None]:
        """See that the right request is answered after what the block does as it was before."""
        try:
            before = self.reference.outputs
        except NotApplicable:  # answers of this model cannot be compared
            before = None
        yield
        after = wire.infer(self.ask()).outputs
        agree(after, after if before is None else before, of="the next answer")


def read_samples(path: Path) -> tuple[Tensor, ...]:
    """The inputs of a v2 JSON request. Raises `InvalidSource`."""
    try:
        return decode_request(path.read_bytes()).inputs
    except (OSError, SeatrialError) as error:
        raise InvalidSource(f"{path} is not an inference request in JSON: {error}") from error


def _sampled(tensor: Tensor, rows: int, seed: int, *, batched: bool) -> Input:
    """`rows` of the sample from number `seed` on, over and over; all of it where rows are not known."""
    array = tensor.array
    if batched and len(array):
        array = array[(seed + np.arange(rows)) % len(array)]
    return Input(tensor.name, tensor.datatype, array.shape, array)


def _random(tensor: TensorMetadata, rows: int, random: np.random.Generator) -> Input:
    try:
        datatype = DataType(tensor.datatype)
    except ValueError:
        raise NotApplicable(f"input '{tensor.name}' has a datatype that is none: {tensor.datatype}") from None
    shape = tuple(
        size if size >= 0 else rows if axis == 0 else SIZE_WHERE_UNKNOWN for axis, size in enumerate(tensor.shape)
    )
    if math.prod(shape) > MOST_ELEMENTS:
        raise NotApplicable(f"input '{tensor.name}' is {list(shape)}, too large to be made up; give one with --samples")
    return Input(tensor.name, datatype, shape, elements(datatype, shape, random))


def elements(datatype: DataType, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    if datatype is DataType.BF16:
        return (random.random(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if datatype is DataType.BYTES:
        texts = np.empty(shape, object)
        texts[...] = np.vectorize(lambda number: b"text %d" % number, otypes=[object])(random.integers(0, 100, shape))
        return texts
    if datatype.numpy.kind == "f":
        return random.random(shape).astype(datatype.numpy)
    return random.integers(0, 2, shape).astype(datatype.numpy)
