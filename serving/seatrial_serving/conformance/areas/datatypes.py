"""Each datatype in every form that it can be sent in: the same tensor, the same answer."""

from dataclasses import replace

from seatrial.tensors import DataType
from seatrial_serving.conformance.check import Kind, NotApplicable, check
from seatrial_serving.conformance.expectations import agree
from seatrial_serving.conformance.subject import BINARY, Subject
from seatrial_serving.conformance.wire import Form, Wire

WITHOUT_JSON = (DataType.FP16, DataType.BF16)


def _forms(wire: Wire, subject: Subject, inputs: set[str]) -> list[Form]:
    half = not inputs.isdisjoint(WITHOUT_JSON) or subject.ask().form is Form.BINARY
    if wire.kind is Kind.GRPC:
        return [Form.PLAIN] if half else [Form.PLAIN, Form.TYPED]
    binary = [Form.BINARY] if BINARY in subject.extensions else []
    return binary if half else [Form.PLAIN, Form.NESTED, *binary]


def _register(datatype: DataType) -> None:
    @check(f"datatypes.{datatype.lower()}", clause="Tensor Data Types", title=f"{datatype} is taken in every form")
    def it_is_taken_in_every_form(wire: Wire, subject: Subject) -> str:
        inputs = {tensor.datatype for tensor in subject.metadata.inputs}
        if datatype not in inputs:
            raise NotApplicable("the model has no such input")
        forms = _forms(wire, subject, inputs)
        for form in forms:
            answer = wire.infer(replace(subject.ask(), form=form))
            agree(answer.outputs, subject.reference.outputs, of=f"{form.name.lower()} {datatype}")
        return ", ".join(form.name.lower() for form in forms)


for _datatype in DataType:
    _register(_datatype)
