"""The id of a request, and its parameters."""

from seatrial_serving.conformance.check import check
from seatrial_serving.conformance.expectations import agree, expect
from seatrial_serving.conformance.subject import Subject
from seatrial_serving.conformance.wire import Parameters, Wire

AN_HOUR_US = 3_600_000_000


@check("id.echoed", clause="Inference Response: id")
def the_id_comes_back(wire: Wire, subject: Subject) -> None:
    for id_ in ("42", 'an id, with "quotes" and a \\', "Grüße 船", "x" * 1000):
        expect(wire.infer(subject.ask(id=id_)).id, id_, of="id")


@check("id.absent", clause="Inference Response: id, if any was given")
def without_an_id_none_is_made_up(wire: Wire, subject: Subject) -> None:
    expect(wire.infer(subject.ask()).id, "", of="id")


@check("parameters.custom", extension="parameters")
def parameters_that_mean_nothing_change_nothing(wire: Wire, subject: Subject) -> None:
    _changes_nothing(wire, subject, {"seatrial_text": "a", "seatrial_number": 7, "seatrial_switch": True})


@check("parameters.priority", extension="schedule_policy")
def a_priority_of_0_is_the_default(wire: Wire, subject: Subject) -> None:
    _changes_nothing(wire, subject, {"priority": 0})


@check("parameters.timeout", extension="schedule_policy")
def a_timeout_is_in_microseconds_and_may_be_long(wire: Wire, subject: Subject) -> None:
    _changes_nothing(wire, subject, {"timeout": AN_HOUR_US})


def _changes_nothing(wire: Wire, subject: Subject, parameters: Parameters) -> None:
    answer = wire.infer(subject.ask(parameters=parameters))
    agree(answer.outputs, subject.reference.outputs, of=f"with parameters {dict(parameters)}")
