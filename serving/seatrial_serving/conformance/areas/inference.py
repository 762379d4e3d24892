"""Answers: complete, and the same however the question is put."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from seatrial.protocol import Tensor
from seatrial_serving.conformance.check import Failed, Kind, NotApplicable, check
from seatrial_serving.conformance.expectations import agree, expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Answer, Ask, Form, TensorMetadata, Wire

ROWS = 3
COMPANY = 16


@check("infer.answer", clause="Inference Response")
def the_answer_has_the_outputs_that_the_metadata_name(wire: Wire, subject: Subject) -> None:
    answer = wire.infer(subject.ask())
    expect(answer.model, subject.model, of="model_name")
    outputs = {output.name: output for output in subject.metadata.outputs}
    expect(sorted(answer.names), sorted(outputs), of="outputs")
    for tensor in answer.outputs:
        _fits(tensor, outputs[tensor.name])


def _fits(tensor: Tensor, metadata: TensorMetadata) -> None:
    expect(str(tensor.datatype), metadata.datatype, of=f"datatype of output '{tensor.name}'")
    shape = tensor.array.shape
    if len(shape) != len(metadata.shape) or any(
        size not in (-1, got) for got, size in zip(shape, metadata.shape, strict=True)
    ):
        raise Failed(found=f"output '{tensor.name}' has shape {list(shape)}", expected=list(metadata.shape))


@check("infer.twice", clause="what every comparison rests on", required=False)
def the_same_request_is_answered_alike(wire: Wire, subject: Subject) -> None:
    agree(wire.infer(subject.ask()).outputs, subject.reference.outputs, of="the next answer")


@check("infer.same", clause="gRPC closely follows HTTP/REST", on=(Kind.GRPC,))
def both_wires_answer_the_same(wire: Wire, subject: Subject) -> None:
    agree(wire.infer(subject.ask()).outputs, subject.reference.outputs, of="over gRPC")


@check("infer.rows", clause="Request Input: a batch is one tensor")
def rows_are_answered_together_as_alone(wire: Wire, subject: Subject) -> None:
    if not subject.batched:
        raise NotApplicable("the model takes no batches")
    subject.see_comparable()
    whole = subject.ask(rows=ROWS)
    together = wire.infer(whole)
    for row in range(ROWS):
        alone = wire.infer(_row(whole, row))
        agree(_row_of(together, row), alone.outputs, of=f"row {row} of {ROWS}")


def _row(ask: Ask, row: int) -> Ask:
    inputs = [each._replace(shape=(1, *each.shape[1:]), array=each.array[row : row + 1]) for each in ask.inputs]
    return replace(ask, inputs=tuple(inputs))


def _row_of(answer: Answer, row: int) -> list[Tensor]:
    return [tensor._replace(array=tensor.array[row : row + 1]) for tensor in answer.outputs]


@check("infer.company", clause="Inference Response: of this request")
def requests_at_once_get_each_their_own_answer(wire: Wire, subject: Subject) -> None:
    subject.see_comparable()
    asks = [subject.ask(seed=number, id=str(number)) for number in range(COMPANY)]
    alone = [wire.infer(ask) for ask in asks]
    with ThreadPoolExecutor(COMPANY) as callers:
        together = list(callers.map(wire.infer, asks))
    for number, (found, expected) in enumerate(zip(together, alone, strict=True)):
        expect(found.id, str(number), of=f"request {number} of {COMPANY} at once: id")
        agree(found.outputs, expected.outputs, of=f"request {number} of {COMPANY} at once")


@check("infer.order", clause="Inference Request: inputs have names")
def inputs_may_come_in_any_order(wire: Wire, subject: Subject) -> None:
    ask = subject.ask()
    if len(ask.inputs) < 2:
        raise NotApplicable("the model has one input")
    turned = wire.infer(replace(ask, inputs=ask.inputs[::-1]))
    agree(turned.outputs, subject.reference.outputs, of="with the inputs the other way round")


@check("infer.nested", clause="Tensor Data: nested or flat", on=(Kind.REST,))
def data_may_be_nested_as_the_shape_says(wire: Wire, subject: Subject) -> None:
    nested = wire.infer(replace(subject.json_ask, form=Form.NESTED))
    agree(nested.outputs, subject.reference.outputs, of="with nested data")


@check("infer.media_type", clause="Inference Response: Content-Type", required=False, on=(Kind.REST,))
def json_is_called_json(wire: Wire, subject: Subject) -> None:
    expect(wire.infer(subject.json_ask).media_type, "application/json", of="Content-Type")


@check("infer.typed", clause="Tensor Data: InferTensorContents", on=(Kind.GRPC,))
def contents_may_be_typed_as_well_as_raw(wire: Wire, subject: Subject) -> None:
    typed = wire.infer(subject.ask(form=Form.TYPED))
    agree(typed.outputs, subject.reference.outputs, of="with typed contents")
