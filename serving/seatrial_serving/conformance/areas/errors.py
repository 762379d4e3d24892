"""Requests that are wrong: each is refused as the caller's mistake, with a message, and the server goes on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from seatrial.tensors import Array, DataType
from seatrial_serving.conformance.check import Kind, NotApplicable, check
from seatrial_serving.conformance.rest import Rest, write
from seatrial_serving.conformance.subject import Subject, elements
from seatrial_serving.conformance.wire import Ask, Input, Wire

CLAUSE = "Inference, error object"
JSON = {"Content-Type": "application/json"}


def mistake(id_: str, *, required: bool = True) -> Callable[[Callable[[Subject], Ask]], None]:
    """Register a check that the request that the decorated function makes is refused."""

    def register(make: Callable[[Subject], Ask]) -> None:
        @check(f"errors.{id_}", clause=CLAUSE, title=f"a request {_words(make)} is refused", required=required)
        def it_is_refused(wire: Wire, subject: Subject) -> str:
            ask = make(subject)
            return subject.refused(wire, lambda: wire.infer(ask))

    return register


def _words(make: Callable[..., object]) -> str:
    return make.__name__.replace("_", " ")


@mistake("model")
def of_a_model_that_is_not_there(subject: Subject) -> Ask:
    return replace(subject.ask(), model=f"no-{subject.model}")


@mistake("input_name")
def with_an_input_of_another_name(subject: Subject) -> Ask:
    return subject.ask().with_first(name="no_such_input")


@mistake("missing_input")
def with_an_input_missing(subject: Subject) -> Ask:
    ask = subject.ask()
    if len(ask.inputs) < 2:
        raise NotApplicable("the model has one input; errors.no_inputs leaves it away")
    return replace(ask, inputs=ask.inputs[1:])


@mistake("no_inputs")
def with_no_inputs(subject: Subject) -> Ask:
    return subject.ask(inputs=())


@mistake("extra_input")
def with_an_input_too_many(subject: Subject) -> Ask:
    ask = subject.ask()
    extra = Input("no_such_input", "FP32", (1,), np.zeros(1, np.float32))
    return replace(ask, inputs=(*ask.inputs, extra))


@mistake("same_input_twice", required=False)
def with_the_same_input_twice(subject: Subject) -> Ask:
    ask = subject.ask()
    return replace(ask, inputs=(*ask.inputs, ask.inputs[0]))


@mistake("datatype")
def with_another_datatype(subject: Subject) -> Ask:
    ask = subject.ask()
    other = DataType.FP32 if ask.inputs[0].datatype == DataType.INT64 else DataType.INT64
    array = elements(other, ask.inputs[0].shape, np.random.default_rng(0))
    return ask.with_first(datatype=other, array=array)


@mistake("datatype_unknown")
def with_a_datatype_that_is_none(subject: Subject) -> Ask:
    return subject.ask().with_first(datatype="FP33")


@mistake("rank")
def with_an_axis_too_many(subject: Subject) -> Ask:
    return _reshaped(subject, lambda array: array[..., np.newaxis])


@mistake("size")
def with_an_axis_too_long(subject: Subject) -> Ask:
    fixed = [axis for axis, size in enumerate(subject.metadata.inputs[0].shape) if size > 0]
    if not fixed:
        raise NotApplicable("the model's first input takes every size")
    return _reshaped(subject, lambda array: np.concatenate([array, array.take([0], fixed[-1])], fixed[-1]))


def _reshaped(subject: Subject, change: Callable[[Array], Array]) -> Ask:
    ask = subject.ask()
    array = change(ask.inputs[0].array)
    return ask.with_first(shape=array.shape, array=array)


@mistake("negative_size")
def with_a_negative_size(subject: Subject) -> Ask:
    ask = subject.ask()
    return ask.with_first(shape=(-1, *ask.inputs[0].shape[1:]))


@mistake("data_short")
def with_too_little_data(subject: Subject) -> Ask:
    ask = subject.ask()
    return ask.with_first(array=ask.inputs[0].array.ravel()[:-1])


@mistake("data_long")
def with_too_much_data(subject: Subject) -> Ask:
    ask = subject.ask()
    array = ask.inputs[0].array.ravel()
    return ask.with_first(array=np.concatenate([array, array[:1]]))


def malformed(id_: str) -> Callable[[Callable[[Subject], bytes]], None]:
    """Register a check that the REST body that the decorated function makes is refused."""

    def register(make: Callable[[Subject], bytes]) -> None:
        @check(f"errors.{id_}", clause=CLAUSE, title=f"a body {_words(make)} is refused", on=(Kind.REST,))
        def it_is_refused(rest: Rest, subject: Subject) -> str:
            body = make(subject)
            return subject.refused(rest, lambda: rest.post(subject.ask(), body, JSON))

    return register


@malformed("not_json")
def that_is_not_json(_: Subject) -> bytes:
    return b"{'inputs': oops"


@malformed("empty")
def that_is_empty(_: Subject) -> bytes:
    return b""


@malformed("not_an_object")
def that_is_a_list(_: Subject) -> bytes:
    return b"[1, 2, 3]"


@malformed("no_field_inputs")
def that_has_no_field_inputs(_: Subject) -> bytes:
    return b"{}"


@malformed("cut_off")
def that_is_cut_off(subject: Subject) -> bytes:
    return write(subject.json_ask)[0][:-10]


@malformed("nan")
def with_a_nan_literal(subject: Subject) -> bytes:
    """JSON has none; a parser that takes it anyway lets a request poison a batch."""
    return _with_first_element(subject, "DIJ").replace(b'"DIJ"', b"NaN")


@malformed("null")
def with_null_for_a_number(subject: Subject) -> bytes:
    return _with_first_element(subject, None)


@malformed("text_for_number")
def with_a_text_for_a_number(subject: Subject) -> bytes:
    if subject.json_ask.inputs[0].datatype == DataType.BYTES:
        return _with_first_element(subject, 7)
    return _with_first_element(subject, "seven")


@malformed("object_for_number")
def with_an_object_for_a_number(subject: Subject) -> bytes:
    return _with_first_element(subject, {})


@malformed("fields_missing")
def with_a_tensor_that_has_only_a_name(subject: Subject) -> bytes:
    return orjson.dumps({"inputs": [{"name": subject.json_ask.inputs[0].name}]})


def _with_first_element(subject: Subject, element: Any) -> bytes:
    body = orjson.loads(write(subject.json_ask)[0])
    body["inputs"][0]["data"][0] = element
    return orjson.dumps(body)
