"""Tensors as bytes behind the JSON."""

from collections.abc import Callable
from dataclasses import replace

import orjson

from seatrial_serving.conformance.check import Kind, NotApplicable, check
from seatrial_serving.conformance.expectations import agree, expect
from seatrial_serving.conformance.rest import HEAD_LENGTH, Rest, write
from seatrial_serving.conformance.subject import BINARY, Subject
from seatrial_serving.conformance.wire import Answer, Form, Output

ON = (Kind.REST,)


@check("binary.inputs", extension=BINARY, on=ON)
def inputs_may_be_binary_and_outputs_json(rest: Rest, subject: Subject) -> None:
    ask = replace(subject.json_ask, form=Form.BINARY, parameters={"binary_data_output": False})
    _same(rest.infer(ask), subject, binary=[])


@check("binary.output", extension=BINARY, on=ON)
def an_output_may_be_binary(rest: Rest, subject: Subject) -> None:
    name = subject.reference.names[0]
    answer = rest.infer(subject.ask(outputs=(Output(name, {"binary_data": True}),)))
    expect(sorted(answer.binary), [name], of="binary outputs")
    _agree_on(answer, subject)


@check("binary.outputs", extension=BINARY, on=ON)
def all_outputs_may_be_binary(rest: Rest, subject: Subject) -> None:
    answer = rest.infer(subject.ask(parameters={"binary_data_output": True}))
    _same(answer, subject, binary=subject.reference.names)


@check("binary.but_one", extension=BINARY, on=ON)
def an_output_may_be_json_where_all_are_binary(rest: Rest, subject: Subject) -> None:
    ask = replace(subject.json_ask, parameters={"binary_data_output": True})
    in_json = Output(subject.reference.names[0], {"binary_data": False})
    answer = rest.infer(replace(ask, outputs=(in_json,)))
    expect(sorted(answer.binary), [], of="binary outputs")
    _agree_on(answer, subject)


@check("binary.mixed", extension=BINARY, on=ON)
def one_input_may_be_binary_and_another_json(rest: Rest, subject: Subject) -> None:
    ask = subject.json_ask
    if len(ask.inputs) < 2:
        raise NotApplicable("the model has one input")
    head, [*_, last] = orjson.loads(write(ask)[0]), ask.inputs
    tensor = head["inputs"][-1]
    tensor["parameters"] = {"binary_data_size": len(last.raw)}
    del tensor["data"]
    text = orjson.dumps(head)
    answer = rest.post(ask, text + last.raw, {HEAD_LENGTH: str(len(text))})
    _same(answer, subject, binary=[])


def _same(answer: Answer, subject: Subject, *, binary: list[str]) -> None:
    expect(sorted(answer.binary), sorted(binary), of="binary outputs")
    expect(sorted(answer.names), sorted(subject.reference.names), of="outputs")
    _agree_on(answer, subject)


def _agree_on(answer: Answer, subject: Subject) -> None:
    """The outputs that there are, are those of the reference."""
    agree(answer.outputs, [each for each in subject.reference.outputs if each.name in answer.names], of="this way")


def damaged(id_: str) -> Callable[[Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]]], None]:
    """Register a check that a binary request, changed by the decorated function, is refused."""

    def register(change: Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]]) -> None:
        title = f"a binary request {change.__name__.replace('_', ' ')} is refused"

        @check(f"binary.{id_}", extension=BINARY, title=title, on=ON)
        def it_is_refused(rest: Rest, subject: Subject) -> str:
            ask = subject.ask(form=Form.BINARY)
            body, headers = change(*write(ask))
            return subject.refused(rest, lambda: rest.post(ask, body, headers))

    return register


@damaged("cut_off")
def whose_data_end_too_early(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body[:-1], headers


@damaged("too_long")
def that_has_bytes_of_no_tensor(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body + b"\0", headers


@damaged("head_too_long")
def whose_head_is_said_to_be_longer_than_the_body(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body, headers | {HEAD_LENGTH: str(len(body) + 1)}


@damaged("head_too_short")
def whose_head_is_said_to_end_early(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body, headers | {HEAD_LENGTH: str(int(headers[HEAD_LENGTH]) - 1)}


@damaged("head_no_number")
def whose_head_is_as_long_as_a_word(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body, headers | {HEAD_LENGTH: "many"}


@damaged("head_negative")
def whose_head_is_of_a_negative_length(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    return body, headers | {HEAD_LENGTH: "-1"}


@damaged("size")
def whose_tensor_says_another_size_than_its_shape(body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    length = int(headers[HEAD_LENGTH])
    head = orjson.loads(body[:length])
    head["inputs"][0]["parameters"]["binary_data_size"] -= 1
    text = orjson.dumps(head)
    return text + body[length:-1], {HEAD_LENGTH: str(len(text))}
