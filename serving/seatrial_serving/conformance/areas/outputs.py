"""Asking for some of the outputs."""

from seatrial_serving.conformance.check import NotApplicable, check
from seatrial_serving.conformance.expectations import agree, expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Output, Wire


@check("outputs.one", clause="Inference Request: outputs")
def asking_for_one_output_gives_just_it(wire: Wire, subject: Subject) -> None:
    for expected in subject.reference.outputs:
        answer = wire.infer(subject.ask(outputs=(Output(expected.name),)))
        expect(answer.names, [expected.name], of="outputs")
        agree(answer.outputs, [expected], of="asked for alone")


@check("outputs.order", clause="Inference Request: outputs, in the order asked for", required=False)
def outputs_come_in_the_order_asked_for(wire: Wire, subject: Subject) -> None:
    names = subject.reference.names[::-1]
    if len(names) < 2:
        raise NotApplicable("the model has one output")
    answer = wire.infer(subject.ask(outputs=tuple(map(Output, names))))
    expect(answer.names, names, of="outputs")


@check("outputs.unknown", clause="Inference, error object")
def an_output_that_is_not_there_is_refused(wire: Wire, subject: Subject) -> str:
    return subject.refused(wire, lambda: wire.infer(subject.ask(outputs=(Output("no_such_output"),))))
